#!/usr/bin/env bash
# Runs every test of the workspace and ends with one line: how many ran. Called by `make test`, after setup.
# Uses cargo-nextest where it is installed, else `cargo test`. Documentation examples run in both cases.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0

# Adds up cargo's "test result:" lines: those passed and those failed did run.
count_results() {
  awk '/^test result:/ { for (i = 1; i < NF; i++) if ($(i + 1) ~ /^(passed|failed);$/) n += $i } END { print n + 0 }' "$log"
}

# A failure is remembered, not fatal: the other half of the tests still runs.
if "$cargo" nextest --version >/dev/null 2>&1; then
  "$cargo" nextest run --workspace --no-fail-fast 2>&1 | tee "$log" || status=1
  tests=$(sed -n 's/^ *Summary .* \([0-9][0-9]*\)\(\/[0-9]*\)\{0,1\} tests\{0,1\} run:.*/\1/p' "$log" | tail -n 1)
else
  "$cargo" test --workspace --lib --bins --tests --no-fail-fast 2>&1 | tee "$log" || status=1
  tests=$(count_results)
fi
"$cargo" test --workspace --doc --no-fail-fast 2>&1 | tee "$log" || status=1
examples=$(count_results)

if [ "${tests:-0}" -eq 0 ]; then
  printf 'error: no test ran\n\nhint: read the first error above; most likely the build failed\n' >&2
  exit 1
fi
if [ "$status" -eq 0 ]; then verdict='all passed'; else verdict='some FAILED, see above'; fi
printf 'tests: %d ran (%d tests, %d documentation examples), %s\n' \
  "$((tests + examples))" "$tests" "$examples" "$verdict"
exit "$status"
