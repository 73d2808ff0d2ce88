# The habits of the project. Every target makes the virtual environment that it needs, and can be run again.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/ready

.PHONY: digits cifar10 test slow sweep sweep-prune sweep-deploy lint format clean

$(READY): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,dev]'
	touch $(READY)

digits: $(READY)  ## the main job, on scikit-learn's digits: a few minutes on two cores
	$(BIN)/python -m experiments.pipeline --out runs/digits

cifar10: $(READY)  ## the main job on real images, from the Hugging Face hub
	$(BIN)/python -m experiments.pipeline --config experiments/recipes/cifar10.yaml

test: $(READY)  ## the ordinary tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow' -n auto

slow: $(READY)  ## the sweeps that the ordinary tests leave out
	$(BIN)/python -m pytest -m slow

sweep: $(READY)  ## docs/zoo.md anew: every family of timm at half the width and depth; and the slow tests
	$(BIN)/python -W ignore -m experiments.zoo > docs/zoo.md
	$(BIN)/python -m pytest -m slow

sweep-prune: $(READY)  ## docs/pruning.md anew: every family of timm pruned and proved, torch-pruning beside it; hours
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[sweep]'
	$(BIN)/python -W ignore -m experiments.prune_zoo --out runs/prune-zoo --write docs/pruning.md

sweep-deploy: $(READY)  ## docs/deploy.md anew: every family of timm exported, quantised and factorised; an hour
	$(BIN)/python -W ignore -m experiments.deploy_zoo --out runs/deploy-zoo --write docs/deploy.md

lint: $(READY)  ## style, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
