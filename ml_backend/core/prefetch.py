"""Bounded iteration ahead in background threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


def prefetch(items: Iterable[T], buffer_size: int) -> Generator[T, None, None]:
    """Iterate over ``items`` in a background thread and yield them in order.

    Exhaust or close the generator. An exception of ``items`` is raised after the items before it.

    Args:
        buffer_size: maximum number of items that wait; one more may be in progress.
    """
    if buffer_size < 1:
        raise ValueError(f"expected buffer_size >= 1, got {buffer_size}")
    iterator, end, failed = iter(items), object(), False

    def step() -> Any:
        nonlocal failed
        if failed:  # more calls may be queued already
            return end
        try:
            return next(iterator, end)
        except BaseException:
            failed = True
            raise

    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as thread:
        pending: deque[Future[Any]] = deque(thread.submit(step) for _ in range(buffer_size + 1))
        try:
            while (item := pending.popleft().result()) is not end:
                pending.append(thread.submit(step))
                yield item
        finally:
            thread.shutdown(cancel_futures=True)
            if isinstance(iterator, Generator):
                iterator.close()


def ordered_map(function: Callable[[T], R], items: Iterable[T], max_concurrency: int) -> Generator[R, None, None]:
    """Map ``function`` over ``items`` in threads and yield the results in order.

    Exhaust or close the generator. An exception of ``items`` or a call is raised after the results before it.

    Args:
        max_concurrency: number of threads and limit of unconsumed results; 1: no threads.
    """
    if max_concurrency < 2:
        yield from map(function, items)
        return
    pending: deque[Future[R]] = deque()
    iterator = iter(items)
    failure: Exception | None = None
    with ThreadPoolExecutor(max_concurrency, thread_name_prefix="ordered_map") as threads:
        try:
            while True:
                try:
                    item = next(iterator)
                except StopIteration:
                    break
                except Exception as error:  # noqa: BLE001 - raised after the pending results
                    failure = error
                    break
                pending.append(threads.submit(function, item))
                if len(pending) == max_concurrency:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
    if failure is not None:
        raise failure
