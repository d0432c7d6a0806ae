"""Terminates the remaining processes of a local stack when its supervisor exits or is killed.

The supervisor holds the other end of this process's standard input. When that closes, every process with the stack's
mark in its environment is terminated and, after a grace period, killed. Process groups and PR_SET_PDEATHSIG do not
suffice: workers start trainings in sessions of their own, which start further processes.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time

import psutil

from ml_backend.cli.dev_stack.preflight import ROOT

#: Environment variable that marks all processes of one stack and their descendants.
MARK = "LOCAL_STACK_ID"
GRACE_S = 10.0


def start_guardian(mark: str) -> subprocess.Popen[bytes]:
    """Start the guardian. Keep the returned object: the guardian watches its ``stdin``."""
    environment = {name: value for name, value in os.environ.items() if name != MARK} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "ml_backend.cli.dev_stack.guardian", mark]
    # In a session of its own, so that Ctrl-C in the terminal does not reach it.
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment, start_new_session=True
    )


def marked(mark: str) -> list[psutil.Process]:
    """Return all processes with this mark whose environment is readable."""
    processes = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                processes.append(process)
    return processes


def sweep(mark: str, grace: float = GRACE_S) -> None:
    """Terminate all marked processes, and kill those that remain after ``grace`` seconds."""
    processes = marked(mark)
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    psutil.wait_procs(processes, timeout=grace)
    for process in marked(mark):
        with contextlib.suppress(psutil.Error):
            process.kill()
    # The kernel takes a moment to end them. psutil.wait_procs would take a child's exit status from its Popen.
    deadline = time.monotonic() + GRACE_S
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.05)


if __name__ == "__main__":
    sys.stdin.buffer.read()  # returns when the supervisor has exited
    sweep(sys.argv[1])
