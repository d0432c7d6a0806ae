# shellcheck shell=bash
# Shared by up.sh and test.sh: find Python, create the two virtual environments, install the lock files into them.
# Sourced, never run. Needs only bash 3.2 (macOS) and Python.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"
LS_VENV="$ROOT/.venv-label-studio"
SETUP_LOGS="$ROOT/.venv/setup-logs"

say() { printf '%s\n' "$*" >&2; }

die() { # message, hint
    printf 'error: %s\n' "$1" >&2
    [ $# -gt 1 ] && printf '  fix: %s\n' "$2" >&2
    exit 1
}

# Sets PYTHON to an interpreter of 3.10 or newer, or exits listing what was found.
find_python() {
    local candidate version seen=""
    # Newer than 3.13 is the last resort, since wheels of some packages may not exist yet.
    for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python3.10 python python3.14; do
        command -v "$candidate" >/dev/null 2>&1 || continue
        version="$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" || continue
        seen="$seen $candidate=$version"
        case "$version" in
        3.10 | 3.11 | 3.12 | 3.13)
            PYTHON="$(command -v "$candidate")"
            return
            ;;
        esac
    done
    for candidate in python3 python3.14; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
            PYTHON="$(command -v "$candidate")"
            return
        fi
    done
    if [ -z "$seen" ]; then
        die "Python was not found." "Install Python 3.10 or newer (Debian, Ubuntu: sudo apt install python3 python3-venv)."
    fi
    die "Python 3.10 or newer is needed, found only:$seen." \
        "Install a newer Python, or set one: PYTHON=/path/to/python3.11 bash scripts/up.sh"
}

check_venv_module() {
    "$PYTHON" -c 'import venv, ensurepip' 2>/dev/null && return
    local version
    version="$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
    die "$PYTHON cannot create virtual environments (its venv or ensurepip module is missing)." \
        "Install it (Debian, Ubuntu: sudo apt install python$version-venv) and try again."
}

# If set, as in many containers, each process would recompile all imports: 12 s for torchvision.
unset PYTHONDONTWRITEBYTECODE

# Incremented when the way of installing lock files changes.
RECIPE=2

# Hash of a lock file, the Python version, and the recipe; if any changes, the lock file is installed again.
lock_stamp() { # venv, lock
    "$1/bin/python" -c '
import hashlib, pathlib, sys
print(hashlib.sha256(pathlib.Path(sys.argv[1]).read_bytes()).hexdigest(), "%d.%d" % sys.version_info[:2], sys.argv[2])' "$2" "$RECIPE" 2>/dev/null
}

installed() { # venv, lock name
    local stamp="$1/.installed-$2"
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(lock_stamp "$1" "$ROOT/$2")" ]
}

# The Python of .venv, which has psutil, or else PYTHON.
installed_python() {
    if "$VENV/bin/python" -c 'import psutil' >/dev/null 2>&1; then printf '%s' "$VENV/bin/python"; else printf '%s' "$PYTHON"; fi
}

make_venv() { # venv
    if "$1/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 &&
        "$1/bin/python" -m pip --version >/dev/null 2>&1; then
        return
    fi
    "$PYTHON" -m venv --clear "$1" || die "The virtual environment $1 could not be created." "See the message above."
}

# Downloads one small package from the configured index, to fail fast where pip would retry for long.
check_index() {
    local dir pin status=0
    dir="$(mktemp -d)"
    pin="$(grep '^itsdangerous==' "$ROOT/requirements.lock" | cut -d' ' -f1)"
    "$VENV/bin/python" -m pip download --quiet --no-deps --no-input --disable-pip-version-check --no-cache-dir \
        --retries 1 --timeout 15 --dest "$dir" "$pin" >"$dir/log" 2>&1 || status=$?
    if [ "$status" -ne 0 ]; then
        sed 's/^/  pip: /' "$dir/log" | grep -v '^  pip: WARNING: Location' | tail -n 3 >&2
        rm -rf "$dir"
        die "The package index cannot be reached, so nothing can be installed." \
            "Check the network, or set PIP_INDEX_URL (a mirror), HTTPS_PROXY, or PIP_NO_INDEX=1 with PIP_FIND_LINKS (a folder of wheels)."
    fi
    rm -rf "$dir"
}

# Installs one lock file, in the background. Its output goes to a log that watch_installs reads.
install_lock() { # venv, lock name, further lock names that this one contains
    local venv="$1" lock="$2" name
    shift
    # --no-deps: a lock file is complete. --no-compile: Python compiles on import.
    "$venv/bin/python" -m pip install --no-deps --no-compile --no-input --disable-pip-version-check \
        --progress-bar off --retries 5 --timeout 60 -r "$ROOT/$lock" >"$SETUP_LOGS/$lock.log" 2>&1 || return 1
    if grep -q '^opencv-python==' "$ROOT/$lock"; then
        # Both OpenCV packages write the same files, in undefined order. The headless one must be the last, since the
        # other needs libGL, which servers and containers lack.
        "$venv/bin/python" -m pip install --no-deps --no-compile --no-input --disable-pip-version-check --progress-bar off \
            --force-reinstall "$(grep -o '^opencv-python-headless==[0-9.]*' "$ROOT/$lock")" \
            >"$SETUP_LOGS/opencv.log" 2>&1 || { cat "$SETUP_LOGS/opencv.log" >>"$SETUP_LOGS/$lock.log"; return 1; }
    fi
    for name in "$@"; do
        lock_stamp "$venv" "$ROOT/$name" >"$venv/.installed-$name"
    done
}

