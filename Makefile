# `make demo` and `make test` do all the set-up that they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt
WHAT ?=

.PHONY: demo test test-networks test-others lint format proto bench constraints figures clean help

help:
	@echo "make demo         the main job on MovieLens-100K: train, uplift, serve, ask"
	@echo "make test         the tests"
	@echo "make lint         ruff and mypy --strict        make format   ruff format"
	@echo "make proto        the gRPC stubs, from proto/pairlift/v1/*.proto"
	@echo "make bench        all benchmarks; WHAT=NAME for one, WHAT='NAME --option …' with options"
	@echo "make figures      the README's tables, from the committed results"
	@echo "make constraints  renew the exact versions in .ci/constraints.txt"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml .ci/constraints.txt | $(BIN)/python
	@echo "installing into $(VENV) (some minutes the first time) …"
	$(PIP) -e '.[train]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e '.[dev,otel]'
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/python -m ranker.demo .pairlift/demo

# Two processes side by side, for two cores. pytest-xdist does not do: servers fork, and its workers have threads.
NETWORKS := $(wildcard tests/test_neural*.py)
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest
test: $(VENV)/.installed-dev
	@$(MAKE) --no-print-directory --keep-going --jobs=2 test-networks test-others

test-networks:
	$(PYTEST) $(sort $(NETWORKS))

test-others:
	$(PYTEST) tests $(addprefix --ignore=,$(sort $(NETWORKS)))

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: $(VENV)/.installed-dev
	$(BIN)/python -m grpc_tools.protoc -I proto --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy \
		--python_out=proto --mypy_out=quiet:proto --grpc_python_out=proto proto/pairlift/v1/*.proto

$(VENV)/.installed-bench: $(VENV)/.installed-dev
	$(PIP) -e '.[bench]'
	@touch $@

# Feast, a peer of WHAT=features and serving: in an environment of its own, for its pins clash with ours.
FEAST := tests/bench/peers/requirements-feast.txt
.venv-bench/.installed: $(FEAST)
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -r $(FEAST)
	@touch $@

# RecBole, a peer of WHAT=neural, likewise; where it cannot be installed, its figure is null.
RECBOLE := tests/bench/peers/requirements-recbole.txt
.venv-recbole/.installed: $(RECBOLE)
	rm -f $@
	$(PYTHON) -m venv .venv-recbole
	-.venv-recbole/bin/python -m pip install --quiet --disable-pip-version-check -r $(RECBOLE) && touch $@

bench: $(VENV)/.installed-bench $(if $(filter features serving,$(or $(WHAT),features)),.venv-bench/.installed) \
		$(if $(filter neural,$(or $(WHAT),neural)),.venv-recbole/.installed)
	$(BIN)/python tests/bench/run.py $(WHAT)

# The README's tables, from tests/bench/results.
figures: | $(BIN)/python
	$(BIN)/python tests/bench/figures.py

# A fresh environment with the newest versions that pyproject.toml admits; torch stays where it is pinned.
constraints:
	rm -rf .venv-constraints
	$(PYTHON) -m venv .venv-constraints
	.venv-constraints/bin/python -m pip install --quiet --disable-pip-version-check 'torch==2.13.0' -e '.[train,otel,dev,bench]'
	.venv-constraints/bin/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' > .ci/constraints.txt
	rm -rf .venv-constraints

clean:
	rm -rf .pairlift .pytest_cache .mypy_cache .ruff_cache .hypothesis
