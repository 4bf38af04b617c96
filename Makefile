# make demo   set-up + the whole job on the demo world
# make test   set-up + the test suite
# make test-64        64 processes as tp 8 x pp 8 against one (minutes, 14 GB of memory)
# make test-layouts   all sizes, schedules, recompute and key/value heads against one process (an hour or more)
# Both make their own .venv with PYTHON (3.11 or 3.12) and the versions of constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The other Triton that the kernels are compiled with in tests; Triton has no build for other systems.
OTHER_TRITON := $(VENV)/triton-3.6.0

.PHONY: demo test test-64 test-layouts lint clean

demo: $(VENV)/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" ./demo.sh

test: $(VENV)/installed-for-tests lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/kernels --numprocesses 2 --dist loadfile
	$(BIN)/python -m pytest --ignore tests/kernels

test-64: $(VENV)/installed-for-tests
	$(BIN)/python -m pytest tests/train/test_large.py --large

test-layouts: $(VENV)/installed-for-tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/parallel/test_layouts.py --every-layout --quiet

lint: $(VENV)/installed-for-tests
	$(BIN)/ruff check .

$(VENV)/installed: setup.py constraints.txt
	$(PYTHON) -c "import sys; sys.exit(None if (3, 11) <= sys.version_info[:2] <= (3, 12) else 'Python 3.11 or 3.12 is needed: make PYTHON=python3.12 ...')"
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-for-tests: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(OTHER_TRITON) "triton==3.6.0; platform_system == 'Linux' and platform_machine == 'x86_64'"
	touch $@

clean:
	rm -rf $(VENV) demo corpus shards runs scores
