#!/usr/bin/env bash
# Installs and runs Label Studio with a pre-annotated demo video; needs only Python 3.10 or newer.
#   bash scripts/up.sh [--port N] [--label-studio-port N] [--data-dir DIR] [--no-demo] [--smoke] [--help]
set -euo pipefail
started_in="$PWD"
cd "$(dirname "$0")/.."
. scripts/lib.sh

usage() {
    cat <<'END'
Usage: bash scripts/up.sh [OPTIONS]

Sets up .venv and .venv-label-studio (once), then runs Label Studio, the ML backend, a worker and a queue on this
machine, creates a demo project with a pre-annotated sample video, and prints its URL. Ctrl-C stops everything
and keeps all state; the next start takes seconds.

  --port N               port of the ML backend (or PORT=N)                [9090]
  --label-studio-port N  port of Label Studio (or LABEL_STUDIO_PORT=N)     [8080]
  --data-dir DIR         folder for all state (or DATA_DIR=DIR)            [data]
  --no-demo              create no demo project
  --smoke                run an end-to-end test in a temporary folder on free ports, then exit with 0 or 1;
                         the last line is JSON with the seconds of each stage
  -h, --help             show this

Other settings: see .env.example. PYTHON=/path/to/python chooses the interpreter, REDIS_URL a running Redis.
END
}

for argument in "$@"; do
    case "$argument" in -h | --help)
        usage
        exit 0
        ;;
    esac
done

find_python
# Checked before the long installation. Prints the data folder, resolved against the caller's working directory.
data_dir="$("$(installed_python)" -m ml_backend.cli.dev_stack.preflight start --from "$started_in" "$@")" || exit 1
set_up requirements.lock requirements.lock

# The last one of a repeated option counts.
exec "$VENV/bin/python" -m ml_backend.cli.dev_stack --install-seconds "$INSTALL_SECONDS" \
    ${@+"$@"} --data-dir "$data_dir"
