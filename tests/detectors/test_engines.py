"""Engines: the same detections whichever runs, exports made once and whole, and PyTorch wherever one fails."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import psutil
import pytest
from pydantic import ValidationError

from ml_backend.core.files import file_sha256
from ml_backend.core.model_cache import ModelCache
from ml_backend.core.settings import Settings
from ml_backend.core.types import Detections
from ml_backend.detectors.engines import exports, make
from ml_backend.detectors.engines.calibration import CalibrationSource
from ml_backend.detectors.engines.exports import (
    META,
    EngineExport,
    EnginePlan,
    ParityFailed,
    choose_engine,
    find_export,
)
from ml_backend.detectors.engines.make import EngineParity, engine_parity
from ml_backend.detectors.engines.openvino_engine import COMPILED, MAX_SIZES, MODEL_FILE, OpenvinoEngine
from ml_backend.detectors.engines.torch_engine import padded_batch_size
from ml_backend.detectors.loading import yolo_detector
from ml_backend.detectors.motion import MotionDetector
from ml_backend.detectors.weights import resolve_detector
from ml_backend.detectors.yolo import YoloDetector
from tests.builders import ROOT, make_tiny_yolo, run_with_bare_home

pytestmark = pytest.mark.slow

MakeSettings = Callable[..., Settings]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_yolo(tmp_path_factory.mktemp("weights") / "tiny.pt", {0: "cat", 1: "dog"})


@pytest.fixture
def here(settings: MakeSettings) -> Settings:
    return settings(device="cpu", engine="openvino", imgsz=320)


@pytest.fixture(scope="module")
def exported(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of exports with the tiny model's."""
    values = Settings(_env_file=None, data_dir=tmp_path_factory.mktemp("exported"), device="cpu", engine="openvino")
    return made(tiny, values).folder.parent


@pytest.fixture
def prepared(here: Settings, exported: Path) -> Settings:
    """Where the tiny model has been exported."""
    shutil.copytree(exported, here.weights_dir / "engines")
    return here


def pictures(n: int, height: int = 360, width: int = 640) -> list[np.ndarray]:
    blocks = np.random.default_rng(0).integers(0, 255, (n, height // 40, width // 40, 3), np.uint8)
    return [np.kron(b, np.ones((40, 40, 1), np.uint8)) for b in blocks]


def plan_of(path: Path, settings: Settings) -> EnginePlan:
    return EnginePlan(path, file_sha256(path), settings, CalibrationSource())


def made(path: Path, settings: Settings) -> EngineExport:
    """Made here, what otherwise a process of its own makes."""
    make.make(plan_of(path, settings))
    chosen = choose_engine(path, file_sha256(path), settings)
    assert chosen.export is not None, chosen.note
    return chosen.export


def folders(settings: Settings) -> list[Path]:
    return sorted(path for path in (settings.weights_dir / "engines").iterdir() if path.is_dir())


def test_openvino_sees_what_pytorch_sees_in_pictures_of_many_sizes(tiny: Path, prepared: Settings) -> None:
    images = [*pictures(5), *pictures(2, 640, 360), *pictures(3, 120, 200)]
    export = made(tiny, prepared)
    assert export.check["boxes"] > 10
    torch, openvino = YoloDetector(tiny, prepared), YoloDetector(tiny, prepared, export)
    expected, found = torch.detect(images), openvino.detect(images)
    assert (torch.engine["name"], openvino.engine["name"]) == ("torch", "openvino")
    assert [len(d) for d in found] == [len(d) for d in expected]
    assert engine_parity(expected, found).matched == 1.0
    assert openvino.names == torch.names
    assert openvino.detect([]) == []


def test_the_real_model_sees_the_same(yolo_weights: Path, people_video: Path, settings: MakeSettings) -> None:
    from ml_backend.video.reader import read_frames

    values = settings(device="cpu", engine="openvino")
    frames = read_frames(people_video)
    images = [next(frames).image for _ in range(3)]
    expected = YoloDetector(yolo_weights, values).detect(images)
    found = engine_parity(expected, YoloDetector(yolo_weights, values, made(yolo_weights, values)).detect(images))
    assert found.boxes > 20
    assert found.matched > 0.99
    assert found.conf_difference < 1e-3


def test_a_head_without_nms(tmp_path: Path, here: Settings) -> None:
    import torch
    import ultralytics
    from ultralytics import YOLO

    path = tmp_path / "end2end.pt"
    torch.manual_seed(0)
    yolo = YOLO(Path(ultralytics.__file__).parent / "cfg/models/26/yolo26n.yaml", verbose=False)
    yolo.model.end2end = True
    with torch.no_grad():  # as they are made, all places look alike to it, and which 300 are the best is chance
        for module in yolo.model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 3)
                module.bias.normal_()
        for branch in yolo.model.model[-1].one2one_cv3:
            branch[-1].weight.normal_(std=0.3)
            branch[-1].bias.fill_(-4)
    yolo.save(path)
    export = made(path, here)
    assert export.end2end
    assert export.check["boxes"] >= 100
    assert export.check["matched"] > 0.99


def test_the_input_keeps_the_aspect_and_few_sizes_stay_compiled(tiny: Path, prepared: Settings) -> None:
    export = made(tiny, prepared)
    weights = (export.folder / MODEL_FILE).with_suffix(".bin").stat().st_size
    detector = YoloDetector(tiny, prepared, export)
    assert detector.memory_bytes["cpu"] == weights > 0
    assert detector.pixels(pictures(1, 1080, 1920)).shape == (1, 192, 320, 3)
    for _ in range(2):
        detector.detect(pictures(1, 1080, 1920))
        assert detector.memory_bytes["cpu"] == 2 * weights
    for width in range(200, 1000, 80):
        detector.detect(pictures(1, 400, width))
    assert detector.memory_bytes["cpu"] == (1 + MAX_SIZES) * weights


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1920, 1080), (640, 360)), ((1080, 1920), (360, 640)), ((1000, 7), (640, 4)), ((64, 48),) * 2],
)
def test_working_size(size: tuple[int, int], expected: tuple[int, int], tiny: Path, settings: MakeSettings) -> None:
    detector = YoloDetector(tiny, settings(device="cpu", imgsz=640))
    assert detector.working_size(*size) == expected
    assert detector.working_size(*expected) == expected


