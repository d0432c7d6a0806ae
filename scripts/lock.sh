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
limits="$(mktemp)"
trap 'rm -f "$overrides" "$limits"' EXIT
# botocore, which s3fs and moto need, takes no newer one: the locks would contradict each other.
echo 'python-dateutil<3' >"$limits"
# On macOS ultralytics excludes the very NumPy versions that opencv-python-headless requires. The exclusion avoids a
# real bug, the requirement is only a precaution; so macOS gets what ultralytics wants (installed with --no-deps).
cat >"$overrides" <<'END'
numpy>=2,<2.3; sys_platform != 'darwin'
numpy>=1.26,<2; sys_platform == 'darwin' and python_version < '3.11'
numpy>=2.3.5; sys_platform == 'darwin' and python_version >= '3.11'
END

compile() { # name of the lock, options and sources
    local name="$1"
    shift
    "$uv" pip compile --quiet --universal --python-version 3.10 --no-python-downloads \
        --no-header --no-annotate --no-emit-index-url --output-file "$name.lock" "$@"
    echo "$name.lock: $(grep -c == "$name.lock") packages"
}
compile requirements requirements.txt --overrides "$overrides" --constraints "$limits" "$@"
compile requirements-dev requirements-dev.txt pyproject.toml --extra postgres --extra s3 \
    --overrides "$overrides" --constraints requirements.lock "$@"
# With hashes: what is downloaded into the image must be what was locked.
compile requirements-image pyproject.toml --all-extras --generate-hashes \
    --overrides "$overrides" --constraints requirements.lock "$@"
compile requirements-label-studio requirements-label-studio.txt "$@"
