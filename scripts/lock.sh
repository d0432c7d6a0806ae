#!/usr/bin/env bash
# Updates the lock files after a change of a requirements file: `bash scripts/lock.sh [--upgrade]`.
# Environment markers make one lock file serve Python 3.10 to 3.13 on Linux and macOS.
set -euo pipefail
cd "$(dirname "$0")/.."

uv="$(command -v uv || true)"
[ -x .venv/bin/uv ] && uv=.venv/bin/uv
if [ -z "$uv" ]; then
    echo "uv is missing: pip install uv" >&2
    exit 1
fi

overrides="$(mktemp)"
trap 'rm -f "$overrides"' EXIT
# On macOS ultralytics excludes the very NumPy versions that opencv-python-headless requires. The exclusion avoids a
# real bug, the requirement is only a precaution; so macOS gets what ultralytics wants (installed with --no-deps).
cat >"$overrides" <<'END'
numpy>=2,<2.3; sys_platform != 'darwin'
numpy>=1.26,<2; sys_platform == 'darwin' and python_version < '3.11'
numpy>=2.3.5; sys_platform == 'darwin' and python_version >= '3.11'
END

compile() {
    local name="$1"
    shift
    "$uv" pip compile --quiet --universal --python-version 3.10 --no-python-downloads \
        --no-header --no-annotate --no-emit-index-url "$@" --output-file "$name.lock" "$name.txt"
    echo "$name.lock: $(wc -l <"$name.lock") packages"
}
compile requirements --overrides "$overrides" "$@"
compile requirements-dev --overrides "$overrides" --constraints requirements.lock "$@"
compile requirements-label-studio "$@"
