#!/usr/bin/env bash
# Checks format, lints, documentation, licences and sources, and changes nothing. Called by `make lint`, after setup.
# The order is by price: the cheapest check speaks first.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
step() { printf 'lint: %s\n' "$*" >&2; }

step 'format (repair with: make fix)'
"$cargo" fmt --all -- --check

step 'shell scripts parse'
for script in scripts/*.sh .ci/run; do bash -n "$script"; done

step 'clippy, every target (repair some with: make fix)'
"$cargo" clippy --workspace --all-targets -- -D warnings

step 'documentation without warnings'
RUSTDOCFLAGS="-D warnings" "$cargo" doc --workspace --no-deps --quiet

# The advisory database is on the network, so advisories are left to a machine that has it: `cargo deny check`.
if "$cargo" deny --version >/dev/null 2>&1; then
  step 'licences, bans and sources'
  "$cargo" deny --offline check licenses bans sources
else
  printf 'lint: NOT CHECKED: licences, bans and sources, for cargo-deny is missing (cargo install cargo-deny)\n' >&2
fi
