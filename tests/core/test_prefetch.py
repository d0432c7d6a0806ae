"""Work that runs ahead in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from ml_backend.core.prefetch import ordered_map, prefetch


def test_the_same_items_made_in_another_thread() -> None:
    makers = []

    def items() -> Iterator[int]:
        for n in range(100):
            makers.append(threading.current_thread())
            yield n

    assert list(prefetch(items(), 3)) == list(range(100))
    assert set(makers).isdisjoint({threading.current_thread()})
    assert list(prefetch([], 1)) == []


def test_it_runs_ahead_no_further_than_it_may() -> None:
    made, go_on = [], threading.Semaphore(0)

    def items() -> Iterator[int]:
        for n in range(20):
            made.append(n)
            go_on.release()
            yield n

    found = prefetch(items(), 3)
    assert next(found) == 0
    for _ in range(5):  # the one that was taken, three that wait, one in the making
        assert go_on.acquire(timeout=300)
    assert not go_on.acquire(timeout=0.3)
    assert made == list(range(5))
    assert list(found) == list(range(1, 20))


def test_what_making_them_raises_comes_in_its_turn() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    found = prefetch(items(), 5)
    assert next(found) == 1
    with pytest.raises(OSError, match="gone"):
        next(found)


def test_closed_early_it_lets_go_of_everything() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed.set()

    before = threading.active_count()
    found = prefetch(items(), 2)
    assert next(found) == 0
    found.close()
    assert closed.is_set()
    assert threading.active_count() == before


def test_nothing_ahead_is_nothing() -> None:
    with pytest.raises(ValueError, match="buffer_size >= 1"):
        next(prefetch([1], 0))


@pytest.mark.parametrize("max_concurrency", [1, 2, 3])
def test_results_come_in_order_however_long_each_takes(max_concurrency: int) -> None:
    running, most = threading.Semaphore(max_concurrency), []

    def work(n: int) -> int:
        most.append(running.acquire(blocking=False))
        time.sleep(0.002 * (n % 3))
        running.release()
        return n * n

    assert list(ordered_map(work, range(30), max_concurrency)) == [n * n for n in range(30)]
    assert all(most)  # no more at once than was said
    assert list(ordered_map(work, [], max_concurrency)) == []


def test_several_are_made_at_once() -> None:
    together = threading.Barrier(2, timeout=300)
    assert list(ordered_map(lambda n: together.wait() >= 0 and n, [3, 1, 2, 5], 2)) == [3, 1, 2, 5]


def test_no_more_results_wait_than_are_made_at_once() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for n in range(10):
            taken.append(n)
            yield n

    found = ordered_map(lambda n: n, items(), 2)
    assert [next(found), next(found)] == [0, 1]
    assert taken == [0, 1, 2]


@pytest.mark.parametrize("max_concurrency", [1, 2])
def test_what_one_of_several_raises_comes_in_its_turn(max_concurrency: int) -> None:
    found = ordered_map(lambda n: 1 // n, [1, 1, 0, 1], max_concurrency)
    assert [next(found), next(found)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(found)


@pytest.mark.parametrize("max_concurrency", [1, 2, 4])
def test_what_comes_before_items_that_cannot_be_made_is_not_lost(max_concurrency: int) -> None:
    def items() -> Iterator[int]:
        yield from (1, 2, 3)
        raise OSError("gone")

    found = ordered_map(lambda n: n, items(), max_concurrency)
    assert [next(found) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(OSError, match="gone"):
        next(found)


def test_closed_early_what_runs_is_waited_for_and_nothing_more_is_begun() -> None:
    begun, ended, second, go_on = [], [], threading.Event(), threading.Event()

    def work(n: int) -> int:
        begun.append(n)
        if n:
            second.set()
            go_on.wait(300)
        ended.append(n)
        return n

    found = ordered_map(work, range(1000), 2)
    assert next(found) == 0
    assert second.wait(300)
    threading.Timer(0.2, go_on.set).start()
    found.close()
    assert (sorted(begun), sorted(ended)) == ([0, 1], [0, 1])
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("ordered_map")]
