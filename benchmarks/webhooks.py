"""How quickly webhooks are answered, and when the last is with the queue: a real backend, Redis and database.

    python benchmarks/webhooks.py [--events 1000] [--seconds 10] [--load 2]

Label Studio waits a second for an answer and never sends an event again. ``--load`` keeps so many processes busy
meanwhile, as predictions and a training would. Prints a table and, as the last line, JSON.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

CLIENTS = 16
PATIENCE_S = 300.0


def percentiles(values: list[float]) -> dict[str, float]:
    return {
        name: round(1000 * float(np.percentile(values, p)), 1)
        for name, p in (("median", 50), ("p99", 99), ("worst", 100))
    }


@click.command()
@click.option("--events", default=1000, show_default=True)
@click.option("--seconds", default=10.0, show_default=True, help="In which the events come; 0: as fast as possible.")
@click.option("--load", default=2, show_default=True, help="Processes that keep the machine busy.")
def main(events: int, seconds: float, load: int) -> None:
    """Measure."""
    from ml_backend.jobs.queue import JobQueue
    from ml_backend.local.preflight import free_port
    from ml_backend.local.processes import Backend, RedisServer
    from ml_backend.settings import Settings
    from ml_backend.storage import Storage

    with tempfile.TemporaryDirectory(prefix="webhooks-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        redis = RedisServer(folder, log_dir=folder, environment=os.environ)
        redis.start()
        redis.wait_ready(30)
        settings = Settings(_env_file=None, data_dir=folder / "data", redis_url=redis.url)
        named = {"DATA_DIR": str(settings.data_dir), "REDIS_URL": redis.url, "DETECTOR": "motion"}
        backend = Backend(port=free_port(), log_dir=folder, environment={**os.environ, **named}, cwd=ROOT)
        backend.start()
        backend.wait_ready(60)
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(load)]
        try:
            figures = storm(backend.url, events, seconds)
            begun = time.monotonic()
            storage = Storage(settings.database)
            while len(jobs := {k: n["queued"] for k, n in JobQueue(settings).depths().items() if n["queued"]}) < 2:
                if time.monotonic() - begun > PATIENCE_S:
                    raise click.ClickException("The events were not handed over.")
                time.sleep(0.05)
            figures["handed_over_after_s"] = round(time.monotonic() - begun, 1)
            figures["lost"] = len({0, 1, 2, 3} - set(storage.pending("learn", 7)))
            figures["jobs"] = jobs
        finally:
            for process in busy:
                process.send_signal(signal.SIGKILL)
                process.wait()
            backend.stop()
            redis.stop()
    for key, value in figures.items():
        print(f"{key:<20} {value}")
    print(json.dumps({"events": events, "seconds": seconds, "load": load, **figures}))


def storm(url: str, events: int, seconds: float) -> dict[str, Any]:
    """Send the events, of ten annotations of three tasks; every tenth asks for a training."""
    statuses: Counter[str] = Counter()

    with httpx.Client(trust_env=False, timeout=60, limits=httpx.Limits(max_keepalive_connections=0)) as client:

        def send(number: int, due: float) -> float:
            action = "START_TRAINING" if number % 10 == 0 else "ANNOTATION_UPDATED"
            annotation = {"id": number % 10 + 1, "task": number % 3 + 1}
            hook = {"action": action, "project": {"id": 7}, "annotation": annotation, "task": {"id": number % 3 + 1}}
            try:
                statuses[str(client.post(f"{url}/webhook", json=hook).status_code)] += 1
            except httpx.HTTPError as error:
                statuses[type(error).__name__] += 1
            return time.monotonic() - due  # waiting for a free client counts: Label Studio would not have waited

        started = time.monotonic()
        with ThreadPoolExecutor(CLIENTS) as pool:
            sent = []
            for number in range(events):
                due = started + seconds * number / events
                time.sleep(max(0.0, due - time.monotonic()))
                sent.append(pool.submit(send, number, due if seconds else time.monotonic()))
            times = [future.result() for future in sent]
        took = time.monotonic() - started
    late = sum(value > 1.0 for value in times)
    return {"answers": dict(statuses), "ms": percentiles(times), "later_than_1_s": late, "took_s": round(took, 1)}


if __name__ == "__main__":
    main()
