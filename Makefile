# make demo    the site, its traffic and its numbers, on SQLite (ARGS=--help for options)
# make test    the tests, on SQLite and PostgreSQL
# make lint    style, types, migrations
# make bench   what it costs, side by side with what one would use instead

PYTHON ?= python3
BIN := .venv/bin
APT := $(if $(filter 0,$(shell id -u)),,sudo) env DEBIAN_FRONTEND=noninteractive apt-get

.PHONY: demo test lint bench servers clean

demo: .venv/installed
	$(BIN)/python -m demo $(ARGS)

test: .venv/installed servers
	$(BIN)/python -m pytest -n auto $(ARGS)
	DATABASE=postgresql $(BIN)/python -m pytest -n auto -m "not own_site" $(ARGS)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m django makemigrations --check --dry-run --settings tests.settings

bench: .venv/installed
	$(BIN)/python -m benchmarks.migrate

# Debian's packages of the servers that the tests run on, if any is missing
servers: .venv/installed
	@missing=$$($(BIN)/python -m tests.servers) && \
	if [ -n "$$missing" ]; then \
		$(APT) update && $(APT) install -y --no-install-recommends $$missing; \
	fi

.venv/installed: setup.py
	$(PYTHON) -m venv .venv || ($(APT) update && $(APT) install -y python3-venv && $(PYTHON) -m venv --clear .venv)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[demo,test,lint]"
	touch $@

clean:
	rm -rf .venv .tox build dist *.egg-info demo/var
