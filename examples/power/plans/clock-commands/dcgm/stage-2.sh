#!/usr/bin/env bash
# stage-2: apply
# Prints the commands; runs them with --apply (root). DEVICES: indices, for example "0 1 2 3".
set -euo pipefail
apply=0; [ "${1:-}" = "--apply" ] && apply=1
run() { if [ "$apply" = 1 ]; then "$@"; else printf '%q ' "$@"; echo; fi; }
GROUP="${GROUP:?number of a DCGM group: dcgmi group -c NAME; dcgmi group -g N -a 0,1,2,3}"
run dcgmi config -g "$GROUP" --set -a "${MEMORY_MHZ:?memory clock: nvidia-smi -q -d SUPPORTED_CLOCKS},1350"
run dcgmi config -g "$GROUP" --get
