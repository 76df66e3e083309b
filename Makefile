# Every target runs in a virtual environment, which the first call creates. `make` alone lists the targets.
#   make train ARGS="--env ALE/Breakout-v5 --name breakout"
#   make test ARGS="tests/agents -x"
VENV ?= .venv
PYTHON ?= python3
LOGDIR ?= runs
ARGS ?=

BIN := $(VENV)/bin
# One process per usable core; tests of a file stay in one process unless another has nothing left to do.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal
PACKAGES := core envs agents generative vision

.DEFAULT_GOAL := help
.PHONY: help install train tensorboard test test-all lint format docs wheel clean
.DELETE_ON_ERROR:

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 14

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo 'error: zerokara needs Python 3.11 or newer; name one with: make PYTHON=python3.12' >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# The stamp files record for which pyproject.toml the environment was installed.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo 'Installing zerokara into $(VENV); the first time takes some minutes.'
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	@echo 'Installing zerokara and the tools for developers into $(VENV); the first time takes some minutes.'
	$(BIN)/python -m pip install --quiet -e '.[dev,bench,export,scores]'
	@touch $@ $(VENV)/.installed

install: $(VENV)/.installed ## create the virtual environment and install zerokara

train: $(VENV)/.installed ## train a DQN agent on ALE/Pong-v5; options in ARGS
	$(BIN)/python -m agents.dqn $(ARGS)

tensorboard: $(VENV)/.installed ## show the runs in a browser
	$(BIN)/tensorboard --logdir $(LOGDIR) $(ARGS)

test: lint ## linter, types and all tests except the slow ones
	$(PYTEST) -m 'not slow' $(ARGS)

test-all: lint ## the same with the slow tests, which train for minutes
	$(PYTEST) $(ARGS)

# mypy finds zerokara.agents in agents/ through this link.
build/types/zerokara:
	mkdir -p build/types
	ln -s ../.. $@

lint: $(VENV)/.installed-dev build/types/zerokara ## linter, format and types only
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy $(addprefix -p zerokara.,$(PACKAGES) zerokara) -p tests -p benchmarks -p scripts -p examples

format: $(VENV)/.installed-dev ## fix what the linter and the formatter can fix
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(VENV)/.installed-dev ## build the documentation into site/
	$(BIN)/mkdocs build --strict $(ARGS)

wheel: $(VENV)/.installed-dev ## build a wheel into dist/
	rm -rf build/lib build/bdist*
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean: ## remove build files; runs/ and the virtual environment stay
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
