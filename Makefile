# Each target sets up what it needs. PYTHON chooses the interpreter (3.11 or later).
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
# Tests of one file stay together, since they share servers. ARGS="-n 0": all in one process, for a debugger.
WORKERS := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder --max-worker-restart 0
LOCK := $(BIN)/python -m uv pip compile --universal --generate-hashes --no-emit-index-url --no-header --quiet

# Every command starts processes: each would compile all modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo test check bench fuzz faults soak pictures schemas lock audit sbom clean
.DELETE_ON_ERROR:

help: ## show this
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 10

install: $(STAMP) ## set up .venv with the locked dependencies

demo: $(STAMP) ## a bad model version blocked and rolled back, on embedded servers
	@$(BIN)/holdfast demo

test: $(STAMP) ## run the tests but the slow ones, on a real Kafka where one can be had; HOLDFAST_TEST_ALL=1: all of them
	@$(BIN)/python -m pytest $(WORKERS) $(ARGS)

check: $(STAMP) ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: $(STAMP) ## speed against a raw pass-through and peers, on a real Kafka: make bench ARGS="throughput --rounds 2"
	@$(BIN)/python benchmarks/run.py $(ARGS)

fuzz: $(STAMP) ## a million mutated events through decode and judge, against the reference
	@HOLDFAST_TEST_FUZZ_EVENTS=$${HOLDFAST_TEST_FUZZ_EVENTS:-1000000} $(BIN)/python -m pytest tests/fuzz $(ARGS)

faults: $(STAMP) ## break it in every way for an hour; figures to benchmarks/results/faults.md
	@HOLDFAST_TEST_FAULTS=long $(BIN)/python -m pytest tests/faults --durations=0 $(ARGS)

soak: $(STAMP) ## half of what the machine can do, and nothing grows: make soak ARGS="--minutes 60 --rate 3500"
	@$(BIN)/python benchmarks/soak.py $(ARGS)

pictures: $(STAMP) ## draw docs/*.png of the console
	@mkdir -p docs
	@HOLDFAST_TEST_PICTURES=docs $(BIN)/python -m pytest tests/e2e/test_console.py -k picture

schemas: $(STAMP) ## write schemas/v1
	$(BIN)/holdfast schemas schemas/v1

audit: $(STAMP) ## known vulnerabilities in the locked dependencies; HOLDFAST_AUDIT_REQUIRED=1: fails where they cannot be looked up
	@.ci/audit

sbom: $(STAMP) ## what the image is made of, as CycloneDX, to dist/; with Docker, its Debian packages too
	@mkdir -p dist
	@$(BIN)/python .ci/sbom dist/holdfast.cdx.json

lock: $(STAMP) ## resolve pyproject.toml into requirements.lock, and what builds the image and a peer of the benchmarks need
	$(LOCK) pyproject.toml --all-extras --group dev -o requirements.lock
	$(LOCK) deploy/build.in --constraint requirements.lock -o deploy/build.lock
	$(LOCK) benchmarks/peers/quix.in -o benchmarks/peers/quix.lock

clean: ## remove .venv and every cache
	rm -rf .venv .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache dist
	find services schemas tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

$(STAMP): requirements.lock deploy/build.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Holdfast needs Python 3.11 or later, and $(PYTHON) is older or missing. Name another: make PYTHON=python3.12" >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "This Python cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv" >&2; \
	  exit 1; }
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement deploy/build.lock
	@$(BIN)/python -m uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	@$(BIN)/python -m uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@
