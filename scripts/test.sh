#!/usr/bin/env bash
# Sets itself up, then runs the linters and every test. Extra arguments go to pytest: bash scripts/test.sh -k timeline
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

set_up requirements-dev.lock requirements-dev.lock requirements.lock

status=0
"$VENV/bin/ruff" check . || status=1
"$VENV/bin/mypy" || status=1
"$VENV/bin/python" -m pytest "$@" </dev/null || status=1
exit $status
