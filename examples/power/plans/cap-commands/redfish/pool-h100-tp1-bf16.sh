#!/usr/bin/env bash
# pool-h100-tp1-bf16: apply
# Prints the commands; runs them with --apply (root). DEVICES: indices, for example "0 1 2 3".
set -euo pipefail
apply=0; [ "${1:-}" = "--apply" ] && apply=1
run() { if [ "$apply" = 1 ]; then "$@"; else printf '%q ' "$@"; echo; fi; }
BMC="${BMC:?address of the management controller}"
# one path per device; B200: GPU_1 in place of GPU_SXM_1
PATHS="${PATHS:?/redfish/v1/Systems/HGX_Baseboard_0/Processors/GPU_SXM_1/EnvironmentMetrics ...}"
for p in $PATHS; do
  run curl --fail --silent --show-error --netrc -X PATCH -H 'Content-Type: application/json' -d "{\"PowerLimitWatts\":{\"SetPoint\":650}}" "https://$BMC$p"
done
