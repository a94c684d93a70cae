#!/usr/bin/env bash
# Trains runs/tiny.toml in one process for each boundary width and optimizer, on the same samples, and prints one JSON
# object a run: the table of docs/boundary.md. Usage: boundary_table.sh TEXT FOLDER [STEPS [MICROBATCHES [SEED]]], with
# OPTIMIZERS="adamw muon" and JOBS=2 to choose from and to run at a time.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,4p' "$0" >&2; exit 2; }
text=$(realpath "$1") folder=$2 steps=${3:-300} microbatches=${4:-2} seed=${5:-1}
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
trestle=${TRESTLE:-$target/release/trestle} one_process=${ONE_PROCESS:-$target/release/examples/one_process}
optimizers=${OPTIMIZERS:-adamw muon}
mkdir -p "$folder"

# Writes the spec of a run without training it: a coordinator that is told to stop before anyone joins.
prepare() {
  local name=$1
  shift
  timeout --signal=INT 2 "$trestle" serve runs/tiny.toml --data "$text" --dir "$folder/$name" --listen 127.0.0.1:0 \
    --steps "$steps" --seed "$seed" --set "pipeline.microbatches_per_step=$microbatches" --set evaluation.every=0 \
    --set evaluation.microbatches=48 "$@" >"$folder/$name.log" 2>&1 || true
  [ -f "$folder/$name/spec.json" ] || { cat "$folder/$name.log" >&2; exit 1; }
}

one() {
  local name=$1
  [ ! -s "$folder/$name.json" ] || return 0
  "$one_process" train "$folder/$name" 1 >"$folder/$name.json.partial"
  mv "$folder/$name.json.partial" "$folder/$name.json"
}

for optimizer in $optimizers; do
  prepare "$optimizer-dense" --set "optimizer.kind=$optimizer" --set boundary.form=none --set boundary.width=256 --set boundary.wire=f32
  for width in 256 32 16; do
    prepare "$optimizer-k$width" --set "optimizer.kind=$optimizer" --set "boundary.width=$width"
  done
done
# Two at a time, of one thread each.
export -f one
export folder one_process
for optimizer in $optimizers; do printf "$optimizer-%s\n" dense k32 k16 k256; done | xargs -P "${JOBS:-2}" -I{} bash -c 'one {}'
for result in "$folder"/*.json; do
  printf '%s %s\n' "$(basename "$result" .json)" "$(python3 -c "import json, sys; r = json.load(open(sys.argv[1])); print(r['held_out'], round(r['tokens_per_second']))" "$result")"
done
