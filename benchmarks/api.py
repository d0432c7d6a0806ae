"""Latency of the backend under concurrent requests, during predictions and a training.

    python benchmarks/api.py VIDEO --weights yolo11n.pt [--clients 50] [--seconds 8]

On a whole local stack, tracks of a sample are submitted to start a training, and copies of VIDEO are predicted
throughout. Then ``--clients`` clients, each with its own connection, request one URL in a loop: first some addresses,
then the page of a project with 200 tasks while another client polls ``/health`` every tenth of a second, as a monitor
does, at last webhooks, alone and beside 100 connections that have sent half a request and 16 uploads at 1 MB/s. Times
are to the first byte of the body, clients and servers share the machine, and any status but 200 and 201 is an error.
Prints a table and, as the last line, JSON.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import httpx
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import local_stack, new_task, newest_prediction, submit_as_walkers, wait_for  # noqa: E402

TASKS = 200
PROGRAM_HEADERS = {"Accept": "application/json"}
JSON_HEADERS = PROGRAM_HEADERS | {"Content-Type": "application/json"}
BROWSER_HEADERS = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8", "Sec-Fetch-Site": "none"}
TIMEOUT_S = 30.0
POLL_S = 0.1
#: Slow clients: connections with half a request, and uploads.
HALF_REQUESTS, SLOW_UPLOADS = 100, 16
SLOW_UPLOAD = (
    b"POST /api/upload_video HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    b"Content-Length: 1000000000\r\n\r\n--b\r\nContent-Disposition: form-data; name=file; filename=a.mp4\r\n\r\n"
)


class LatencyStats:
    """Latencies and errors of one URL."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.errors: Counter[str] = Counter()

    def summary(self, elapsed: float) -> dict[str, Any]:
        summary: dict[str, Any] = {"answers": len(self.seconds), "per_second": round(len(self.seconds) / elapsed, 1)}
        for name, p in (("median_ms", 50), ("p99_ms", 99), ("worst_ms", 100)):
            summary[name] = round(1000 * float(np.percentile(self.seconds, p)), 1) if self.seconds else None
        return summary | {"errors": dict(self.errors)}


def run_client(
    url: str,
    path: str,
    headers: dict[str, str],
    end: float,
    pause: float,
    stats: LatencyStats,
    body: bytes | None = None,
) -> None:
    """Request ``path``, by POST if there is a body, in a loop until ``end`` (monotonic seconds)."""
    address = urlsplit(url)
    connection = HTTPConnection(address.hostname or "", address.port, timeout=TIMEOUT_S)
    while time.monotonic() < end:
        started = time.perf_counter()
        try:
            connection.request("POST" if body else "GET", path, body, headers)
            response = connection.getresponse()
            response.read(1)
            latency = time.perf_counter() - started
            response.read()
            if response.status in (200, 201):
                stats.seconds.append(latency)
            else:
                stats.errors[str(response.status)] += 1
        except (OSError, HTTPException) as error:
            stats.errors[type(error).__name__] += 1
            connection.close()
        if pause:
            connection.close()  # monitors do not keep connections open
            time.sleep(pause)
    connection.close()


@contextmanager
def slow_clients(url: str) -> Iterator[None]:
    """Keep connections open that have sent half a request, and upload at 1 MB/s, again and again when refused."""
    address = urlsplit(url)
    target, done = (address.hostname or "", address.port or 80), threading.Event()

    def upload() -> None:
        while not done.is_set():
            with suppress(OSError), socket.create_connection(target, TIMEOUT_S) as connection:
                connection.sendall(SLOW_UPLOAD)
                while not done.wait(POLL_S):
                    connection.sendall(bytes(100_000))
            done.wait(1.0)

    with ExitStack() as stack, ThreadPoolExecutor(SLOW_UPLOADS) as pool:
        for _ in range(HALF_REQUESTS):
            stack.enter_context(socket.create_connection(target, TIMEOUT_S)).sendall(b"GET /health HTTP/1.1\r\n")
        for _ in range(SLOW_UPLOADS):
            pool.submit(upload)
        try:
            yield
        finally:
            done.set()


def load_test(
    url: str,
    path: str,
    headers: dict[str, str],
    clients: int,
    seconds: float,
    poll_health: bool,
    body: bytes | None = None,
) -> dict[str, Any]:
    """Return latencies of ``clients`` requesting ``path``, with ``poll_health`` also those of a health monitor."""
    page, health = LatencyStats(), LatencyStats()
    started = time.monotonic()
    end = started + seconds
    with ThreadPoolExecutor(clients + 1) as pool:
        jobs = [pool.submit(run_client, url, path, headers, end, 0.0, page, body) for _ in range(clients)]
        if poll_health:
            jobs.append(pool.submit(run_client, url, "/health", PROGRAM_HEADERS, end, POLL_S, health))
        for job in jobs:
            job.result()
    elapsed = time.monotonic() - started
    if not poll_health:
        return page.summary(elapsed)
    return {"page": page.summary(elapsed), "health": health.summary(elapsed)}


