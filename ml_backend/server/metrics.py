"""Prometheus metrics: requests of this process, and the counters that workers keep in Redis."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ml_backend.core.errors import BackendError, QueueUnavailable
from ml_backend.db.storage import Storage
from ml_backend.jobs.queue import JobQueue

#: Worker counters in Redis by name, with their help texts.
WORKER_COUNTERS = {
    "videos": "Videos pre-annotated.",
    "frames": "Frames decoded and run through the detector.",
    "inference_seconds": "Seconds spent on decoding, detection and tracking.",
    "labelling_seconds": "Seconds spent on labelling tracks.",
    "learned": "Tasks whose annotations were learned.",
    "tracks": "Regions created.",
    "promotions": "Trained versions that passed the gate.",
    "proposals": "Trained versions that the gate proposed.",
    "refusals": "Trained versions that the gate refused.",
    "delivered": "Predictions pushed to Label Studio.",
}


class Metrics(Collector):
    """Metrics of one app; its own registry keeps tests apart. Queue and database are read on each scrape."""

    def __init__(self, queue: JobQueue, storage: Storage) -> None:
        self._queue, self._storage = queue, storage
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "video_backend_requests", "Requests answered.", ["endpoint", "status"], registry=self.registry
        )
        self.latency = Histogram(
            "video_backend_request_seconds",
            "Time to answer.",
            ["endpoint"],
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0),
            registry=self.registry,
        )
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("video_backend_up", "Whether a component is reachable.", labels=["part"])
        try:
            depths = self._queue.depths()
            counters = self._queue.counters()
            workers = len(self._queue.workers())
        except QueueUnavailable:
            up.add_metric(["redis"], 0)
        else:
            up.add_metric(["redis"], 1)
            yield GaugeMetricFamily("video_backend_workers", "Workers alive.", value=workers)
            jobs = GaugeMetricFamily("video_backend_jobs", "Jobs by queue and state.", labels=["queue", "state"])
            for name, counts in depths.items():
                for state, count in counts.items():
                    jobs.add_metric([name, state], count)
            yield jobs
            for name, help_text in WORKER_COUNTERS.items():
                yield CounterMetricFamily(f"video_backend_{name}", help_text, value=counters.get(name, 0.0))
        try:
            stored = self._storage.count_predictions()
        except BackendError:
            up.add_metric(["database"], 0)
        else:
            up.add_metric(["database"], 1)
            yield GaugeMetricFamily("video_backend_stored_predictions", "Predictions in the database.", value=stored)
        yield up
