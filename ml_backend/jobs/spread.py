"""Jobs whose work is other jobs': how many of some tasks' predictions are still under way."""

from __future__ import annotations

from collections.abc import Callable

from ml_backend.jobs.board import JobBoard
from ml_backend.jobs.queue import JobQueue, _targets_key
from ml_backend.jobs.records import failure_text

_PREPARE, _PREDICT = "prepare-", "predict-"


class Spread:
    """To be called within the queue's guard."""

    def __init__(self, queue: JobQueue, board: JobBoard) -> None:
        self._queue, self._board = queue, board

    def progress(self, job_id: str) -> tuple[int, int, dict[int, str]]:
        """Tasks that are done (well or not), tasks in all, and why some failed, by task."""
        with self._queue.guard():
            tasks = self._board.members(job_id)
            waiting = set(self._pending(tasks)) & tasks
            failures = self._failures(tasks - waiting) if len(waiting) < len(tasks) else {}
        return len(tasks) - len(waiting), len(tasks), failures

    def cancel(self, job_id: str, drop: Callable[[str], None]) -> None:
        """Take back what only these tasks wait for; other tasks that wait for the same videos keep their jobs."""
        tasks = self._board.members(job_id)
        redis = self._queue.connection
        for name in sorted({name for names in self._pending(tasks).values() for name in names}):
            if name.startswith(_PREDICT):
                key = _targets_key(name.removeprefix(_PREDICT))
                redis.srem(key, *tasks)
                if redis.scard(key):
                    continue
            drop(name)

    def _pending(self, tasks: set[int]) -> dict[int, list[str]]:
        """Names of jobs that wait or run, by the tasks that they are for."""
        names: list[str] = []
        for queue in ("prepare", "predict", "refresh"):
            found = self._queue.queues[queue]
            names += found.get_job_ids()
            names += found.started_job_registry.get_job_ids(cleanup=False)
            names += found.scheduled_job_registry.get_job_ids(cleanup=False)
        out: dict[int, list[str]] = {}
        predicting = []
        for name in names:
            number = name.removeprefix(_PREPARE)
            if name.startswith(_PREPARE) and number.isdecimal():
                out.setdefault(int(number), []).append(name)
            elif name.startswith(_PREDICT):
                predicting.append(name)
        for name, targets in zip(predicting, self._targets(predicting), strict=True):
            for task in targets & tasks:
                out.setdefault(task, []).append(name)
        return out

    def _failures(self, tasks: set[int]) -> dict[int, str]:
        names: list[str] = []
        for queue in ("prepare", "predict", "refresh"):
            names += self._queue.queues[queue].failed_job_registry.get_job_ids(cleanup=False)
        wanted: dict[str, set[int]] = {}
        predicting = [name for name in names if name.startswith(_PREDICT)]
        for name, targets in zip(predicting, self._targets(predicting), strict=True):
            if mine := targets & tasks:
                wanted[name] = mine
        for name in names:
            number = name.removeprefix(_PREPARE)
            if name.startswith(_PREPARE) and number.isdecimal() and int(number) in tasks:
                wanted[name] = {int(number)}
        return {task: failure_text(job) for job in self._queue.fetch_many(list(wanted)) for task in wanted[job.id]}

    def _targets(self, names: list[str]) -> list[set[int]]:
        """Tasks that wait for each of some predictions."""
        with self._queue.connection.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.smembers(_targets_key(name.removeprefix(_PREDICT)))
            return [{int(value) for value in members} for members in pipeline.execute()]
