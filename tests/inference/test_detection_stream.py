"""Looking at a video: which frames the detector is given, and what is said of the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from ml_backend.core.errors import VideoError
from ml_backend.core.settings import Settings
from ml_backend.core.types import Detections, Frame, FrameFeatures, Image, VideoInfo
from ml_backend.detectors.weights import ResolvedDetector
from ml_backend.inference import pipeline
from ml_backend.inference.chunks import DetectChunk, VideoChunk, plan_chunks
from ml_backend.inference.detection_stream import detection_stream
from ml_backend.video.probe import probe
from ml_backend.video.reader import read_frames, seek_cost
from tests.video.builders import make_video, read_number

SIZE = (320, 240)


class Scene:
    """Finds, in a video with painted numbers, what a function says of each."""

    def __init__(
        self, boxes: Callable[[int], list[list[float]]], size: tuple[int, int] = SIZE, max_concurrency: int = 1
    ) -> None:
        self.names, self.max_concurrency = {0: "thing"}, max_concurrency
        self._boxes, self._size = boxes, size
        self.looked_at: list[int] = []

    def working_size(self, width: int, height: int) -> tuple[int, int]:
        return self._size

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        numbers = [read_number(image) for image in images]
        self.looked_at += numbers
        return [self._found(np.array(self._boxes(n), np.float32).reshape(-1, 4)) for n in numbers]

    @staticmethod
    def _found(xyxy: np.ndarray) -> Detections:
        return Detections(xyxy, np.full(len(xyxy), 0.9, np.float32), np.zeros(len(xyxy), np.int64))


def walker(n: int) -> list[list[float]]:
    return [[40 + 2 * n, 50, 100 + 2 * n, 200]]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("v") / "v.mp4", frames=42, size=SIZE, fps=30)


def see(video: Path, scene: Scene, **how: int) -> list[FrameFeatures]:
    return list(detection_stream(video, probe(video), scene, **{"batch": 4} | how))


def test_without_stride_every_frame_is_looked_at_once(video: Path) -> None:
    scene = Scene(walker)
    seen = see(video, scene)
    assert scene.looked_at == [o.index for o in seen] == list(range(42))
    assert all(o.detections.xyxy.tolist() == walker(o.index) for o in seen)


@pytest.mark.parametrize("stride", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("batch", [1, 4, 64])
def test_simple_motion_is_filled_in(video: Path, stride: int, batch: int) -> None:
    scene = Scene(walker)
    seen = see(video, scene, stride=stride, batch=batch)
    assert sorted(scene.looked_at) == sorted({*range(0, 42, stride), 41})
    assert [o.index for o in seen] == list(range(42))
    for o in seen:
        np.testing.assert_allclose(o.detections.xyxy, walker(o.index), atol=1e-4)
        assert o.detections.colours is not None


def test_what_comes_and_goes_is_looked_for_by_halves(video: Path) -> None:
    def visitor(n: int) -> list[list[float]]:
        return [*walker(n), *([[10, 150, 60, 230]] if 18 <= n < 30 else [])]

    scene = Scene(visitor)
    seen = see(video, scene, stride=8)
    assert len(scene.looked_at) == len(set(scene.looked_at)) < 20
    assert {17, 18, 29, 30} <= set(scene.looked_at)
    assert [len(o.detections) for o in seen] == [len(visitor(n)) for n in range(42)]


def test_stretches_give_what_one_pass_gives(video: Path) -> None:
    def visitor(n: int) -> list[list[float]]:
        return [*walker(n), *([[10, 150, 60, 230]] if 9 <= n < 25 else [])]

    whole = see(video, Scene(visitor), stride=4)
    parts: list[FrameFeatures] = []
    for start, end in ((0, 8), (8, 24), (24, 41)):
        parts += [o for o in see(video, Scene(visitor), stride=4, start=start, end=end) if o.index > start or not start]
    assert [o.index for o in parts] == [o.index for o in whole] == list(range(42))
    for one, other in zip(parts, whole, strict=True):
        np.testing.assert_array_equal(one.detections.xyxy, other.detections.xyxy)
        np.testing.assert_allclose(one.camera, other.camera)


class Slow(Scene):
    """Takes longer over some frames than over others, so that calls end in another order than they begin in."""

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        found = super().detect(images)
        time.sleep(0.02 * (read_number(images[0]) // 8 % 3))
        return found


@pytest.mark.parametrize("stride", [1, 4])
def test_two_calls_at_once_give_what_one_after_the_other_gives(video: Path, stride: int) -> None:
    def visitor(n: int) -> list[list[float]]:
        return [*walker(n), *([[10, 150, 60, 230]] if 9 <= n < 25 else [])]

    one, two = Slow(visitor), Slow(visitor, max_concurrency=2)
    expected, seen = (see(video, scene, stride=stride, batch=2) for scene in (one, two))
    assert sorted(two.looked_at) == sorted(one.looked_at)
    assert [o.index for o in seen] == [o.index for o in expected] == list(range(42))
    for a, b in zip(seen, expected, strict=True):
        np.testing.assert_array_equal(a.detections.xyxy, b.detections.xyxy)
        np.testing.assert_array_equal(a.detections.colours, b.detections.colours)
        assert (a.camera is None) == (b.camera is None)


def test_closed_early_it_leaves_nothing_running(video: Path) -> None:
    scene = Slow(walker, max_concurrency=2)
    seen = detection_stream(video, probe(video), scene, batch=2)
    next(seen)
    seen.close()
    asked = len(scene.looked_at)
    time.sleep(0.2)
    assert len(scene.looked_at) == asked < 42
    assert not [t.name for t in threading.enumerate() if t.name.startswith("ordered_map")]


@pytest.mark.parametrize("max_concurrency", [1, 2])
def test_what_comes_before_a_broken_tail_is_seen(
    video: Path, monkeypatch: pytest.MonkeyPatch, max_concurrency: int
) -> None:
    def broken(*given: object, **more: object) -> Iterator[Frame]:
        for frame in read_frames(*given, **more):  # type: ignore[arg-type]
            if frame.index == 15:
                raise VideoError("The rest cannot be decoded.")
            yield frame

    monkeypatch.setattr("ml_backend.inference.detection_stream.read_frames", broken)
    seen: list[int] = []
    observations = detection_stream(video, probe(video), Scene(walker, max_concurrency=max_concurrency), batch=4)
    with pytest.raises(VideoError, match="The rest"):
        seen.extend(observation.index for observation in observations)
    assert seen == list(range(15))


def test_boxes_are_in_pixels_of_the_video(tmp_path: Path) -> None:
    video = make_video(tmp_path / "v.mp4", frames=4, size=(640, 480), fps=30)
    (first, *_) = see(video, Scene(walker))
    np.testing.assert_allclose(first.detections.xyxy, np.array(walker(0)) * 2)


def test_gaps_in_the_video_are_looked_at_closely(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames that cannot be decoded, among them one that would have been looked at."""
    gone = {9, 12, 13, 41}

    def damaged(*given: object, **more: object) -> object:
        return (frame for frame in read_frames(*given, **more) if frame.index not in gone)  # type: ignore[arg-type]

    monkeypatch.setattr("ml_backend.inference.detection_stream.read_frames", damaged)
    scene = Scene(walker)
    seen = see(video, scene, stride=4)
    assert [o.index for o in seen] == [n for n in range(42) if n not in gone]
    assert {10, 11, 14, 15} <= set(scene.looked_at)
    assert not {17, 18, 19} & set(scene.looked_at)
    for o in seen:
        np.testing.assert_allclose(o.detections.xyxy, walker(o.index), atol=1e-4)


