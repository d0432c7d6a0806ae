"""How quickly the backend answers many at once while videos are predicted and one trains.

    python benchmarks/api.py VIDEO --weights yolo11n.pt [--clients 50] [--seconds 8]

On a whole local stack, tracks of a sample are submitted so that a training begins, and copies of VIDEO are predicted
all the while. Then so many clients, each with a connection of its own, ask for one address again and again without a
pause, and for the page of a project with 200 tasks while one more asks for ``/health`` every tenth of a second, as
whatever watches over a service does. Times are until the first byte of the body, clients and servers share the machine,
and no answer but 200 is good. Prints a table and, as the last line, JSON.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import httpx
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import local_stack, new_task, newest, submit_as_walkers, wait  # noqa: E402

TASKS = 200
PROGRAM = {"Accept": "application/json"}
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8", "Sec-Fetch-Site": "none"}
TIMEOUT_S = 30.0
WATCH_S = 0.1


class Asked:
    """Times and faults of one address under load."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.errors: Counter[str] = Counter()

    def figures(self, took: float) -> dict[str, Any]:
        found: dict[str, Any] = {"answers": len(self.seconds), "per_second": round(len(self.seconds) / took, 1)}
        for name, p in (("median_ms", 50), ("p99_ms", 99), ("worst_ms", 100)):
            found[name] = round(1000 * float(np.percentile(self.seconds, p)), 1) if self.seconds else None
        return found | {"errors": dict(self.errors)}


def ask(url: str, path: str, headers: dict[str, str], end: float, pause: float, into: Asked) -> None:
    """One client: ask, read, and ask again until ``end`` (monotonic seconds)."""
    address = urlsplit(url)
    connection = HTTPConnection(address.hostname or "", address.port, timeout=TIMEOUT_S)
    while time.monotonic() < end:
        started = time.perf_counter()
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            answer.read(1)
            first = time.perf_counter() - started
            answer.read()
            if answer.status == 200:
                into.seconds.append(first)
            else:
                into.errors[str(answer.status)] += 1
        except (OSError, HTTPException) as error:
            into.errors[type(error).__name__] += 1
            connection.close()
        if pause:
            connection.close()  # whoever comes now and then comes anew
            time.sleep(pause)
    connection.close()


def crowd(url: str, path: str, headers: dict[str, str], clients: int, seconds: float, watched: bool) -> dict[str, Any]:
    """Figures of ``clients`` that ask for ``path``; with ``watched`` also of a further one that asks for health."""
    asked, health = Asked(), Asked()
    started = time.monotonic()
    end = started + seconds
    with ThreadPoolExecutor(clients + 1) as pool:
        jobs = [pool.submit(ask, url, path, headers, end, 0.0, asked) for _ in range(clients)]
        if watched:
            jobs.append(pool.submit(ask, url, "/health", PROGRAM, end, WATCH_S, health))
        for job in jobs:
            job.result()
    took = time.monotonic() - started
    return {"page": asked.figures(took), "health": health.figures(took)} if watched else asked.figures(took)


class Work:
    """A training and predictions that go on until the stack stops."""

    def __init__(self, stack: Any, project: int, registry: Any, video: Path) -> None:
        self._stack, self._project, self._registry, self._video = stack, project, registry, video
        self._client = stack.client()

    def running(self, *states: str) -> Counter[str]:
        """Jobs by kind."""
        answer = httpx.get(f"{self._stack.backend.url}/api/jobs?limit=500", trust_env=False, timeout=TIMEOUT_S)
        answer.raise_for_status()
        return Counter(job["kind"] for job in answer.json()["jobs"] if job["state"] in states)

    def begin(self, sample: Path) -> None:
        """Submit what is seen in a short video; return when a training runs and a prediction does."""
        first = new_task(self._client, self._project, sample)
        prediction = wait("a prediction", lambda: newest(self._client, first), self._stack)
        submit_as_walkers(self._client, first, prediction)
        self.feed()
        active = self._registry.active
        wait("a training", lambda: (v := active(self._project)) and v.state == "training", self._stack)

    def feed(self) -> None:
        """See that predictions do not run out."""
        for _ in range(4 - self.running("running", "queued")["predict"]):
            new_task(self._client, self._project, self._video)
        wait("a prediction", lambda: self.running("running")["predict"], self._stack)

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Nothing is measured unless both go on from beginning to end."""
        self.feed()
        yield
        training, predicting = self.running("running")["train"], self.running("running", "queued")["predict"]
        if not (training and predicting):
            raise click.ClickException(f"Not under load to the end. {self._stack.trainer.tail(20)}")


def table(rows: dict[str, dict[str, Any]]) -> None:
    print(f"{'':<34}" + "".join(f"{name:>16}" for name in next(iter(rows.values()))))
    for name, row in rows.items():
        cells = (sum(value.values()) if isinstance(value, dict) else value for value in row.values())
        print(f"{name:<34}" + "".join(f"{cell!s:>16}" for cell in cells))


@click.command()
@click.argument("video", type=click.Path(exists=True, path_type=Path))
@click.option("--weights", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--clients", default=50, show_default=True)
@click.option("--seconds", default=8.0, show_default=True, help="For which each address is asked.")
def main(video: Path, weights: Path, clients: int, seconds: float) -> None:
    """Measure while VIDEO is predicted."""
    from label_studio_sdk import LabelStudio

    from ml_backend.video.sample import make_sample

    with tempfile.TemporaryDirectory(prefix="api-", ignore_cleanup_errors=True) as folder:
        place = Path(folder)
        with local_stack(weights, place, TRAIN_ARGS='{"epochs": 1000}') as (stack, project, container):
            client, url = stack.client(), stack.backend.url
            # Not connected: nobody asks for these tasks' predictions.
            demo = client.create_project("demo", (ROOT / "label_config.xml").read_text(encoding="utf-8"))
            clip, sample = place / "clip.mp4", place / "sample.mp4"
            make_sample(clip, seconds=1.0)
            task = {"video": client.upload_file(demo, clip)}
            sdk = LabelStudio(base_url=stack.label_studio.url, api_key=stack.token)
            sdk.projects.import_tasks(demo, request=[{"data": task}] * TASKS)
            work = Work(stack, project, container.registry, video)
            make_sample(sample, seconds=8.0)
            work.begin(sample)

            answers: dict[str, Any] = {}
            for name, path, headers, watched in (
                ("/health", "/health", PROGRAM, False),
                ("/api/status", "/api/status", PROGRAM, False),
                ("/api/status of a project", f"/api/status?project={project}", PROGRAM, False),
                ("/", f"/?project={demo}", BROWSER, True),
            ):
                with work.going_on():
                    found = crowd(url, path, headers, clients, seconds, watched)
                if watched:
                    answers["/"], answers["/health while / is asked for"] = found["page"], found["health"]
                else:
                    answers[name] = found
            load = [round(value, 1) for value in os.getloadavg()]
    table(answers)
    print(f"\n{clients} clients, load of the machine {load}, {os.cpu_count()} CPUs")
    print(json.dumps({"clients": clients, "seconds": seconds, "answers": answers, "load": load}))
    if any(found["errors"] for found in answers.values()):
        raise click.ClickException("There were errors.")


if __name__ == "__main__":
    main()
