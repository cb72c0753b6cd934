# One environment, made from the project's own files; every other target uses it.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: venv quickstart test lint bench experiments clean

venv: $(VENV)/.made

# rapidocr is installed for its OCR weights alone: its opencv wheel would clash with the one PaddleOCR brings, so without dependencies.
$(VENV)/.made: pyproject.toml constraints.txt requirements-nodeps.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --disable-pip-version-check -q --no-deps -r requirements-nodeps.txt
	touch $@

quickstart: $(VENV)/.made
	$(BIN)/fovea quickstart

test: $(VENV)/.made
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.made
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# make bench NAME=shards
bench: $(VENV)/.made
	$(BIN)/python -m benchmarks.$(NAME)

# what came out is in docs/experiments.md; a run that was stopped goes on
experiments: $(VENV)/.made
	$(BIN)/python -m benchmarks.experiments --together 2

clean:
	rm -rf $(VENV) build dist *.egg-info runs/quickstart
