# Everything a fresh machine needs, with only Python 3.11-3.13 and make:
#   make demo      install, then run the whole pipeline on real bars
#   make test      install the development tools, then run the tests
#   make coverage  the same, and show the lines that no test ran; takes half as long again
#   make ui        the Dagster UI on http://127.0.0.1:3000
#   make check     format, lint, types, Dagster definitions
#   make bench     the benchmarks behind the numbers in the README
#   make docs      write docs/features.md anew from the declarations
#   make pictures  take the README's pictures anew, as a person sees them in Debian's Chromium

VENV := .venv
BIN := $(VENV)/bin
SUITABLE := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c "$(SUITABLE)" >/dev/null 2>&1 && echo $$p && break; done)
# An environment that forbids compiled bytecode makes every start several times slower.
RUN := env -u PYTHONDONTWRITEBYTECODE
PIP := $(RUN) $(BIN)/python -m pip --disable-pip-version-check --no-input

.PHONY: demo test coverage ui check bench docs pictures lock clean

demo: $(VENV)/run.installed
	@$(RUN) $(BIN)/mt5-crs demo

ui: $(VENV)/run.installed
	@$(RUN) $(BIN)/mt5-crs ui

test: $(VENV)/dev.installed
	$(RUN) $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --no-loadscope-reorder $(COVERAGE)

# Not what the environment may call so.
COVERAGE :=
coverage: COVERAGE := --cov --cov-report=term
coverage: test

check: $(VENV)/dev.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(RUN) $(BIN)/dagster definitions validate -w workspace.yaml

bench: $(VENV)/dev.installed
	@for script in benchmarks/*.py; do echo "== $$script"; $(RUN) $(BIN)/python $$script || exit 1; done

docs: $(VENV)/run.installed
	@$(RUN) $(BIN)/python -c "import pathlib; from mt5_crs_pipeline.core.features.documentation import feature_document; \
		pathlib.Path('docs/features.md').write_text(feature_document(), encoding='utf-8')"

pictures: $(VENV)/dev.installed
	MT5_CRS_SCREENSHOTS=$(CURDIR)/docs $(RUN) $(BIN)/python -m pytest tests/test_ui_in_browser.py

$(VENV)/python.created:
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed; none was found. Name one: make demo PYTHON=/path/to/python3.12"; exit 1; }
	@echo "creating $(VENV) with $(PYTHON) ..."
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# The locked wheels with their hashes, then this package on top of them. Python compiles what it imports when it does:
# most of what is installed is never imported.
$(VENV)/%.installed: requirements/%.lock pyproject.toml $(VENV)/python.created
	@echo "installing the locked packages ($*), a few minutes the first time ..."
	@$(PIP) install --quiet --no-compile --no-deps --require-hashes -r requirements/$*.lock
	@$(PIP) install --quiet --no-deps --editable .
	@touch $@

# Renew the pins; needs uv. No address of a package index is recorded.
LOCK := uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-header --no-annotate --override requirements/overrides.txt --quiet
lock:
	$(LOCK) --extra dev --output-file requirements/dev.lock
	$(LOCK) --constraint requirements/dev.lock --output-file requirements/run.lock

clean:
	rm -rf $(VENV) .mt5_crs .pytest_cache .mypy_cache .ruff_cache .hypothesis htmlcov .coverage .coverage.*
