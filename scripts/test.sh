#!/usr/bin/env bash
# Sets itself up, then runs every test, the linters among them; with --quick only those that need no server, no browser
# and no real weights. Other arguments go to pytest: bash scripts/test.sh -k timeline
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

set_up requirements-dev.lock requirements-dev.lock requirements.lock

# Two files at a time, since much of a run is waiting for servers to start. Another number is said like this: -n 0
exec "$VENV/bin/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@" </dev/null
