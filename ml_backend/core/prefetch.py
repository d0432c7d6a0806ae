"""Work that runs ahead in a thread of its own, a bounded way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


def prefetch(items: Iterable[T], most: int) -> Generator[T, None, None]:
    """The same items, made in a thread while the last ones are used. Close it, or exhaust it.

    What making them raises is raised here, in its turn.

    Args:
        most: items that wait at most; one more is in the making.
    """
    if most < 1:
        raise ValueError(f"expected most >= 1, got {most}")
    iterator, end, failed = iter(items), object(), False

    def step() -> Any:
        nonlocal failed
        if failed:  # calls that are queued already make nothing more
            return end
        try:
            return next(iterator, end)
        except BaseException:
            failed = True
            raise

    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as thread:
        waiting: deque[Future[Any]] = deque(thread.submit(step) for _ in range(most + 1))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(thread.submit(step))
                yield item
        finally:
            thread.shutdown(cancel_futures=True)
            if isinstance(iterator, Generator):
                iterator.close()


def ordered_map(function: Callable[[T], R], items: Iterable[T], max_concurrency: int) -> Generator[R, None, None]:
    """``map``, with so many calls at once, each in a thread of its own if there are several. Close it, or exhaust it.

    What making the items, or a call, raises is raised here, in its turn.

    Args:
        max_concurrency: also the most results that exist and have not been taken.
    """
    if max_concurrency < 2:
        yield from map(function, items)
        return
    waiting: deque[Future[R]] = deque()
    iterator = iter(items)
    failure: Exception | None = None
    with ThreadPoolExecutor(max_concurrency, thread_name_prefix="ordered_map") as threads:
        try:
            while True:
                try:
                    item = next(iterator)
                except StopIteration:
                    break
                except Exception as error:  # noqa: BLE001 - whatever it is, it comes after what is under way
                    failure = error
                    break
                waiting.append(threads.submit(function, item))
                if len(waiting) == max_concurrency:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
    if failure is not None:
        raise failure