# Shows the progress of installs until all have ended; if one failed, exits with the end of its log.
watch_installs() { # pairs: process id, lock name
    local pids=() locks=() running i line started=$SECONDS last=""
    while [ $# -gt 0 ]; do
        pids+=("$1")
        locks+=("$2")
        shift 2
    done
    while :; do
        running=0
        line=""
        for i in "${!pids[@]}"; do
            kill -0 "${pids[$i]}" 2>/dev/null && running=1
            line="$line  ${locks[$i]%.lock}: $(install_progress "${locks[$i]}")"
        done
        if [ -t 2 ]; then
            printf '\r\033[K%4d s%s' "$((SECONDS - started))" "$line" >&2
        elif [ "$line" != "$last" ] && [ $(((SECONDS - started) % 10)) -eq 0 ]; then
            say "$(printf '%4d s%s' "$((SECONDS - started))" "$line")"
            last="$line"
        fi
        [ "$running" -eq 0 ] && break
        sleep 1
    done
    [ -t 2 ] && printf '\n' >&2
    for i in "${!pids[@]}"; do
        if ! wait "${pids[$i]}"; then
            tail -n 15 "$SETUP_LOGS/${locks[$i]}.log" | sed 's/^/  | /' >&2
            if grep -qi 'no space left' "$SETUP_LOGS/${locks[$i]}.log"; then
                die "The disk is full." "Free about 8 GB (also where TMPDIR points, now ${TMPDIR:-/tmp}) and run this again."
            fi
            die "Installing ${locks[$i]} failed." "See above, and the whole log: $SETUP_LOGS/${locks[$i]}.log. Run this again to continue."
        fi
    done
}

install_progress() { # lock name
    local log="$SETUP_LOGS/$1.log" total done_
    total="$(grep -c . "$ROOT/$1")"
    if grep -q '^Successfully installed' "$log" 2>/dev/null; then
        printf 'installed'
    elif grep -q '^Installing collected' "$log" 2>/dev/null; then
        printf 'unpacking'
    else
        done_="$(grep -c -E '^(Collecting|Requirement already|Ignoring)' "$log" 2>/dev/null || true)"
        printf '%s of %s packages' "${done_:-0}" "$total"
    fi
}

INSTALLS=()
stop_installs() {
    local pid
    for pid in ${INSTALLS[@]+"${INSTALLS[@]}"}; do
        kill -TERM -- "-$pid" 2>/dev/null || true
    done
}

# Creates both environments from the lock files. Sets INSTALL_SECONDS.
set_up() { # lock for .venv, further locks that it contains
    local started=$SECONDS watched=() lock="$1"
    find_python
    if ! installed "$VENV" "$lock" || ! installed "$LS_VENV" requirements-label-studio.lock; then
        check_venv_module
        (cd "$ROOT" && "$PYTHON" -m ml_backend.cli.dev_stack.preflight install) || exit 1
        say "Setting up .venv and .venv-label-studio with $PYTHON (downloads about 3 GB once, mostly PyTorch) ..."
        make_venv "$VENV"
        mkdir -p "$SETUP_LOGS"
        check_index
        # Each install runs in its own process group, so that Ctrl-C or a failure of one can stop the other's pip too.
        trap stop_installs EXIT
        trap 'exit 130' INT
        trap 'exit 143' TERM
        set -m
        if ! installed "$LS_VENV" requirements-label-studio.lock; then
            install_label_studio &
            watched+=("$!" requirements-label-studio.lock)
            INSTALLS+=("$!")
        fi
        if ! installed "$VENV" "$lock"; then
            install_lock "$VENV" "$@" &
            watched+=("$!" "$lock")
            INSTALLS+=("$!")
        fi
        set +m
        watch_installs "${watched[@]}"
        trap - EXIT INT TERM
    fi
    INSTALL_SECONDS=$((SECONDS - started))
}

# Label Studio is installed long before PyTorch, so that it can meanwhile create an empty database, which takes 20 to
# 60 s; servers start from a copy of it. Without it they create their own, so a failure here is only logged.
install_label_studio() {
    local database="$LS_VENV/database"
    make_venv "$LS_VENV" 2>"$SETUP_LOGS/requirements-label-studio.lock.log"
    install_lock "$LS_VENV" requirements-label-studio.lock || return 1
    rm -rf "$database" "$database.new"
    if COLLECT_ANALYTICS=false LATEST_VERSION_CHECK=false SENTRY_DSN='' HOST='' DJANGO_DB=sqlite \
        LABEL_STUDIO_BASE_DATA_DIR="$database.new" "$LS_VENV/bin/python" "$LS_VENV/bin/label-studio" user --username nobody@localhost \
        >"$SETUP_LOGS/label-studio-database.log" 2>&1 </dev/null; then
        rm -f "$database.new/.env" # a secret key; every server creates its own
        mv "$database.new" "$database"
    fi
}
