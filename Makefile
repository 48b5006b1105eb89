# The commands of the project; `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
# torch is installed by its exact version first: a range would let pip pick a newer build with gigabytes of CUDA.
TORCH := torch==2.13.0

PYTEST_ARGS ?= -m "not long and not debian"
# one process per core, each computing with one thread; compiled modules are kept even where the
# environment says otherwise, for the servers that tests start import them again and again
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test check format lint types imports protos protos-check chart figures security audit lock sbom clean serve

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sort | awk -F':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

$(VENV)/.installed: pyproject.toml clients/python/pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(PIP) -e clients/python -e .
	$(BIN)/python -m compileall -q service clients/python
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed clients/runner/pyproject.toml
	$(PIP) -e clients/python -e clients/runner -e '.[dev]'
	@touch $@

demo: $(VENV)/.installed  ## Set up everything and compress the digits model for a Cortex-M target
	PATH="$(abspath $(BIN)):$$PATH" sh examples/digits/demo.sh demo-out

test: $(VENV)/.installed-dev  ## Set up everything and run the tests
	$(PYTEST) $(PYTEST_ARGS)

check: lint types imports protos-check chart figures security audit test  ## Everything that a change must pass

format: $(VENV)/.installed-dev  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(VENV)/.installed-dev  ## Formatting, style, spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell

types: $(VENV)/.installed-dev  ## Static types, strict
	$(BIN)/mypy

imports: $(VENV)/.installed-dev  ## The floors of the house
	PYTHONPATH=service:clients/python:clients/runner $(BIN)/lint-imports

protos: $(VENV)/.installed-dev  ## Generate the stubs from protos/
	$(BIN)/python protos/generate.py

protos-check: $(VENV)/.installed-dev  ## Stub drift, and buf lint where buf is installed
	$(BIN)/python protos/generate.py --check
	@if command -v buf >/dev/null; then cd protos && buf lint; else echo "buf is not installed: lint of the protos skipped (npm install -g @bufbuild/buf)"; fi

chart: $(VENV)/.installed-dev  ## Lint and validate the Helm chart
	$(BIN)/python -m pytest tests/unit/helm

figures: $(VENV)/.installed-dev  ## Whether README and docs show what the benchmarks measured
	$(BIN)/python benchmarks/publish.py --check

security: $(VENV)/.installed-dev  ## Patterns in the code that have hurt others
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml service clients supply_chain

audit: $(VENV)/.installed-dev  ## Known vulnerabilities in what is installed; says so where it cannot look
	$(BIN)/python supply_chain/audit.py

lock: $(VENV)/.installed-dev  ## Write requirements.lock and those of extras anew: versions and hashes of what the image has
	$(BIN)/python supply_chain/lock.py

sbom: $(VENV)/.installed-dev  ## Write sbom.cdx.json, the bill of materials of what the image has
	$(BIN)/python supply_chain/sbom.py

serve: $(VENV)/.installed  ## Run a server on localhost:50051
	$(BIN)/tightfit serve

clean:  ## Remove what the commands above made
	rm -rf $(VENV) demo-out .mypy_cache .ruff_cache .pytest_cache .hypothesis
