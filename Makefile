# The same words as in scripts/: `make up` is `bash scripts/up.sh`. Options go into ARGS: make test ARGS="-k timeline"
.PHONY: up test quick lint format lock doctor settings

up:
	bash scripts/up.sh $(ARGS)

test:
	bash scripts/test.sh $(ARGS)

quick:
	bash scripts/test.sh --quick $(ARGS)

lint:
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyrefly check
	.venv/bin/lint-imports

format:
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

lock:
	bash scripts/lock.sh $(ARGS)

doctor:
	.venv/bin/python scripts/doctor.py $(ARGS)

settings: # the generated table in docs/configuration.md
	.venv/bin/python -m ml_backend.core.settings_table docs/configuration.md
