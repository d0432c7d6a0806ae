"""The training subprocess: what it says, and how it ends."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from ml_backend.core.errors import Interrupted, TrainingFailed
from ml_backend.training.process import TrainingProcess
from tests.builders import ROOT, wait_for
from tests.training.detection import LABELS, make_dataset, make_start, train_plan

pytestmark = pytest.mark.slow

LONG = {"epochs": 500, "patience": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_start(tmp_path_factory.mktemp("start") / "start.pt")


def run(
    plan: dict[str, Any],
    folder: Path,
    on_event: Callable[[dict[str, Any]], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    **environment: str,
) -> dict[str, Any]:
    with TrainingProcess({**os.environ, **environment}) as process:
        return process.run(plan, folder, on_event=on_event or (lambda event: None), should_stop=should_stop)


def at_start(folder: Path, code: str) -> dict[str, str]:
    """Environment in which a Python process first executes some code."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": str(folder)}


def trainings() -> list[psutil.Process]:
    """The subprocesses of this process that train."""
    return [p for p in psutil.Process().children(recursive=True) if "ml_backend.training.child" in p.cmdline()]


def test_a_training_from_beginning_to_end(data: Path, start: Path, tmp_path: Path) -> None:
    """Its events; and that nothing is asked of the network or left in the home directory, whatever is printed."""
    home, asked = tmp_path / "home", tmp_path / "asked"
    home.mkdir()
    code = (
        "import sys\n"
        "print('{no json'); print('[1]'); print(); print('{\"no\": \"event\"}', flush=True)\n"
        "def note(event, args):\n"
        f"    if event in ('socket.getaddrinfo', 'socket.connect'): open({str(asked)!r}, 'a').write(repr(args))\n"
        "sys.addaudithook(note)\n"
    )
    bare = {name: value for name, value in os.environ.items() if name not in ("YOLO_CONFIG_DIR", "MPLCONFIGDIR")}
    environment = bare | {"HOME": str(home)} | at_start(tmp_path / "site", code)
    events: list[dict[str, Any]] = []
    folder = tmp_path / "run"
    with TrainingProcess(environment) as process:
        done = process.run(train_plan(data, start, folder), folder, on_event=events.append, should_stop=lambda: False)
    assert [event["event"] for event in events] == ["start", "epoch", "epoch"]
    assert events[0]["device"] == "cpu"
    assert (events[0]["batch"], events[0]["pictures"]) == (4, 8)
    for number, event in enumerate(events[1:], 1):
        assert (event["epoch"], event["epochs"]) == (number, 2)
        assert set(event["losses"]) == {"box", "cls", "dfl"}
        assert event["seconds"] > 0
        assert Path(event["checkpoint"]) == folder / "weights" / "last.pt"
        assert 0 <= event["map50_95"] <= event["map50"] <= 1
    assert events[1]["eta_s"] > events[2]["eta_s"] == 0
    assert Path(done["weights"]).is_file()
    assert (done["epochs"], done["args"]["imgsz"]) == (2, 64)
    assert not asked.exists()
    assert list(home.iterdir()) == []
    assert trainings() == []
    assert json.loads((folder / "train-plan.json").read_text(encoding="utf-8"))["classes"] == list(LABELS)


def test_a_training_that_was_killed_goes_on(data: Path, start: Path, tmp_path: Path) -> None:
    def kill(event: dict[str, Any]) -> None:
        if event["event"] == "epoch" and event["epoch"] == 2:
            (training,) = trainings()
            assert training.nice() >= 10
            training.kill()

    plan = train_plan(data, start, tmp_path, args={"epochs": 4})
    with pytest.raises(TrainingFailed, match=r"killed by signal 9 \(out of memory\?\)") as caught:
        run(plan, tmp_path, kill)
    assert caught.value.retryable
    epochs: list[int] = []
    last = tmp_path / "weights" / "last.pt"
    done = run(plan | {"resume": str(last)}, tmp_path, lambda event: epochs.append(event.get("epoch", 0)))
    assert epochs[0] == 0
    # It may have begun another epoch, or ended it, before the signal came.
    assert epochs[1] in (3, 4)
    assert epochs[-1] == done["epochs"] == 4


def test_it_dies_with_its_parent(data: Path, start: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(train_plan(data, start, tmp_path / "run", args=LONG)))
    code = (
        "import json, pathlib, sys; from ml_backend.training.process import TrainingProcess\n"
        f"TrainingProcess().run(json.loads(open({str(plan)!r}).read()), pathlib.Path({str(tmp_path / 'run')!r}),"
        " on_event=lambda event: print(event, flush=True), should_stop=lambda: False)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    try:
        assert b"start" in parent.stdout.readline()
        (training,) = trainings()
        parent.send_signal(signal.SIGKILL)
        parent.wait(300)
        wait_for(lambda: not training.is_running() or training.status() == psutil.STATUS_ZOMBIE)
    finally:
        parent.kill()
        parent.stdout.close()
        parent.wait(300)


def test_a_full_disk(data: Path, start: Path, tmp_path: Path) -> None:
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))"
    with pytest.raises(TrainingFailed, match="disk is full") as caught:
        run(train_plan(data, start, tmp_path / "run"), tmp_path / "run", **at_start(tmp_path / "site", code))
    assert caught.value.retryable
    assert not list((tmp_path / "run" / "weights").glob("*.pt"))


def test_what_goes_wrong_there_is_told_here(data: Path, tmp_path: Path) -> None:
    corrupt = tmp_path / "corrupt.pt"
    corrupt.write_bytes(b"no checkpoint")
    with pytest.raises(TrainingFailed, match="cannot be loaded") as caught:
        run(train_plan(data, corrupt, tmp_path), tmp_path)
    assert not caught.value.retryable
    assert "damaged" in caught.value.hint


def test_a_crash_comes_with_the_end_of_the_log(tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match="exit status 3") as caught:
        run({"kind": "train"}, tmp_path, **at_start(tmp_path / "site", "import os; os.write(2, b'oh no'); os._exit(3)"))
    assert "oh no" in caught.value.hint


def test_it_pauses_before_its_next_batch_goes_on_and_ends_when_asked_to(
    data: Path, start: Path, tmp_path: Path
) -> None:
    paused, stopped, events = threading.Event(), threading.Event(), queue.Queue[dict[str, Any]]()
    paused.set()
    with TrainingProcess() as process, ThreadPoolExecutor(1) as pool:
        running = pool.submit(
            process.run,
            train_plan(data, start, tmp_path, args=LONG),
            tmp_path,
            on_event=events.put,
            should_stop=stopped.is_set,
            should_pause=paused.is_set,
        )
        try:
            assert events.get(timeout=900)["event"] == "start"
            with pytest.raises(queue.Empty):
                events.get(timeout=3)
            paused.clear()
            assert events.get(timeout=900)["event"] == "epoch"
        finally:
            stopped.set()
        asked = time.monotonic()
        with pytest.raises(Interrupted):
            running.result(timeout=900)
        assert time.monotonic() - asked < 120
        assert trainings() == []
