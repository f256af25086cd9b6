# Every target calls one thing. `make` alone lists them.
PYTHON ?= python3
VENV   := .venv
BUS    ?= embedded
BIN    := $(VENV)/bin
MEMBERS := $(sort $(wildcard libs/*) $(wildcard services/*))
READY  := $(VENV)/.installed
ROOT_DEPENDENCIES := pyproject.toml $(addsuffix /pyproject.toml,$(MEMBERS))

.DEFAULT_GOAL := help
.PHONY: help install demo up stack stack-down test test-stack nightly check lint types imports lock lock-check docs bench clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

install: $(READY) ## Put everything into .venv

# uv installs from the lock far faster than pip; pip installs uv itself, by the hash in the same lock.
$(READY): requirements.lock $(ROOT_DEPENDENCIES)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Turnout needs Python 3.11 or newer; set PYTHON=python3.x")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > $(VENV)/uv.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $(VENV)/uv.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation $(addprefix -e ,$(MEMBERS))
	touch $@

demo: $(READY) ## Carry a raw file to a live, watched answer (BUS=kafka: on real servers, a process for each service)
	$(BIN)/python examples/breast_cancer/demo.py --bus $(BUS)

up: $(READY) ## The same, and stay up
	$(BIN)/python examples/breast_cancer/demo.py --bus $(BUS) --stay

stack: $(READY) ## Start Kafka, Redis, Cassandra, MLflow, S3 and Prometheus on free ports
	$(BIN)/turnout-devstack up

stack-down: $(READY) ## End them; their data go too
	$(BIN)/turnout-devstack down

test: $(READY) ## Run every test that needs no server
	$(BIN)/pytest -n 2 --dist loadgroup

test-stack: $(READY) ## Run every test that needs the real servers, on servers of its own; a skip is a failure
	$(BIN)/pytest -n 2 --dist loadgroup --stack -m "stack and not nightly"

nightly: $(READY) ## The journeys that take longer, on servers of their own
	$(BIN)/pytest --stack -m nightly

test-%: $(READY) ## Run one kind of test: unit, property, contract, service, journey, install, docs
	$(BIN)/pytest tests/$*

check: lint types imports lock-check ## Run every static check

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/basedpyright

imports: $(READY)
	$(BIN)/lint-imports

COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-emit-find-links --no-annotate --custom-compile-command 'make lock' --group pyproject.toml:dev --all-extras \
	$(addprefix --no-emit-package turnout-,$(notdir $(MEMBERS))) pyproject.toml

lock: ## Lock every version with its hashes
	$(COMPILE) --output-file requirements.lock

# Resolving again with the lock as its own preference changes nothing unless a requirement did.
lock-check: $(READY)
	cp requirements.lock $(VENV)/requirements.lock
	$(BIN)/$(COMPILE) --output-file $(VENV)/requirements.lock
	diff requirements.lock $(VENV)/requirements.lock

docs: $(READY) ## Generate AsyncAPI, JSON Schemas and OpenAPI
	$(BIN)/python docs/generate.py

bench: $(READY) ## Measure us beside the alternatives
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

clean: ## Remove what install, demo and tests made
	rm -rf $(VENV) .turnout
