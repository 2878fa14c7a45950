# Two commands do everything on a fresh machine that has Python >= 3.11 and make:
#   make image PROMPT="a small green star on a dark blue background"
#   make test
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PROMPT ?= a large red circle to the left of a small blue square on a white background
SEED ?= 2
export PROMPT

.PHONY: image test lint bench parity fuzz kill evaluate train clean
image: .venv/ready            ## draw PROMPT with the bundled model and print the picture's path (SEED=-1: another each time)
	@$(BIN)/minisd generate "$$PROMPT" --seed $(SEED)

test: .venv/ready-dev lint    ## ruff and all tests, parity with diffusers and transformers included
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: .venv/ready            ## seconds and memory of one picture, process start included
	$(BIN)/python scripts/bench.py

parity: .venv/ready-dev       ## full-size networks against diffusers: half an hour, 24 GB of memory, 45 GB of disk
	$(BIN)/python scripts/parity.py

fuzz: .venv/ready-dev         ## 22,000 damaged model files and configs
	$(BIN)/python scripts/fuzz.py

kill: .venv/ready-dev         ## 50 training runs killed with kill -9, 10 of them inside a save: a few minutes
	OMP_NUM_THREADS=1 $(BIN)/python scripts/kill.py

evaluate: .venv/ready         ## how much of what it is told the bundled model draws, and how well the judge sees
	$(BIN)/minisd eval

train: .venv/ready            ## every stage of the bundled model, in order; goes on where it stopped
	$(BIN)/minisd train all

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "minisd needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) -e .
	touch $@

.venv/ready-dev: .venv/ready
	$(PIP) -e '.[dev]'
	touch $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache build dist
