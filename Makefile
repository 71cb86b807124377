# Two commands set up a fresh machine that has make and Python 3.11 or newer:
#   make demo    creates .venv, installs the tested versions, runs the demo, says where the report is
#   make test    the same .venv with the test extra, runs the tests
# Both start at once when the .venv is there; it is refreshed when pyproject.toml or constraints.txt changes.

# The first of these that is new enough; or say which: make test PYTHON=/opt/python3.12/bin/python3
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11 python3.14 python,\
	$(shell $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $(p))))
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Test processes. One thread each: two workers with one thread beat one with two on the small nets tested here.
WORKERS ?= logical --maxprocesses 4
# What else to hand to pytest or to the demo: make test ARGS="-k lanczos -x"
ARGS ?=
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(ARGS)

.PHONY: help demo gallery names test test-slow test-browser test-lowest lint format wheel constraints clean distclean

help:
	@sed -n 's/^#   //p' Makefile
	@echo "also: gallery names test-slow test-browser test-lowest lint format wheel constraints clean distclean"

# --force: a second `make demo` replaces what the first one wrote.
demo: $(VENV)/.installed
	$(BIN)/landscape demo --force $(ARGS)

# The pictures of docs/gallery.md and the README, from the demo's archives; a few things are measured besides.
gallery: demo
	$(BIN)/python examples/gallery.py landscape-demo docs

# docs/python.md, from the docstrings.
names: $(VENV)/.installed
	$(BIN)/python docs/names.py

# A file's tests stay in one process, so that what they share is made once.
test: $(VENV)/.installed-test
	$(PYTEST) -m "not slow and not browser" -n $(WORKERS) --dist loadfile

test-slow: $(VENV)/.installed-test
	$(PYTEST) -m slow -n $(WORKERS) --durations 10

# Needs Debian's chromium; AXE_CORE=.../axe.min.js adds the checks of accessibility (see .ci/run).
test-browser: $(VENV)/.installed-test
	$(PYTEST) -m browser --durations 5

# The lowest versions that pyproject.toml promises, in an environment of their own, with the tested torch: the lowest may
# be there as a CUDA build of gigabytes only (make test-lowest TORCH=2.11.0). netcal stays out: it needs a newer NumPy.
LOWEST := build/lowest
EXTRAS := lightning,transformers,accelerate,safetensors,parquet,tensorboard,bench
test-lowest:
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip --disable-pip-version-check install --quiet torch==$(TORCH) -c constraints-lowest.txt \
		-e '.[$(EXTRAS)]' pytest pytest-xdist xarray pandas h5netcdf torchmetrics peft build 'setuptools>=77'
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest $(ARGS) -m "not slow and not browser" -n $(WORKERS) --dist loadfile

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# setuptools puts whatever an earlier build left in build/ into the wheel, deleted files too: begin without it.
wheel: $(VENV)/.installed-test
	rm -rf build dist
	$(BIN)/python -m build --no-isolation --outdir dist

# The newest versions that fit pyproject.toml, from an environment of their own; run the tests before committing.
# torch moves only when asked (make constraints TORCH=2.14.0), and what a CUDA build of it pins itself stays out.
TORCH ?= $(shell sed -n 's/^torch==//p' constraints.txt)
constraints:
	rm -rf build/constraints
	$(PYTHON) -m venv build/constraints
	build/constraints/bin/python -m pip install --quiet torch==$(TORCH) -e '.[test]'
	sed -n '/^#/p' constraints.txt > build/constraints/pins
	build/constraints/bin/python -m pip freeze --all --exclude-editable --exclude pip --exclude wheel \
		| sed -e '/ @ /d' -e '/^nvidia-/d' -e '/^cuda-/d' -e '/^triton==/d' -e 's/+[a-z0-9.]*$$//' \
		>> build/constraints/pins
	mv build/constraints/pins constraints.txt
	rm -rf build/constraints

clean:
	rm -rf build dist landscape-demo .pytest_cache .ruff_cache *.egg-info
	find landscape probes cli tests benchmarks examples -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer on the PATH: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --quiet -c constraints.txt -e '.[test]'
	@touch $@ $(VENV)/.installed
