"""int8: made with a project's own pictures, used only where it finds what fp32 finds, and fp32 everywhere else."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import cv2
import numpy as np
import pytest

from ml_backend.core.files import file_sha256
from ml_backend.core.model_cache import get_model_cache
from ml_backend.core.settings import Settings
from ml_backend.core.types import Detections
from ml_backend.db.storage import Storage
from ml_backend.detectors.engines import exports
from ml_backend.detectors.engines.calibration import (
    MAX_IMAGES,
    MAX_IMAGES_PER_VIDEO,
    MAX_VIDEOS,
    MIN_VIDEOS_TO_HOLD_OUT,
    CalibrationPool,
    CalibrationSource,
    read_calibration_images,
)
from ml_backend.detectors.engines.exports import (
    MAX_EXPORTS,
    META,
    EngineChoice,
    EngineExport,
    EnginePlan,
    ParityFailed,
    choose_engine,
    prune_exports,
)
from ml_backend.detectors.engines.int8 import MIN_BOXES, int8_parity
from ml_backend.detectors.engines.make import engine_parity, make
from ml_backend.detectors.loading import use_detector
from ml_backend.detectors.yolo import YoloDetector
from ml_backend.jobs.project_models import ProjectModelStore
from ml_backend.video.probe import probe
from ml_backend.video.reader import read_frames
from tests.builders import make_clip, make_tiny_yolo, run_with_bare_home

pytestmark = pytest.mark.slow

MakeSettings = Callable[..., Settings]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_yolo(tmp_path_factory.mktemp("weights") / "tiny.pt", {0: "cat", 1: "dog"})


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many frames as a pool takes of one video, far enough apart."""
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", frames=100, fps=10)


