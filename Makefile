# The commands of this project; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed$(FASTSPEC_NATIVE)
NATIVE_SOURCES := $(shell find csrc -type f)
PIP := $(BIN)/python -m pip --disable-pip-version-check
CPP := $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu')

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format bench gpu clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## make .venv, install the pinned dependencies, build the native code

$(INSTALLED): constraints.txt pyproject.toml setup.py $(NATIVE_SOURCES)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "python3 -m venv failed: on Debian, install python3-venv"; exit 1; }
	$(PIP) install -q -c constraints.txt torch numpy setuptools pybind11
	$(PIP) install -q -c constraints.txt --no-build-isolation -e '.[lab,test,lint]'
	@rm -f $(VENV)/.installed* && touch $@

demo: $(INSTALLED) ## the main job: students turn into teachers; ends with a report folder (about a minute)
	$(BIN)/fastspec demo

test: lint ## every test that needs no GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: $(INSTALLED) ## ruff, mypy, clang-format
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)

format: $(INSTALLED) ## rewrite the sources as lint wants them
	$(BIN)/ruff check --quiet --fix .
	$(BIN)/ruff format --quiet .
	$(BIN)/clang-format -i $(CPP)

bench: $(INSTALLED) ## the CPU benchmarks, with a table of results
	$(BIN)/python -m benchmarks
	$(BIN)/python -m pytest tests/benchmarks --benchmark-enable --benchmark-only

gpu: ## on a machine with an NVIDIA GPU: build, test and measure there, in ten minutes (benchmarks/README.md)
	@$(PYTHON) -m benchmarks.gpu $(addprefix --part ,$(PART)) $(ARGS)

clean: ## remove all that was installed and built; runs stay in fastspec-runs
	rm -rf $(VENV) build dist *.egg-info fastspec/_C* fastspec/_host* fastspec/_cuda*
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
