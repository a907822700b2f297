# `make run` and `make test` are all that a newcomer needs; both set themselves up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN_STAMP := $(VENV)/.run
DEV_STAMP := $(VENV)/.dev
ARGS ?=

.PHONY: run test bench setup lint chromium clean

setup: $(RUN_STAMP)

run: $(RUN_STAMP)
	$(BIN)/python app.py $(ARGS)

test: $(DEV_STAMP) chromium
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

bench: $(DEV_STAMP) chromium
	$(BIN)/python -m bench.store
	$(BIN)/python -m bench.watching
	$(BIN)/python -m bench.streaming
	$(BIN)/python -m bench.engine
	$(BIN)/python -m bench.products
	$(BIN)/python -m bench.retrieval
	$(BIN)/python -m bench.files
	$(BIN)/python -m bench.memory
	$(BIN)/python -m bench.guard
	$(BIN)/python -m bench.beside
	$(BIN)/python -m bench.forecast
	$(BIN)/python -m bench.cycles
	$(BIN)/python -m bench.swap
	$(BIN)/python -m bench.swap_served

lint: $(DEV_STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

chromium:
	@command -v chromium >/dev/null || { echo "Installing Chromium for the browser tests"; \
	  SUDO=$$([ "$$(id -u)" = 0 ] || echo sudo); $$SUDO apt-get update -qq && $$SUDO apt-get install -y -qq chromium >/dev/null; }

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(RUN_STAMP): requirements.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(DEV_STAMP): requirements-dev.txt $(RUN_STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
