# Everything that a person does with this repository. `make` alone prints the list.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
T ?= tests
# The others that we are measured beside: apart, so that the tests run on requirements.lock and nothing else.
OTHERS := .venv-bench
# The worker's own image: its name, what it is built on (empty: what docker/Dockerfile says), and more for `docker build`.
IMAGE ?= molecule-worker:latest
BASE ?=
BUILD ?=

.DEFAULT_GOAL := help
.PHONY: help venv demo up test check format lint types imports scan bench prove docker-engine rabbitmq image lock clean

help: ## print this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ See it
demo: venv ## provision a real workspace, show it, delete it, show that nothing is left
	@$(BIN)/python -m worker.demo

up: venv ## Postgres, Redis and the daemon in the foreground; other terminals find them
	@$(BIN)/molecule-worker up

##@ Develop
venv: $(VENV)/.made ## the virtual environment, from the lock file

# Binary wheels only, with their hashes: what is installed is what was locked.
$(VENV)/.made: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; say which: make PYTHON=python3.11" >&2; exit 2; }
	@echo "making $(VENV) (once; about half a minute)" >&2
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(OTHERS)/.made: requirements-bench.lock
	@echo "making $(OTHERS) (once; about half a minute)" >&2
	@$(PYTHON) -m venv $(OTHERS)
	@$(OTHERS)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements-bench.lock
	@touch $@

test: venv ## all tests; T=tests/unit for a part of them
	@$(BIN)/python -m pytest $(T)

format: venv ## rewrite the files in the one format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

lock: venv ## resolve the dependencies anew and write the lock files
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--extra embedded --extra dev --output-file requirements.lock pyproject.toml
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--constraints requirements.lock --output-file requirements-run.lock pyproject.toml
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--extra bench --constraints requirements.lock --output-file requirements-bench.lock pyproject.toml

clean: ## remove the virtual environment and the caches
	@rm -rf $(VENV) $(OTHERS) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build *.egg-info

##@ Check
check: lint types imports scan test ## what CI runs

lint: venv ## format and lint
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/codespell

types: venv ## strict types
	@$(BIN)/mypy

imports: venv ## who may import whom
	@$(BIN)/lint-imports

scan: venv ## no secret and no address of a machine in the files
	@$(BIN)/python tests/scan.py

bench: venv $(OTHERS)/.made ## measure beside a floor and beside others, all in the same run; B=throughput for a part of it
	@$(BIN)/python -m tests.bench $(B)

prove: venv ## the engine under full chaos, then every hostile test at full size; PART=0.3 for less chaos
	@$(BIN)/python -m tests.prove --part $(or $(PART),1)

##@ Operate
image: ## the worker's own image; IMAGE=name BASE=image BUILD="flags of docker build"
	@docker build --file docker/Dockerfile --tag $(IMAGE) $(if $(BASE),--build-arg BASE=$(BASE)) $(BUILD) .

docker-engine: ## root on Debian: install and start a Docker engine, and what the tests do with it
	@sh docker/install-engine.sh

rabbitmq: ## root on Debian: install RabbitMQ for the tests, start nothing
	@sh docker/install-rabbitmq.sh
