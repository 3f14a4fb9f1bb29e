# One word a habit; `make` alone lists them. The environment is made on first use, and made up to
# date when pyproject.toml or constraints.txt change.

VENV ?= .venv
# The first Python that is new enough; another one by `make PYTHON=/path/to/python3.12 test`.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11 python3.14 python; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { command -v $$name; break; }; done)

BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
RECIPES := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow exactness test-all check format coverage bench bench-full clean

help:  ## list the words
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) \
	| awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

setup: $(VENV)/.dev  ## make the environment for development

demo: $(VENV)/.demo  ## set up, then fine-tune the embedded model on the embedded sample
	$(BIN)/headstart demo $(ARGS)

test: $(VENV)/.dev  ## set up, then run the default tests
	$(BIN)/python -m pytest $(ARGS)

test-slow: $(VENV)/.dev  ## only the tests that the default leaves out
	$(BIN)/python -m pytest -m slow $(ARGS)

exactness: $(VENV)/.dev  ## the whole of what docs/exactness.md claims, in its full number of tries
	$(BIN)/python -m pytest -m exactness $(ARGS)

test-all: $(VENV)/.dev  ## every test
	$(BIN)/python -m pytest -m "" $(ARGS)

check: $(VENV)/.dev  ## lint, format, types and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

format: $(VENV)/.dev  ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The floor holds for the layers that everything leans on; the doors above them are tested as a whole.
coverage: $(VENV)/.dev  ## every test, with the lines they reach
	$(BIN)/python -m pytest -m "" --cov --cov-report= $(ARGS)
	$(BIN)/coverage report
	$(BIN)/coverage report --fail-under=95 --include="src/headstart/errors.py,src/headstart/re*.py,src/headstart/runlog.py,src/headstart/data/*,src/headstart/metrics/*,src/headstart/models/*,src/headstart/training/*,src/headstart/tasks/*"

bench: $(VENV)/.dev  ## the short form of every benchmark of speed: about five minutes on two cores
	$(BIN)/python benchmarks/against_trainer.py --short $(ARGS)
	$(BIN)/python benchmarks/against_lightning.py --short $(ARGS) || test $$? = 2
	$(BIN)/python benchmarks/parts.py --short $(ARGS)
	$(BIN)/python benchmarks/limit.py --short $(ARGS)
	$(BIN)/python benchmarks/breadth.py --short $(ARGS)
	$(BIN)/python benchmarks/scaling.py --short $(ARGS)

bench-full: $(VENV)/.dev  ## the long form, with the results written to benchmarks/results: some hours
	$(BIN)/python benchmarks/against_trainer.py --json $(ARGS)
	$(BIN)/python benchmarks/against_lightning.py --json $(ARGS) || test $$? = 2
	$(BIN)/python benchmarks/parts.py --json $(ARGS)
	$(BIN)/python benchmarks/parts.py --model-shape bert-base --batch-size 8 --batches 6 --rounds 3 \
	  --json benchmarks/results/parts-bert-base-$$(date +%F).json $(ARGS)
	$(BIN)/python benchmarks/parts.py --length 32 128 512 --batch-size 8 --batches 6 --rounds 3 \
	  --json benchmarks/results/parts-lengths-$$(date +%F).json $(ARGS)
	$(BIN)/python benchmarks/limit.py --json $(ARGS)
	$(BIN)/python benchmarks/breadth.py --json $(ARGS)
	$(BIN)/python benchmarks/scaling.py --json $(ARGS)
	$(BIN)/python benchmarks/six_doors.py --json $(ARGS)
	$(BIN)/python benchmarks/draw.py

clean:  ## remove the environment and the caches of the tools; runs stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage htmlcov

# A folder that has a working Python already is used as it is.
$(VENV)/.python:
	@$(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  test -n "$(PYTHON)" || { \
	    echo "No Python 3.11 or newer was found on this machine."; \
	    echo "Install one, or name it: make PYTHON=/path/to/python3 $(MAKECMDGOALS)"; exit 2; }; \
	  echo "Making $(VENV) with $(PYTHON)"; \
	  "$(PYTHON)" -m venv --clear $(VENV); }
	@touch $@

$(VENV)/.demo: $(VENV)/.python $(RECIPES)
	@echo "Installing headstart with its sample (once, about a minute)"
	@$(INSTALL) -e '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.python $(RECIPES)
	@echo "Installing headstart with everything for development (once, about a minute)"
	@$(INSTALL) -e '.[dev]'
	@touch $(VENV)/.demo $@
