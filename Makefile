# Every target does its own set-up; a second call starts at once.
SHELL := /bin/bash
.DEFAULT_GOAL := help
export DO_NOT_TRACK := 1
export MLFLOW_DISABLE_TELEMETRY := true
export AIRFLOW__USAGE_DATA_COLLECTION__ENABLED := False
export SPARK_LOCAL_IP := 127.0.0.1
export JAVA_HOME := $(shell scripts/setup.sh java 2>/dev/null)
# Each of many processes would compile Airflow anew, which takes longer than importing it.
unexport PYTHONDONTWRITEBYTECODE
PY := .venv/bin/python

help: ## List the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

setup:
	@scripts/setup.sh

demo: setup ## Run one model's whole life on real flights
	@$(PY) include/demo/run.py

servers: ## Build the servers that tests run S3, GCS and Kubernetes on, once (needs Go)
	@scripts/servers.sh

test: setup servers ## Run all tests
	@scripts/test.sh

up: setup ## Start Airflow with its UI on this project (Ctrl-C ends it)
	@exec $(PY) scripts/up.py

stop: setup ## Stop the scoring endpoints that the demo left running
	@$(PY) -m airflow_provider_sml.ml.serving stop --all --root include/data/endpoints

lint: setup ## Check style, types and layers
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy && .venv/bin/lint-imports

bench: setup ## Run a benchmark: make bench NAME=parse
	@test -n "$(NAME)" || { echo "make bench NAME=x, one of:" $(basename $(notdir $(filter-out benchmarks/_%,$(wildcard benchmarks/*.py)))); exit 2; }
	@$(PY) -m benchmarks.$(NAME)

docs: setup ## Build the documentation's site into build/site
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs --quiet build --strict && echo "build/site/index.html"

lock: ## Resolve constraints.txt again
	@scripts/lock.sh

pictures: setup ## Take the screenshots of docs/images again (needs chromium)
	@SML_PICTURES=docs/images $(PY) -m pytest -p no:cacheprovider tests/browser

clean: ## Remove everything that the targets made
	@if [ -x $(PY) ]; then $(MAKE) --no-print-directory stop || true; fi
	rm -rf .venv .tools .airflow build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache include/data include/reports

.PHONY: help setup demo servers test up stop lint bench docs lock pictures clean
