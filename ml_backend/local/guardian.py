"""Ends what is left of a local stack when its supervisor is gone, however it went.

The supervisor holds the other end of this process's standard input. When that closes, by a clean end or by a kill,
every process that carries the stack's mark in its environment is asked to end and, after a while, killed.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import psutil

from ml_backend.local.preflight import ROOT

#: Environment variable that marks all processes of one stack, those they start included.
MARK = "LOCAL_STACK_ID"
GRACE_S = 10.0


def start_guardian(mark: str) -> subprocess.Popen[bytes]:
    """Start the guardian; keep the returned object, its ``stdin`` is what the guardian watches."""
    environment = {name: value for name, value in os.environ.items() if name != MARK}
    return subprocess.Popen(
        [sys.executable, "-m", "ml_backend.local.guardian", mark],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=environment | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,  # a Ctrl-C in the terminal is not for it
    )


def marked(mark: str) -> list[psutil.Process]:
    """All processes with this mark that we may look into."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def sweep(mark: str, grace: float = GRACE_S) -> int:
    """End all marked processes; returns how many there were."""
    processes = marked(mark)
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, stubborn = psutil.wait_procs(processes, timeout=grace)
    for process in stubborn + marked(mark):
        with contextlib.suppress(psutil.Error):
            process.kill()
    return len(processes)


def main() -> int:
    sys.stdin.buffer.read()  # returns when the supervisor has gone
    sweep(sys.argv[1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