def test_the_camera_s_motion_is_spread_over_the_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = np.kron(np.random.default_rng(0).integers(0, 255, (30, 80, 3), np.uint8), np.ones((8, 8, 1), np.uint8))

    def panned(*given: object, **more: object) -> object:
        images = (np.ascontiguousarray(world[:, 3 * n : 3 * n + 320]) for n in range(9))
        return (Frame(n, n / 30, image) for n, image in enumerate(images))

    class Still(Scene):
        def detect(self, images: Sequence[Image]) -> list[Detections]:
            return [self._found(np.zeros((0, 4), np.float32)) for _ in images]

    video = make_video(tmp_path / "v.mp4", frames=9, size=(640, 480), fps=30)
    monkeypatch.setattr("ml_backend.inference.detection_stream.read_frames", panned)
    seen = see(video, Still(walker), stride=4)
    assert len(seen) == 9
    for o in seen[1:]:
        assert o.camera is not None
        np.testing.assert_allclose(o.camera, [[1, 0, -6], [0, 1, 0]], atol=0.1)  # of the video, twice as wide


def test_what_is_asked_for_must_make_sense(video: Path) -> None:
    for how in ({"stride": 0}, {"batch": 0}, {"stride": 4, "start": 6}):
        with pytest.raises(ValueError, match="expected stride"):
            see(video, Scene(walker), **how)


def looking(monkeypatch: pytest.MonkeyPatch, video: Path, info: VideoInfo, scene: Scene, stride: int) -> DetectChunk:
    monkeypatch.setattr(pipeline, "use_detector", lambda *_: nullcontext(scene))
    settings = Settings(_env_file=None, stride=stride, batch=4)
    return pipeline.chunk_detection(video, info, ResolvedDetector("yolo", "scene", None), settings)


def test_chunks_are_one_pass(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info, scene = probe(video), Scene(walker)
    whole = see(video, scene, stride=2)
    look = looking(monkeypatch, video, info, scene, stride=2)
    parts = [VideoChunk(0, 0, 16), VideoChunk(1, 16, 32), VideoChunk(2, 32, None)]
    together = [o for part in parts for o in look(part)]
    assert [o.index for o in together] == [o.index for o in whole]
    for one, other in zip(together, whole, strict=True):
        np.testing.assert_array_equal(one.detections.xyxy, other.detections.xyxy)
        np.testing.assert_array_equal(one.camera, other.camera)


def test_a_broken_tail_only_ends_the_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in one pass; also where whole chunks lie in it."""
    video = make_video(tmp_path / "v.mp4", frames=120, size=SIZE, fps=30, options={"g": "10"})
    data = bytearray(video.read_bytes())
    begin = data.index(b"mdat") + 4
    end = data.index(b"moov") if data.find(b"moov") > begin else len(data)
    half = begin + (end - begin) // 2
    data[half : end - 8] = bytes(end - 8 - half)
    video.write_bytes(data)
    info, scene = probe(video), Scene(lambda n: [])
    look = looking(monkeypatch, video, info, scene, stride=1)
    seen = [o.index for part in plan_chunks(info, 1, 0.5) for o in look(part)]
    assert seen == [o.index for o in see(video, scene)]
    assert 0 < len(seen) < 110


def test_what_seeking_costs(tmp_path: Path) -> None:
    assert seek_cost(make_video(tmp_path / "a.mp4", frames=60, size=SIZE, options={"g": "10"})) == 10
    assert seek_cost(make_video(tmp_path / "b.mp4", frames=60, size=SIZE, options={"g": "300"})) == 60
    assert seek_cost(make_video(tmp_path / "c.avi", frames=60, size=SIZE, codec="mjpeg", pix_fmt="yuvj420p")) == float(
        "inf"
    )
