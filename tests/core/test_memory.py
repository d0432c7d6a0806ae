"""Memory: what there is, what models take, and going on when it is not enough."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from ml_backend.core import memory
from ml_backend.core.memory import (
    OutOfMemoryFallback,
    gpu_memory,
    is_out_of_memory,
    machine_memory,
    model_memory,
    process_memory,
)
from ml_backend.core.settings import Settings
from ml_backend.detectors.yolo import YoloDetector
from tests.builders import ROOT, make_tiny_yolo

MakeSettings = Callable[..., Settings]
WAIT = 30.0  # a generous bound that only keeps a broken test from hanging
MB = 1 << 20


# -- readings


@pytest.mark.parametrize("content", [None, "max\n", f"{1 << 62}\n"])
def test_without_a_limit_the_machines_memory_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    monkeypatch.setattr(memory, "CONTAINER_LIMIT", tmp_path / "memory.max")
    if content is not None:
        (tmp_path / "memory.max").write_text(content)
    found = machine_memory()
    assert found.total == psutil.virtual_memory().total
    assert 0 < found.available <= found.total
    assert 0 < process_memory() < found.total


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CONTAINER_LIMIT", tmp_path / "memory.max")
    (tmp_path / "memory.max").write_text(f"{MB}\n")
    assert machine_memory() == memory.MemoryUsage(MB, MB)


def test_while_torch_is_imported_it_has_no_memory(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(
        "from ml_backend.core.memory import free_gpu_memory, gpu_memory, model_memory\n"
        "free_gpu_memory()\n"
        "print(gpu_memory(), model_memory(object()))\n"
    )
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import torch"]
    run = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("None {}\n", "")


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 3), ("150000 100000", 2), ("900000 100000", 3)])
def test_cores_that_an_affinity_and_a_container_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    monkeypatch.setattr(memory, "CONTAINER_CPU", tmp_path / "cpu.max")
    monkeypatch.setattr(memory.os, "sched_getaffinity", lambda pid: {0, 1, 5}, raising=False)
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert memory.usable_cores() == cores


def test_readings_do_not_load_torch() -> None:
    code = (
        "import sys; from ml_backend.core.memory import *; from ml_backend.core.model_cache import ModelCache;"
        "c = ModelCache(10**9); c.use('a', dict, name='a').__enter__(); print(c.status(), c.optimize());"
        "assert gpu_memory() is None and not is_out_of_memory(ValueError()) and model_memory([1]) == {};"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_card_in_use_is_no_memory() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        pytest.skip("another test uses the card")
    assert gpu_memory() is None


# -- models' sizes


def test_parameters_and_buffers_are_counted_once() -> None:
    model = torch.nn.Linear(10, 10)
    model.register_buffer("seen", torch.zeros(5, dtype=torch.int64))
    both = torch.nn.ModuleList([model, model])
    assert model_memory(both) == {"cpu": 4 * (100 + 10) + 8 * 5}
    assert model_memory(both.half()) == {"cpu": 2 * (100 + 10) + 8 * 5}


def test_sizes_are_by_device() -> None:
    model = torch.nn.ModuleList([torch.nn.Linear(10, 10, bias=False), torch.nn.Linear(5, 2, device="meta")])
    assert model_memory(model) == {"cpu": 400, "meta": 48}


class Told:
    memory_bytes = {"cpu": 1, "cuda:0": 2}  # noqa: RUF012


def test_what_a_model_says_of_itself_counts() -> None:
    assert model_memory(Told()) == {"cpu": 1, "cuda:0": 2}


@pytest.mark.parametrize("thing", [None, 3, "text", object(), [], {}])
def test_what_is_no_model_takes_nothing(thing: object) -> None:
    assert model_memory(thing) == {}


@pytest.mark.slow
def test_a_detector_is_as_large_as_its_network(tmp_path: Path, settings: MakeSettings) -> None:
    from ultralytics.nn.autobackend import AutoBackend

    path = make_tiny_yolo(tmp_path / "tiny.pt", {0: "cat"})
    detector = YoloDetector(path, settings(device="cpu"))
    network = AutoBackend(path, verbose=False).model
    expected = sum(t.nelement() * t.element_size() for t in (*network.parameters(), *network.buffers()))
    assert model_memory(detector) == {"cpu": expected}


# -- running out


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (MemoryError(), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_that_say_memory_is_short(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


class Network(OutOfMemoryFallback):
    """Runs where there is room for ``room`` items of a device; the CPU has room for ``cpu_room``."""

    item_name = "words"

    def __init__(self, batch: int, room: int, cpu_room: int = 1) -> None:
        self.batch = batch
        self.room, self.cpu_room = room, cpu_room
        self.placed: list[str] = []
        self.calls: list[tuple[str, int]] = []
        self.error: Callable[[str], BaseException] = RuntimeError
        self.move_to("meta")

    def place(self, device: str) -> None:
        self.placed.append(device)

    def run(self) -> int:
        return self.run_with_fallback(self.call)

    def call(self, batch: int) -> int:
        self.calls.append((self.device, batch))
        if batch > (self.cpu_room if self.device == "cpu" else self.room):
            raise self.error("out of memory")
        return batch


def test_batches_shrink_until_they_fit_and_stay_small(caplog: pytest.LogCaptureFixture) -> None:
    network = Network(batch=8, room=3)
    with caplog.at_level(logging.WARNING):
        assert (network.run(), network.run()) == (2, 2)
    assert network.calls == [("meta", 8), ("meta", 4), ("meta", 2), ("meta", 2)]
    assert "continuing with 4 words per call" in caplog.text


def test_then_comes_the_cpu() -> None:
    network = Network(batch=2, room=0)
    network.error = lambda text: MemoryError(text)
    assert network.run() == 1
    assert network.calls == [("meta", 2), ("meta", 1), ("cpu", 1)]
    assert network.placed == ["meta", "cpu"]
    assert network.device == "cpu"


@pytest.mark.parametrize("error", [RuntimeError, MemoryError])
def test_a_cpu_without_room_for_one_is_an_error(error: Any) -> None:
    network = Network(batch=2, room=0, cpu_room=0)
    network.error = error
    with pytest.raises(error, match="out of memory"):
        network.run()
    assert network.calls[-1] == ("cpu", 1)


def test_other_errors_come_through_at_once() -> None:
    network = Network(batch=8, room=0)
    network.error = lambda text: ValueError(text)
    with pytest.raises(ValueError, match="memory"):
        network.run()
    assert network.calls == [("meta", 8)]


class Placed(Network):
    """What a device says to it is in ``errors``."""

    errors: Mapping[str, str] = {"meta": "CUDA out of memory"}

    def place(self, device: str) -> None:
        super().place(device)
        if device in self.errors:
            raise RuntimeError(self.errors[device])


def test_a_network_that_does_not_fit_is_placed_on_the_cpu(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        network = Placed(batch=1, room=1)
    assert (network.placed, network.device) == (["meta", "cpu"], "cpu")
    assert "too little memory" in caplog.text


def test_placing_fails_for_other_reasons_and_on_the_cpu() -> None:
    failing = Placed(batch=1, room=1)
    failing.placed.clear()
    failing.errors = {"meta": "broken", "cpu": "out of memory"}
    for device, message in failing.errors.items():
        with pytest.raises(RuntimeError, match=message):
            failing.move_to(device)
    assert failing.placed == ["meta", "cpu"]


@pytest.mark.parametrize("max_concurrency", [1, 2])
def test_threads_take_turns(max_concurrency: int) -> None:
    network, count = Network(batch=1, room=1), 6
    network.max_concurrency = max_concurrency
    start, running, most = threading.Barrier(count, timeout=WAIT), threading.Semaphore(max_concurrency), []

    def call(batch: int) -> int:
        most.append(running.acquire(blocking=False))  # false where another call is under way
        running.release()
        return batch

    def work() -> None:
        start.wait()
        for _ in range(200):
            network.run_with_fallback(call)

    with ThreadPoolExecutor(count) as threads:
        for result in [threads.submit(work) for _ in range(count)]:
            result.result(WAIT)
    assert len(most) == 200 * count
    assert all(most)


def test_threads_that_meet_the_same_shortage_shrink_once() -> None:
    network, together = Network(batch=8, room=4), threading.Barrier(2, timeout=WAIT)
    network.max_concurrency = 2

    def call(batch: int) -> int:
        if batch == 8:
            together.wait()  # both have asked for too much
        return network.call(batch)

    with ThreadPoolExecutor(2) as threads:
        results = [threads.submit(network.run_with_fallback, call) for _ in range(2)]
        assert [result.result(WAIT) for result in results] == [4, 4]
    assert sorted(network.calls) == [("meta", 4)] * 2 + [("meta", 8)] * 2
