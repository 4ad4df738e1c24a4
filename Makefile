# Two commands are enough on a fresh machine with Python >= 3.11 and make: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
SOURCES := src tests benchmarks examples labs tools

.PHONY: help demo test test-slow lint docs format picture bench bench-all facts notebooks faults netlab audit dist reproducible wheel-test sbom matrix clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

.venv/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "variegrad needs Python 3.11 or newer; found %s. Try: make PYTHON=python3.12" % sys.version.split()[0])'
	@echo "Making .venv …" && $(PYTHON) -m venv .venv && touch $@

.venv/runtime: .venv/python pyproject.toml constraints.txt
	@echo "Installing variegrad from the lock …" && $(PIP) -e . && touch $@

.venv/dev: .venv/runtime
	@echo "Installing the development tools from the lock …" && $(PIP) -e '.[dev]' && touch $@

demo: .venv/runtime  ## Measure the embedded digits problem and write a report
	$(BIN)/variegrad measure digits --report runs/digits --overwrite

test: .venv/dev  ## Run every test but the slow ones
	$(BIN)/python -m pytest -m 'not slow'

test-slow: .venv/dev  ## Run the slow tests only
	$(BIN)/python -m pytest -m slow

lint: .venv/dev  ## Check style, types and the direction of imports
	$(BIN)/ruff check $(wildcard $(SOURCES))
	$(BIN)/ruff format --check $(wildcard $(SOURCES))
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/audit.py

docs: .venv/dev  ## Build the documentation site in build/docs; a warning is an error
	$(BIN)/sphinx-build -q -W --keep-going -c docs -b html . build/docs
	$(BIN)/sphinx-build -q -W --keep-going -c docs -b doctest . build/doctest

audit: .venv/dev  ## Check the lock against the published list of known vulnerabilities
	$(BIN)/python tools/audit.py

format: .venv/dev  ## Rewrite the sources in the house style
	$(BIN)/ruff check --fix $(wildcard $(SOURCES))
	$(BIN)/ruff format $(wildcard $(SOURCES))

.venv-peers/ready: .venv/python pyproject.toml
	@echo "Installing the peers in an environment of their own …" && $(PYTHON) -m venv .venv-peers
	@.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[peers]' && touch $@

bench: .venv-peers/ready  ## Measure the README's table beside public libraries (10 minutes) and write a dated report
	.venv-peers/bin/python benchmarks/overhead.py --models mnist-cnn resnet-20 gpt mlp --repeats 5 --no-memory \
	  --methods "variegrad exact" "Opacus ghost" "BackPACK BatchL2Grad" torch.func

bench-all: .venv-peers/ready  ## Measure all models, methods and memory beside public libraries (an hour)
	.venv-peers/bin/python benchmarks/overhead.py

facts:  ## Write the measured facts of the README from the newest reports
	$(PYTHON) labs/readme_facts.py

faults: .venv/dev  ## Kill, stop and damage training runs; a table of what came out, with a dated report
	$(BIN)/python labs/faults.py

netlab: .venv/dev  ## Time training steps on a slow network (root), with a dated report
	$(BIN)/python labs/netlab.py

picture: demo  ## Renew the pictures in the README (light and dark) from the demo
	mkdir -p docs/pictures && cp runs/digits/bound-along-run.png docs/pictures/digits.png
	$(BIN)/python labs/dark.py < runs/digits/bound-along-run.svg > docs/pictures/digits-dark.svg

dist: .venv/dev  ## Build the wheel and the sdist into dist
	rm -rf dist && $(BIN)/python labs/distribution.py build dist

reproducible: .venv/dev  ## Build twice and compare every byte
	$(BIN)/python labs/distribution.py reproducible

notebooks: .venv/dev  ## Run the notebooks of the documentation and store what they print
	$(BIN)/python labs/notebooks.py

sbom: .venv/dev  ## Write the bill of materials of the lock (CycloneDX) into dist
	$(BIN)/python labs/distribution.py sbom dist

WHEEL := build/wheel
wheel-test: dist  ## Install the built wheel alone, use it, then test it with the sources absent
	rm -rf $(WHEEL) && mkdir -p $(WHEEL) && $(PYTHON) -m venv $(WHEEL)/venv
	$(WHEEL)/venv/bin/python -m pip install --quiet -c constraints.txt dist/variegrad-*.whl
	cd $(WHEEL) && venv/bin/variegrad measure digits --max-examples 200 --report report && test -s report/report.html
	$(WHEEL)/venv/bin/python -m pip install --quiet -c constraints.txt pytest pytest-xdist hypothesis beartype jaxtyping zstandard
	cp -r tests pyproject.toml $(WHEEL)/
	cd $(WHEEL) && venv/bin/python -m pytest -q -m 'not slow' tests/cli tests/problems tests/report tests/test_measure.py tests/test_public_names.py

matrix: .venv/python  ## Run the suite on the lowest declared, the locked and the newest versions
	$(BIN)/python labs/matrix.py

clean:  ## Remove what the other commands made
	rm -rf .venv .venv-peers build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
