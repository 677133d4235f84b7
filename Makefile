# make demo      the site, its traffic and its numbers, on SQLite (ARGS=--help for options)
# make test      style, types, and the fast tests: for each change (ARGS="-k throttle" for some)
# make gate      the other tests but soak, on each database: before a change lands
# make matrix    every pair of database, key, time zone and routing; soak; more cases: for a release
# make newest    the fast tests on another Python and the newest Django: make newest NEWEST=/path/to/python3.14
# make dates     the fast tests when days, months, quarters, years and UTC offsets change
# make lint      style, types, migrations
# make coverage  which lines and branches the gate's tests pass through
# make rules     the alerts' stories under another promtool: make rules PROMTOOL=/path/to/promtool
# make bench     what it costs, side by side with what one would use instead

PYTHON ?= python3
PYTHON310 ?= python3.10
# A newer Python than PYTHON, with the newest Django: for `make newest`, and for `make gate` if it is given
NEWEST ?=
NEWEST_DJANGO := 6.1
BIN := .venv/bin
# A file is one worker's; those that take longest begin first: see tests/conftest.py
SPREAD := -n auto --dist loadfile --no-loadscope-reorder
PYTEST := $(BIN)/python -m pytest $(SPREAD) $(ARGS)
MIX := $(if $(NEWEST),.venv-newest/bin/python -m pytest $(SPREAD) $(ARGS),$(PYTEST))
FAST := not own_site and not slow and not soak
REST := (own_site or slow) and not soak
# How many cases are invented for a property: see tests/conftest.py
GATE := --hypothesis-profile=gate
NIGHTLY := --hypothesis-profile=nightly
# Compiling the tests takes each of pytest's workers four seconds, unless it finds them compiled
unexport PYTHONDONTWRITEBYTECODE
APT := $(if $(filter 0,$(shell id -u)),,sudo) env DEBIAN_FRONTEND=noninteractive apt-get

.PHONY: demo test gate matrix newest dates rules lint coverage bench servers clean

demo: .venv/demo
	$(BIN)/python -m demo $(ARGS)

# Each database has a shape of site of its own: see tests/settings.py
test: lint
	DATABASE=sqlite     SHAPE=""             $(PYTEST) -m "$(FAST)"
	DATABASE=postgresql SHAPE="uuid routed"  $(PYTEST) -m "database and $(FAST)"

# What `make test` leaves out: both together are all tests but soak, and none runs twice
gate: .venv/test $(if $(NEWEST),.venv-newest/test)
	DATABASE=sqlite     SHAPE=""             $(PYTEST) $(GATE) -m "$(REST)"
	DATABASE=postgresql SHAPE="uuid routed"  $(PYTEST) $(GATE) -m "database and slow and not own_site and not soak"
	DATABASE=mariadb    SHAPE="string naive" $(MIX) $(GATE) -m "database and not own_site and not soak"
	DATABASE=postgresql SHAPE=""             $(PYTEST) $(GATE) tests/test_segments.py  # joined to users

# The last six rows add the pairs that the first three leave out, for the tests that depend on them
matrix: .venv/test
	DATABASE=sqlite     SHAPE=""                  $(PYTEST) $(NIGHTLY)
	DATABASE=postgresql SHAPE="uuid routed"       $(PYTEST) $(NIGHTLY) -m "database and not own_site"
	DATABASE=mariadb    SHAPE="string naive"      $(PYTEST) $(NIGHTLY) -m "database and not own_site"
	DATABASE=sqlite     SHAPE="uuid naive routed" $(PYTEST) $(GATE) -m "not own_site and not soak"
	DATABASE=sqlite     SHAPE="string routed"     $(PYTEST) $(GATE) -m "not own_site and not soak"
	DATABASE=postgresql SHAPE="string naive"      $(PYTEST) $(GATE) -m "database and not own_site and not soak"
	DATABASE=postgresql SHAPE="naive"             $(PYTEST) $(GATE) -m "database and not own_site and not soak"
	DATABASE=mariadb    SHAPE="routed"            $(PYTEST) $(GATE) -m "database and not own_site and not soak"
	DATABASE=mariadb    SHAPE="uuid"              $(PYTEST) $(GATE) -m "database and not own_site and not soak"

# With shifted clocks, for which Python 3.10 is the last that will do: see tests/dates.py
dates: .venv310/test
	DATABASE=sqlite SHAPE="" .venv310/bin/python -m tests.dates $(SPREAD) -m "$(FAST)" $(ARGS)

PROMTOOL ?= promtool
rules:
	$(PROMTOOL) --version
	$(PROMTOOL) check rules prometheus/souvenirs.rules.yml
	$(PROMTOOL) test rules prometheus/tests/*.yml

newest: .venv-newest/test
	DATABASE=sqlite SHAPE="" .venv-newest/bin/python -m pytest $(SPREAD) -m "$(FAST)" $(ARGS)

coverage:
	rm -f .coverage
	$(MAKE) test gate ARGS="--cov --cov-append --cov-report="
	$(BIN)/coverage report

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
	@$(PYTHON310) -c "" 2> /dev/null || \
		{ echo "$(PYTHON310) does not run; make dates PYTHON310=/path/to/python3.10"; exit 1; }
	$(PYTHON310) -m venv .venv310
	.venv310/bin/python -m pip install --quiet --editable ".[demo,test]"
	touch $@

.venv-newest/test: setup.py | servers
	@"$(NEWEST)" -c "" 2> /dev/null || \
		{ echo "'$(NEWEST)' does not run; make newest NEWEST=/path/to/python3.14"; exit 1; }
	"$(NEWEST)" -m venv --clear .venv-newest
	.venv-newest/bin/python -m pip install --quiet --editable ".[demo,test]" "Django==$(NEWEST_DJANGO).*"
	touch $@

clean:
	rm -rf .venv .venv310 .venv-newest .tox build dist *.egg-info demo/var
