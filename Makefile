# Needs only python3 (3.11 or newer) with its venv module, and a network.
#   make demo    install the core into .venv-slim and look at, convert and check real checkpoints
#   make test    install everything into .venv, and the bare core into .venv-slim; run all tests
#   make check   the same with formatting, lint and types
#   make bench   measure against cp on files of 1.4 GB; bench-average: against cat and cp; bench-prune: cp and torch

PYTHON ?= python3
PIP = -m pip install --quiet --disable-pip-version-check
SLIM = .venv-slim/bin/python
FULL = .venv/bin/python

.PHONY: demo test slim full check lint types bench bench-average bench-prune bench-quantize clean

.venv/.ready: pyproject.toml constraints.txt tests/judges.txt
	$(PYTHON) -m venv .venv
	$(FULL) $(PIP) -c constraints.txt --editable '.[dev]'
	$(FULL) $(PIP) --no-deps --upgrade --target .venv/judges -r tests/judges.txt
	$(FULL) -m compileall -q src
	touch $@

.venv-slim/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-slim
	$(SLIM) $(PIP) --editable '.[test]'
	$(SLIM) -m compileall -q src
	touch $@

demo: .venv-slim/.ready
	PATH="$(CURDIR)/.venv-slim/bin:$$PATH" sh fixtures/demo.sh

full: .venv/.ready
	$(FULL) -m pytest

# The core without torch and TensorFlow: what most people install.
slim: .venv-slim/.ready
	$(SLIM) -m pytest

test: full slim

lint: .venv/.ready
	$(FULL) -m ruff format --check .
	$(FULL) -m ruff check .

types: .venv/.ready
	$(FULL) -m mypy --strict src

check: lint types test

bench: .venv/.ready
	$(FULL) benchmarks/convert.py

bench-average: .venv/.ready
	$(FULL) benchmarks/average.py

bench-prune: .venv/.ready
	$(FULL) benchmarks/prune.py --peers

bench-quantize: .venv/.ready
	$(FULL) benchmarks/quantize.py

clean:
	rm -rf .venv .venv-slim build demo
