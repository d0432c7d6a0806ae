"""How quickly the backend answers many at once, and how heavy its page is, while videos are predicted and one trains.

    python benchmarks/api.py VIDEO --weights yolo11n.pt [--clients 50] [--seconds 8] [--loads 3]

On a whole local stack, tracks of a sample are submitted so that a training begins, and copies of VIDEO are predicted
all the while. Then so many clients, each with a connection of its own, ask for one address again and again without a
pause, and for the page while one more asks for ``/health`` every tenth of a second, as whatever watches over a
service does. Times are until the first byte of the body, clients and servers share the machine, and no answer but 200
is good.

The page is opened in Chromium with an empty cache, each step of a project with 200 tasks. Its weight is what goes over
the wire, headers included. It counts as interactive at the end of DOMContentLoaded, after which its scripts have run,
or of the last long task (over 50 ms) before two seconds without one. Prints a table and, as the last line, JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
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

from benchmarks.retraining import CONFIG, wait  # noqa: E402

TASKS = 200
STEPS = ("label", "learn", "auto", "review")
PROGRAM = {"Accept": "application/json"}
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8", "Sec-Fetch-Site": "none"}
TIMEOUT_S = 30.0
WATCH_S = 0.1
QUIET_MS = 2000
#: Long tasks, from the first on; the page's policy does not apply to what the debugger adds.
OBSERVE = (
    "window.longTasks = []; new PerformanceObserver(list => longTasks.push(...list.getEntries()"
    ".map(item => item.startTime + item.duration))).observe({type: 'longtask', buffered: true})"
)
INTERACTIVE = "Math.max(performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd, ...longTasks)"
IS_QUIET = f"() => performance.now() - {INTERACTIVE} > {QUIET_MS}"


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

    def __init__(self, stack: Any, project: int, video: Path) -> None:
        self._stack, self._project, self._video = stack, project, video
        self._client = stack.client()

    def new_task(self, video: Path) -> int:
        upload = self._client.upload_file(self._project, video)  # under a name of its own: tracked anew
        return int(self._client.create_task(self._project, {"video": upload}))

    def running(self, *states: str) -> Counter[str]:
        """Jobs by kind."""
        answer = httpx.get(f"{self._stack.backend.url}/api/jobs?limit=500", trust_env=False, timeout=TIMEOUT_S)
        answer.raise_for_status()
        return Counter(job["kind"] for job in answer.json()["jobs"] if job["state"] in states)

    def _versions(self) -> list[str]:
        """States of the project's versions."""
        query = {"project": self._project}
        answer = httpx.get(f"{self._stack.backend.url}/api/versions", params=query, trust_env=False, timeout=TIMEOUT_S)
        answer.raise_for_status()
        return [item["state"] for item in answer.json()["versions"]]

    def begin(self, sample: Path) -> None:
        """Submit what is seen in a short video; return when a training runs and a prediction does."""

        def newest(task: int) -> Any:
            return max(self._client.list_predictions(task), key=lambda item: item.id, default=None)

        first = self.new_task(sample)
        prediction = wait("a prediction", lambda: newest(first), self._stack)
        result = [{**item, "value": {**item["value"], "labels": ["walker"]}} for item in prediction.result]
        self._client.create_annotation(first, result, prediction.id)
        self.feed()
        wait("a training", lambda: "training" in self._versions(), self._stack)

    def feed(self) -> None:
        """See that predictions do not run out."""
        for _ in range(4 - self.running("running", "queued")["predict"]):
            self.new_task(self._video)
        wait("a prediction", lambda: self.running("running")["predict"], self._stack)

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Nothing is measured unless both go on from beginning to end."""
        self.feed()
        yield
        training, predicting = self.running("running")["train"], self.running("running", "queued")["predict"]
        if not (training and predicting):
            raise click.ClickException(f"Not under load to the end. {self._stack.trainer.tail(20)}")


def open_page(browser: Any, address: str) -> dict[str, float]:
    """Weight (bytes, requests) and times (ms from the start of the navigation) of a page, with an empty cache."""
    context = browser.new_context(locale="en", viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(1000 * TIMEOUT_S * 2)
    page.add_init_script(OBSERVE)
    told = context.new_cdp_session(page)
    told.send("Network.enable")
    sizes: dict[str, float] = {}
    wanted: set[str] = set()

    def sent(event: dict[str, Any]) -> None:
        if not event["request"]["url"].startswith("data:"):
            wanted.add(event["requestId"])

    told.on("Network.requestWillBeSent", sent)
    told.on("Network.loadingFinished", lambda event: sizes.update({event["requestId"]: event["encodedDataLength"]}))
    page.goto(address)
    page.wait_for_function(IS_QUIET)
    first_byte, painted, interactive = page.evaluate(
        "() => [performance.getEntriesByType('navigation')[0].responseStart,"
        f"performance.getEntriesByName('first-contentful-paint')[0].startTime, {INTERACTIVE}]"
    )
    context.close()
    arrived = wanted & sizes.keys()  # the page asks on and on
    return {
        "bytes": sum(sizes[name] for name in arrived),
        "requests": len(arrived),
        "first_byte_ms": first_byte,
        "painted_ms": painted,
        "interactive_ms": interactive,
    }


def in_browser(url: str, project: int, loads: int) -> dict[str, dict[str, float]]:
    """Medians by step."""
    from playwright.sync_api import sync_playwright

    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        raise click.ClickException("There is no Chromium. Debian, Ubuntu: apt install chromium")
    with sync_playwright() as playwright:
        # As root, in containers, Chromium's own sandbox cannot work; the pages are our own.
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        found: dict[str, dict[str, float]] = {}
        for step in STEPS:
            opened = [open_page(browser, f"{url}/?project={project}&step={step}") for _ in range(loads)]
            found[step] = {name: round(statistics.median(item[name] for item in opened)) for name in opened[0]}
        browser.close()
    return found


def table(title: str, rows: dict[str, dict[str, Any]]) -> None:
    names = list(next(iter(rows.values())))
    print(f"\n{title:<34}" + "".join(f"{name:>16}" for name in names))
    for name, row in rows.items():
        cells = (sum(value.values()) if isinstance(value, dict) else value for value in row.values())
        print(f"{name:<34}" + "".join(f"{cell!s:>16}" for cell in cells))


@click.command()
@click.argument("video", type=click.Path(exists=True, path_type=Path))
@click.option("--weights", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--clients", default=50, show_default=True)
@click.option("--seconds", default=8.0, show_default=True, help="For which each address is asked.")
@click.option("--loads", default=3, show_default=True, help="Of each step of the page.")
def main(video: Path, weights: Path, clients: int, seconds: float, loads: int) -> None:
    """Measure while VIDEO is predicted."""
    from label_studio_sdk import LabelStudio

    from ml_backend.local.preflight import free_port
    from ml_backend.local.stack import Stack, StackOptions
    from ml_backend.services import WebContainer
    from ml_backend.settings import Settings
    from ml_backend.video.sample import make_sample

    environment = {
        "YOLO_WEIGHTS": str(weights.absolute()),
        "WEIGHTS_TIMEOUT_S": "1",
        "TRAIN_ARGS": '{"epochs": 1000}',
    }
    with tempfile.TemporaryDirectory(prefix="api-", ignore_cleanup_errors=True) as folder:
        data = Path(folder) / "data"
        data.mkdir()
        options = StackOptions(data, free_port(), free_port(), isolated=True, environment=environment)
        with Stack(options) as stack:
            client, url = stack.client(), stack.backend.url
            # Not connected: nobody asks for these tasks' predictions.
            demo = client.create_project("demo", (ROOT / "label_config.xml").read_text(encoding="utf-8"))
            clip = Path(folder) / "clip.mp4"
            make_sample(clip, seconds=1.0)
            task = {"video": client.upload_file(demo, clip)}
            sdk = LabelStudio(base_url=stack.label_studio.url, api_key=stack.token)
            sdk.projects.import_tasks(demo, request=[{"data": task}] * TASKS)
            project = client.create_project("busy", CONFIG)
            client.connect_backend(project, url)
            named: dict[str, Any] = {name.lower(): value for name, value in stack.settings_environment().items()}
            trainings = WebContainer(Settings(_env_file=None, **named)).trainings
            trainings.set_policy(project, {"min_tracks": 1, "quiet_s": 1, "every_s": 0})
            work = Work(stack, project, video)
            sample = Path(folder) / "sample.mp4"
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
            with work.going_on():
                pages = in_browser(url, demo, loads)
            load = [round(value, 1) for value in os.getloadavg()]
    table(f"{clients} clients", answers)
    table(f"page, {TASKS} tasks", pages)
    print(f"\nload of the machine {load}, {os.cpu_count()} CPUs")
    print(json.dumps({"clients": clients, "seconds": seconds, "answers": answers, "page": pages, "load": load}))
    if any(found["errors"] for found in answers.values()):
        raise click.ClickException("There were errors.")


if __name__ == "__main__":
    main()
