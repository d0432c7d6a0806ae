"""One budget for all loaded models: loaded once, shared, protected while in use, unloaded in order."""

from __future__ import annotations

import gc
import json
import logging
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
import torch

from ml_backend.core.model_cache import ModelCache
from tests.builders import ROOT

WAIT = 30.0  # a generous bound that only keeps a broken test from hanging
MB = 1_000_000


class Network(torch.nn.Module):
    """A real module of so many bytes."""

    def __init__(self, size: int = MB) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(size // 4), requires_grad=False)


class OnCard:
    """A model that says it lies on a card, which not every machine has."""

    def __init__(self, size: int, device: str = "cuda:0") -> None:
        self.device = device
        self._size = size

    @property
    def memory_bytes(self) -> Mapping[str, int]:
        return {self.device: self._size}


class Loads:
    """Loaders by name, and what they have been asked for."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.alive: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()

    def __call__(self, name: str, make: Callable[[], Any] = Network) -> Callable[[], Any]:
        def load() -> Any:
            self.loaded.append(name)
            model = make()
            self.alive[name] = model
            return model

        return load

    def use(self, cache: ModelCache, name: str, make: Callable[[], Any] = Network) -> None:
        """Load or take it, and let it go at once."""
        with cache.use(name, self(name, make), name=name):
            pass


@pytest.fixture
def loads() -> Loads:
    return Loads()


def names(cache: ModelCache) -> list[str]:
    return [model["name"] for model in cache.status()["models"]]


def sized(size: int) -> Callable[[], Network]:
    return lambda: Network(size)


def test_a_model_is_loaded_once(loads: Loads) -> None:
    cache = ModelCache(10 * MB)
    with cache.use("a", loads("a"), name="a") as first:
        pass
    with cache.use("a", loads("a"), name="a") as second:
        assert second is first
    assert loads.loaded == ["a"]


@pytest.mark.slow
def test_the_least_recently_used_goes_first(loads: Loads) -> None:
    cache = ModelCache(3 * MB)
    for name in "abcad":
        loads.use(cache, name)
    assert loads.loaded == ["a", "b", "c", "d"]
    assert names(cache) == ["c", "a", "d"]
    gc.collect()
    assert set(loads.alive) == {"a", "c", "d"}


def test_exactly_the_budget_is_not_over_it(loads: Loads) -> None:
    cache = ModelCache(2 * MB)
    loads.use(cache, "a")
    loads.use(cache, "b")
    assert names(cache) == ["a", "b"]


def test_only_as_many_go_as_must(loads: Loads) -> None:
    cache = ModelCache(4 * MB)
    for name in "abcd":
        loads.use(cache, name)
    loads.use(cache, "two", sized(2 * MB))
    assert names(cache) == ["c", "d", "two"]


@pytest.mark.slow
def test_models_in_use_stay(loads: Loads, caplog: pytest.LogCaptureFixture) -> None:
    cache = ModelCache(2 * MB)
    with ExitStack() as stack, caplog.at_level(logging.WARNING):
        for name in "abcd":
            stack.enter_context(cache.use(name, loads(name), name=name))
        assert names(cache) == ["a", "b", "c", "d"]
        assert set(loads.alive) == {"a", "b", "c", "d"}
    assert len(names(cache)) == 2  # as soon as they are idle, the budget holds again
    assert caplog.text == ""  # each alone fits


def test_one_user_of_many_keeps_a_model(loads: Loads) -> None:
    cache = ModelCache(MB)
    with cache.use("a", loads("a"), name="a"):
        with cache.use("a", loads("a"), name="a"):
            pass
        loads.use(cache, "b")
        assert "a" in names(cache)
        assert cache.status()["models"][0]["in_use"] == 1


def test_a_model_larger_than_the_budget_is_used_with_a_warning(loads: Loads, caplog: pytest.LogCaptureFixture) -> None:
    cache = ModelCache(MB)
    loads.use(cache, "small")
    with caplog.at_level(logging.WARNING):
        loads.use(cache, "large", sized(5 * MB))
    assert "large alone exceeds" in caplog.text
    assert "MODEL_MEMORY_GB" in caplog.text
    assert names(cache) == ["large"]
    loads.use(cache, "large")  # and is not loaded anew for each use
    assert loads.loaded == ["small", "large"]


def test_room_is_made_once_a_model_is_loaded(loads: Loads) -> None:
    cache = ModelCache(2 * MB)
    loads.use(cache, "a")
    loads.use(cache, "b")
    seen: list[list[str]] = []
    loads.use(cache, "two", lambda: (seen.append(names(cache)), Network(2 * MB))[1])
    assert seen == [["a", "b", "two"]]  # the last one as being loaded
    assert names(cache) == ["two"]


def test_a_failed_load_leaves_nothing_behind(loads: Loads) -> None:
    cache = ModelCache(10 * MB)

    def fail() -> Any:
        raise ValueError("damaged")

    for _ in range(2):
        with pytest.raises(ValueError, match="damaged"):
            loads.use(cache, "a", fail)
        assert names(cache) == []
    loads.use(cache, "a")
    assert loads.loaded == ["a", "a", "a"]
    assert names(cache) == ["a"]


def test_an_error_of_the_user_gives_the_model_back(loads: Loads) -> None:
    cache = ModelCache(10 * MB)
    with pytest.raises(ValueError, match="mine"), cache.use("a", loads("a"), name="a"):
        raise ValueError("mine")
    assert cache.status()["models"][0]["in_use"] == 0


def test_loading_that_needs_itself_is_an_error_and_no_deadlock() -> None:
    cache = ModelCache(10 * MB)

    def load() -> Any:
        with cache.use("a", load, name="a") as model:
            return model

    with pytest.raises(RecursionError), cache.use("a", load, name="a"):
        pass
    assert names(cache) == []


def test_loading_may_use_another_model(loads: Loads) -> None:
    cache = ModelCache(10 * MB)

    def load() -> Any:
        with cache.use("b", loads("b"), name="b") as other:
            return torch.nn.Sequential(other)

    with cache.use("a", load, name="a"):
        assert sorted(names(cache)) == ["a", "b"]


def test_many_threads_share_one_load() -> None:
    cache, count = ModelCache(10 * MB), 16
    begun, go_on, together = threading.Event(), threading.Event(), threading.Barrier(count, timeout=WAIT)
    calls: list[int] = []

    def load() -> Network:
        calls.append(1)
        begun.set()
        assert go_on.wait(WAIT)
        return Network()

    def work() -> int:
        with cache.use("a", load, name="a") as model:
            together.wait()  # all of them at once
            assert cache.status()["models"][0]["in_use"] == count
            together.wait()
            return id(model)

    with ThreadPoolExecutor(count) as threads:
        results = [threads.submit(work) for _ in range(count)]
        assert begun.wait(WAIT)
        assert cache.status()["models"][0]["loading"] is True
        go_on.set()
        assert len({result.result(WAIT) for result in results}) == 1
    assert calls == [1]
    assert cache.status()["models"][0]["in_use"] == 0


def test_those_who_waited_for_a_load_that_failed_try_themselves() -> None:
    cache, count = ModelCache(10 * MB), 6
    ready, begun = threading.Barrier(count + 1, timeout=WAIT), threading.Event()
    go_on = threading.Event()
    calls: list[int] = []

    def load() -> Network:
        calls.append(1)
        if len(calls) < 3:
            begun.set()
            assert go_on.wait(WAIT)
            raise OSError("not yet")
        return Network()

    def work() -> str:
        ready.wait()
        try:
            with cache.use("a", load, name="a"):
                return "used"
        except OSError:
            return "failed"

    with ThreadPoolExecutor(count) as threads:
        results = [threads.submit(work) for _ in range(count)]
        ready.wait()
        assert begun.wait(WAIT)
        go_on.set()
        assert sorted(result.result(WAIT) for result in results) == ["failed"] * 2 + ["used"] * 4
    assert len(calls) == 3


def test_loading_one_holds_up_nobody_who_wants_another(loads: Loads) -> None:
    cache = ModelCache(10 * MB)
    loads.use(cache, "there")
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> Network:
        begun.set()
        assert go_on.wait(WAIT)
        return Network()

    with ThreadPoolExecutor(1) as threads:
        loading = threads.submit(loads.use, cache, "slow", slow)
        assert begun.wait(WAIT)
        loads.use(cache, "there")
        loads.use(cache, "new")
        assert cache.optimize() == ["there", "new"]
        assert names(cache) == ["slow"]  # what is being loaded stays
        go_on.set()
        loading.result(WAIT)


@pytest.mark.slow
def test_threads_that_fight_for_room_get_whole_models(loads: Loads) -> None:
    """Many threads, more models than fit: nobody gets a model that has been unloaded, and the budget holds at last."""
    cache, count = ModelCache(3 * MB), 8
    start = threading.Barrier(count, timeout=WAIT)

    def work(thread: int) -> None:
        start.wait()
        for turn in range(8):
            name = f"model {(thread * 7 + turn * 3) % 6}"
            with cache.use(name, Network, name=name) as model:
                assert model.weight.shape == (MB // 4,)
                assert name in names(cache)

    with ThreadPoolExecutor(count) as threads:
        for result in [threads.submit(work, thread) for thread in range(count)]:
            result.result(WAIT)
    status = cache.status()
    assert status["ram"]["models"] <= 3 * MB
    assert all(model["in_use"] == 0 and not model["loading"] for model in status["models"])


@pytest.mark.slow
def test_cards_have_budgets_of_their_own(loads: Loads, caplog: pytest.LogCaptureFixture) -> None:
    cache = ModelCache(2 * MB, 3 * MB)
    loads.use(cache, "ram")
    for name in "abc":
        loads.use(cache, name, lambda: OnCard(MB))
    loads.use(cache, "other card", lambda: OnCard(3 * MB, "cuda:1"))
    loads.use(cache, "d", lambda: OnCard(MB))
    assert names(cache) == ["ram", "b", "c", "other card", "d"]
    with caplog.at_level(logging.WARNING):
        loads.use(cache, "large", lambda: OnCard(4 * MB))
    assert "GPU_MEMORY_GB" in caplog.text
    assert names(cache) == ["ram", "other card", "large"]


def test_a_model_that_moved_to_the_cpu_counts_there(loads: Loads) -> None:
    cache = ModelCache(2 * MB, 2 * MB)
    with cache.use("a", loads("a", lambda: OnCard(2 * MB)), name="a") as model:
        assert cache.status()["gpu"]["models"] == 2 * MB
        model.device = "cpu"
        status = cache.status()
        assert (status["ram"]["models"], status["gpu"]) == (2 * MB, None)
        assert status["models"][0]["device"] == "cpu"
    loads.use(cache, "b", lambda: OnCard(2 * MB))  # the card is free
    assert names(cache) == ["a", "b"]
    loads.use(cache, "c")  # main memory is not
    assert names(cache) == ["b", "c"]
    loads.use(cache, "b")


@pytest.mark.slow
def test_optimize_unloads_what_is_idle(loads: Loads) -> None:
    cache = ModelCache(10 * MB)
    for name in "ab":
        loads.use(cache, name)
    with cache.use("c", loads("c"), name="c"):
        assert cache.optimize() == ["a", "b"]
        assert cache.status()["ram"]["models"] == MB
        assert names(cache) == ["c"]
        assert set(loads.alive) == {"c"}
    assert cache.optimize() == ["c"]
    assert cache.optimize() == []
    assert len(loads.alive) == 0


def test_status_is_plain_and_complete(loads: Loads) -> None:
    cache = ModelCache(10 * MB)
    empty = cache.status()
    assert (empty["models"], empty["gpu"]) == ([], None)
    loads.use(cache, "a")
    status = json.loads(json.dumps(cache.status()))
    (model,) = status["models"]
    assert model.pop("idle_seconds") >= 0
    assert model == {"name": "a", "device": "cpu", "engine": None, "bytes": MB, "in_use": 0, "loading": False}
    ram = status["ram"]
    assert (ram["budget"], ram["models"]) == (10 * MB, MB)
    assert 0 < ram["process"] < ram["total"]
    assert 0 < ram["available"] <= ram["total"]


def test_a_smaller_budget_holds_from_the_next_use_on(loads: Loads) -> None:
    cache = ModelCache(10 * MB)
    for name in "abc":
        loads.use(cache, name)
    cache.ram_bytes = MB
    loads.use(cache, "a")
    assert names(cache) == ["a"]


def test_the_process_has_one_cache() -> None:
    """In a process of its own, which has none yet."""
    code = (
        "from ml_backend.core.model_cache import current_model_cache, get_model_cache;"
        "from ml_backend.core.settings import Settings;"
        "assert current_model_cache() is None;"
        "first = get_model_cache(Settings(_env_file=None, model_memory_gb=1.5));"
        "assert first.status()['ram']['budget'] == 3 << 29;"
        "assert get_model_cache(Settings(_env_file=None)) is first is current_model_cache();"
        "ram = first.status()['ram'];"
        "assert ram['budget'] == ram['total'] // 2"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
