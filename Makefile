# The one entry point: people, hooks and CI all call these targets. `make` alone explains itself.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
LOWEST := .venv-lowest
DATA   ?= synthetic
STRESS_SECONDS ?= 60
SOAK_MINUTES ?= 120

# One worker more than there are processors, up to eight: with as many, a fifth of their time is spent in waits.
WORKERS ?= $(shell $(PYTHON) -c "import os; print(min((os.cpu_count() or 1) + 1, 8))")
# A file is one worker's, since it shares what it built; in the order that tests/conftest.py wants.
IN_PARALLEL = -n $(WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0
SLOWEST := --durations 10 --durations-min 1

# The tests start many processes of Python, each of which would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

# The extension is rebuilt when any of these changes.
NATIVE := $(shell find rust -name '*.rs' -o -name 'Cargo.toml') Cargo.toml Cargo.lock pyproject.toml

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-rust test-python test-all test-thorough test-bench test-lowest stress fuzz soak proof lint format bars bench bench-compare bench-stage bench-load bench-native wheel wheel-check docs clean

help: ## Show this list
	@echo "aif_jax: pre-ranking by asynchronous inference. Needs Python 3.11+, cargo and make; the rest sets itself up."
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Set up what lint and tests need: dependencies beside a build of the Rust tests
	cargo test --quiet --no-run & $(MAKE) --no-print-directory $(VENV)/.dev && wait $$!

demo: $(VENV)/.demo ## Train, export, index and serve once, and show it (DATA=synthetic, or movielens-1m:PATH, kuairand:PATH)
	$(BIN)/aif demo --data $(DATA)

test: test-rust test-python ## The tests that a build must pass, Rust and Python (five minutes on two cores)

test-rust: setup
	cargo test --quiet

test-python: setup
	$(BIN)/python -m pytest $(IN_PARALLEL) $(if $(THOROUGH),,-m "not thorough") $(SLOWEST)

test-all: THOROUGH = 1
test-all: test test-bench test-lowest ## `make test`, long tests, every benchmark once and small, lowest versions

test-thorough: $(VENV)/.dev ## Tests that are long by nature: real training, the demo, thousands of random sequences
	$(BIN)/python -m pytest $(IN_PARALLEL) -m thorough $(SLOWEST)

test-bench: $(VENV)/.dev ## Every benchmark once, at small sizes: the answers are checked, the times mean nothing
	$(BIN)/python -m pytest bench --quick

# One case of each test: what older versions lack shows in any. With XLA_FLAGS set, though to nothing, tests/conftest.py
# adds no flag of its own, so that what serves is compiled as users compile it.
LOWEST_TESTS = PYTHONPATH=$(CURDIR)/$(LOWEST) $(BIN)/python -m pytest $(IN_PARALLEL) -m "not thorough" --cases 1
test-lowest: $(LOWEST)/.complete ## The tests of all that touches jax and flax, one case each, against the lowest supported versions
	XLA_FLAGS= $(LOWEST_TESTS) tests/kernels tests/nearline/test_device_rows.py tests/native/test_embedding_cache_loans.py \
		$(addprefix tests/serving/test_,$(addsuffix .py,device_stage engine engine_compilation rungs))
	$(LOWEST_TESTS) tests/models tests/training tests/bundle

stress: SANITIZED = RUSTC_BOOTSTRAP=1 AIF_STRESS_SECONDS=$(STRESS_SECONDS) cargo test --quiet -p aif-core \
	--target $(shell rustc -vV | sed -n 's/^host: //p')
stress: $(VENV)/.dev ## Cache, scheduler, engine under faults: long stress tests, loom, sanitizers (STRESS_SECONDS=60 a test)
	@echo "1/5 Concurrent threads, $(STRESS_SECONDS) s a test; random sequences against the model; allocation failures."
	AIF_STRESS_SECONDS=$(STRESS_SECONDS) PROPTEST_CASES=20000 cargo test --quiet -p aif-core --test 'cache_*' --test sched_stress -- --test-threads=1
	@echo "2/5 Loom: all interleavings of small models of cache and scheduler, up to the bound that each model states."
	RUSTFLAGS="--cfg aif_loom" CARGO_TARGET_DIR=target/loom cargo test --quiet --release -p aif-core --lib -- models:: sched::loom xla::parallel
	@echo "3/5 AddressSanitizer and LeakSanitizer: use after free, leaks."
	RUSTFLAGS="-Zsanitizer=address" ASAN_OPTIONS=allocator_may_return_null=1 CARGO_TARGET_DIR=target/asan \
		$(SANITIZED) --lib --test cache_model --test cache_stress --test sched_stress --test untrusted -- --test-threads=1
	@echo "4/5 ThreadSanitizer: data races. The standard library is instrumented too, so that its locks are seen, which needs"
	@echo "    its source: rustup component add rust-src"
	RUSTFLAGS="-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer" TSAN_OPTIONS=allocator_may_return_null=1 \
		CARGO_TARGET_DIR=target/tsan $(SANITIZED) -Zbuild-std --lib --test cache_model --test cache_stress --test sched_stress -- --test-threads=1
	@echo "5/5 An engine under faults: sources that raise, hang, lie and panic, requests given up, loops closed, processes that exit."
	AIF_FAULT_REQUESTS=$$((121 + 30 * $(STRESS_SECONDS))) $(BIN)/python -m pytest tests/stress

fuzz: $(VENV)/.dev ## Every reader of files and messages, or TARGET, on inputs that coverage guides (SECONDS=60 each; needs atheris)
	PYTHONPATH=tests $(BIN)/python -m fuzz.run $(TARGET) --seconds $(or $(SECONDS),60)

soak: $(VENV)/.dev ## An engine under load while all around it changes and fails, every answer checked (SOAK_MINUTES=120)
	$(BIN)/python bench/soak/run.py --minutes $(SOAK_MINUTES) $(if $(RECORD),--record $(RECORD))

proof: ## Short runs of stress, loom, AddressSanitizer and Miri, a minute after a build; steps whose tools are missing are left out
	rust/proof.sh

lint: $(VENV)/.dev ## Formatting, clippy, ruff, types, import contracts, stub, repository checks
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python tests/structure/circles.py
	$(BIN)/python -m mypy.stubtest aif_jax._native
	$(BIN)/python tests/tidy.py
	cargo fmt --all --check
	cargo clippy --quiet --workspace --all-targets -- -D warnings

format: $(VENV)/.dev ## Rewrite the sources in the house format
	cargo fmt --all
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bars: $(VENV)/.dev ## Every bar of the design, measured side by side in one run of ten minutes (TABLE=table.json, STRICT=1)
	$(BIN)/python bench/measure_bars.py $(if $(TABLE),--table $(TABLE)) $(if $(STRICT),--strict)

bench: $(VENV)/.dev ## Everything that is measured from Python, and one report of it: runs/bench/report.md (half an hour)
	$(BIN)/python bench/run_all.py $(if $(QUICK),--quick)

bench-compare: $(VENV)/.dev ## Figures over 10 % worse than in a saved run (BASELINE=bars.json or result.json, CURRENT=...)
	$(BIN)/python bench/compare_runs.py $(BASELINE) $(CURRENT)

bench-stage: $(VENV)/.dev ## The real-time stage beside what people would use instead, and its floor (ten minutes)
	$(BIN)/python bench/compare_stage.py $(if $(RECORD),--record $(RECORD))

bench-load: $(VENV)/.dev ## The engine under load: overlap, open-loop load beside other ways, publishes (a quarter of an hour)
	$(BIN)/python bench/overlap.py $(if $(RECORD),--record $(RECORD)-overlap.md)
	$(BIN)/python bench/open_loop.py $(if $(RECORD),--record $(RECORD)-open-loop.md)
	$(BIN)/python bench/publish.py $(if $(RECORD),--record $(RECORD)-publish.md)

bench-native: $(VENV)/.dev ## The embedding cache beside other crates, in Rust (a quarter of an hour)
	cargo bench -p aif-bench
	$(BIN)/python bench/native/summary.py
	cargo run --quiet --release -p aif-bench --bin beside_writer
	cargo run --quiet --release -p aif-bench --bin memory
	cargo run --quiet --release -p aif-bench --bin hit_rate

wheel: $(VENV)/.dev ## Build the wheel into dist/
	rm -f dist/*.whl
	$(BIN)/maturin build --release --out dist

wheel-check: wheel ## Install the wheel into new environments without cargo; run the demo and docs/getting-started.md from it
	$(BIN)/python tests/wheel_check.py dist/*.whl

docs: $(VENV)/.dev ## The documentation site into build/docs, broken links refused, and the Rust API into target/doc
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --quiet -p aif-core
	@echo "Site: build/docs/index.html   Rust: target/doc/aif_core/index.html"

clean: ## Remove what the other targets made (not the cargo cache)
	rm -rf $(VENV) $(LOWEST) dist build runs

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "aif_jax needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; pass another with: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# With pip leaves out to compile thousands of modules that nothing imports.
$(VENV)/.demo: $(VENV)/bin/python $(NATIVE)
	@echo "Setting up $(VENV): dependencies, then the Rust extension (a few minutes the first time)."
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python $(NATIVE)
	@echo "Setting up $(VENV): dependencies, then the Rust extension (a few minutes the first time)."
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.demo

# Packages that hide those of $(VENV), which has the rest; the check is that the rest, and this package, allow them.
$(LOWEST)/.complete: requirements-lowest.txt $(VENV)/.dev
	rm -rf $(LOWEST)
	$(BIN)/python -m pip install --quiet --no-deps --target $(LOWEST) --requirement requirements-lowest.txt
	PYTHONPATH=$(CURDIR)/$(LOWEST) $(BIN)/python -m pip check
	@touch $@
