# Every target makes the environment that it needs, unless it exists. Variables:
#   PYTHON, PYTHON_LATEST   the interpreters (default: searched for, see find_python)
#   JAX, TORCH              requirements of the main environment and of the peers' environment
#   WORKERS, PYTEST_ARGS    pytest's number of processes, and its other options (PYTEST_ARGS="-k lstm -x")
#   BENCH_ARGS              options of the benchmark (BENCH_ARGS=--quick)

PYTHON ?=
PYTHON_LATEST ?=
JAX ?= jax==0.10.2
TORCH ?= torch==2.13.0
WORKERS ?= 2
PYTEST_ARGS ?=
BENCH_ARGS ?=

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Prints the first interpreter of the versions $(1) that runs and can make environments. (The shim of a version
# manager may be on PATH although it does not run.)
find_python = root="$$(pyenv root 2>/dev/null || true)"; \
	for v in $(1); do for p in "python$$v" "$$root"/versions/$$v.*/bin/python; do \
		"$$p" -c "import sys, ensurepip, venv; \
			sys.exit('%d.%d' % sys.version_info[:2] != '$$v' or print(sys.executable))" 2>/dev/null && exit 0; \
	done; done; \
	echo "No working Python among: $(1). Install one, or name it: make PYTHON=..., PYTHON_LATEST=..." >&2; exit 1

# Makes the environment $(1) with the interpreter $(2), by default one of the versions $(3). An environment of another
# Python version is made again.
make_venv = py="$(2)"; [ -n "$$py" ] || py="$$($(call find_python,$(3)))"; \
	[ "$$($(1)/bin/python -V 2>/dev/null || true)" = "$$("$$py" -V)" ] || "$$py" -m venv --clear $(1); \
	rm -f $(1)/.installed-*

# The stamp's name contains the requirements, so that other requirements are installed.
stamp = $(1)/.installed-$(shell printf %s '$(2)' | tr -c 'A-Za-z0-9.' -)
MAIN := $(call stamp,.venv,$(PYTHON)-$(JAX))
PEERS := $(call stamp,.venv-peers,$(PYTHON)-$(JAX)-$(TORCH))
BROWSER := $(call stamp,.venv-browser,$(PYTHON)-$(JAX))
LATEST := $(call stamp,.venv-latest,$(PYTHON_LATEST))
DOCS := $(call stamp,.venv-docs,$(PYTHON)-$(JAX))

PYTEST := -m pytest -n $(WORKERS)
# Tests for every change: the quick tests, and the examples in the docstrings. Modules with optional dependencies
# are tested with the peers.
CORE := -m "not slow and not peers and not browser" --doctest-modules \
	$(addprefix --ignore=lstm_jax/,nnx.py linen.py interop/onnx) tests lstm_jax

.PHONY: help demo test test-slow test-one-device test-peers test-browser test-latest docs bench bench-device lint types clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(MAIN)  ## train a small character model into runs/demo
	.venv/bin/python examples/char_lm.py --demo

# Tests run on the CPU by default.
test test-slow test-one-device test-peers test-browser test-latest: export JAX_PLATFORMS ?= cpu

test: $(MAIN)  ## the everyday tests and the docstrings' examples
	.venv/bin/python $(PYTEST) $(CORE) $(PYTEST_ARGS)

test-slow: $(MAIN)  ## the tests that take long
	.venv/bin/python $(PYTEST) -m "slow and not browser" tests $(PYTEST_ARGS)

# The other tests have four virtual devices. Users with one CPU device get chunks of time and batch splits.
test-one-device: export TEST_DEVICES = 1
test-one-device: $(MAIN)  ## cells, sequences, networks and the benchmark on one CPU device
	.venv/bin/python $(PYTEST) -m "not peers and not browser" $(addprefix tests/,cells regularizers unrolling networks benchmarks) $(PYTEST_ARGS)

test-peers: export KERAS_BACKEND ?= jax
test-peers: $(PEERS)  ## live comparison with the other libraries; a skipped test is a failure
	.venv-peers/bin/python $(PYTEST) -m peers -rs --junitxml=.venv-peers/results.xml tests $(PYTEST_ARGS)
	@.venv-peers/bin/python -c 'import sys, xml.etree.ElementTree as xml; \
		cases = list(xml.parse(".venv-peers/results.xml").iter("testcase")); \
		skipped = [c.get("name") for c in cases for s in c.iter("skipped") if s.get("type") != "pytest.xfail"]; \
		sys.exit("skipped, so nothing was compared: %s" % ", ".join(skipped) if skipped \
			else None if any(len(c) == 0 for c in cases) else "no peers test passed")'

test-browser: $(BROWSER)  ## pages in a headless Chromium; skipped where none is installed
	.venv-browser/bin/python $(PYTEST) -m browser -rs tests/plots $(PYTEST_ARGS)

test-latest: $(LATEST)  ## the everyday tests on the newest Python and jax
	.venv-latest/bin/python $(PYTEST) $(CORE) $(PYTEST_ARGS)

# Without a cache of pages, which are all executed. Warnings are errors.
docs: export JAX_PLATFORMS ?= cpu
docs: $(DOCS)  ## the documentation, into build/docs/index.html
	rm -rf build/docs
	.venv-docs/bin/python -m sphinx -E -W --keep-going -q -b html -d build/docs-cache docs build/docs

# The second run keeps the memory that the process frees (docs/speed.md).
KEEP_FREED_MEMORY := MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2147483647
bench: export KERAS_BACKEND ?= jax
bench: $(PEERS)  ## time and memory compared with other libraries, into benchmarks/results
	.venv-peers/bin/python -m benchmarks $(BENCH_ARGS)
	$(KEEP_FREED_MEMORY) .venv-peers/bin/python -m benchmarks --parts cases $(BENCH_ARGS)

# Uses the installed jax of PYTHON, because each device needs another build. Installs nothing.
bench-device: PYTHON := $(or $(PYTHON),python)
bench-device:  ## correctness and speed on a GPU or TPU, within 400 seconds, into benchmarks/results
	$(PYTHON) -m benchmarks.device $(BENCH_ARGS)

lint: $(MAIN)  ## ruff: rules and format
	.venv/bin/ruff check
	.venv/bin/ruff format --check

types: $(MAIN)  ## mypy over lstm_jax
	.venv/bin/mypy

clean:  ## remove the environments, caches and build products (runs/ stays)
	rm -rf .venv .venv-peers .venv-browser .venv-latest .venv-docs .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find lstm_jax tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

$(MAIN): pyproject.toml
	@$(call make_venv,.venv,$(PYTHON),3.11 3.12 3.13)
	.venv/bin/python -m pip install -q "$(JAX)" -e ".[test,lint]"
	@touch $@

# torch first and pinned, so that no other package chooses its build.
$(PEERS): pyproject.toml
	@$(call make_venv,.venv-peers,$(PYTHON),3.11 3.12 3.13)
	.venv-peers/bin/python -m pip install -q "$(TORCH)"
	.venv-peers/bin/python -m pip install -q "$(JAX)" -e ".[test,bench]"
	@touch $@

$(BROWSER): pyproject.toml
	@$(call make_venv,.venv-browser,$(PYTHON),3.11 3.12 3.13)
	.venv-browser/bin/python -m pip install -q "$(JAX)" -e ".[test,browser]"
	@touch $@

$(LATEST): pyproject.toml
	@$(call make_venv,.venv-latest,$(PYTHON_LATEST),3.13 3.12)
	.venv-latest/bin/python -m pip install -q --upgrade jax -e ".[test]"
	@touch $@

$(DOCS): pyproject.toml
	@$(call make_venv,.venv-docs,$(PYTHON),3.11 3.12 3.13)
	.venv-docs/bin/python -m pip install -q "$(JAX)" -e ".[docs]"
	@touch $@
