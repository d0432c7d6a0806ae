"""Work that runs ahead in a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from ml_backend.ahead import ahead


def test_the_same_items_made_in_another_thread() -> None:
    makers = []

    def items() -> Iterator[int]:
        for n in range(100):
            makers.append(threading.current_thread())
            yield n

    assert list(ahead(items(), 3)) == list(range(100))
    assert set(makers).isdisjoint({threading.current_thread()})
    assert list(ahead([], 1)) == []


def test_it_runs_ahead_no_further_than_it_may() -> None:
    made, go_on = [], threading.Semaphore(0)

    def items() -> Iterator[int]:
        for n in range(20):
            made.append(n)
            go_on.release()
            yield n

    found = ahead(items(), 3)
    assert next(found) == 0
    for _ in range(5):  # the one that was taken, three that wait, one in the making
        assert go_on.acquire(timeout=10)
    assert not go_on.acquire(timeout=0.3)
    assert made == list(range(5))
    assert list(found) == list(range(1, 20))


def test_what_making_them_raises_comes_in_its_turn() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    found = ahead(items(), 5)
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
    found = ahead(items(), 2)
    assert next(found) == 0
    found.close()
    assert closed.is_set()
    assert threading.active_count() == before


def test_nothing_ahead_is_nothing() -> None:
    with pytest.raises(ValueError, match="most >= 1"):
        next(ahead([1], 0))
