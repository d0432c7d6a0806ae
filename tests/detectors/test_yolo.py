"""YOLO behind the detector's interface: the same results as ultralytics', clear errors, and no surprises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_backend.core.errors import WeightsError
from ml_backend.core.settings import Settings
from ml_backend.detectors import yolo
from ml_backend.detectors.engines import torch_engine
from ml_backend.detectors.yolo import YoloDetector
from tests.builders import make_tiny_yolo, run_with_bare_home

MakeSettings = Callable[..., Settings]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real YOLO11 of random weights with two classes."""
    return make_tiny_yolo(tmp_path_factory.mktemp("weights") / "tiny.pt", {0: "cat", 1: "dog"})


def pictures(n: int, height: int = 360, width: int = 640, seed: int = 0) -> list[np.ndarray]:
    """Noise in blocks: something to see for a network of random weights."""
    blocks = np.random.default_rng(seed).integers(0, 255, (n, height // 40, width // 40, 3), np.uint8)
    return [np.kron(b, np.ones((40, 40, 1), np.uint8)) for b in blocks]


def watch_network(monkeypatch: pytest.MonkeyPatch, see: Callable[[Any], object]) -> None:
    """Let ``see`` have the pixels that ultralytics' networks are given; what it raises, the network raises."""
    from ultralytics.nn.autobackend import AutoBackend

    forward = AutoBackend.forward

    def watched(self: Any, pixels: Any, *args: Any, **options: Any) -> Any:
        see(pixels)
        return forward(self, pixels, *args, **options)

    monkeypatch.setattr(AutoBackend, "forward", watched)


def assert_as_predict(path: Path, images: list[np.ndarray], settings: Settings) -> int:
    """Our detections equal ultralytics' own; returns how many there are."""
    from ultralytics import YOLO

    ours = YoloDetector(path, settings).detect(images)
    theirs = YOLO(path).predict(images, conf=settings.conf, imgsz=settings.imgsz, device="cpu", verbose=False)
    assert len(ours) == len(images)
    for mine, other in zip(ours, theirs, strict=True):
        assert len(mine) == len(other.boxes)
        assert np.allclose(mine.xyxy, other.boxes.xyxy.numpy(), atol=0.05)
        assert np.allclose(mine.conf, other.boxes.conf.numpy(), atol=1e-4)
        assert mine.class_id.tolist() == other.boxes.cls.int().tolist()
    return sum(map(len, ours))


def test_results_are_those_of_ultralytics(tiny: Path, settings: MakeSettings) -> None:
    assert assert_as_predict(tiny, pictures(3), settings(device="cpu", imgsz=320, batch=8)) > 0


def test_the_real_model_sees_the_same_as_ultralytics(
    yolo_weights: Path, people_video: Path, settings: MakeSettings
) -> None:
    from ml_backend.video.reader import read_frames

    frames = read_frames(people_video)
    images = [next(frames).image for _ in range(2)]
    assert assert_as_predict(yolo_weights, images, settings(device="cpu", batch=2)) > 20


def test_the_input_keeps_the_videos_aspect(tiny: Path, settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = YoloDetector(tiny, settings(device="cpu", imgsz=640))
    shapes: list[tuple[int, ...]] = []
    watch_network(monkeypatch, lambda pixels: shapes.append(tuple(pixels.shape)))
    detector.detect(pictures(2, 1080, 1920))
    detector.detect(pictures(1, 640, 360))
    assert shapes == [(2, 3, 384, 640), (1, 3, 640, 384)]


def test_batches_pictures_of_many_sizes_and_none(tiny: Path, settings: MakeSettings) -> None:
    detector = YoloDetector(tiny, settings(device="cpu", imgsz=160, batch=2))
    images = [*pictures(3), *pictures(2, 480, 480), *pictures(1)]
    together = detector.detect(images)
    alone = [detector.detect([image])[0] for image in images]
    assert [len(d) for d in together] == [len(d) for d in alone]
    assert detector.detect([]) == []


def test_boxes_are_within_the_picture_and_sorted(tiny: Path, settings: MakeSettings) -> None:
    (found,) = YoloDetector(tiny, settings(device="cpu", imgsz=320)).detect(pictures(1))
    assert len(found) > 1
    assert found.xyxy.min() >= 0
    assert found.xyxy[:, 2].max() <= 640
    assert found.xyxy[:, 3].max() <= 360
    assert (np.diff(found.conf) <= 0).all()
    assert found.conf.min() > 0.1


def test_names_and_threshold(tiny: Path, settings: MakeSettings) -> None:
    detector = YoloDetector(tiny, settings(device="cpu", imgsz=320, conf=0.9))
    assert detector.names == {0: "cat", 1: "dog"}
    assert len(detector.detect(pictures(1))[0]) == 0


def test_missing_weights(tmp_path: Path, settings: MakeSettings) -> None:
    with pytest.raises(WeightsError, match=r"No model weights at .*gone\.pt.*YOLO_WEIGHTS"):
        YoloDetector(tmp_path / "gone.pt", settings())


@pytest.mark.parametrize("damage", ["empty", "text", "half"])
def test_damaged_weights(damage: str, tiny: Path, tmp_path: Path, settings: MakeSettings) -> None:
    content = {"empty": b"", "text": b"<html>404</html>" * 99, "half": tiny.read_bytes()[:20_000]}[damage]
    path = tmp_path / "bad.pt"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="cannot be loaded as a YOLO model"):
        YoloDetector(path, settings(device="cpu"))


def test_a_checkpoint_of_another_library(tmp_path: Path, settings: MakeSettings) -> None:
    import torch

    torch.save({"state_dict": {"w": torch.zeros(3)}}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match="cannot be loaded as a YOLO model"):
        YoloDetector(tmp_path / "other.pt", settings(device="cpu"))


def test_a_classification_model_is_refused(tmp_path: Path, settings: MakeSettings) -> None:
    from ultralytics import YOLO

    YOLO("yolo11n-cls.yaml", verbose=False).save(tmp_path / "cls.pt")
    with pytest.raises(WeightsError, match="for classify, not for detection"):
        YoloDetector(tmp_path / "cls.pt", settings(device="cpu"))


@pytest.mark.parametrize(("device", "message"), [("cuda:63", "not available"), ("toaster", "not a device name")])
def test_a_device_that_is_not_there(device: str, message: str, tiny: Path, settings: MakeSettings) -> None:
    with pytest.raises(WeightsError, match=message):
        YoloDetector(tiny, settings(device=device))


def fill_device(
    monkeypatch: pytest.MonkeyPatch, room: int, message: str = "CUDA out of memory. Tried to allocate 2 GiB"
) -> list[int]:
    """Leave room for a few pictures only; return the list of the batches' sizes, which grows."""
    sizes: list[int] = []

    def count(pixels: Any) -> None:
        sizes.append(len(pixels))
        if len(pixels) > room:
            raise RuntimeError(message)

    watch_network(monkeypatch, count)
    return sizes


def test_a_full_device_gets_smaller_batches(
    tiny: Path, settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_engine, "CPU_BATCH", 8)  # as on a GPU: a CPU is given two at most from the start
    detector = YoloDetector(tiny, settings(device="cpu", imgsz=160, batch=8))
    images = pictures(9)
    expected = [len(d) for d in detector.detect(images)]
    sizes = fill_device(monkeypatch, room=2)
    assert [len(d) for d in detector.detect(images)] == expected
    assert sizes[:3] == [8, 4, 2]
    assert max(sizes[3:]) == 2


def test_a_device_without_any_room_is_left_for_the_cpu(
    tiny: Path, settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:

    images = pictures(2)
    expected = YoloDetector(tiny, settings(device="cpu", imgsz=160, batch=2)).detect(images)
    # "meta" stands for a GPU: a device of torch that is not the CPU and exists everywhere.
    monkeypatch.setattr(yolo, "select_device", lambda name: "meta")
    detector = YoloDetector(tiny, settings(imgsz=160, batch=2))
    assert detector.device == "meta"
    sizes: list[int] = []

    def count(pixels: Any) -> None:
        if pixels.device.type == "meta":
            sizes.append(len(pixels))
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    watch_network(monkeypatch, count)
    found = detector.detect(images)
    assert sizes == [2, 1]
    assert detector.device == "cpu"
    assert all(np.array_equal(a.xyxy, b.xyxy) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("message", ["shape mismatch", "can't allocate memory: you tried to allocate 9 bytes"])
def test_what_a_smaller_batch_cannot_cure_comes_through(
    message: str, tiny: Path, settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = YoloDetector(tiny, settings(device="cpu", imgsz=160))
    fill_device(monkeypatch, room=0, message=message)
    with pytest.raises(RuntimeError, match=message):
        detector.detect(pictures(2))


@pytest.mark.slow
def test_loading_and_detecting_is_silent_and_leaves_no_traces_at_home(tiny: Path, tmp_path: Path) -> None:
    """In a process of its own, because ultralytics reads its switches when it is first imported."""
    code = (
        "import sys, numpy as np; from ml_backend.detectors.yolo import YoloDetector;"
        "from ml_backend.tracking.tracker import Tracker; from ml_backend.core.settings import Settings;"
        "from ml_backend.core.types import FrameFeatures;"
        f"d = YoloDetector({str(tiny)!r}, Settings(device='cpu', imgsz=160));"
        "r = d.detect([np.zeros((90, 160, 3), np.uint8)]); Tracker('tracktrack', 25).update(FrameFeatures(0, r[0]));"
        "import ultralytics.utils as u, ultralytics.utils.events as e;"
        "assert not u.AUTOINSTALL and not u.ONLINE and not e.events.enabled and not u.SETTINGS['sync']"
    )
    assert run_with_bare_home(code, tmp_path, lambda name: name.startswith(("YOLO_", "XDG_"))) == ""
    assert list(tmp_path.glob("ultralytics-*")) == []
