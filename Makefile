# `make help` lists the targets. `make up` and `make test` need only Python 3.11 to 3.13 and make.

# The first one found. Override with PYTHON=...
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(shell command -v $(p) 2>/dev/null)))
VENV ?= .venv
PORT ?= 3000
SANDBOX_PORT ?= 8765
SERVICE ?= instantly
FOR ?= 120
DRILL ?=
ROUNDS ?= 200
MINUTES ?= 60
# Four with real deployments, which mostly wait, and two whose tests fill the processors meanwhile.
WORKERS ?= 6
# Tests are grouped by file, and real deployments in four groups (tests/conftest.py); what takes longest
# comes first, in the order of pyproject.toml.
DIST := --dist loadgroup --no-loadscope-reorder
CONSTRAINTS ?= constraints.txt
DAGSTER ?= newest

# Each process of a deployment under test would compile the project anew.
unexport PYTHONDONTWRITEBYTECODE

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
DEPLOYMENT := $(VENV)/.installed-deployment
TESTS := $(VENV)/.installed-tests
RELEASE := $(VENV)/.installed-release
BENCH := $(VENV)/.installed-bench
OTHER := .venv-dagster-$(DAGSTER)
# Those that use Dagster's API, each part of it once; the store is the same with any Dagster.
OF_DAGSTER := $(patsubst %,tests/integration/test_%.py,\
  facts_about_dagster gate runs assets start api_start executors serve records)
PROPERTIES := $(shell grep -lE '^(from|import) hypothesis' -r tests --include='test_*.py')

.PHONY: up outage recover drill test run-tests test-dagster with-dagster lint style types format docs reference dist coverage bump bench bench-scale chaos soak properties clean help

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

up: $(DEPLOYMENT) ## Run the demo deployment until Ctrl-C [PORT=3000 SANDBOX_PORT=8765].
	@exec $(BIN)/python -m demo up --with-parent --port $(PORT) --sandbox-port $(SANDBOX_PORT)

outage: $(DEPLOYMENT) ## Make a service of the running demo fail [SERVICE=instantly FOR=120].
	@$(BIN)/python -m demo sandbox fail $(SERVICE) --for $(FOR)

recover: $(DEPLOYMENT) ## End all outages of the running demo.
	@$(BIN)/python -m demo sandbox heal

drill: $(DEPLOYMENT) ## Run the campaigns through an outage and report [DRILL="--leads 200 --kill-daemon"].
	@$(BIN)/python -m demo drill $(DRILL)

test: style ## Lint, types and all tests.
	@$(MAKE) --no-print-directory --keep-going --jobs 2 types run-tests

run-tests: $(TESTS)
	$(BIN)/pytest -n $(WORKERS) $(DIST) --durations 20

# pytest-xdist says nothing of a file that is not there.
test-dagster: with-dagster ## The integration tests of Dagster with another one: make test-dagster [DAGSTER=1.13.26].
	@ls $(OF_DAGSTER) >/dev/null
	$(OTHER)/bin/pytest -n $(WORKERS) $(DIST) -k 'not postgres' $(OF_DAGSTER)

# Everything else is as in constraints.txt; `newest` is what pip finds.
with-dagster:
	@mkdir -p $(OTHER)
	@grep -v dagster constraints.txt > $(OTHER)/constraints.new
	@test $(DAGSTER) = newest || echo 'dagster==$(DAGSTER)' >> $(OTHER)/constraints.new
	@cmp -s $(OTHER)/constraints.new $(OTHER)/constraints.txt || cp $(OTHER)/constraints.new $(OTHER)/constraints.txt
	@$(MAKE) --no-print-directory VENV=$(OTHER) CONSTRAINTS=$(OTHER)/constraints.txt $(OTHER)/.installed-tests
	@$(OTHER)/bin/python -c 'import dagster; print("Dagster", dagster.__version__)'

lint: style types ## Lint and types.

style: $(TESTS)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(TESTS)
	$(BIN)/pyright

bench: $(BENCH) ## Run the benchmarks (three quarters of an hour).
	$(BIN)/python -m tests.benchmarks.breaker
	$(BIN)/python -m tests.benchmarks.answers
	$(BIN)/python -m tests.benchmarks.noise
	$(BIN)/python -m tests.benchmarks.gate
	$(BIN)/python -m tests.benchmarks.records
	$(BIN)/python -m tests.benchmarks.api
	$(BIN)/python -m tests.benchmarks.guard
	$(BIN)/python -m tests.benchmarks.page
	$(BIN)/python -m tests.benchmarks.startup
	$(BIN)/python -m tests.benchmarks.limits
	$(BIN)/python -m tests.benchmarks.outage

