#!/usr/bin/env bash
# Runs each given scenario in the simulator and ends with one line: how many passed. Called by `make sim`.
# Usage: scripts/sim.sh TRESTLE SCENARIO...
set -euo pipefail
cd "$(dirname "$0")/.."

trestle=${1:?usage: scripts/sim.sh TRESTLE SCENARIO...}
shift
if [ "$#" -eq 0 ]; then
  printf 'error: no scenario to run\n\nhint: put one in sim/scenarios, or name some: make sim SCENARIOS="a b"\n' >&2
  exit 1
fi

failed=()
for scenario in "$@"; do
  printf 'sim: %s\n' "$scenario" >&2
  "$trestle" simulate "$scenario" || failed+=("$scenario")
done
printf 'sim: %d scenarios ran, %d failed\n' "$#" "${#failed[@]}" >&2
for scenario in ${failed[@]+"${failed[@]}"}; do
  printf 'sim: FAILED, repeat with: %s simulate %s\n' "$trestle" "$scenario" >&2
done
[ "${#failed[@]}" -eq 0 ]
