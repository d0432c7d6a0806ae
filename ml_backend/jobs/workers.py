"""Which workers are alive."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker as it has registered itself."""

    name: str
    pid: int
    hostname: str
    queues: tuple[str, ...] = ()


def live_workers(redis_url: str) -> list[WorkerInfo]:
    """Workers that are registered in the queue and have not missed their heartbeat; empty when Redis is away."""
    from redis import Redis
    from redis.exceptions import RedisError
    from rq import Worker as RQWorker

    try:
        with Redis.from_url(redis_url, socket_timeout=2, socket_connect_timeout=1) as connection:
            return [
                WorkerInfo(w.name, int(w.pid or 0), str(w.hostname or ""), tuple(w.queue_names()))
                for w in RQWorker.all(connection)
            ]
    except (RedisError, OSError):
        return []
