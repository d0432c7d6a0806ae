#!/usr/bin/env bash
# Sets itself up, then runs every test, the linters among them. Extra arguments go to pytest: bash scripts/test.sh -k timeline
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

set_up requirements-dev.lock requirements-dev.lock requirements.lock

exec "$VENV/bin/python" -m pytest "$@" </dev/null
