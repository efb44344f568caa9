# Needs make and Python 3.11 or newer. The first target that is called makes .venv; `rm -r .venv` starts afresh.
#
#   make demo                                           embedded data
#   make demo DATA=cells.h5ad LABEL=cell_type           your own; also BATCH=, EPOCHS=, OUT=
#   make test      make lint      make docs
#   make browser-test                                   make docs, then every page in chromium (apt-get install chromium)
#   make dist                                           the wheel and the source archive, checked and tried
#   make coverage                                       make test, with the share of the code that tests run
#   make bench DATA=DIR                                 the tables of docs/benchmarks/
#   make clean

SHELL := /bin/sh
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install -c constraints.txt
BENCHMARKS ?= embedding masked perturbation grn transfer annotation biostate phenotype decoder blood speed scale

.DEFAULT_GOAL := help
.PHONY: help demo test coverage lint bench no-data docs browser-test dist clean

help:
	@sed -n 's/^#   //p' Makefile

demo: $(VENV)/.installed
	$(PY) -m scbioformers demo $(if $(DATA),--data "$(DATA)") $(if $(LABEL),--label-key "$(LABEL)") \
	  $(if $(BATCH),--batch-key "$(BATCH)") $(if $(EPOCHS),--max-epochs "$(EPOCHS)") $(if $(OUT),--out "$(OUT)")

test: $(VENV)/.installed
	$(PY) -m pytest -n 2 --dist loadfile $(PYTEST)

coverage: PYTEST = --cov=scbioformers --cov-report=term-missing:skip-covered --cov-fail-under=90
coverage: test

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

bench: $(if $(DATA),,no-data) $(VENV)/.installed-bench
	for name in $(BENCHMARKS); do $(PY) -m benchmarks.$$name --data "$(DATA)" || exit 1; done

no-data:
	@echo 'Where are the data sets? make bench DATA=DIR' >&2; exit 1

docs: $(VENV)/.installed-doc
	rm -rf docs/api
	$(PY) -m sphinx -W --keep-going -b html docs docs/_build/html

# chromium is a program of the system; without it the test is skipped, and says so
browser-test: docs $(VENV)/.installed-browser
	$(PY) -m pytest -q -rs docs/test_site.py

# the wheel is tried in an environment that has nothing else, outside of the source: the quick start, as it is written
dist: $(VENV)/.installed-release
	rm -rf dist $(VENV)-dist
	$(PY) -m build --no-isolation --outdir dist
	$(PY) -m twine check --strict dist/*
	$(PY) -m venv $(VENV)-dist
	@if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then \
	  $(VENV)-dist/bin/$(subst $(VENV)/bin/,,$(PIP)) --quiet --no-deps --retries 0 \
	    --extra-index-url https://download.pytorch.org/whl/cpu torch; fi
	$(VENV)-dist/bin/$(subst $(VENV)/bin/,,$(PIP)) --quiet "$$(ls dist/*.whl)[demo]"
	$(VENV)-dist/bin/python -I dev/try_wheel.py
	rm -rf $(VENV)-dist

clean:
	rm -rf demo_output docs/_build docs/api docs/tutorials dist .coverage
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis lightning_logs

# Without an NVIDIA driver torch comes first and alone, from the index of CPU builds: PyPI's build for Linux draws in
# gigabytes of CUDA. Where that index is out of reach, pip says so and goes on with the other indexes.
$(VENV)/.installed: pyproject.toml constraints.txt | $(PY)
	@if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then \
	  $(PIP) --quiet --no-deps --retries 0 --extra-index-url https://download.pytorch.org/whl/cpu torch; fi
	$(PIP) --quiet -e ".[demo,test,dev]"
	@touch $@

$(VENV)/.installed-%: $(VENV)/.installed
	$(PIP) --quiet -e ".[$*]"
	@touch $@

$(PY):
	@for python in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "Creating $(VENV) with $$($$python --version)"; \
	    $$python -m venv $(VENV) || rm -rf $(VENV); test -x $@; exit; \
	  fi; \
	done; \
	echo 'scbioformers needs Python 3.11 or newer, and no such python3 is on the PATH.' >&2; \
	echo 'Install one, or name it: make PYTHON=/path/to/python3.12' >&2; exit 1
