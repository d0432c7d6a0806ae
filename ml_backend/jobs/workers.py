"""List live workers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A registered worker."""

    name: str
    pid: int
    hostname: str
    queues: tuple[str, ...] = ()


def live_workers(redis_url: str) -> list[WorkerInfo]:
    """Return registered workers with a recent heartbeat; empty if Redis does not answer."""
    from redis import Redis
    from redis.exceptions import RedisError
    from rq import Worker as RQWorker

    try:
        with Redis.from_url(redis_url, socket_timeout=2, socket_connect_timeout=1) as connection:
            return [
                WorkerInfo(worker.name, int(worker.pid or 0), str(worker.hostname or ""), tuple(worker.queue_names()))
                for worker in RQWorker.all(connection)
            ]
    except (RedisError, OSError):
        return []
