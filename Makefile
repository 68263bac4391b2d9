# Each target makes the environment that it needs; `make` alone lists the targets.

SHELL  := /bin/sh
UV     ?= $(shell command -v uv 2>/dev/null)
# The first that runs: a name on the PATH may be a wrapper with nothing behind it.
PYTHON ?= $(shell for p in python3.11 python3; do $$p -c "" 2>/dev/null && { echo $$p; exit; }; done; echo python3)

# Only what stands on make's command line counts: an environment variable that happens to be called
# `target` must not choose the system that a runbook changes.
name   :=
target :=
args   :=
TESTS  :=
stack  := embedded

# Nothing outside the environment may put another kernel in front of ours.
unexport JUPYTER_PATH
export JUPYTER_PREFER_ENV_PATH := 1

BIN       := .venv/bin
NOTEBOOKS := $(wildcard runbooks/*.ipynb)
STRIP     := $(BIN)/nbstripout --keep-id --extra-keys \
	"metadata.papermill cell.metadata.papermill cell.metadata.execution metadata.language_info.version"
# By file, for a file's tests share their systems: with pytest 9.2, xdist's loadgroup silently ignores the groups.
PYTEST    := $(BIN)/python -m pytest -q -n 2 --dist loadfile $(if $(TESTS),-k "$(TESTS)")
# One process, for the containers are one system, and time to make the images.
ON_DOCKER := $(if $(filter docker,$(stack)),-n 0 --timeout 600 runbooks tests/docker)

.DEFAULT_GOAL := help
.PHONY: help setup runbook list demo-up demo-down lab reports test test-slow storm bench lint fmt lock clean
.DELETE_ON_ERROR:

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  make runbook name=stuck-tasks target=demo                         look, plan, change nothing"
	@echo "  make runbook name=stuck-tasks target=demo args=\"--apply --yes\"    apply the plan"
	@echo "  make test TESTS=unacked                                           the tests with that in their name"

setup: .venv/.stamp ## Install everything into .venv

# Exit 1 is no fault: a person is needed, and the run has said so.
runbook: $(if $(name),.venv/.stamp) ## Run one: name=stuck-tasks [target=demo] [args="--apply"]
ifeq ($(name),)
	@echo "Say which runbook to run, for instance: make runbook name=stuck-tasks" >&2
	@echo "There are: $(notdir $(basename $(NOTEBOOKS)))" >&2
	@exit 2
else
	@$(BIN)/ops run '$(name)' $(if $(target),--target '$(target)') $(args) || { code=$$?; [ $$code -eq 1 ] || exit $$code; }
endif

list: .venv/.stamp ## List the runbooks by symptom
	@$(BIN)/ops list

demo-up: .venv/.stamp ## Start the demo: a broken system to practise on
	@$(BIN)/ops demo up

demo-down: .venv/.stamp ## Stop the demo
	@$(BIN)/ops demo down

lab: .venv-lab/.stamp ## Open the notebooks in JupyterLab
	@.venv-lab/bin/jupyter lab --ServerApp.root_dir=. --no-browser $(if $(filter 0,$(shell id -u)),--allow-root) $(args)

reports: .venv/.stamp ## List the archived incident reports
	@$(BIN)/ops reports list

test: .venv/.stamp ## Run the tests and every notebook, without the slow ones [TESTS=pattern] [stack=docker]
	@$(PYTEST) -m "not slow and not storm" --stack '$(stack)' $(ON_DOCKER) $(args)

test-slow: .venv/.stamp ## Run the slow tests [TESTS=pattern]
	@$(PYTEST) -m slow --timeout 1200 $(args)

storm: .venv/.stamp ## Kill runs and servers for minutes, and count the messages
	@$(BIN)/python -m pytest -q -m storm --timeout 1200 $(args)

bench: .venv/.stamp ## Measure against the known limits
	@$(BIN)/python bench/run.py $(args)

lint: .venv/.stamp ## Check style, types, notebooks and spelling
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(if $(NOTEBOOKS),$(STRIP) --verify $(NOTEBOOKS))
	$(BIN)/codespell

fmt: .venv/.stamp ## Put style and notebooks right
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format
	$(if $(NOTEBOOKS),$(STRIP) $(NOTEBOOKS))

# Hashed, for every system and Python from 3.11 on, and without the address of any registry.
LOCK = $(or $(UV),.venv-lock/bin/uv) pip compile pyproject.toml --quiet --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" --group build

lock: $(if $(UV),,.venv-lock/bin/uv) ## Write the lock files anew [args=--upgrade]
	$(LOCK) --extra demo --group dev --output-file requirements.lock $(args)
	$(LOCK) --extra all --output-file requirements-lab.lock $(args)
	$(LOCK) --constraint requirements.lock --no-annotate --output-file deploy/requirements.lock $(args)
	@! grep -n '://' requirements.lock requirements-lab.lock deploy/requirements.lock

clean: ## Remove environments and caches; reports stay
	rm -rf .venv .venv-lab .venv-lock .mypy_cache .pytest_cache .ruff_cache .hypothesis dist
	find opslib tests bench runbooks -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

# $(call install,environment,lock file): what the lock file names and nothing else, compiled, then this project.
# Without compiled modules, every run of a notebook would take twice as long.
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "opslib needs Python 3.11 or later, and $(PYTHON) is not. Name one: make setup PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "Installing into $(1) ..." >&2
	@$(PYTHON) -m venv $(1)
	@$(if $(UV),$(UV) pip install --quiet --python $(1)/bin/python --compile-bytecode,$(1)/bin/python -m pip install --quiet --disable-pip-version-check) \
		--require-hashes -r $(2)
	@$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index --editable .
	@$(1)/bin/python -m compileall -q opslib
	@touch $@
endef

.venv/.stamp: requirements.lock pyproject.toml
	$(call install,.venv,requirements.lock)

.venv-lab/.stamp: requirements-lab.lock pyproject.toml
	$(call install,.venv-lab,requirements-lab.lock)

.venv-lock/bin/uv:
	@$(PYTHON) -m venv .venv-lock
	@.venv-lock/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'