@pytest.fixture(scope="module")
def exported(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of exports with the tiny model's in fp32."""
    values = Settings(_env_file=None, data_dir=tmp_path_factory.mktemp("exported"), device="cpu", engine="openvino")
    return fp32(tiny, values).folder.parent


@pytest.fixture
def here(settings: MakeSettings, exported: Path, tiny: Path) -> Settings:
    """Where the tiny model has been exported in fp32."""
    values = settings(device="cpu", engine="openvino", precision="int8", imgsz=160, yolo_weights=str(tiny))
    shutil.copytree(exported, values.weights_dir / "engines")
    return values


def another(clip: Path, folder: Path, number: int) -> Path:
    """The same pictures in another file."""
    path = folder / f"clip{number}.mp4"
    path.write_bytes(clip.read_bytes() + struct.pack(">I4s", 8 + number, b"free") + bytes(number))
    return path


def choose(weights: Path, settings: Settings, footage: CalibrationSource, *, wait: bool = False) -> EngineChoice:
    return choose_engine(weights, file_sha256(weights), settings, wait=wait, calibration=footage)


def plan_of(weights: Path, settings: Settings, footage: CalibrationSource) -> EnginePlan:
    return EnginePlan(weights, file_sha256(weights), settings, footage)


def fp32(weights: Path, settings: Settings) -> EngineExport:
    values = settings.model_copy(update={"precision": "fp32"})
    make(plan_of(weights, values, CalibrationSource()))
    exact = choose_engine(weights, file_sha256(weights), values)
    assert exact.export is not None, exact.note
    return exact.export


@pytest.fixture(scope="module")
def real(yolo_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, EngineExport]:
    """Settings for the real model, whose folder has its export in fp32. Small pictures, for the time that they take."""
    data = tmp_path_factory.mktemp("real")
    values = Settings(_env_file=None, data_dir=data, device="cpu", engine="openvino", precision="int8", imgsz=384)
    return values, fp32(yolo_weights, values)


def test_the_real_model_is_checked_and_then_used_while_fp32_serves(
    yolo_weights: Path, people_video: Path, real: tuple[Settings, EngineExport]
) -> None:
    values, exact = real
    footage = CalibrationSource(5, str(people_video))
    first = choose(yolo_weights, values, footage)
    assert first.export == exact
    assert "int8 is being prepared" in first.note
    assert YoloDetector(yolo_weights, values, first.export, lambda: first.note).engine == {
        "name": "openvino",
        "precision": "fp32",
        "note": first.note,
    }

    second = choose(yolo_weights, values, footage, wait=True)
    assert (second.name, second.note) == ("openvino int8", "")
    assert second.key != first.key
    assert second.export is not None
    check = second.export.check
    assert check["boxes"] > 50
    assert check["found"] >= 0.97
    assert check["iou"] >= 0.97
    detector = YoloDetector(yolo_weights, values, second.export)
    images = [next(read_frames(people_video, start=start)).image for start in (50, 150, 250)]
    expected = YoloDetector(yolo_weights, values).detect(images)
    sure = [Detections(d.xyxy[d.conf > 0.5], d.conf[d.conf > 0.5], d.class_id[d.conf > 0.5]) for d in expected]
    found = engine_parity(sure, detector.detect(images))
    assert found.boxes > 10
    assert found.matched > 0.9
    assert detector.engine == {"name": "openvino", "precision": "int8", "note": ""}


def test_the_real_model_calibrated_in_the_dark_is_refused(
    yolo_weights: Path, people_video: Path, real: tuple[Settings, EngineExport]
) -> None:
    values, exact = real
    pool = CalibrationPool(values, None)
    pool.collect(people_video)
    for picture in pool.split()[0]:
        cv2.imwrite(str(picture), np.zeros_like(cv2.imread(str(picture))))
    with pytest.raises(ParityFailed, match="compared with fp32"):
        make(plan_of(yolo_weights, values, CalibrationSource(None, str(people_video))))
    for wait in (False, True):
        chosen = choose(yolo_weights, values, CalibrationSource(None, str(people_video)), wait=wait)
        assert chosen.export == exact
        assert "int8 is not used: compared with fp32" in chosen.note
        assert "tried again with frames of 2 videos. fp32 is used instead." in chosen.note


def prepared(weights: Path, settings: Settings, footage: CalibrationSource) -> EngineChoice:
    """Done here, what otherwise a process of its own does; and what is chosen then."""
    with contextlib.suppress(ParityFailed):
        make(plan_of(weights, settings, footage))
    return choose(weights, settings, CalibrationSource(footage.project))


def test_two_projects_have_their_own_and_a_damaged_picture_is_told(
    tiny: Path, clip: Path, here: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    exact = fp32(tiny, here)
    one = prepared(tiny, here, CalibrationSource(1, str(clip)))
    assert one.name == "openvino int8", one.note
    assert one.export is not None
    assert one.export.check["boxes"] >= MIN_BOXES

    waiting = choose(tiny, here, CalibrationSource(2))
    assert waiting.export == exact
    assert "needs frames of a first video" in waiting.note

    pool = CalibrationPool(here, 2)
    pool.collect(clip)
    calibrate, held_out = pool.split()
    calibrate[0].write_bytes(calibrate[0].read_bytes()[:-100])
    held_out[0].write_bytes(b"no picture")
    with caplog.at_level(logging.INFO):
        two = choose(tiny, here, CalibrationSource(2), wait=True)
    assert two.export is not None
    assert two.export.precision == "int8"
    assert "tiny.pt runs in int8" in caplog.text
    assert (one.export.check["pictures"], two.export.check["pictures"]) == (12, 11)
    assert two.export.folder != one.export.folder
    assert two.key != one.key
    assert f"{calibrate[0]} is damaged" in caplog.text
    assert f"{held_out[0]} is damaged" in caplog.text

    # An engine that stops running is left alone as any other; fp32 takes over, not PyTorch.
    two.export.failed("RuntimeError: no answer")
    third = choose(tiny, here, CalibrationSource(2))
    assert third.export == exact
    assert "int8 is not used: RuntimeError: no answer" in third.note


def without_nncf(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = exports.version

    def version(package: str) -> str:
        if package == "nncf":
            raise PackageNotFoundError(package)
        return installed(package)

    monkeypatch.setattr(exports, "version", version)


def test_too_few_objects_to_tell_and_another_try_with_more_videos(
    tiny: Path, clip: Path, here: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = fp32(tiny, here)
    short = make_clip(tmp_path / "short.mp4", frames=12)
    first = prepared(tiny, here, CalibrationSource(3, str(short)))
    assert first.export == exact
    assert "0 objects on 0 held-out images are too few to check it" in first.note
    assert "frames of 2 videos" in first.note
    assert choose(tiny, here, CalibrationSource(3, str(short))).note == first.note  # nothing is begun
    second = prepared(tiny, here, CalibrationSource(3, str(clip)))
    assert second.name == "openvino int8", second.note

    pool = CalibrationPool(here, 3)
    pool.collect(another(clip, tmp_path, 1))
    assert choose(tiny, here, CalibrationSource(3)) == second  # three videos are not yet twice as many
    pool.collect(another(clip, tmp_path, 2))
    # What was made with fewer pictures serves, be it that the next one cannot be made.
    with monkeypatch.context() as patch:
        without_nncf(patch)
        assert choose(tiny, here, CalibrationSource(3)) == second
    fourth = prepared(tiny, here, CalibrationSource(3))
    assert fourth.name == "openvino int8", fourth.note
    assert fourth.key != second.key


def test_a_prediction_gives_the_pictures_and_the_next_one_runs_in_int8(tiny: Path, clip: Path, here: Settings) -> None:
    resolved = ProjectModelStore(here, Storage(here.database)).models(8).detector
    engines = []
    for _ in range(2):
        with use_detector(resolved, here, probe(clip)) as detector:
            assert isinstance(detector, YoloDetector)
            engines.append(detector.engine)
            (model,) = [model for model in get_model_cache(here).status()["models"] if model["in_use"]]
            assert model["engine"] == detector.engine
        choose(tiny, here, CalibrationSource(8, str(clip)), wait=True)
    assert [engine["precision"] for engine in engines] == ["fp32", "int8"]
    assert "int8 is being prepared" in engines[0]["note"]
    assert len(CalibrationPool(here, 8).videos) == 1
    assert not CalibrationPool(here, None).videos


def test_int8_is_used_by_itself_where_it_pays(
    tiny: Path, clip: Path, here: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    footage, values = CalibrationSource(8, str(clip)), here.model_copy(update={"precision": "auto"})
    prepared(tiny, here, footage)
    for fast, chosen in ((True, "openvino int8"), (False, "openvino fp32")):
        monkeypatch.setattr(exports, "multiplies_int8", lambda fast=fast: fast)
        choice = choose(tiny, values, footage)
        assert (choice.name, choice.note) == (chosen, "")
        outside_of_projects = choose(tiny, values, CalibrationSource(None, str(clip)), wait=True)
        assert (outside_of_projects.name, outside_of_projects.note) == ("openvino fp32", "")
    monkeypatch.setattr(exports, "multiplies_int8", lambda: True)
    assert choose(tiny, values, CalibrationSource(9)).note == ""  # it has no video yet, and nobody has asked for int8
    assert choose(tiny, values.model_copy(update={"precision": "fp32"}), footage).name == "openvino fp32"


def test_a_package_is_missing(tiny: Path, clip: Path, here: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    without_nncf(monkeypatch)
    chosen = choose(tiny, here, CalibrationSource(1, str(clip)), wait=True)
    assert chosen.name == "openvino fp32"
    assert "pip install nncf" in chosen.note


def test_a_disk_that_takes_no_pictures_is_told(tiny: Path, clip: Path, here: Settings) -> None:
    exact = fp32(tiny, here)
    (here.weights_dir / "calibration").write_text("in the way of the folder")
    for _ in range(2):
        chosen = choose(tiny, here, CalibrationSource(1, str(clip)), wait=True)
        assert chosen.export == exact
        assert "int8 is not used: Calibration images cannot be stored" in chosen.note


def test_pytorch_says_that_there_is_no_int8(tiny: Path, settings: MakeSettings) -> None:
    chosen = choose(tiny, settings(device="cpu", engine="torch", precision="int8"), CalibrationSource())
    assert chosen.export is None
    assert "int8 needs OpenVINO" in chosen.note


# -- pictures


def test_a_pool_takes_each_video_once_and_stays_small(clip: Path, settings: MakeSettings, tmp_path: Path) -> None:
    pool = CalibrationPool(settings(imgsz=64), 1)
    assert (pool.generation, pool.videos, pool.split()) == (0, [], ([], []))
    assert pool.needs(clip)
    assert pool.collect(clip) == MAX_IMAGES_PER_VIDEO
    assert not pool.needs(clip)
    assert not pool.needs(tmp_path / "gone.mp4")
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(clip.read_bytes())
    assert not pool.needs(copy)
    pool.collect(copy)  # by another process, that has not seen it
    assert len(pool.videos) == 1
    generations = [pool.generation]
    for number in range(1, MAX_VIDEOS):
        video = another(clip, tmp_path, number)
        assert pool.needs(video)
        pool.collect(video)
        generations.append(pool.generation)
    assert [generations[n - 1] for n in (1, 2, 3, 4, 7, 8, 16, MAX_VIDEOS)] == [1, 2, 2, 3, 3, 4, 5, 5]
    assert not pool.needs(another(clip, tmp_path, MAX_VIDEOS))
    pictures = [list(video.glob("*.jpg")) for video in pool.videos]
    assert MAX_IMAGES * 0.9 <= sum(map(len, pictures)) <= MAX_IMAGES
    assert min(map(len, pictures)) >= 6
    image = next(read_calibration_images(pictures[0]))
    assert image.shape == (48, 64, 3)


def test_pictures_are_spread_over_the_video_and_not_too_close(settings: MakeSettings, tmp_path: Path) -> None:
    pool = CalibrationPool(settings(imgsz=640), None)
    assert pool.collect(make_clip(tmp_path / "short.mp4", frames=40, fps=20)) == 10
    frames = [int(picture.stem) for picture in sorted(pool.videos[0].iterdir())]
    assert (frames[0], frames[-1]) == (0, 39)
    assert min(np.diff(frames)) >= 4
    assert next(read_calibration_images([pool.videos[0] / "00000000.jpg"])).shape == (240, 320, 3)


@pytest.mark.parametrize("videos", [1, 2, MIN_VIDEOS_TO_HOLD_OUT - 1, MIN_VIDEOS_TO_HOLD_OUT, 7, MAX_VIDEOS])
@pytest.mark.parametrize("pictures", [1, 8, 12, 13, MAX_IMAGES_PER_VIDEO])
def test_what_is_held_out_is_not_calibrated_with(videos: int, pictures: int, settings: MakeSettings) -> None:
    values = settings()
    pool = CalibrationPool(values, 9)
    for video in range(videos):
        folder = values.weights_dir / "calibration" / pool.name / f"video{video:02d}"
        folder.mkdir(parents=True)
        for frame in range(pictures):
            (folder / f"{frame:08d}.jpg").touch()
    calibrate, held_out = pool.split()
    assert calibrate
    assert not set(calibrate) & set(held_out)
    if videos >= MIN_VIDEOS_TO_HOLD_OUT:
        assert held_out
        assert not {picture.parent for picture in calibrate} & {picture.parent for picture in held_out}
    elif pictures > 8:
        assert held_out
        for one in calibrate:
            assert all(abs(int(one.stem) - int(other.stem)) > 1 for other in held_out if one.parent == other.parent)


# -- the check


def detections(count: int, *classes: int, conf: float = 0.9) -> Detections:
    """So many boxes of each class, none touching another."""
    n = count * len(classes)
    left = np.arange(n, dtype=np.float32) * 20
    xyxy = np.stack([left, np.zeros(n), left + 10, np.full(n, 10)], axis=1).astype(np.float32)
    return Detections(xyxy, np.full(n, conf, np.float32), np.repeat(np.array(classes, np.int64), count))


def test_the_same_passes_and_what_is_missing_moved_or_renamed_does_not() -> None:
    truth = [detections(10, 0, 1)] * 2
    same = int8_parity(truth, truth)
    assert (same.boxes, same.found, same.iou, same.failure) == (40, 1, 1, "")
    missing = [replace(d, xyxy=d.xyxy[:-3], conf=d.conf[:-3], class_id=d.class_id[:-3]) for d in truth]
    moved = [replace(d, xyxy=d.xyxy + np.float32(1)) for d in truth]
    renamed = [replace(d, class_id=(d.class_id + 1) % 3) for d in truth]
    for found in (missing, moved, renamed, [Detections.empty()] * 2):
        assert "compared with fp32 on 2 held-out images" in int8_parity(truth, found).failure
    assert int8_parity(missing, truth).failure  # objects are invented
    assert int8_parity(truth, moved).found == 1  # boxes are still roughly there


def test_a_rare_class_does_not_decide_alone_and_what_fp32_is_unsure_of_is_no_truth() -> None:
    truth = [detections(15, 0, 1), detections(1, 2)]
    assert int8_parity(truth, [truth[0], Detections.empty()]).failure == ""
    unsure = [detections(15, 0, 1), detections(15, 2, conf=0.2)]
    assert int8_parity(unsure, [unsure[0], Detections.empty()]).failure == ""


def test_no_class_is_given_up_for_many_others() -> None:
    truth = [detections(300, 0), detections(10, 1)]
    assert "0% of one class" in int8_parity(truth, [truth[0], Detections.empty()]).failure


@pytest.mark.parametrize("count", [0, 1, MIN_BOXES - 1])
def test_nothing_is_proved_by_few_objects(count: int) -> None:
    truth = [detections(count, 0)]
    assert f"{count} objects on 1 held-out images are too few" in int8_parity(truth, truth).failure
    assert int8_parity([], []).failure != ""


def test_the_exports_that_were_not_used_for_longest_go(settings: MakeSettings) -> None:
    engines = settings().weights_dir / "engines"
    for number in range(MAX_EXPORTS + 5):
        (engines / f"{number:016d}-openvino-fp32-1-1").mkdir(parents=True)
        (engines / f"{number:016d}-openvino-fp32-1-1" / META).touch()
        os.utime(engines / f"{number:016d}-openvino-fp32-1-1" / META, (number, number))
    prune_exports(engines)
    assert sorted(int(folder.name.split("-")[0]) for folder in engines.iterdir()) == list(range(5, MAX_EXPORTS + 5))


def test_quantising_reports_nothing_and_writes_nothing_at_home(
    tiny: Path, clip: Path, here: Settings, tmp_path: Path
) -> None:
    """As in the process that makes it: NNCF has not been imported yet; as for users, not as in a CI job."""
    code = (
        "import socket, sys, threading\n"
        "def refuse(*a): raise SystemExit('network')\n"
        "socket.getaddrinfo = socket.socket.connect = refuse\n"
        "from pathlib import Path\n"
        "from ml_backend.detectors.engines.calibration import CalibrationSource\n"
        "from ml_backend.detectors.engines.exports import EnginePlan, find_export\n"
        "from ml_backend.detectors.engines.make import make\n"
        "from ml_backend.core.settings import Settings\n"
        f"here = Settings(device='cpu', imgsz=160, precision='int8', data_dir={str(here.data_dir)!r})\n"
        f"plan = EnginePlan(Path({str(tiny)!r}), {file_sha256(tiny)!r}, here, CalibrationSource(None, {str(clip)!r}))\n"
        "make(plan)\n"
        "found = find_export(plan.int8(1))\n"
        "print()\n"
        "print(found.precision, sys.modules['openvino_telemetry'], 'nncf' in sys.modules, threading.active_count())\n"
    )
    said = run_with_bare_home(code, tmp_path, lambda name: name in ("CI", "TF_BUILD", "JENKINS_URL", "YOLO_CONFIG_DIR"))
    assert said.splitlines()[-1].split()[:3] == ["int8", "None", "True"]
