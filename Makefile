# Every target makes the environment it needs, from nothing; torch is pinned through constraints.txt.

PYTHON ?= python3
VENV := .venv
BENCH_VENV := .venv-bench
COMPAT_VENV := .venv-compat
BIN := $(VENV)/bin
BENCH_BIN := $(BENCH_VENV)/bin
COMPAT_BIN := $(COMPAT_VENV)/bin
# One process per core, a test file at a time.
IN_PARALLEL := --numprocesses=auto --dist=loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test faults check bench compat ray deepspeed docs format clean

help:
	@echo "make demo     train a small network on handwritten digits, then test it (about half a minute)"
	@echo "make test     run the tests"
	@echo "make faults   kill runs at 200 instants and start them again (a few minutes)"
	@echo "make check    formatting, lint, types, import layers"
	@echo "make docs     run every example that the documentation shows"
	@echo "make bench    measure fulgur against a hand-written loop and its peers"
	@echo "make compat   exchange checkpoints with Lightning, and train six packages that are written for it"
	@echo "make ray      install Ray (500 MB), and train in its workers"
	@echo "make deepspeed  install DeepSpeed, and train with its engine on the CPU (needs a C++ compiler)"
	@echo "make format   format the code in place"

demo: $(VENV)/.installed
	$(BIN)/python examples/digits.py

test: $(VENV)/.installed
	$(BIN)/python -m pytest --timeout=300 $(IN_PARALLEL)

faults: $(VENV)/.installed
	FULGUR_FAULTS=200 $(BIN)/python -m pytest --timeout=1800 tests/faults

check: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict
	$(BIN)/lint-imports

docs: $(VENV)/.installed
	$(BIN)/python -m pytest --timeout=300 tests/docs

bench: $(BENCH_VENV)/.installed
	$(BENCH_BIN)/python benchmarks/run.py

compat: $(VENV)/.installed $(BENCH_VENV)/.installed $(COMPAT_VENV)/.installed
	$(BIN)/python -m pytest --timeout=300 tests/compat

ray: $(VENV)/.ray
	$(BIN)/python -m pytest --timeout=300 tests/distributed/test_ray.py

deepspeed: $(VENV)/.deepspeed
	$(BIN)/python -m pytest --timeout=300 tests/distributed/test_deepspeed.py

format: $(VENV)/.installed
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean:
	rm -rf build dist demo_run .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

# The stamp is written last: an install that broke off is started again.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install torch==2.13.0 -c constraints.txt
	$(BIN)/pip install -e '.[dev]' -c constraints.txt
	touch $@

$(VENV)/.ray: $(VENV)/.installed
	$(BIN)/pip install -e '.[ray]' -c constraints.txt
	touch $@

# DeepSpeed is built on the spot, for the torch that is there; what it compiles for steps, when they first run.
$(VENV)/.deepspeed: $(VENV)/.installed
	$(BIN)/pip install setuptools wheel hjson py-cpuinfo ninja msgpack einops psutil tqdm pydantic -c constraints.txt
	DS_BUILD_OPS=0 DS_ACCELERATOR=cpu $(BIN)/pip install deepspeed --no-build-isolation --no-deps -c constraints.txt
	touch $@

$(BENCH_VENV)/.installed: pyproject.toml constraints.txt constraints-bench.txt
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_BIN)/pip install torch==2.13.0 -c constraints.txt
	$(BENCH_BIN)/pip install -e '.[cli]' lightning accelerate pytorch-ignite keras -c constraints.txt -c constraints-bench.txt
	touch $@

COMPAT_PACKAGES := lightning darts pytorch-forecasting optuna 'optuna-integration[pytorch_lightning]' chemprop \
	'gluonts[torch]' scvi-tools scikit-learn

$(COMPAT_VENV)/.installed: pyproject.toml constraints.txt constraints-compat.txt
	$(PYTHON) -m venv $(COMPAT_VENV)
	$(COMPAT_BIN)/pip install torch==2.13.0 -c constraints.txt
	$(COMPAT_BIN)/pip install -e . $(COMPAT_PACKAGES) -c constraints.txt -c constraints-compat.txt
	touch $@
