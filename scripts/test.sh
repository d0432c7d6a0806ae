#!/usr/bin/env bash
# Installs the development environment, then runs all tests and linters; with --quick only those that need no server, no
# browser and no real weights. Other arguments go to pytest: bash scripts/test.sh -k timeline
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

set_up requirements-dev.lock requirements-dev.lock requirements.lock

# Three processes, also on two cores, since much of a run is waiting for servers. Override with, for example, -n 0
exec "$VENV/bin/python" -m pytest -n 3 --dist loadfile --no-loadscope-reorder "$@" </dev/null
