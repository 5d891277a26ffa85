# `make numberline` sets everything up and trains; `make test` sets everything up and tests. Both can be repeated.
PYTHON ?= python3
VENV ?= .venv
SEED ?= 1
# other seeds have folders of their own: runs/numberline-2
SUFFIX = $(if $(filter-out 1,$(SEED)),-$(SEED))

.PHONY: setup numberline blackjack test lint
.DEFAULT_GOAL := numberline

setup: $(VENV)/.installed ## Make the virtual environment

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	@echo "== Setting up $(VENV): PyTorch, Lightning, transformers (some minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --progress-bar on -c constraints.txt torch
	$(VENV)/bin/python -m pip install --progress-bar on -c constraints.txt -e ".[dev]"
# for the tests only and beside everything else: an installed torchvision has to fit the build of PyTorch
	$(VENV)/bin/python -m pip install --quiet --upgrade --no-deps --target $(VENV)/families -c constraints.txt torchvision num2words docopt
	@touch $@

numberline: setup ## Train on NumberLine (CPU, minutes)
	@echo "== Training a VLM on NumberLine by AFSFT; results in runs/numberline$(SUFFIX)"
	$(VENV)/bin/vlmq fit --config configs/numberline.yaml --seed_everything $(SEED) --folder runs/numberline$(SUFFIX)

blackjack: setup ## Train on Blackjack (CPU)
	@echo "== Training a VLM on Blackjack by AFSFT; results in runs/blackjack$(SUFFIX)"
	$(VENV)/bin/vlmq fit --config configs/blackjack.yaml --seed_everything $(SEED) --folder runs/blackjack$(SUFFIX)

test: setup ## Run the tests
	@echo "== Running the tests"
	$(VENV)/bin/python -m pytest -n 2

lint: setup ## Style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
