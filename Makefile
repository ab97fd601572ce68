# Two commands: `make report` runs everything and renders it, `make test` checks it. Both set themselves up.
PYTHON  ?= python3
PROFILE ?= demo
# Where pip finds torch: empty takes your pip's own index. On Linux without a GPU the index of PyTorch's CPU builds saves gigabytes;
# its address stands in the command that https://pytorch.org/get-started/locally shows for "CPU".
TORCH_INDEX ?=
VENV    ?= .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
PIP     := $(BIN)/python -m pip install --quiet --constraint constraints.txt
PYTEST  := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=15 --ignore tests/test_notebooks.py
# Tests run side by side: a thread that waits must not keep another process from working. Results are the same.
QUIET_THREADS := OMP_WAIT_POLICY=PASSIVE OPENBLAS_NUM_THREADS=1

.PHONY: help install announce report render docs records readme test test-all check lessons sync clean clean-runs
.DEFAULT_GOAL := help

help: ## This list
	@echo "distilherbert: distil BERT, from raw text to a table of scores with intervals"
	@echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'
	@echo
	@echo "  PROFILE=real         another profile for 'make report' and 'make records' (default: demo)"
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
	@$(PIP) setuptools wheel || { echo "Nothing could be installed: is there a network, and does it reach a package index? Then run the command again." >&2; exit 1; }
	@echo "  torch ..."
	@$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	@echo "  everything else ..."
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@command -v quarto >/dev/null || $(BIN)/python -m pip install --quiet quarto-cli >/dev/null 2>&1 || \
	  echo "  Quarto could not be downloaded: pages will be rendered with pandoc, without search."
	@touch $@

announce:
	@echo "make report, profile $(PROFILE): train and score every scenario of the table, then render the report."
	@$(PYTHON) -c 'import json; r = json.load(open("results/$(PROFILE)/commands.json")); \
	  print("Measured: %.0f minutes from nothing on %s (results/$(PROFILE)/commands.json)." \
	  % (r["values"]["cold"] / 60, r["provenance"]["machine"]))' 2>/dev/null || true
	@echo "Finished parts are skipped; stop with Ctrl-C and run the command again at any time."

report: announce $(STAMP) ## Run all scenarios (PROFILE=demo), then render the report from the records of this run
	@$(BIN)/distilherbert reproduce --profile $(PROFILE)
	@$(BIN)/python tools/pages.py render --own

render: $(STAMP) ## Render the report from the committed records in results/; nothing is trained
	@$(BIN)/python tools/pages.py render

docs: $(STAMP) ## Build the whole site into _docs from the stored outputs; nothing is executed
	@$(BIN)/python tools/pages.py docs

records: $(STAMP) ## Move the records of your own runs (PROFILE=demo) into results/, and make the report's pages and README from them
	@$(BIN)/distilherbert records --profile $(PROFILE)
	@$(MAKE) --no-print-directory readme

readme: $(STAMP) ## Execute the report's pages in place on the committed records, then write README.md
	@$(BIN)/python tools/pages.py readme

check: $(STAMP) ## The quick checks: style, notebooks clean and exported
	@$(BIN)/ruff check .
	@$(BIN)/python -m pytest -q tests/test_notebooks.py

lessons: $(STAMP)
	@$(QUIET_THREADS) DISTILHERBERT_FIGURES=$$(mktemp -d) $(BIN)/nbdev_test --n_workers 2 --timing --skip_file_re '^([_.]|05_distill|06_klej)'

test: check lessons ## The quick tests: style, notebooks executed, the library; five to ten minutes on two cores
	@$(QUIET_THREADS) $(PYTEST) -m 'not slow' tests

test-all: check lessons ## All tests: also README and guides as a reader types them, benchmarks, ZeRO-2, Spark, a browser
	@$(QUIET_THREADS) $(PYTEST) tests

sync: $(STAMP) ## After editing notebooks: export the modules and clean the notebooks
	@$(BIN)/nbdev_export
	@$(BIN)/nbdev_clean

clean: ## Remove rendered pages and build products (keeps _runs and .venv)
	rm -rf _docs _proc build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .quarto
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

clean-runs: ## Remove every artefact under _runs (the next report starts from nothing)
	find _runs -mindepth 1 -not -name .gitkeep -delete