class BackgroundLoad:
    """A training and predictions that run until the stack stops."""

    def __init__(self, stack: Any, project: int, registry: Any, video: Path) -> None:
        self._stack, self._project, self._registry, self._video = stack, project, registry, video
        self._client = stack.client()

    def count_jobs(self, *states: str) -> Counter[str]:
        """Count jobs in these states by kind."""
        response = httpx.get(f"{self._stack.backend.url}/api/jobs?limit=500", trust_env=False, timeout=TIMEOUT_S)
        response.raise_for_status()
        return Counter(job["kind"] for job in response.json()["jobs"] if job["state"] in states)

    def start(self, sample: Path) -> None:
        """Submit the tracks of a short video; return when a training and a prediction are running."""
        task = new_task(self._client, self._project, sample)
        prediction = wait_for("a prediction", lambda: newest_prediction(self._client, task), self._stack)
        submit_as_walkers(self._client, task, prediction)
        self.add_predictions()
        running = self._registry.running
        wait_for("a training", lambda: (v := running(self._project)) and v.state == "training", self._stack)

    def add_predictions(self) -> None:
        """Keep at least four predictions queued or running."""
        for _ in range(4 - self.count_jobs("running", "queued")["predict"]):
            new_task(self._client, self._project, self._video)
        wait_for("a prediction", lambda: self.count_jobs("running")["predict"], self._stack)

    @contextmanager
    def required(self) -> Iterator[None]:
        """Raise ClickException unless training and predictions are still running at the end."""
        self.add_predictions()
        yield
        training, predicting = self.count_jobs("running")["train"], self.count_jobs("running", "queued")["predict"]
        if not (training and predicting):
            raise click.ClickException(f"The background load ended early. {self._stack.trainer.tail(20)}")


def print_table(rows: dict[str, dict[str, Any]]) -> None:
    print(f"{'':<34}" + "".join(f"{name:>16}" for name in next(iter(rows.values()))))
    for name, row in rows.items():
        cells = (sum(value.values()) if isinstance(value, dict) else value for value in row.values())
        print(f"{name:<34}" + "".join(f"{cell!s:>16}" for cell in cells))


@click.command()
@click.argument("video", type=click.Path(exists=True, path_type=Path))
@click.option("--weights", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--clients", default=50, show_default=True)
@click.option("--seconds", default=8.0, show_default=True, help="Duration of the load test of each URL.")
def main(video: Path, weights: Path, clients: int, seconds: float) -> None:
    """Measure latencies while VIDEO is predicted."""
    from label_studio_sdk import LabelStudio

    from ml_backend.video.sample import make_sample

    with tempfile.TemporaryDirectory(prefix="api-", ignore_cleanup_errors=True) as folder:
        work_dir = Path(folder)
        with local_stack(weights, work_dir, TRAIN_ARGS='{"epochs": 1000}') as (stack, project, container):
            client, url = stack.client(), stack.backend.url
            # Not connected to the backend, so that these tasks are not predicted.
            demo = client.create_project("demo", (ROOT / "label_config.xml").read_text(encoding="utf-8"))
            clip, sample = work_dir / "clip.mp4", work_dir / "sample.mp4"
            make_sample(clip, seconds=1.0)
            task = {"video": client.upload_file(demo, clip)}
            sdk = LabelStudio(base_url=stack.label_studio.url, api_key=stack.token)
            sdk.projects.import_tasks(demo, request=[{"data": task}] * TASKS)
            background = BackgroundLoad(stack, project, container.registry, video)
            make_sample(sample, seconds=8.0)
            background.start(sample)

            results: dict[str, Any] = {}
            for name, path, headers, poll_health in (
                ("/health", "/health", PROGRAM_HEADERS, False),
                ("/api/status", "/api/status", PROGRAM_HEADERS, False),
                ("/api/status of a project", f"/api/status?project={project}", PROGRAM_HEADERS, False),
                ("/", f"/?project={demo}", BROWSER_HEADERS, True),
            ):
                with background.required():
                    result = load_test(url, path, headers, clients, seconds, poll_health)
                if poll_health:
                    results["/"], results["/health while / is asked for"] = result["page"], result["health"]
                else:
                    results[name] = result
            event = {
                "action": "ANNOTATION_UPDATED",
                "project": {"id": demo},
                "task": {"id": 1},
                "annotation": {"id": 1},
            }
            webhooks = url, "/webhook", JSON_HEADERS, clients, seconds, False, json.dumps(event).encode()
            with background.required():
                results["/webhook"] = load_test(*webhooks)
            with background.required(), slow_clients(url):
                results["/webhook beside slow clients"] = load_test(*webhooks)
            load = [round(value, 1) for value in os.getloadavg()]
    print_table(results)
    print(f"\n{clients} clients, load of the machine {load}, {os.cpu_count()} CPUs")
    print(json.dumps({"clients": clients, "seconds": seconds, "answers": results, "load": load}))
    if any(row["errors"] for row in results.values()):
        raise click.ClickException("There were errors.")


if __name__ == "__main__":
    main()
