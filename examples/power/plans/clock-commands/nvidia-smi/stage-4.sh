#!/usr/bin/env bash
# stage-4: apply
# Prints the commands; runs them with --apply (root). DEVICES: indices, for example "0 1 2 3".
set -euo pipefail
apply=0; [ "${1:-}" = "--apply" ] && apply=1
run() { if [ "$apply" = 1 ]; then "$@"; else printf '%q ' "$@"; echo; fi; }
DEVICES="${DEVICES:?indices of the devices, separated by spaces}"
for d in $DEVICES; do
  run nvidia-smi -i "$d" -pm 1
  run nvidia-smi -i "$d" -lgc 0,1350
done