def test_working_size_of_the_motion_detector() -> None:
    assert MotionDetector().working_size(1920, 1080) == (640, 360)
    assert MotionDetector().working_size(320, 200) == (320, 200)


def test_pytorch_serves_until_the_background_has_the_export(tiny: Path, here: Settings) -> None:
    """What a detector says of it ends too, although it was loaded before and no later video has replaced it."""
    with yolo_detector(resolve_detector(here.model_copy(update={"yolo_weights": str(tiny)})), here) as detector:
        pass
    assert detector.engine["name"] == "torch"
    first = choose_engine(tiny, file_sha256(tiny), here)
    assert first.export is None
    assert "being prepared" in first.note
    second = choose_engine(tiny, file_sha256(tiny), here, wait=True)
    assert second.export is not None
    assert second.note == ""
    assert second.key != first.key
    assert detector.engine == {"name": "torch", "precision": "fp32", "note": ""}


def test_preparing_ends_when_it_fails(tmp_path: Path, here: Settings) -> None:
    other = make_tiny_yolo(tmp_path / "other.pt", {0: "cow"})
    here.weights_dir.mkdir(parents=True, exist_ok=True)
    (here.weights_dir / "engines").write_text("in the way of the folder")
    with yolo_detector(resolve_detector(here.model_copy(update={"yolo_weights": str(other)})), here) as detector:
        pass
    choose_engine(other, file_sha256(other), here, wait=True)
    assert "cannot be written" in detector.engine["note"]


def test_another_checkpoint_is_another_export(tiny: Path, tmp_path: Path, prepared: Settings) -> None:
    other = make_tiny_yolo(tmp_path / "other.pt", {0: "cow"})
    assert made(tiny, prepared).folder != made(other, prepared).folder
    assert made(other, prepared).names == {0: "cow"}
    copy = tmp_path / "copy.pt"
    copy.write_bytes(tiny.read_bytes())
    assert made(copy, prepared).folder == made(tiny, prepared).folder
    assert len(folders(prepared)) == 2


