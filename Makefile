# Everything here runs in .venv, which make itself builds from pyproject.toml and constraints/. It needs a Python of 3.10 or
# newer and make, nothing else. Another Python: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# 500 random users each. To go on after a stop: make fuzz SEEDS="7 8 9 10"
SEEDS := 1 2 3 4 5 6 7 8 9 10
# Of the order in test-shuffled.
SEED ?= 1
# The versions to install, of the Python that .venv has.
CONSTRAINTS = $$($(PY) tools/constraints.py path)
# What only one of the targets needs is installed by it: JAX for the benchmarks, mkdocs for the documentation, and so on.
BENCH := $(VENV)/.installed-bench
DOCS := $(VENV)/.installed-docs
HOSTS := $(VENV)/.installed-hosts
RELEASE := $(VENV)/.installed-release
# The lowest and the newest that are supported: test-matrix runs the tests on both.
LOWEST ?= python3.10
LOWEST_TORCH ?= torch==2.6.0 torchvision==0.21.0
NEWEST ?= python3.13
NEWEST_TORCH ?= torch torchvision

# The nets are small: a second thread costs more than it brings, and the two runs of the demo use the two cores.
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-shuffled test-hosts test-xla gpu test-matrix test-on constraints fuzz soak lint style imports types format bench docs notebook dist venv clean
.DELETE_ON_ERROR:

help:
	@echo 'make demo    the ring of Gaussians, K=0 beside K=10: a table and a figure in 3 minutes'
	@echo 'make test    the tests'
	@echo 'make test-shuffled    the tests in a random order, always the same (SEED=1), across files and folders'
	@echo 'make test-hosts    the recipes with Lightning, Ignite, Accelerate, Fabric and torchgan themselves'
	@echo 'make test-matrix   the tests on the lowest and the newest Python and torch (LOWEST=python3.10 NEWEST=python3.13)'
	@echo 'make test-xla      a table of nets, optimizers and backwards on another device: PyTorch/XLA, on the CPU'
	@echo 'make gpu     what waits for a GPU, smallest first; the same command goes on after a stop (ARGS="--budget 1200")'
	@echo 'make fuzz    5,000 random users against the oracle (make test: 200); make soak: 20,000 calls (1,000). Some 20 and 5 minutes'
	@echo 'make lint    ruff, import-linter and pyright (make style, imports, types: one of them; make format: mend what ruff can)'
	@echo 'make bench   time and memory of an unrolled step on this machine, beside other libraries'
	@echo 'make docs    the documentation as a site in site/, warnings being errors, and its links checked; make notebook: run the quickstart anew'
	@echo 'make dist    sdist and wheel, checked, and the wheel tried in an environment of its own'
	@echo 'make constraints   write constraints/ for this Python (PYTHON=python3.12 for another one), keeping versions that fit'
	@echo 'make venv    only make .venv; the others do so too where it is missing (2 to 4 minutes, once)'
	@echo 'make clean   remove .venv and what tests and builds left; results stay'
	@echo
	@echo 'Another Python (3.10 or newer): make test PYTHON=python3.12. More tests: make test ARGS="-k adam -x"'

demo: $(STAMP)
	@$(PY) examples/mixture_of_gaussians.py --preset demo $(ARGS)

test: $(STAMP)
	@$(PY) -m pytest -n 2 --dist worksteal $(ARGS)

# A test that passes in one order alone is a defect.
test-shuffled: $(STAMP)
	@echo 'Random order, seed $(SEED).'
	@$(PY) -m pytest -n 2 --dist worksteal --random-order-bucket=global --random-order-seed=$(SEED) $(ARGS)

test-hosts: $(HOSTS)
	@$(PY) -m pytest -n 2 --dist worksteal hosts $(ARGS)

# torch_xla is of one version of torch alone: an environment of its own.
XLA := .venv-xla
test-xla:
	@test -f $(XLA)/.installed || { rm -rf $(XLA); $(PYTHON) -m venv $(XLA); }
	@test -f $(XLA)/.installed || $(XLA)/bin/python -m pip install --quiet torch==2.9.0 torch_xla==2.9.0 numpy pytest hypothesis
	@touch $(XLA)/.installed
	@PJRT_DEVICE=CPU UNROLL_WRAP_DEVICE=xla PYTHONPATH=. $(XLA)/bin/python -m pytest -p no:cacheprovider -q tests/runtime/test_device.py $(ARGS)

gpu: $(BENCH)
	@$(PY) benchmarks/gpu.py $(ARGS)

