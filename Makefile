# Each target makes its own environment in $(VENV), with PYTHON= or the first
# Python >= 3.11 that is found. Stamp files make a second run quick.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

VENV ?= .venv
PYTHON ?=
# More words for pytest, or for the demo and the benchmark.
ARGS ?=
# AUTO: CUDA kernels where there is nvcc. OFF: none.
CUDA ?= AUTO

python := $(VENV)/bin/python
stamps := $(VENV)/stamps
pip := $(python) -m pip install --disable-pip-version-check --quiet
build := $(python) tools/build.py

package_files := pyproject.toml CMakeLists.txt $(wildcard cmake/*.cmake) \
  $(wildcard oneemb_jax/*.py oneemb_jax/*.pyi) \
  $(wildcard xla_ffi/*.cc xla_ffi/*/*.cc xla_ffi/*/*.h) $(wildcard cuda/*)
# What pytest runs besides tests/: the examples in docstrings and pages.
doctests := $(wildcard README.md docs)

.PHONY: help
help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' \
	  | expand -t 16

# Its table ends with 288,000 rows; the cache holds a tenth of them.
demo := --synthetic --store cached_ssd --cache-mb 4.5 --batch-size 1024
.PHONY: demo
demo: $(stamps)/examples  ## Train a DLRM on synthetic clicks, its table on SSD
	$(python) examples/dlrm.py $(demo) $(ARGS)

.PHONY: bench
bench: $(stamps)/bench  ## Measure lookup, update and the whole step
	$(python) benchmarks/cpu.py $(ARGS)

.PHONY: test
test: test-cpp test-python  ## Run the C++ and the Python tests

.PHONY: test-cpp
test-cpp: $(stamps)/test
	$(build) --tests

# A test compiles and runs on one processor most of the time, and takes a gigabyte
# and more. Neighbours stay together: they share what has been compiled.
workers := -n logical --maxprocesses 4 --dist worksteal
# The folder of the installed package: its doctests run against what users get.
.PHONY: test-python
test-python: $(stamps)/test
	cd tests && package=$$(../$(python) -c \
	  'import oneemb_jax; print(oneemb_jax.__path__[0])') && cd .. && \
	$(VENV)/bin/pytest $(workers) tests $(doctests) "$$package" $(ARGS)

.PHONY: lint
lint: $(stamps)/lint  ## Run every checker
	$(python) tools/check.py

.PHONY: sanitize
sanitize: $(stamps)/test  ## Run the tests under the sanitizers
	$(build) --tests --sanitize "address;undefined"
	$(build) --tests --sanitize thread
	$(python) tools/pytest_asan.py $(ARGS)

# The same tests, for longer.
asan := --sanitize "address;undefined"
.PHONY: torture
torture: $(stamps)/test  ## Try to break the store, for an hour and more
	ONEEMB_KILLS=2000 $(build) --long --tests kill_test
	ONEEMB_TRAINING_KILLS=200 $(VENV)/bin/pytest tests/test_tiers_kill.py
	ONEEMB_DAMAGE_RUNS=100000 $(VENV)/bin/pytest tests/test_oneflow_damage.py
	ONEEMB_MODEL_RUNS=3000 $(build) --long --tests store_test
	ONEEMB_MEMORY_STEP=1 $(build) --long --tests memory_test
	ONEEMB_FUZZ_RUNS=1000000 $(build) --long $(asan) --tests fuzz_test
	ONEEMB_FLIP_STEP=1 $(build) --long $(asan) --tests flip_test
	ONEEMB_CONCURRENCY_TIMES=20 $(build) --long --sanitize thread \
	  --tests concurrency_test
	$(build) --fuzz 200000

.PHONY: dev
dev:  ## Build the module into oneemb_jax/, with PYTHON or $(VENV)
	$(if $(PYTHON),$(PYTHON),$(python)) tools/build.py

.PHONY: clean
clean:  ## Remove builds and environments
	rm -rf build dist out .venv .venv-* oneemb_jax/*.so .cache
	find . -name __pycache__ -prune -exec rm -rf {} +

$(stamps)/venv:
	python=$$(PYTHON="$(PYTHON)" tools/find_python.sh) && \
	  echo "environment $(VENV): $$python" && \
	  "$$python" -m venv $(VENV)
	$(pip) --upgrade pip
	mkdir -p $(stamps)
	touch $@

$(stamps)/package: $(stamps)/venv $(package_files)
	$(build) --install --cuda $(CUDA)
	touch $@

# The package is installed by now; these add what one extra wants.
$(stamps)/examples $(stamps)/bench $(stamps)/lint: $(stamps)/%: \
    $(stamps)/package pyproject.toml
	$(pip) "oneemb-jax[$*]"
	touch $@
$(stamps)/test: $(stamps)/package pyproject.toml
	$(pip) "oneemb-jax[test]"
	touch $@
