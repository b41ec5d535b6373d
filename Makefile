# `make` lists the targets. Every target that needs the environment creates it first.

PYTHON ?= python3
# Passed on to the command: `make train ARGS="loss=focal device=cpu"`, `make test ARGS="-k focal"`.
ARGS ?=

BIN := .venv/bin
STAMP := .venv/.installed
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

# Tests that compute: other kernels and thread counts round differently, as other processors do.
NUMERIC := $(wildcard $(addprefix tests/,builders data/test_batches.py decode export/test_compare.py loss model optimizer predict prune \
	scheduler task $(addsuffix .py,$(addprefix test_,divergence ema evaluate invariance loop losses precision pretrained resume targets))))

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help train test test-all test-lowest test-portable lint format docs smoke ci bench-gpu clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit("Python 3.11 to 3.13 is needed: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

train: $(STAMP) ## train; ARGS are its keys (model=..., optimizer.lr=...)
	$(BIN)/trainer train experiment=stdlib_docs $(ARGS)

test: $(STAMP) ## run the tests except the slow ones; ARGS go to pytest
	$(PYTEST) $(ARGS)

test-all: $(STAMP) ## run the slow tests too
	$(PYTEST) -m "not gpu and not trackers and not interop" --hypothesis-profile thorough $(ARGS)

test-lowest: ## run the tests with the lowest versions that pyproject.toml allows, in an environment of their own
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python scripts/lowest.py > .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pip install --quiet --constraint .venv-lowest/constraints.txt --editable '.[dev]'
	.venv-lowest/bin/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal $(ARGS)

test-portable: $(STAMP) ## run the numeric tests with the kernels of other processors, on 1 and 2 threads
	failed=0; for kernels in "default MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41" "avx2 ONEDNN_MAX_CPU_ISA=AVX2"; do for threads in 1 2; do \
		echo "ATEN_CPU_CAPABILITY=$$kernels OMP_NUM_THREADS=$$threads"; \
		env ATEN_CPU_CAPABILITY=$$kernels OMP_NUM_THREADS=$$threads $(PYTEST) $(NUMERIC) $(ARGS) || failed=1; \
	done; done; exit $$failed

lint: $(STAMP) ## style, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(STAMP) ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP) ## write docs/reference from the YAML comments and dataclasses, and build the site in site/
	$(BIN)/python scripts/reference.py
	test -x $(BIN)/zensical || $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/zensical build --clean --strict

smoke: $(STAMP) ## the first hour of docs/start.md, each verb once and short, on the CPU
	$(BIN)/python scripts/first_hour.py --short $(ARGS)

ci: lint smoke test ## run everything that must pass before a change is merged

bench-gpu: $(STAMP) ## measure training on a GPU, with every figure in scripts/results/gpu.json; ARGS go to the script
	$(BIN)/python scripts/bench_gpu.py $(ARGS)

clean: ## delete caches and built packages; .venv and runs/ stay
	rm -rf build dist site .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name .venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
