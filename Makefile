# make demo and make test do all of the set-up; both work on a fresh machine with Python and a network.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# PyTorch is installed first and alone, so that nothing else decides which build of it.
STAMP := $(VENV)/.installed

.PHONY: demo test lint types unit fuzz setup clean docs dist notebooks terminal docs/ops.md docs/passes.md

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25"
	$(BIN)/python -m pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python examples/demo.py

test: lint types unit

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy does not see through editable installs: show it the installed layout.
types: $(STAMP)
	rm -rf $(VENV)/types && mkdir -p $(VENV)/types/graphshrink
	cd $(VENV)/types/graphshrink && ln -s $(CURDIR)/graphshrink/* $(foreach d,frontends hosts ir passes targets,$(CURDIR)/$(d)) .
	$(BIN)/mypy
	MYPYPATH=tests $(BIN)/mypy tests/contract/test_typed_calls.py

unit: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal -q

# The table of ops, from what rules and spellings are registered.
docs/ops.md: $(STAMP)
	$(BIN)/python -m graphshrink.op_table > $@

# The table of passes, from the registry.
docs/passes.md: $(STAMP)
	$(BIN)/python -m graphshrink.pass_table > $@

# The documentation as a site in build/site; warnings are errors.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The sdist and the wheel in dist/, installed and run in a clean environment of each Python that is found.
dist: $(STAMP)
	$(BIN)/python release/check.py

# The terminal picture of the README, from a real run; let nothing else run meanwhile.
terminal: $(STAMP)
	$(BIN)/python website/terminal.py

# Runs the notebooks of examples/ and stores their outputs.
notebooks: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[notebooks]"
	$(BIN)/python examples/run_notebooks.py

# Random models on all cores for MINUTES; TARGET is one of onnx, tensorrt, tflite, torch, SEED the first seed.
MINUTES ?= 30
fuzz: $(STAMP)
	cd tests && ../$(BIN)/python -m fuzz --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(if $(TARGET),--target $(TARGET))

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
