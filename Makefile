# Works on a machine that has only python3 (3.11 or newer) and make.
#
#   make quickstart     create .venv, install, run the whole line once; writes results/quickstart/
#   make test           create .venv, install with the tools, run the fast tests
#   make test-uncached  the tests of solving and failing once more without the cache of compiled programs
#   make test-types     the tests of every room once more with each call's types and array shapes checked against its annotations
#   make test-oldest    the fast tests on the lowest versions that pyproject.toml allows, in .venv-oldest
#   make validate       the validity table (docs/validity.md, row by row) and the slow tests: theory against simulation
#   make mutants        put one wrong formula after the other into a copy (benchmarks/mutants.toml): a test must fail with each
#   make lint           ruff check, ruff format --check, pyright
#   make derivations    derive again and rewrite odescale/generated and docs/derivations
#   make notebooks      execute the notebooks into results/notebooks
#   make bench          timings on this machine (DEVICE=gpu for an accelerator)
#   make gpu            on a machine with a GPU: its tests and timings in under eight minutes, into results/gpu.md
#   make clean          remove .venv, caches and build products (results/ stays)
#
# Variables: PYTHON names the interpreter, VENV the environment, CONSTRAINTS the pinned versions (empty: newest allowed),
# WORKERS the number of test processes, TEST more arguments for pytest, ARGS more arguments for the quickstart or the mutants,
# CACHE the folder of compiled programs that test runs share (empty: none).

SHELL := /bin/sh
VENV ?= .venv
PYTHON ?=
CONSTRAINTS ?= constraints.txt
WORKERS ?= 2
DEVICE ?= cpu
CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/odescale/compiled
TEST ?=
ARGS ?=

PY := $(VENV)/bin/python
PIP := $(PY) -m pip -qq --disable-pip-version-check --no-input
PINS := $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
# Test processes share a GPU, if there is one: none may take its memory whole.
# Nearly all of their time is compilation of programs that then run for milliseconds: compile with less effort.
# And keep them on disk for the next run: diffrax programs can be kept only with EQX_ON_ERROR=nan, where what would raise inside
# a compiled program gives NaN instead; the library reads result codes, so that its own errors are the same either way.
KEPT := JAX_COMPILATION_CACHE_DIR="$(CACHE)" JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1 EQX_ON_ERROR=nan
# One thread for products of numpy: a second one waits by spinning, and on busy cores a table of the peaked theory took 55 to 60 s of CPU
# with two against 12 s with one.
TESTING := $(if $(CACHE),$(KEPT)) OPENBLAS_NUM_THREADS=1 XLA_PYTHON_CLIENT_PREALLOCATE=false XLA_FLAGS=--xla_backend_optimization_level=0
PYTEST := $(TESTING) $(PY) -m pytest

.PHONY: help quickstart test test-uncached test-types test-oldest validate mutants lint derivations check-derivations notebooks bench gpu clean
.DELETE_ON_ERROR:
# Two targets would install into one environment at once.
.NOTPARALLEL:

help:
	@sed -n 's/^#   //p' Makefile

quickstart: $(VENV)/.installed
	$(VENV)/bin/odescale quickstart $(ARGS)

test: $(VENV)/.installed-dev
	$(PYTEST) -n $(WORKERS) --dist loadfile --max-worker-restart 0 $(TEST)

test-uncached:
	$(MAKE) test CACHE= TEST="tests/test_integrate.py tests/test_sweep.py tests/test_structure.py $(TEST)"

# At least one test file per room; what refuses bad input is not checked (tests/conftest.py).
TYPED := clock networks library row_networks expectations closure tangent_kernel spectrum kernel integrate sweep spectral peaked \
	two_tokens risk_law frontier_numeric schedule_law logs training training_peaked language rollout rollout_times

test-types:
	$(MAKE) test TEST="--jaxtyping-packages=odescale,typecheck.checked $(TYPED:%=tests/test_%.py) $(TEST)"

test-oldest:
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt CACHE= TEST="$(TEST)"

validate: $(VENV)/.installed-dev
	$(PY) -m benchmarks.validity
	XLA_PYTHON_CLIENT_PREALLOCATE=false $(PY) -m pytest -m slow $(TEST)

# Minutes on two cores; one of them: make mutants ARGS="--only mean_pool_sums".
mutants: $(VENV)/.installed-dev
	$(TESTING) $(PY) -m benchmarks.mutants --jobs $(WORKERS) $(ARGS)

lint: $(VENV)/.installed-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright --project pyproject.toml --pythonpath $(PY)

derivations: $(VENV)/.installed
	$(PY) -m derivations

check-derivations: $(VENV)/.installed
	$(PY) -m derivations --check

notebooks: $(VENV)/.installed-notebook
	@mkdir -p results/notebooks
	@for script in notebooks/*.py; do \
		name=$$(basename "$$script" .py); \
		echo "$$script -> results/notebooks/$$name.ipynb"; \
		$(PY) -m jupytext --quiet --to ipynb --execute --output "results/notebooks/$$name.ipynb" "$$script" || exit 1; \
	done

bench: $(VENV)/.installed
	$(PY) -m benchmarks --device $(DEVICE)

gpu: $(VENV)/.installed-dev
	@$(PIP) install $(PINS) -e '.[gpu]'
	$(PY) -m benchmarks.gpu $(ARGS)

clean:
	rm -rf $(VENV) $(if $(CACHE),"$(CACHE)") build dist .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp per set of extras: a second call installs nothing, a change of pyproject.toml or of the pins installs again.
$(VENV)/.installed: pyproject.toml $(CONSTRAINTS) | $(PY)
	@echo "Installing odescale into $(VENV) (a few minutes the first time)"
	@$(PIP) install $(PINS) -e .
	@touch $@

$(VENV)/.installed-%: pyproject.toml $(CONSTRAINTS) | $(PY)
	@echo "Installing odescale with the $* tools into $(VENV) (a few minutes the first time)"
	@$(PIP) install $(PINS) -e '.[$*]'
	@touch $@ $(VENV)/.installed

# The first interpreter that is new enough and can make an environment with pip in it (Debian splits that off).
$(PY):
	@old=""; bare=""; \
	for p in $(if $(PYTHON),"$(PYTHON)",python3 python3.13 python3.12 python3.11 python3.14 python); do \
		command -v "$$p" >/dev/null 2>&1 || continue; \
		"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || { old="$$old $$p"; continue; }; \
		"$$p" -c 'import venv, ensurepip' >/dev/null 2>&1 || { bare="$$bare $$p"; continue; }; \
		echo "Creating $(VENV) with $$p ($$("$$p" -c 'import platform; print(platform.python_version())'))"; \
		"$$p" -m venv --clear "$(VENV)" && exit 0 || exit 1; \
	done; \
	if [ -n "$$bare" ]; then \
		echo "Cannot create an environment: no venv/ensurepip in$$bare. On Debian or Ubuntu: apt install python3-venv" >&2; \
	elif [ -n "$$old" ]; then \
		echo "odescale needs Python 3.11 or newer; too old or not working:$$old. Name one: make PYTHON=/path/to/python3.11" >&2; \
	else \
		echo "No Python found$(if $(PYTHON), at $(PYTHON)). Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.11" >&2; \
	fi; \
	exit 1
