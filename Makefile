# Two commands: `make report` runs everything and renders it, `make test` checks everything. Both set themselves up.
PYTHON  ?= python3
PROFILE ?= demo
# Where pip finds torch: empty takes your pip's own index. On Linux without a GPU the index of PyTorch's CPU builds saves gigabytes;
# its address stands in the command that https://pytorch.org/get-started/locally shows for "CPU".
TORCH_INDEX ?=
VENV    ?= .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
PIP     := $(BIN)/python -m pip install --quiet --constraint constraints.txt

# Several processes share the cores: threads that wait must not keep others from working. Results are the same.
test check: export OMP_WAIT_POLICY ?= PASSIVE
test check: export OPENBLAS_NUM_THREADS ?= 1

.PHONY: help install announce report render docs test check sync clean clean-runs
.DEFAULT_GOAL := help

help: ## This list
	@echo "distilherbert: the distillation of HerBERT, from raw text to a table with intervals"
	@echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'
	@echo
	@echo "  PROFILE=mini         another profile for 'make report' (default: demo)"
	@echo "  PYTHON=python3.12    another Python, 3.11 or newer (default: python3)"
	@echo "  TORCH_INDEX=URL      where to get torch, such as the index of its CPU builds (pytorch.org/get-started/locally)"

install: $(STAMP) ## Make .venv with everything in it (done once; again when requirements change)

$(STAMP): settings.ini setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "distilherbert needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true)." >&2; \
	  echo "Install one, then name it: make $(or $(MAKECMDGOALS),report) PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "Installing into $(VENV), once. This takes some minutes: about 200 packages, of which torch is the largest."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) setuptools wheel || { echo "Nothing could be installed: is there a network, and does it reach a package index? Then type the same again." >&2; exit 1; }
	@echo "  torch ..."
	@$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	@echo "  everything else ..."
	@$(PIP) --quiet --no-build-isolation --editable '.[dev]'
	@touch $@

announce:
	@echo "make report, profile $(PROFILE): train and score the eight rows S0-S5, T0, T1, then render the report."
	@$(PYTHON) -c 'import json; r = json.load(open("results/$(PROFILE)/commands.json")); \
	  print("Measured: %.0f minutes from nothing on %s (results/$(PROFILE)/commands.json)." \
	  % (r["values"]["cold"] / 60, r["provenance"]["machine"]))' 2>/dev/null || true
	@echo "What is already there is skipped; it can be stopped with Ctrl-C and started again at any time."

report: announce $(STAMP) ## Run all rows of the table (PROFILE=demo), then render the report
	@$(BIN)/distilherbert reproduce --profile $(PROFILE)
	@$(MAKE) --no-print-directory render

render: $(STAMP) ## Render the report from the committed records in results/, nothing is run
	@$(BIN)/python -m distilherbert.report --render _docs

docs: $(STAMP) ## Build the whole site into _docs: with Quarto when it is installed, else plain pages
	@if command -v quarto >/dev/null 2>&1; then $(BIN)/nbdev_docs; \
	else \
	  echo "quarto is not on the PATH, so plain pages are written (pip install quarto-cli gives the full site)."; \
	  $(BIN)/python -m distilherbert.report --pages _docs; fi

check: $(STAMP) ## The quick checks: style, notebooks clean and exported
	@$(BIN)/ruff check .
	@$(BIN)/python -m pytest -q tests/test_notebooks.py

# 05 and 06 train for minutes: the tests run them through papermill, as README shows, while other tests go on beside. What `check` has tested is not
# tested again. The files that take longest begin first (tests/conftest.py).
test: check ## All tests: style, notebooks executed, programs run
	@$(BIN)/nbdev_test --n_workers 2 --timing --skip_file_re '^([_.]|05_distill|06_klej)'
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=15 --ignore tests/test_notebooks.py tests

sync: $(STAMP) ## After editing notebooks: export the modules and clean the notebooks
	@$(BIN)/nbdev_export
	@$(BIN)/nbdev_clean

clean: ## Remove rendered pages and build products (keeps _runs and .venv)
	rm -rf _docs _proc build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .quarto
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

clean-runs: ## Remove every artefact under _runs (the next report starts from nothing)
	find _runs -mindepth 1 -not -name .gitkeep -delete
