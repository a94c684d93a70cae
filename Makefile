# Everything a contributor types. Each target works in a fresh clone: nothing has to be exported first.

CARGO ?= cargo
# Cargo's own variable moves the build folder; the demo has to look in the same place.
CARGO_TARGET_DIR ?= target
TRESTLE := $(CARGO_TARGET_DIR)/release/trestle
# Further words for `trestle train` in the demo, such as `make demo DEMO_FLAGS='--seed 2'`; each demo begins anew.
DEMO_FLAGS ?=
SCENARIOS ?= $(sort $(wildcard sim/scenarios/*))

.DEFAULT_GOAL := help
.PHONY: setup demo test lint guards bench sim docs fix clean help trestle

setup: ## Find or fetch libtorch (once) and point cargo at it
	@./scripts/setup.sh

trestle: setup
	$(CARGO) build --release -p trestle-cli

demo: trestle ## Train a small model over twelve processes, kill one, and prove that no token is lost
	rm -rf trestle-run/demo
	$(TRESTLE) train runs/demo.toml --dir trestle-run/demo --chaos kill-one-at=60 $(DEMO_FLAGS)
	$(TRESTLE) inspect ledger trestle-run/demo

test: setup ## Run every test and print how many ran
	@CARGO="$(CARGO)" ./scripts/test.sh

lint: setup ## Check format, lints, documentation, licences and sources; change nothing
	@CARGO="$(CARGO)" ./scripts/lint.sh

guards: setup ## Delete each guard of the core in a copy, and see its test turn red
	@CARGO="$(CARGO)" python3 scripts/guards.py

bench: setup ## Measure speed and memory beside PyTorch, for BENCHMARKS.md
	@CARGO="$(CARGO)" ./scripts/bench.sh

sim: trestle ## Run every scenario of sim/scenarios in the simulator
	@./scripts/sim.sh "$(TRESTLE)" $(SCENARIOS)

docs: setup ## Build the documentation of every crate
	$(CARGO) doc --workspace --no-deps
	@printf 'open %s\n' "$(CARGO_TARGET_DIR)/doc/trestle_protocol/index.html" >&2

fix: setup ## Apply the lints that can fix themselves, then the format
	$(CARGO) clippy --fix --allow-dirty --allow-staged --workspace --all-targets
	$(CARGO) fmt --all

clean: ## Remove what was built; runs, checkpoints and the libtorch cache stay
	$(CARGO) clean

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s  %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
