"""How long a start takes: of an import, and of the web process until it answers and to its first requests.

    python benchmarks/start.py [--runs 5] [--weights yolo11n.pt] [--dinov2 FOLDER] [--load 0]

Everything is measured in processes of its own: Python alone, ``import ml_backend.app``, and for each kind of first
request a backend under gunicorn as ``scripts/up.sh`` starts it, with a database and a Redis of its own and without
Label Studio. ``/health`` counts from the start of the process until its first answer. The first request counts from
the moment at which it is sent, which is right after that, while the backend still loads what it will need. The first
run, which fills the disk cache, is left out. ``--load`` keeps so many processes busy meanwhile. Seconds of CPU, user
and system, say more than those of the clock on a machine with other work. Prints a table and, as the last line, JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

CONFIG = (ROOT / "label_config.xml").read_text(encoding="utf-8")
TASK = {"id": 1, "data": {"video": "/data/upload/1/a.mp4", "fps": 25}}
PREDICT = {"project": "7.1", "label_config": CONFIG, "tasks": [TASK]}
#: Name, method, path, body: what comes first, each to a process of its own.
FIRST = (
    ("first /setup", "POST", "/setup", {"project": "7.1", "schema": CONFIG}),
    ("first /predict", "POST", "/predict", PREDICT),
    ("first /api/status", "GET", "/api/status", None),
    ("first page", "GET", "/", None),
)
BROWSER = {"Accept": "text/html,application/xhtml+xml", "Sec-Fetch-Site": "none"}
TIMEOUT_S = 60.0


def run(code: str) -> tuple[float, float]:
    """Seconds by the clock, and of CPU, that a fresh interpreter takes for some code."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise click.ClickException(f"{code!r} failed.")
    return time.perf_counter() - started, used.ru_utime + used.ru_stime


def ask(port: int, method: str, path: str, body: object = None) -> int:
    """Status of an answer, read to its end."""
    connection = HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    headers = {**(BROWSER if path == "/" else {}), "Content-Type": "application/json"}
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def first_answers(folder: Path, environment: dict[str, str], request: tuple[str, str, object]) -> tuple[float, float]:
    """Seconds from a backend's start until ``/health``, and of the request that follows."""
    from ml_backend.local.preflight import free_port
    from ml_backend.local.processes import Backend

    backend = Backend(port=free_port(), log_dir=folder, environment=environment, cwd=ROOT)
    started = time.perf_counter()
    backend.start()
    try:
        while True:
            try:
                if ask(backend.port, "GET", "/health") == 200:
                    break
            except (OSError, HTTPException):
                time.sleep(0.005)
            if not backend.alive or time.perf_counter() - started > TIMEOUT_S:
                raise click.ClickException(f"The backend does not answer.\n{backend.tail()}")
        healthy = time.perf_counter()
        status = ask(backend.port, *request)
        took = time.perf_counter() - healthy
        if status != 200:
            raise click.ClickException(f"{request[1]} was answered with {status}.\n{backend.tail()}")
        return healthy - started, took
    finally:
        backend.stop()


def figures(values: Sequence[float]) -> dict[str, float]:
    found = {"best_s": min(values), "median_s": statistics.median(values), "worst_s": max(values)}
    return {name: round(value, 3) for name, value in found.items()}


@click.command()
@click.option("--runs", default=5, show_default=True)
@click.option("--weights", type=click.Path(exists=True, path_type=Path), help="Of YOLO; none: the motion detector.")
@click.option("--dinov2", type=click.Path(exists=True, path_type=Path), help="Folder of the embedder.")
@click.option("--load", default=0, show_default=True, help="Processes that keep the machine busy.")
def main(runs: int, weights: Path | None, dinov2: Path | None, load: int) -> None:
    """Measure."""
    from ml_backend.local.processes import RedisServer

    times: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        times.setdefault(name, []).append(value)

    with tempfile.TemporaryDirectory(prefix="start-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        redis = RedisServer(folder, log_dir=folder, environment=os.environ)
        redis.start()
        redis.wait_ready(30)
        environment = {**os.environ, "REDIS_URL": redis.url, "LABEL_STUDIO_URL": "http://127.0.0.1:1"}
        environment |= {"DETECTOR": "motion"} if weights is None else {"YOLO_WEIGHTS": str(weights.absolute())}
        environment |= {} if dinov2 is None else {"DINOV2_MODEL": str(dinov2.absolute())}
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(load)]
        try:
            for number in range(runs + 1):
                took = {"python": run("pass"), "import ml_backend.app": run("import ml_backend.app")}
                healthy = []
                for what, *request in FIRST:
                    data = folder / "data"
                    found = first_answers(folder, {**environment, "DATA_DIR": str(data)}, tuple(request))
                    shutil.rmtree(data)  # the next one makes its database anew
                    healthy.append(found[0])
                    if number:
                        note(what, found[1])
                if number:
                    for what, (clock, cpu) in took.items():
                        note(what, clock)
                        note(f"{what}, CPU", cpu)
                    for value in healthy:
                        note("first /health", value)
        finally:
            for process in busy:
                process.kill()
                process.wait()
            redis.stop()
    rows = {what: figures(values) for what, values in times.items()}
    average = [round(value, 1) for value in os.getloadavg()]
    print(f"{'':<28}{'best':>9}{'median':>9}{'worst':>9}")
    for what, row in rows.items():
        print(f"{what:<28}" + "".join(f"{value:>7.3f} s" for value in row.values()))
    print(f"\nload of the machine {average}, {os.cpu_count()} CPUs")
    print(json.dumps({"runs": runs, "load": load, "machine_load": average, "times": rows}))


if __name__ == "__main__":
    main()
