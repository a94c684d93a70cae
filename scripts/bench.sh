#!/usr/bin/env bash
# Measures speed and memory beside PyTorch and bare iroh, each pair in one run, and prints rows for BENCHMARKS.md.
# Called by `make bench`, after setup. Usage: bench.sh [stage|message|swarm|memory]... ; all of them by default.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
target=${CARGO_TARGET_DIR:-target}
python_path=$(sed -n 's/^TRESTLE_PYTHONPATH = "\(.*\)"/\1/p' .cargo/config.toml)
export PYTHONPATH=$python_path OMP_WAIT_POLICY=PASSIVE
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
say() { printf 'bench: %s\n' "$*" >&2; }
[ $# -gt 0 ] || set -- stage message swarm memory

build() { "$cargo" build --release --quiet "$@"; }

# Takes turns, ours then theirs, so that a drift of the machine's speed falls on both.
stage() {
  build -p trestle-model --example stage_speed
  for dtype in f32 bf16; do
    for turn in 1 2 3; do
      say "one stage, $dtype, turn $turn of 3"
      "$target/release/examples/stage_speed" "$dtype" 2 20 >>"$work/stage.$dtype.ours"
      python3 crates/model/tests/parity/stage_speed.py "$dtype" 2 20 >>"$work/stage.$dtype.theirs"
    done
    python3 scripts/bench_rows.py stage "$dtype" "$work/stage.$dtype.ours" "$work/stage.$dtype.theirs"
  done
}

message() {
  say 'a message of 2.2 MB over loopback'
  build -p trestle-net --example message_bench
  "$target/release/examples/message_bench" >"$work/message"
  python3 scripts/bench_rows.py message "$work/message"
}

# The same model, samples and first weights: four processes of one thread against one PyTorch process of two.
swarm() {
  build -p trestle-cli
  build -p trestle-node --example one_process
  local flags=(--steps 25 --set training.warmup_steps=5 --set data.source=generated --set data.tokens=4000000 --set evaluation.every=0 --set checkpoint.every=0)
  for turn in 1 2; do
    say "the swarm, async, turn $turn of 2"
    "$target/release/trestle" train runs/tiny.toml --dir "$work/swarm.$turn" --json --set pipeline.schedule=async "${flags[@]}" \
      >"$work/swarm.$turn.ours"
    [ -d "$work/export" ] || "$target/release/examples/one_process" export "$work/swarm.1" "$work/export" >"$work/export.json"
    python3 crates/model/tests/parity/train_reference.py --weights "$work/export/weights.safetensors" \
      --tokens "$work/export/tokens.bin" --held-out "$work/export/held_out.bin" --config "$work/export/config.json" \
      --steps 25 --batch "$(python3 -c "import json; print(json.load(open('$work/export.json'))['batch'])")" \
      --microbatches "$(python3 -c "import json; print(json.load(open('$work/export.json'))['microbatches'])")" \
      --threads 2 --every 0 >"$work/swarm.$turn.theirs"
  done
  python3 scripts/bench_rows.py swarm "$work"/swarm.?.ours "$work"/swarm.?.theirs
}

memory() {
  say 'memory of a worker against the sum on paper'
  build -p trestle-cli
  python3 scripts/bench_memory.py "$target/release/trestle" "$work/memory"
}

for part in "$@"; do
  case $part in
    stage | message | swarm | memory) "$part" ;;
    *) printf 'error: no benchmark is called %s\n\nhint: stage, message, swarm or memory\n' "$part" >&2; exit 2 ;;
  esac
done
