# Everything here runs in .venv, which make itself builds from pyproject.toml and constraints.txt. It needs a Python of 3.10 or
# newer and make, nothing else. Another Python: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# 500 random users each. To go on after a stop: make fuzz SEEDS="7 8 9 10"
SEEDS := 1 2 3 4 5 6 7 8 9 10
# JAX and the other libraries come only for the benchmarks.
BENCH := $(VENV)/.installed-bench

# The nets are small: a second thread costs more than it brings, and the two runs of the demo use the two cores.
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test fuzz soak lint style types format bench venv clean
.DELETE_ON_ERROR:

help:
	@echo 'make demo    the ring of Gaussians, K=0 beside K=10: a table and a figure in 3 minutes'
	@echo 'make test    the tests'
	@echo 'make fuzz    5,000 random users against the oracle (make test: 200); make soak: 20,000 calls (1,000). Some 20 and 5 minutes'
	@echo 'make lint    ruff and pyright (make style: ruff alone; make format: mend what ruff can)'
	@echo 'make bench   time and memory of an unrolled step on this machine, beside other libraries'
	@echo 'make venv    only make .venv; the others do so too where it is missing (2 to 4 minutes, once)'
	@echo 'make clean   remove .venv and what tests and builds left; results stay'
	@echo
	@echo 'Another Python (3.10 or newer): make test PYTHON=python3.12. More tests: make test ARGS="-k adam -x"'

demo: $(STAMP)
	@$(PY) examples/mixture_of_gaussians.py --preset demo $(ARGS)

test: $(STAMP)
	@$(PY) -m pytest -n 2 --dist worksteal $(ARGS)

fuzz: $(STAMP)
	@for seed in $(SEEDS); do echo "seed $$seed of: $(SEEDS)"; \
	    $(PY) -m pytest -n 2 tests/test_fuzz.py --hypothesis-profile=long --hypothesis-seed=$$seed -rP $(ARGS) || exit 1; done

soak: $(STAMP)
	@UNROLL_WRAP_SOAK=20000 $(PY) -m pytest tests/test_soak.py $(ARGS)

lint: style types

style: $(STAMP)
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check

types: $(STAMP)
	@$(PY) -m pyright --pythonpath $(PY)

format: $(STAMP)
	@$(PY) -m ruff check --fix
	@$(PY) -m ruff format

bench: $(BENCH)
	@$(PY) benchmarks/step_cost.py --json out/bench/step_cost.json --plot out/bench/step_cost.png
	@$(PY) benchmarks/memory.py --json out/bench/memory.json --plot out/bench/memory.png
	@$(PY) benchmarks/rule_cost.py --json out/bench/rule_cost.json

venv: $(STAMP)

# The stamp comes last. An environment without it was interrupted, and a half-unpacked package passes for an installed one:
# it is made again from nothing. One whose stamp is older than these files is only brought up to date.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "unroll_wrap needs Python 3.10 or newer, and \`$(PYTHON)\` is not. Say which one is: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@test -f $@ || { \
	    echo 'Making .venv with torch and the tools: 2 to 4 minutes, once.'; rm -rf $(VENV); \
	    $(PYTHON) -m venv $(VENV) || { echo 'This Python cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv' >&2; exit 1; }; }
	@$(PY) -m pip install $$(test -t 1 || echo --quiet) --constraint constraints.txt --editable '.[dev,examples]'
	@touch $@
	@echo '.venv is ready.'

$(BENCH): $(STAMP)
	@$(PY) -m pip install $$(test -t 1 || echo --quiet) --constraint constraints.txt --editable '.[bench]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