test-matrix:
	@$(MAKE) --no-print-directory test-on ON=.venv-lowest PYTHON=$(LOWEST) TORCH='$(LOWEST_TORCH)'
	@$(MAKE) --no-print-directory test-on ON=.venv-newest PYTHON=$(NEWEST) TORCH='$(NEWEST_TORCH)'

# torch first, and what it brings is pinned: an old one asks for an old sympy, and pip would rather take a new torch.
test-on:
	@test -d $(ON) || $(PYTHON) -m venv $(ON)
	@$(ON)/bin/python -m pip install --quiet $(TORCH)
	@$(ON)/bin/python -m pip freeze --exclude-editable | $(ON)/bin/python tools/constraints.py beside > $(ON)/constraints.txt
	@$(ON)/bin/python -m pip install --quiet --constraint $(ON)/constraints.txt --editable '.[dev,examples]'
	@$(ON)/bin/python -m unroll_wrap doctor
	@$(ON)/bin/python -m pytest -n 2 --dist worksteal $(ARGS)

constraints:
	@$(PYTHON) tools/constraints.py write $(ARGS)

fuzz: $(STAMP)
	@for seed in $(SEEDS); do echo "seed $$seed of: $(SEEDS)"; \
	    $(PY) -m pytest -n 2 tests/exact/test_fuzz.py --hypothesis-profile=long --hypothesis-seed=$$seed -rP $(ARGS) || exit 1; done

soak: $(STAMP)
	@UNROLL_WRAP_SOAK=20000 $(PY) -m pytest tests/runtime/test_soak.py $(ARGS)

lint: style imports types

style: $(STAMP)
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check

imports: $(STAMP)
	@$(VENV)/bin/lint-imports --no-cache --no-logo

types: $(STAMP)
	@$(PY) -m pyright --pythonpath $(PY)

format: $(STAMP)
	@$(PY) -m ruff check --fix
	@$(PY) -m ruff format

# Bytes are the same whatever else runs: the memory of K steps is measured on the first core, the time on the last.
bench: $(BENCH)
	@mkdir -p out/bench
	@$(PY) benchmarks/memory.py --json out/bench/memory.json --plot out/bench/memory.png > out/bench/memory.txt 2>&1 & memory=$$!; \
	    $(PY) benchmarks/step_cost.py --json out/bench/step_cost.json --plot out/bench/step_cost.png && \
	    $(PY) benchmarks/rule_cost.py --json out/bench/rule_cost.json; status=$$?; \
	    wait $$memory || status=$$?; cat out/bench/memory.txt; exit $$status

docs: $(DOCS)
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet
	@$(PY) docs/check_links.py site
	@echo 'Open site/index.html.'

notebook: $(DOCS)
	@$(PY) docs/tools/notebook_badge.py
	@cd examples && ../$(VENV)/bin/jupyter execute --inplace quickstart.ipynb

dist: $(RELEASE)
	@rm -rf dist .venv-dist
	@$(PY) -m build --outdir dist .
	@$(PY) -m twine check --strict dist/*
	@$(PY) -m venv .venv-dist
	@.venv-dist/bin/python -m pip install --quiet --constraint "$(CONSTRAINTS)" dist/*.whl
	@$(PY) docs/tools/first_snippet.py > dist/first_snippet.py
	@cd dist && ../.venv-dist/bin/python -I first_snippet.py && ../.venv-dist/bin/python -I -m unroll_wrap doctor
	@rm -rf .venv-dist dist/first_snippet.py
	@ls -l dist

venv: $(STAMP)

# The stamp comes last. An environment without it was interrupted, and a half-unpacked package passes for an installed one:
# it is made again from nothing. One whose stamp is older than these files is only brought up to date.
$(STAMP): pyproject.toml $(wildcard constraints/*.txt)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "unroll_wrap needs Python 3.10 or newer, and \`$(PYTHON)\` is not. Say which one is: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@test -f $@ || { \
	    echo 'Making .venv with torch and the tools: 2 to 4 minutes, once.'; rm -rf $(VENV); \
	    $(PYTHON) -m venv $(VENV) || { echo 'This Python cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv' >&2; exit 1; }; }
	@$(PY) -m pip install $$(test -t 1 || echo --quiet) --constraint "$(CONSTRAINTS)" --editable '.[dev,examples]'
	@touch $@
	@echo '.venv is ready.'

$(BENCH) $(DOCS) $(HOSTS) $(RELEASE): $(STAMP)
	@$(PY) -m pip install $$(test -t 1 || echo --quiet) --constraint "$(CONSTRAINTS)" --editable '.[$(patsubst .installed-%,%,$(@F))]'
	@touch $@

clean:
	rm -rf $(VENV) .venv-lowest .venv-newest .venv-xla .venv-dist build dist site .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
