# Every target does its own set-up, once: a stamp in .stamps says that it is done.
#   PYTHON=...       an interpreter of version 3.11 or 3.12, else the first that is found and runs
#   TORCH_INDEX=URL  where pip finds torch's CPU wheels, for the tests that compare with peers

RUNS := import ensurepip, sys, venv; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))
ifndef PYTHON
PYTHON := $(shell for p in python3.12 python3.11 python3; do $$p -c '$(RUNS)' >/dev/null 2>&1 && echo $$p && break; done)
endif

BIN := .venv/bin
PIP = $(BIN)/pip install -qq --disable-pip-version-check -c $(CONSTRAINTS)
CONSTRAINTS = constraints/py$$($(BIN)/python -c 'import sys; print("%d%d" % sys.version_info[:2])').txt
FILES := setup.py $(wildcard constraints/*.txt)
# Eight CPU devices, so that meshes are tested everywhere. Compiling is most of the work: XLA optimises little, programs
# are kept between runs, and tests of one file share a process and its fixtures.
TESTED := JAX_PLATFORMS=cpu XLA_FLAGS="--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0" \
  JAX_COMPILATION_CACHE_DIR=$(CURDIR)/.cache/jax JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.5

.PHONY: help quickstart test test-slow lint docs bench clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: .stamps/mtx  ## install, then train, adapt and report on procedural tasks: minutes on a laptop
	$(BIN)/mtx train --gin_file=configs/run/quickstart.gin

test: .stamps/peers  ## all tests but the slow ones, on eight CPU devices
	$(TESTED) $(BIN)/python -m pytest -q -n 2 --dist loadfile -m 'not slow'

test-slow: .stamps/peers  ## the slow tests: recipes keep what they promise
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -q -m slow

lint: .stamps/dev  ## style, formatting, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: .stamps/dev  ## write docs/reference from docstrings and the command line
	JAX_PLATFORMS=cpu $(BIN)/python docs/generate.py

bench: .stamps/peers  ## speed and memory beside peers, as ratios
	$(BIN)/python -m mtx.bench

clean:  ## remove what was installed and cached here; runs stay
	rm -rf .venv .stamps .cache build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

.stamps/venv:
	@test -n "$(PYTHON)" || { echo "mtx needs Python 3.11 or 3.12 with venv: none of python3.12, python3.11, python3 is one." >&2; \
	  echo "  Install one (Debian: apt install python3.11-venv) or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c '$(RUNS)' || { echo "PYTHON=$(PYTHON) is not Python 3.11 or 3.12 with venv." >&2; exit 1; }
	@echo "installing mtx into .venv ($$($(PYTHON) --version)): some minutes, once"
	@rm -rf .venv && mkdir -p .stamps && $(PYTHON) -m venv .venv && touch $@

.stamps/mtx: .stamps/venv $(FILES)
	@$(PIP) -e . && touch $@

.stamps/dev: .stamps/mtx
	@$(PIP) -e '.[dev,beam]' && touch $@

# Only the CPU build of torch, which is small; without it the tests that compare with peers skip.
.stamps/peers: .stamps/dev
	@{ $(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch==2.13.0+cpu && $(PIP) -e '.[peers]'; } 2>.stamps/peers.log \
	  || echo "peers (torch, transformers, peft) are not installed: their tests skip. See TORCH_INDEX in the Makefile."
	@touch $@
