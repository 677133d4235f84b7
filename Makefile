# make demo    the site, its traffic and its numbers, on SQLite (ARGS=--help for options)
# make test    the tests, on SQLite, PostgreSQL and MariaDB (ARGS="-k throttle" for some of them)
# make dates   the fast tests when days, months, quarters, years and the offset from UTC change
# make lint    style, types, migrations
# make bench   what it costs, side by side with what one would use instead

PYTHON ?= python3
PYTHON310 ?= python3.10
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -n auto $(ARGS)
APT := $(if $(filter 0,$(shell id -u)),,sudo) env DEBIAN_FRONTEND=noninteractive apt-get

.PHONY: demo test dates lint bench servers clean

demo: .venv/demo
	$(BIN)/python -m demo $(ARGS)

# Each database with a shape of site of its own (tests/settings.py); then every pair of database,
# key type, time zones and routing that those leave out, on the tests that depend on them.
test: .venv/test
	DATABASE=sqlite     SHAPE=""             $(PYTEST)
	DATABASE=postgresql SHAPE="uuid routed"  $(PYTEST) -m "not own_site"
	DATABASE=mariadb    SHAPE="string naive" $(PYTEST) -m "not own_site"
	DATABASE=sqlite     SHAPE="uuid naive routed"   $(PYTEST) -m "not own_site and not slow"
	DATABASE=sqlite     SHAPE="string routed"       $(PYTEST) -m "not own_site and not slow"
	DATABASE=postgresql SHAPE="string naive"        $(PYTEST) -m "not own_site and not slow"
	DATABASE=postgresql SHAPE="naive"               $(PYTEST) -m "not own_site and not slow"
	DATABASE=mariadb    SHAPE="routed"              $(PYTEST) -m "not own_site and not slow"
	DATABASE=mariadb    SHAPE="uuid"                $(PYTEST) -m "not own_site and not slow"

# With shifted clocks, for which Python 3.10 is the last that will do (tests/dates.py)
dates: .venv310/test
	DATABASE=sqlite SHAPE="" .venv310/bin/python -m tests.dates -n auto -m "not own_site and not slow" $(ARGS)

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m django makemigrations --check --dry-run --settings tests.settings

bench: .venv/test
	$(BIN)/python -m benchmarks.migrate

# Debian's packages of the servers that the tests run on, and of what builds their clients
servers:
	@missing=$$($(PYTHON) -m tests.servers) && \
	if [ -n "$$missing" ]; then \
		$(APT) update && $(APT) install -y --no-install-recommends $$missing; \
	fi

.venv/bin/python:
	$(PYTHON) -m venv .venv || \
		{ $(APT) update && $(APT) install -y python3-venv && $(PYTHON) -m venv --clear .venv; }
	$(BIN)/python -m pip install --quiet --upgrade pip

.venv/demo: .venv/bin/python setup.py
	$(BIN)/python -m pip install --quiet --editable ".[demo]"
	touch $@

.venv/test: .venv/bin/python setup.py | servers
	$(BIN)/python -m pip install --quiet --editable ".[demo,test,lint]"
	touch $@ .venv/demo

.venv310/test: setup.py | servers
	@command -v $(PYTHON310) > /dev/null || \
		{ echo "$(PYTHON310) is not installed; make dates PYTHON310=/path/to/python3.10"; exit 1; }
	$(PYTHON310) -m venv .venv310
	.venv310/bin/python -m pip install --quiet --editable ".[demo,test]"
	touch $@

clean:
	rm -rf .venv .venv310 .tox build dist *.egg-info demo/var
