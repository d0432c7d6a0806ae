"""Ends what is left of a local stack when its supervisor is gone, however it went.

The supervisor holds the other end of this process's standard input. When that closes, by a clean end or by a kill,
every process that carries the stack's mark in its environment is asked to end and, after a while, killed. Neither
process groups nor PR_SET_PDEATHSIG do that: workers start trainings in sessions of their own, and theirs start others.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import psutil

from ml_backend.cli.dev_stack.preflight import ROOT

#: Environment variable that marks all processes of one stack, those they start included.
MARK = "LOCAL_STACK_ID"
GRACE_S = 10.0


def start_guardian(mark: str) -> subprocess.Popen[bytes]:
    """Start the guardian; keep the returned object, its ``stdin`` is what the guardian watches."""
    environment = {name: value for name, value in os.environ.items() if name != MARK} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "ml_backend.cli.dev_stack.guardian", mark]
    # In a session of its own: a Ctrl-C in the terminal is not for it.
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment, start_new_session=True
    )


def marked(mark: str) -> list[psutil.Process]:
    """All processes with this mark that we may look into."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def sweep(mark: str, grace: float = GRACE_S) -> None:
    """Ask all marked processes to end, and kill those that are there after ``grace`` seconds."""
    processes = marked(mark)
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    psutil.wait_procs(processes, timeout=grace)
    for process in marked(mark):
        with contextlib.suppress(psutil.Error):
            process.kill()


if __name__ == "__main__":
    sys.stdin.buffer.read()  # returns when the supervisor has gone
    sweep(sys.argv[1])
