#!/usr/bin/env bash
# Measures what agreeing every H steps, and each codec, costs in held-out loss, and prints the table of docs/outer-quality.md.
# Usage: outer_quality.sh TEXT [STEPS] [SEEDS]; TEXT is a file of text. 2000 steps and 3 seeds take one core two hours.
set -euo pipefail
[ $# -ge 1 ] || { printf 'usage: outer_quality.sh TEXT [STEPS] [SEEDS]\n' >&2; exit 2; }
text=$(realpath "$1") steps=${2:-2000} seeds=${3:-3}
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
"$cargo" build --release --quiet -p trestle-model --example outer_quality
program=${CARGO_TARGET_DIR:-target}/release/examples/outer_quality
export OMP_NUM_THREADS=1
found=$(mktemp)
trap 'rm -f "$found"' EXIT

while read -r arguments; do
  for seed in $(seq "$seeds"); do
    printf 'outer_quality: %s, seed %s of %s\n' "$arguments" "$seed" "$seeds" >&2
    # shellcheck disable=SC2086 # the arguments are words
    "$program" "$text" $arguments --lr 6e-3 --group 2 --steps "$steps" --seed "$seed" >>"$found"
  done
done <<'END'
--h 1 --exchange gradients --rule mean
--h 10 --rule mean
--h 10 --rule mean --codec bf16
--h 10 --rule mean --codec int8
--h 10 --rule plain --lr-outer 2.5 --error-decay 0.85 --codec sparseloco
--h 10 --rule mean --delay 2
END
python3 scripts/outer_quality.py "$found"
