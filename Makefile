# `make demo` and `make test` need nothing but Python >= 3.11 and a package index; both make .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint format train clean

demo: .venv/installed
	$(BIN)/python scripts/train.py experiment=quickstart

test: .venv/installed
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# For example: make train ARGS="experiment=laptop data=folder data.root=photos"
train: .venv/installed
	$(BIN)/python scripts/train.py $(ARGS)

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "make: $(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.12 ..."; exit 1; }
	@echo "installing PyTorch and the rest into .venv: some 6 GB, minutes"
	$(PYTHON) -m venv .venv
	@[ -t 1 ] || quiet=--quiet; \
		$(BIN)/python -m pip install $$quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
