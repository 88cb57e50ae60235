#!/usr/bin/env bash
# stage-3: apply
# Prints the commands; runs them with --apply (root). DEVICES: indices, for example "0 1 2 3".
set -euo pipefail
apply=0; [ "${1:-}" = "--apply" ] && apply=1
run() { if [ "$apply" = 1 ]; then "$@"; else printf '%q ' "$@"; echo; fi; }
JOB="${JOB:?job script to submit}"
run sbatch --gpu-freq=1350 "$JOB"