bench-scale: $(TESTS) ## Run the scale benchmark on PostgreSQL (ten minutes).
	$(BIN)/python -m tests.benchmarks.scale

chaos: $(TESTS) ## Kill workers, daemon, database and server at random [ROUNDS=200 SEED=4711].
	$(BIN)/python -m tests.chaos --rounds $(ROUNDS) $(if $(SEED),--seed $(SEED))
	$(BIN)/python -m tests.chaos.away
	$(BIN)/python -m tests.chaos.serve $(if $(SEED),--seed $(SEED))
	TIDEGATE_TEST_ROUNDS=20 TIDEGATE_TEST_SEED=$(or $(SEED),$$$$) $(BIN)/pytest tests/deployment/test_gate.py -k killed

soak: $(TESTS) ## Chaos without a pause; nothing may be lost, and nothing grow [MINUTES=60].
	$(BIN)/python -m tests.chaos.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

properties: $(TESTS) ## Try the property-based tests with 1,000 examples and more; takes an hour.
	$(BIN)/pytest -n $(WORKERS) $(DIST) --hypothesis-profile thorough --timeout 3600 $(PROPERTIES)

format: $(TESTS) ## Format the code and apply safe fixes.
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(TESTS) ## Build the documentation's site in build/docs/site.
	$(BIN)/python -m docs.generate.site build/docs
	cd build/docs && $(abspath $(BIN))/zensical build --strict --config-file mkdocs.yml

reference: $(TESTS) ## Write the generated pages of the reference: Python, tables.
	$(BIN)/python -m docs.generate

dist: $(RELEASE) ## Build the wheel, the sdist, the SBOM and the list of licences in dist/.
	rm -rf dist build/release
	$(BIN)/python -m build --outdir dist
	$(PYTHON) -m venv build/release
	build/release/bin/python -m pip --disable-pip-version-check install --quiet --constraint $(CONSTRAINTS) \
	  "$$(ls dist/*.whl)[alerts,otel,postgres,webserver]"
	build/release/bin/tidegate store upgrade --url sqlite:///$(CURDIR)/build/release/smoke.db
	build/release/bin/tidegate runbook trip >/dev/null
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-format JSON \
	  --output-file dist/sbom.cdx.json build/release/bin/python
	$(BIN)/pip-licenses --python build/release/bin/python --format markdown --with-urls \
	  --output-file dist/LICENCES.md

coverage: $(RELEASE) ## Run the tests of the package alone, and report which lines they reach.
	@rm -rf build/coverage && mkdir -p build/coverage
	$(BIN)/coverage run -m pytest -n $(WORKERS) $(DIST) --hypothesis-profile traced tests/unit tests/store tests/integration
	@$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

bump: ## Set the version wherever it stands: make bump VERSION=0.2.0.
	@test -n "$(VERSION)" || { echo "name the new one: make bump VERSION=0.2.0" >&2; exit 1; }
	@old=$$(sed -n 's/^version = "\(.*\)"$$/\1/p' pyproject.toml | head -n 1) && \
	  sed -i "0,/^version = /s/^version = \"$$old\"/version = \"$(VERSION)\"/" pyproject.toml && \
	  sed -i -E "s/(dagster-tidegate:|VERSION:-|^VERSION=|tag: \")$$old/\1$(VERSION)/" .env.example docker-compose.yml docs/production.md deploy/kubernetes/*.yaml

clean: ## Remove environments, builds and caches.
	rm -rf $(VENV) .venv-* build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No python3 found: install Python 3.11 to 3.13, or set PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { echo "$(PYTHON) is not Python 3.11 to 3.13: install one of these, or set PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "$(PYTHON) lacks its venv module: on Debian and Ubuntu, apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# pip supports dependency groups since 25.1.
$(DEPLOYMENT): $(BIN)/python pyproject.toml $(CONSTRAINTS)
	$(PIP) install --quiet --constraint $(CONSTRAINTS) 'pip>=25.1'
	$(PIP) install --quiet --constraint $(CONSTRAINTS) --editable '.[alerts,otel,postgres,webserver]' --group deployment
	@touch $@

$(TESTS): $(BIN)/python pyproject.toml $(CONSTRAINTS)
	$(PIP) install --quiet --constraint $(CONSTRAINTS) 'pip>=25.1'
	$(PIP) install --quiet --constraint $(CONSTRAINTS) --editable '.[alerts,otel,postgres,webserver]' --group deployment --group docs --group test
	@touch $@ $(DEPLOYMENT)

$(RELEASE): $(TESTS)
	$(PIP) install --quiet --constraint $(CONSTRAINTS) --group release
	@touch $@

# What the benchmark of the outage compares with.
$(BENCH): $(TESTS)
	$(PIP) install --quiet --constraint $(CONSTRAINTS) --group bench
	@touch $@