@pytest.mark.parametrize("damage", ["cut", "gone", "meta", "changed"])
def test_a_damaged_export_is_made_again(damage: str, tiny: Path, prepared: Settings) -> None:
    folder = made(tiny, prepared).folder
    file = folder / (META if damage == "meta" else Path(MODEL_FILE).with_suffix(".bin"))
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    elif damage == "changed":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        os.utime(file, (1, 1))
    else:
        file.write_bytes(content[: len(content) // 2])
    assert find_export(folder) is None
    assert made(tiny, prepared).folder == folder
    assert len(YoloDetector(tiny, prepared, made(tiny, prepared)).detect(pictures(1))[0]) > 0


def _make(path: Path, settings: Settings, log: Path) -> None:
    import openvino

    save = openvino.save_model

    def counted(*arguments: object, **options: object) -> None:
        with log.open("a") as file:
            file.write("made\n")
        save(*arguments, **options)

    openvino.save_model = counted
    made(path, settings)


def test_two_processes_make_it_once(tiny: Path, here: Settings, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    log = tmp_path / "log"
    both = [context.Process(target=_make, args=(tiny, here, log)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    assert log.read_text() == "made\n"
    assert folders(here) == [plan_of(tiny, here).fp32]


def test_an_unsound_export_is_refused_for_good(
    tiny: Path, here: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(make, "check", lambda *_: EngineParity(100, 0.5, 0.1))
        with pytest.raises(ParityFailed, match="finds 50% of the boxes"):
            make.make(plan_of(tiny, here))
    for wait in (False, True):
        chosen = choose_engine(tiny, file_sha256(tiny), here, wait=wait)
        assert chosen.export is None
        assert "openvino is not used: openvino finds 50% of the boxes" in chosen.note
    assert "finds 50% of the boxes" in caplog.text
    assert folders(here) == []


def test_what_cannot_be_exported_is_not_tried_again_at_once(
    tmp_path: Path, here: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bad.pt"
    path.write_bytes(b"no checkpoint")
    first = choose_engine(path, file_sha256(path), here, wait=True)
    assert first.export is None
    assert f"openvino is not used: {path} cannot be loaded as a YOLO model" in first.note
    assert choose_engine(path, file_sha256(path), here) == first
    monkeypatch.setattr(exports, "RETRY_AFTER_S", 0.0)
    assert "being prepared" in choose_engine(path, file_sha256(path), here).note
    assert choose_engine(path, file_sha256(path), here, wait=True) == first


def test_a_disk_that_takes_nothing_is_told_and_not_tried_for_each_video(tiny: Path, here: Settings) -> None:
    here.weights_dir.mkdir(parents=True, exist_ok=True)
    (here.weights_dir / "engines").write_text("in the way of the folder")
    assert "being prepared" in choose_engine(tiny, file_sha256(tiny), here).note
    chosen = choose_engine(tiny, file_sha256(tiny), here, wait=True)
    assert chosen.export is None
    assert "openvino is not used" in chosen.note
    assert "cannot be written" in chosen.note


def test_a_process_that_is_killed_is_told_and_another_tries_later(
    tiny: Path, here: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "being prepared" in choose_engine(tiny, file_sha256(tiny), here).note
    (child,) = [
        process for process in psutil.Process().children() if "ml_backend.detectors.engines.make" in process.cmdline()
    ]
    child.kill()
    chosen = choose_engine(tiny, file_sha256(tiny), here, wait=True)
    assert chosen.export is None
    assert "exited with status -9" in chosen.note
    monkeypatch.setattr(exports, "RETRY_AFTER_S", 0.0)
    assert choose_engine(tiny, file_sha256(tiny), here, wait=True).export is not None


def test_a_full_disk_does_not_hide_why_an_export_is_unsound(
    tiny: Path, here: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Path, *_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    def unsound(*_: object) -> EngineParity:
        monkeypatch.setattr(Path, "write_text", full)
        return EngineParity(100, 0.5, 0.1)

    monkeypatch.setattr(make, "check", unsound)
    with pytest.raises(ParityFailed, match="finds 50% of the boxes"):
        make.make(plan_of(tiny, here))


def test_what_a_killed_process_left_behind_goes(tiny: Path, here: Settings) -> None:
    engines = here.weights_dir / "engines"
    old, fresh = engines / ".old.abc", engines / ".fresh.abc"
    for folder in (old, fresh):
        folder.mkdir(parents=True)
        (folder / "model.bin").write_bytes(b"half")
    os.utime(old, (1, 1))
    made(tiny, here)
    assert not old.exists()
    assert fresh.exists()


def test_openvino_reports_nothing_and_writes_nothing_at_home(tiny: Path, tmp_path: Path) -> None:
    """In a process of its own, which has not imported it yet; as for users, not as in a CI job."""
    code = (
        "import socket, sys, threading, numpy as np\n"
        "def refuse(*a): raise SystemExit('network')\n"
        "socket.getaddrinfo = refuse\n"
        "from pathlib import Path\n"
        "from ml_backend.detectors.yolo import YoloDetector\n"
        "from ml_backend.detectors.engines.exports import choose_engine\n"
        "from ml_backend.core.settings import Settings\n"
        f"path = Path({str(tiny)!r})\n"
        f"here = Settings(device='cpu', engine='openvino', imgsz=160, data_dir={str(tmp_path / 'data')!r})\n"
        "export = choose_engine(path, 'abc', here, wait=True).export\n"
        "detector = YoloDetector(path, here, export)\n"
        "detector.detect([np.zeros((90, 160, 3), np.uint8)])\n"
        "print(detector.engine['name'], sys.modules['openvino_telemetry'], threading.active_count())\n"
    )
    said = run_with_bare_home(code, tmp_path, lambda name: name in ("CI", "TF_BUILD", "JENKINS_URL", "YOLO_CONFIG_DIR"))
    assert said.split() == ["openvino", "None", "1"]


def test_a_jobs_time_out_is_no_fault_of_the_engine(
    tiny: Path, prepared: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rq.timeouts import JobTimeoutException

    detector = YoloDetector(tiny, prepared, made(tiny, prepared))

    def infer(engine: OpenvinoEngine, pixels: object) -> object:
        raise JobTimeoutException

    monkeypatch.setattr(OpenvinoEngine, "infer", infer)
    with pytest.raises(JobTimeoutException):
        detector.detect(pictures(1))
    assert detector.engine == {"name": "openvino", "precision": "fp32", "note": ""}


def compiled_files(export: EngineExport) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in (export.folder / COMPILED).glob("*.blob")}


def test_a_network_is_compiled_once_for_all_processes(tiny: Path, prepared: Settings) -> None:
    export, images = made(tiny, prepared), pictures(2)
    expected = YoloDetector(tiny, prepared, export).detect(images)
    compiled = compiled_files(export)
    assert len(compiled) == 1
    assert find_export(export.folder) == export
    again = YoloDetector(tiny, prepared, export).detect(images)
    assert compiled_files(export) == compiled  # read, not written again
    (file,) = (export.folder / COMPILED).glob("*.blob")
    os.truncate(file, file.stat().st_size // 2)  # as a killed process leaves it
    anew = YoloDetector(tiny, prepared, export).detect(images)
    for found in (again, anew):
        assert all(np.array_equal(a.xyxy, b.xyxy) for a, b in zip(found, expected, strict=True))


def test_compiled_networks_of_many_sizes_are_removed(tiny: Path, prepared: Settings) -> None:
    export = made(tiny, prepared)
    detector = YoloDetector(tiny, prepared, export)
    for width in range(320, 320 + 64 * (MAX_SIZES + 2), 64):
        detector.detect([np.zeros((width // 2, width, 3), np.uint8), np.zeros((320, width // 4, 3), np.uint8)])
    assert len(compiled_files(export)) == MAX_SIZES


def test_a_folder_that_cannot_be_written_costs_only_time(tiny: Path, prepared: Settings) -> None:
    export = made(tiny, prepared)
    (export.folder / COMPILED).write_text("not a folder")
    detector = YoloDetector(tiny, prepared, export)
    detector.detect(pictures(1))
    assert detector.engine == {"name": "openvino", "precision": "fp32", "note": ""}


def test_first_calls_of_several_threads(tiny: Path, prepared: Settings) -> None:
    """In processes of their own: OpenVINO's bindings deadlock where threads pass their first arrays at once."""
    export = made(tiny, prepared)
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from ml_backend.detectors.engines.exports import find_export\n"
        "from ml_backend.detectors.engines.openvino_engine import OpenvinoEngine\n"
        f"engine = OpenvinoEngine(find_export(Path({str(export.folder)!r})), 2)\n"
        "with ThreadPoolExecutor(2) as threads:\n"
        "    print(len(list(threads.map(engine.infer, [np.zeros((2, 64, 64, 3), np.uint8)] * 8))))\n"
    )
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.stdout == "8\n", done.stderr


def test_many_threads_may_use_one_detector(tiny: Path, prepared: Settings) -> None:
    detector = YoloDetector(tiny, prepared, made(tiny, prepared))
    images = pictures(5)
    expected = detector.detect(images)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: detector.detect(images), range(8)))
    assert all(engine_parity(expected, one).matched == 1.0 for one in found)
    assert detector.engine["note"] == ""


def test_an_export_that_stops_running_is_left_for_pytorch(
    tiny: Path, prepared: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = made(tiny, prepared)
    expected = YoloDetector(tiny, prepared).detect(pictures(3))
    detector = YoloDetector(tiny, prepared, export)
    (export.folder / MODEL_FILE).write_text("<net/>")
    broken = YoloDetector(tiny, prepared, export)  # cannot even be read
    assert broken.engine["name"] == "torch"
    assert "openvino failed" in broken.engine["note"]

    def infer(engine: OpenvinoEngine, pixels: object) -> object:
        raise RuntimeError("no answer")

    monkeypatch.setattr(OpenvinoEngine, "infer", infer)
    found = detector.detect(pictures(3))
    assert all(np.array_equal(a.xyxy, b.xyxy) for a, b in zip(found, expected, strict=True))
    assert detector.engine["name"] == "torch"
    assert "no answer" in detector.engine["note"]
    chosen = choose_engine(tiny, file_sha256(tiny), prepared)
    assert chosen.export is None
    assert "openvino is not used: RuntimeError: no answer" in chosen.note


def test_two_threads_meet_an_export_that_does_not_run(
    tiny: Path, prepared: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = YoloDetector(tiny, prepared).detect(pictures(3))
    detector, together = YoloDetector(tiny, prepared, made(tiny, prepared)), threading.Barrier(2, timeout=300)
    assert detector.max_concurrency == 2

    def infer(engine: OpenvinoEngine, pixels: object) -> object:
        together.wait()
        raise RuntimeError("no answer")

    monkeypatch.setattr(OpenvinoEngine, "infer", infer)
    with ThreadPoolExecutor(2) as threads:
        for found in threads.map(detector.detect, [pictures(3)] * 2):
            assert all(np.array_equal(a.xyxy, b.xyxy) for a, b in zip(found, expected, strict=True))
    assert "no answer" in detector.engine["note"]


def test_requests_are_free_again_after_an_error(
    tiny: Path, prepared: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openvino import InferRequest

    export, images = made(tiny, prepared), pictures(5)
    detector, engine = YoloDetector(tiny, prepared, export), OpenvinoEngine(export, 5)
    pixels = detector.pixels(images)
    started: list[int] = []
    start = InferRequest.start_async

    def watched(request: InferRequest, *arguments: object) -> None:
        started.append(id(request))
        start(request, *arguments)

    monkeypatch.setattr(InferRequest, "start_async", watched)
    expected = engine.infer(pixels)
    requests = set(started)
    with monkeypatch.context() as patch:
        patch.setattr(InferRequest, "get_output_tensor", lambda request, number: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            engine.infer(pixels)
    started.clear()
    assert np.array_equal(engine.infer(pixels), expected)
    assert set(started) == requests


def test_openvino_is_missing(tiny: Path, here: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(exports, "version", version)
    chosen = choose_engine(tiny, file_sha256(tiny), here, wait=True)
    assert chosen.export is None
    assert "pip install openvino" in chosen.note


@pytest.mark.parametrize("engine", ["tensorrt", "coreml"])
def test_engines_that_went_are_logged(engine: str, settings: MakeSettings) -> None:
    with pytest.raises(ValidationError, match=f"ENGINE={engine} was removed"):
        settings(engine=engine)


def test_pytorch_when_asked_for(tiny: Path, settings: MakeSettings) -> None:
    chosen = choose_engine(tiny, file_sha256(tiny), settings(device="cpu", engine="torch"), wait=True)
    assert (chosen.export, chosen.note, chosen.key) == (None, "", "torch")


def test_the_pool_names_the_engine_counts_it_and_lets_it_go(tiny: Path, prepared: Settings) -> None:
    export = made(tiny, prepared)
    pool = ModelCache(1 << 30)
    with pool.use("tiny", lambda: YoloDetector(tiny, prepared, export), name="tiny") as detector:
        detector.detect(pictures(1))
    (model,) = pool.status()["models"]
    assert model["engine"] == {"name": "openvino", "precision": "fp32", "note": ""}
    assert model["bytes"] == detector.memory_bytes["cpu"]
    assert pool.optimize() == ["tiny"]
    assert pool.status()["models"] == []


def test_engine_parity_counts_what_is_missing_extra_or_of_another_class() -> None:
    box = np.array([[0, 0, 10, 10], [20, 20, 30, 30]], np.float32)
    both = Detections(box, np.array([0.9, 0.8], np.float32), np.array([0, 1]))
    one = Detections(box[:1], np.array([0.7], np.float32), np.array([0]))
    other = Detections(box, np.array([0.9, 0.8], np.float32), np.array([0, 0]))
    none = Detections.empty()
    assert engine_parity([both], [both]) == EngineParity(2, 1.0, 0.0)
    assert engine_parity([both], [one]) == EngineParity(2, 0.5, 0.2)
    assert engine_parity([both], [other]).matched == 0.5
    assert engine_parity([none], [none]).passed
    assert not engine_parity([none], [one]).passed


def test_a_gpu_is_given_powers_of_two() -> None:
    assert [padded_batch_size(count) for count in (1, 2, 3, 4, 5, 8, 9, 32)] == [1, 2, 4, 4, 8, 8, 16, 32]
