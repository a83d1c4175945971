# `make demo` sets everything up and runs the main job; `make test` sets everything up and runs the tests.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LOG := $(VENV)/install.log
# Compiled modules are kept, whatever the shell says: each stage is a process of its own.
export PYTHONDONTWRITEBYTECODE :=
# Of all tests three processes, as many wait for servers. Those of a file stay together: they share what is dear to make.
PARALLEL ?= --dist loadfile --no-loadscope-reorder
# One thread of computation for each of these processes.
QUIET := OMP_NUM_THREADS=1 GX_ANALYTICS_ENABLED=false DO_NOT_TRACK=1 MLFLOW_DISABLE_TELEMETRY=true PREFECT_SERVER_ANALYTICS_ENABLED=false

.PHONY: demo test fast-test lint types lock clean

demo: $(READY)
	@$(BIN)/flawline demo

test: $(READY)
	$(QUIET) $(BIN)/python -m pytest -n 3 $(PARALLEL) $(TESTS)

fast-test: $(READY)
	$(QUIET) $(BIN)/python -m pytest -n 2 $(PARALLEL) -m "not slow"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo --no-cache

types: $(READY)
	$(BIN)/mypy

lock:
	uv pip compile --python-version 3.11 --extra dev --no-header --no-annotate pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) .flawline artifacts data/demo

# uv is quicker where it is installed and pointed at torch; pip finds torch by the machine's own configuration.
$(READY): requirements.lock pyproject.toml
	@echo "Setting up $(VENV) from requirements.lock (a few minutes the first time; log: $(LOG))"
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: install it, or run make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@if [ -n "$$UV_FIND_LINKS" ] && command -v uv >/dev/null; then \
		uv pip install --compile-bytecode --python $(BIN)/python --no-deps -r requirements.lock >$(LOG) 2>&1; \
	else \
		$(BIN)/python -m pip install --no-deps --disable-pip-version-check -r requirements.lock >$(LOG) 2>&1; \
	fi || { tail -n 20 $(LOG); echo "The installation failed: see $(LOG)"; exit 1; }
	@$(BIN)/python -m pip install --no-deps --no-build-isolation -e . >>$(LOG) 2>&1 || { tail -n 20 $(LOG); exit 1; }
	@git rev-parse --git-dir >/dev/null 2>&1 || git init -q
	@touch $(READY)
