PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help train test test-full torture check format bench bench-checkpoints docs clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-17s %s\n", $$1, $$2}'

train: $(READY) ## train a small GPT-2 on the embedded text (about two minutes on two cores)
	$(BIN)/python -m gpt2ckpt.train $(ARGS)

test: $(READY) ## run all tests, several files in parallel
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile $(ARGS)

test-full: export GPT2CKPT_WATCHERS = all
test-full: export GPT2CKPT_KILLS = 20
test-full: export GPT2CKPT_RANK_KILLS = 5
test-full: export CTRL_C_COUNT = 50
test-full: export SWEEP_JOBS = 6
test-full: export SWEEP_KILLS = 3
test-full: test ## run all tests with more kills, signals and failing watchers

torture: $(READY) ## break runs at random for MINUTES=10, or as in ARGS='--kills 500 --seed 7'
	$(BIN)/python -m tests.torture.run $(or $(ARGS),--minutes $(or $(MINUTES),10))

check: $(READY) ## lint, formatting, types, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## format the code and apply ruff's automatic fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## measure training speed beside other programs (about twenty minutes)
	$(BIN)/python -m experiments.training_speed.run $(ARGS)

bench-checkpoints: $(READY) ## measure what a checkpoint costs beside other programs (about twenty minutes)
	$(BIN)/python -m experiments.checkpoint_cost.run $(ARGS)

docs: $(READY) ## check that the commands and links in the documentation exist
	$(BIN)/python -m pytest tests/test_docs.py

clean: ## remove the virtual environment and caches; runs in outputs/ stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp file is created only after a complete installation.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $(READY)
