# Everything that is done with this project from a checkout. `make` lists it.

.DEFAULT_GOAL := help
POSTGRES ?= all
# Compiled code is kept even where the environment forbids it: to rewrite the asserts of all tests takes 10 s in each process.
export PYTHONDONTWRITEBYTECODE :=
.PHONY: help setup demo check test test-deploy coverage lint chaos bench lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

setup: .venv/installed ## a virtual environment in .venv with all that is needed (PYTHON=... chooses the Python)

.venv/installed: requirements.lock pyproject.toml scripts/setup
	@scripts/setup

demo: .venv/installed ## a whole system on this machine, with a private Postgres and a pretended FCM (ARGS=--help)
	@.venv/bin/push-listener demo $(ARGS)

check: .venv/installed lint ## before each commit: lint, types, unit tests, and the queue and the web server on one Postgres
	.venv/bin/python -m pytest -q -n 3 --dist worksteal --hypothesis-profile quick tests/unit tests/integration/postgres/test_queue.py tests/integration/web/test_web.py $(ARGS)

coverage: .venv/installed ## which lines and branches of listener/ the tests run, on the newest Postgres (ARGS=... for pytest)
	.venv/bin/python -m pytest -n 2 --cov=listener --cov-branch --cov-report=term:skip-covered $(ARGS)

test: .venv/installed ## every test; what depends on the version on PostgreSQL 15 to 18 (POSTGRES=16: all on this one; ARGS=... for pytest)
	@scripts/test-tools
	@$(MAKE) --no-print-directory lint
	.venv/bin/python -m pytest --postgres $(POSTGRES) -n 4 --dist worksteal $(ARGS)

test-deploy: .venv/installed ## builds the image and runs it, the Procfile, the alerts live, and the large model; needs root (ARGS=... for pytest)
	@scripts/test-tools
	@scripts/deploy-tools
	.venv/bin/python -m pytest -n 4 --dist loadfile tests/deploy $(ARGS)

lint: .venv/installed ## ruff, mypy, and the import contracts
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy
	.venv/bin/lint-imports --no-cache

chaos: .venv/installed ## every fault there is, on real processes, and every row checked (ARGS="--seconds 600 --seed 7")
	.venv/bin/python -m tests.chaos $(ARGS)

bench: .venv/installed ## all that docs/benchmarks.md shows, beside other queues (ARGS="--quick --json FILE", --help)
	.venv/bin/python -m tests.benchmarks $(ARGS)

lock: ## writes requirements.lock and requirements.txt anew from pyproject.toml (ARGS=--upgrade for newer versions)
	@scripts/lock $(ARGS)

clean: ## removes all that the above have made
	rm -rf .venv .cache .mypy_cache .ruff_cache .import_linter_cache .pytest_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
