#!/usr/bin/env bash
# Measures speed and memory beside PyTorch and bare iroh, each pair in one run, and prints rows for BENCHMARKS.md.
# Called by `make bench`, after setup. Usage: bench.sh [stage|message|swarm|memory|codec|allreduce|outer|churn|forecast]... ; all by default.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
target=${CARGO_TARGET_DIR:-target}
python_path=$(sed -n 's/^TRESTLE_PYTHONPATH = "\(.*\)"/\1/p' .cargo/config.toml)
export PYTHONPATH=$python_path OMP_WAIT_POLICY=PASSIVE
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
say() { printf 'bench: %s\n' "$*" >&2; }
[ $# -gt 0 ] || set -- stage message swarm memory codec allreduce outer churn forecast

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

codec() {
  say 'the codecs of the outer step, and what an outer step holds'
  build -p trestle-model --example codec_speed
  "$target/release/examples/codec_speed" >"$work/codec"
  python3 scripts/bench_rows.py codec "$work/codec"
  build -p trestle-cli
  for codec in f32 bf16 int8 sparseloco; do
    python3 scripts/allreduce_bench.py memory "$target/release/trestle" "$codec"
  done
}

# Four processes on loopback: our committed outer step, gloo's all-reduce and hivemind's averager, in turns. hivemind brings a
# torch of its own, so it gets an environment of its own, once.
allreduce() {
  build -p trestle-cli
  local cache=${TRESTLE_CACHE:-$HOME/.cache/trestle}/hivemind-1.1.12
  if [ ! -x "$cache/bin/python" ]; then
    say 'installing hivemind 1.1.12, once'
    python3 -m venv "$cache"
    "$cache/bin/pip" install --quiet hivemind==1.1.12
  fi
  local bench=scripts/allreduce_bench.py
  for parameters in 8388608 33554432; do
    for turn in 1 2; do
      say "all-reduce of $parameters numbers, turn $turn of 2"
      for codec in f32 bf16; do
        python3 "$bench" ours "$target/release/trestle" "$parameters" "$codec" >>"$work/allreduce.$parameters"
      done
      OMP_NUM_THREADS=1 python3 "$bench" gloo "$parameters" >>"$work/allreduce.$parameters"
      # A round in which hivemind's group does not form costs a turn, not the benchmark.
      PYTHONPATH='' OMP_NUM_THREADS=1 "$cache/bin/python" "$bench" hivemind "$parameters" >>"$work/allreduce.$parameters" ||
        say 'hivemind finished no round'
    done
    python3 scripts/bench_rows.py allreduce "$work/allreduce.$parameters"
  done
}

# What computing sees of the outer step: the same run with the exchange beside training, and waited for.
outer() {
  build -p trestle-cli
  local flags=(--replicas 3 --steps 60 --set sync.rule=mean --set evaluation.every=0 --set checkpoint.every=0)
  for turn in 1 2 3; do
    for overlap in true false; do
      say "outer steps, overlap $overlap, turn $turn of 3"
      "$target/release/trestle" train runs/demo.toml --dir "$work/outer.$overlap.$turn" --json --set "sync.overlap=$overlap" \
        "${flags[@]}" >"$work/outer.$overlap.$turn.json"
    done
  done
  python3 scripts/bench_rows.py outer "$work"/outer.true.?.json "$work"/outer.false.?.json
}

# What is left of the speed while replicas are killed and replaced, how long their work is away, and how fast others join; each
# peer has a tenth of a core. The second run has less work in an outer step, so that joining waits less for its border.
churn() {
  if [ "$(id -u)" -ne 0 ]; then
    say 'churn is left out: a share of a core for each peer needs root'
    return
  fi
  build -p trestle-cli
  local flags=(runs/demo.toml --replicas 3 --steps 100000 --set pipeline.microbatch_size=2 --set evaluation.every=0 --set checkpoint.every=0)
  say 'replicas killed every 20 s, and replaced'
  python3 scripts/churn_bench.py "$target/release/trestle" "${flags[@]}" --set pipeline.microbatches_per_step=8 \
    --set sync.inner_steps=2 --set sync.delay=1 >"$work/churn"
  say 'peers that join, with less work in an outer step'
  python3 scripts/churn_bench.py "$target/release/trestle" "${flags[@]}" --calm 3 --every 3 --kills 0 --joins 3 \
    --set pipeline.microbatches_per_step=2 --set model.sequence_len=16 --set sync.inner_steps=2 --set sync.delay=1 >"$work/joins"
  python3 scripts/bench_rows.py churn "$work/churn" "$work/joins"
}

# Forecasts, for peers with a tenth of a core each, against swarms of such peers; and how long a plan takes.
forecast() {
  if [ "$(id -u)" -ne 0 ]; then
    say 'forecasts are left out: a share of a core for each peer needs root'
    return
  fi
  build -p trestle-cli
  say 'forecasts, and what they are of'
  python3 scripts/forecast_bench.py "$target/release/trestle" runs/demo.toml --steps 100000 --calm 90 --set pipeline.microbatch_size=8 \
    --set evaluation.every=0 --set checkpoint.every=0 --set pipeline.microbatches_per_step=8 --set sync.inner_steps=2 \
    --set sync.delay=1 >"$work/forecast"
  python3 scripts/bench_rows.py forecast "$work/forecast"
}

for part in "$@"; do
  case $part in
    stage | message | swarm | memory | codec | allreduce | outer | churn | forecast) "$part" ;;
    *) printf 'error: no benchmark is called %s\n\nhint: stage, message, swarm, memory, codec, allreduce, outer, churn or forecast\n' "$part" >&2; exit 2 ;;
  esac
done
