# The same words as scripts/. Each target works from a bare checkout.
.PHONY: up test quick lint doctor lock docs

up:
	bash scripts/up.sh

test:
	bash scripts/test.sh

quick:
	bash scripts/test.sh --quick

lint:
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/lint-imports && .venv/bin/mypy

doctor:
	.venv/bin/python scripts/doctor.py

lock:
	bash scripts/lock.sh

docs:
	.venv/bin/python -m ml_backend.core.settings_table docs/configuration.md
