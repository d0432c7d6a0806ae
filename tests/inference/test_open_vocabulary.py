"""Objects found by text beside those of the detector, by detectors of known error on generated clips."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from ml_backend.core.boxes import box_area, intersection, iou_pairs
from ml_backend.core.settings import Settings
from ml_backend.core.types import Detections, FloatArray, FrameFeatures, Image, Track, VideoInfo
from ml_backend.detectors.weights import ResolvedDetector
from ml_backend.embeddings.hub import ResolvedModel
from ml_backend.inference import open_vocabulary, pipeline
from ml_backend.inference.chunks import DetectChunk, VideoChunk
from ml_backend.inference.open_vocabulary import AddedObjects, TextSearch, unknown_labels
from ml_backend.inference.pipeline import detect_tracks, predict_video
from ml_backend.label_studio.label_config import LabelConfig, LabelSpec, parse_label_config, prompts_digest
from ml_backend.labeling.model_version import base_version, same_kind, text_search_part
from ml_backend.tracking.track_record import TrackSet
from ml_backend.training.class_transfer import checkpoint_metadata, detectable_classes_of
from ml_backend.video.probe import probe
from ml_backend.video.sample import SampleTruth, make_sample
from tests.builders import label_config
from tests.drawn_scene import FRAMES, HEIGHT, POST, WIDTH, truth, write_scene

Make = Callable[..., Settings]
#: Frames of the scene from one that is searched to the next.
STEP = 12
DETECTOR = ResolvedDetector("yolo", "stub", Path("stub.pt"), "0" * 64)
MODEL = ResolvedModel("text_detector", "owlv2", "owlv2-1a2b3c4d-r1")


def config(*specs: str) -> LabelConfig:
    """A label config with labels of these attributes."""
    tags = "".join(f"<Label {spec}/>" for spec in specs)
    return parse_label_config(label_config().replace("</Labels>", f"{tags}</Labels>"))


def labels(*specs: str) -> tuple[LabelSpec, ...]:
    return config(*specs).video_controls[0].labels


class Finder:
    """Finds known boxes on the frames that it is given, whose numbers it must know beforehand.

    Args:
        boxes: returns the boxes ``(n, 4)`` on a frame, by its number.
        step: from one frame that it is given to the next.
        misses: on every ``misses``-th image it finds nothing; 0: it always finds something.
        jitter: standard deviation of the boxes' corners, in pixels.
        size: ``(width, height)`` of the video.
    """

    max_concurrency = 1

    def __init__(
        self, boxes: Callable[[int], FloatArray], step: int, size: tuple[int, int], misses: int = 0, jitter: float = 0.0
    ) -> None:
        self.names = {0: "person"}
        self.seen = 0
        self._boxes, self._step, self._size, self._misses, self._jitter = boxes, step, size, misses, jitter
        self._rng = np.random.default_rng(0)

    def detect(
        self, images: Sequence[Image], prompts: Sequence[Sequence[str]] = (), conf: float = 0.0
    ) -> list[Detections]:
        return [self._detect(image) for image in images]

    def _detect(self, image: Image) -> Detections:
        boxes = self._boxes(self.seen * self._step)
        self.seen += 1
        if self._misses and self.seen % self._misses == 0:
            return Detections.empty()
        scale = np.array([image.shape[1] / self._size[0], image.shape[0] / self._size[1]] * 2)
        found = (boxes + self._rng.normal(0, self._jitter or 1e-9, boxes.shape)) * scale
        return Detections(
            found.astype(np.float32), np.full(len(found), 0.6, np.float32), np.zeros(len(found), np.int64)
        )

    def working_size(self, width: int, height: int) -> tuple[int, int]:
        return width, height

    def warm_up(self, width: int, height: int) -> None:
        """Nothing to do."""


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SampleTruth]:
    path = tmp_path_factory.mktemp("sample") / "sample.mp4"
    return path, make_sample(path, seconds=5.0, fps=20.0, size=(480, 270))


@pytest.fixture
def scene(tmp_path: Path) -> tuple[Path, VideoInfo]:
    write_scene(tmp_path / "scene.mp4")
    return tmp_path / "scene.mp4", probe(tmp_path / "scene.mp4")


def square(frame: int) -> FloatArray:
    return np.array([truth(frame + 1)], np.float32)


def nothing(_: int) -> FloatArray:
    return np.zeros((0, 4), np.float32)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make a detector and a text detector the ones that are loaded."""

    def choose(detector: Finder, text_detector: Finder | None) -> None:
        @contextmanager
        def loaded(*_: object) -> Iterator[Finder]:
            yield detector

        @contextmanager
        def text_loaded(*_: object) -> Iterator[Finder]:
            assert text_detector is not None, "it is not needed"
            yield text_detector

        monkeypatch.setattr(pipeline, "use_detector", loaded)
        monkeypatch.setattr(open_vocabulary, "use_text_detector", text_loaded)

    return choose


# -- what is asked for


def test_only_labels_without_a_class_are_searched_for() -> None:
    known = ("person", "car", "truck")
    specs = labels(
        'value="person"',
        'value="vehicle" predicted_values="car,truck"',
        'value="forklift_truck"',
        'value="vest" prompt="yellow safety vest | high-visibility jacket"',
        'value="helmet" clip_prompt="a hard hat"',
    )
    assert unknown_labels(specs, known) == {
        "forklift_truck": ("forklift truck",),
        "vest": ("yellow safety vest", "high-visibility jacket"),
        "helmet": ("a hard hat",),
    }
    assert unknown_labels(specs, ()).keys() == {label.value for label in specs}
    assert not unknown_labels(labels('value="person"'), known)
    # What is called like another label's class would become that label.
    assert not unknown_labels(labels('value="worker" predicted_values="person"', 'value="person"'), known)


def test_a_label_is_no_longer_searched_for_once_it_is_trained() -> None:
    specs = labels('value="person"', 'value="vest"', 'value="helmet"')
    names = ("person", "vest", "helmet")  # a project's detector has all its labels as classes

    def searched(*annotated: str) -> set[str]:
        content = checkpoint_metadata(names, annotated, ({0: "person", 1: "car"}, {}), {})
        detectable = detectable_classes_of(content)
        return set(unknown_labels(specs, names, trained=True, detectable=detectable))

    assert searched("vest") == {"helmet"}, "nobody has annotated one yet; persons were known before"
    assert searched("vest", "helmet") == set()
    assert set(unknown_labels(specs, ("person", "car"))) == {"vest", "helmet"}, "before the training"


def test_the_version_names_what_is_searched_for(settings: Make) -> None:
    def part(*specs: str, model: ResolvedModel = MODEL, **values: float) -> str:
        return text_search_part(settings(**values), model, prompts_digest(config(*specs)))

    vest, described = 'value="vest"', 'value="vest" prompt="yellow vest"'
    other = ResolvedModel("text_detector", "owlv2", "owlv2-00000000-r1")
    parts = [
        part(vest),
        part(described),
        part(described, 'value="crane"'),
        part('value="vest" predicted_values="tie"'),
        part(vest, model=other),
        part(vest, open_vocabulary_fps=1.0),
        part(vest, open_vocabulary_conf=0.2),
    ]
    assert len(set(parts)) == len(parts)
    assert part('value="vest" background="red"') == parts[0]
    assert text_search_part(settings(), None, "x") == ""
    first, second, without = (base_version(settings(), DETECTOR, one) + ".yolo.base" for one in (*parts[:2], ""))
    assert first != second
    assert same_kind(first, second), "a newer prediction replaces the older one"
    assert same_kind(first, without)


# -- what is found


@pytest.mark.parametrize(("misses", "jitter"), [(0, 0.0), (4, 3.0)])
def test_objects_of_unknown_classes_get_tracks(
    sample: tuple[Path, SampleTruth], use: Callable[..., None], settings: Make, misses: int, jitter: float
) -> None:
    video, clip = sample
    people, buses = ([track for track in clip.tracks if track.label == label] for label in ("person", "bus"))
    assert people
    assert buses

    def boxes(tracks: list[Track]) -> Callable[[int], FloatArray]:
        return lambda frame: np.concatenate(
            [nothing(0), *(track.xyxy[track.frames == frame] for track in tracks)], dtype=np.float32
        )

    values = settings(stride=1)
    control = parse_label_config(label_config("person", "bus")).video_controls[0]

    def predicted(text_detector: ResolvedModel | None) -> dict[str, list[Track]]:
        size = clip.width, clip.height
        use(Finder(boxes(people), 1, size), Finder(boxes(buses), 10, size, misses, jitter))
        found: list[Track] = []
        predict_video(video, control, 20, values, resolved=DETECTOR, text_detector=text_detector, on_track=found.append)
        return {label: [track for track in found if track.label == label] for label in ("person", "bus")}

    without, together = predicted(None), predicted(MODEL)
    assert not without["bus"]
    assert len(together["person"]) == len(without["person"])
    assert len(together["bus"]) == len(buses), "one track each: followed from one searched frame to the next"
    hits = [overlap(track, together["bus"]) for track in buses]
    assert np.mean(np.concatenate(hits) >= 0.5) >= (0.9 if not misses else 0.8)
    assert all(0.5 <= track.score <= 1 for track in together["bus"])


def overlap(track: Track, found: list[Track]) -> FloatArray:
    """Return the best IoU with any found track, on each frame on which most of an object is visible."""
    best = np.zeros(len(track), np.float32)
    for other in found:
        rows = {int(frame): row for row, frame in enumerate(other.frames)}
        shared = [(n, rows[int(frame)]) for n, frame in enumerate(track.frames) if int(frame) in rows]
        if shared:
            mine, theirs = map(list, zip(*shared, strict=True))
            best[mine] = np.maximum(best[mine], iou_pairs(track.xyxy[mine], other.xyxy[theirs]))
    return best[track.conf >= 0.5]


def test_an_object_keeps_its_track_behind_another_one(tmp_path: Path, use: Callable[..., None], settings: Make) -> None:
    video, size = tmp_path / "scene.mp4", (WIDTH, HEIGHT)
    write_scene(video, post=True)
    post = np.array([POST], np.float32)

    def visible(frame: int) -> FloatArray:
        moving = square(frame)
        hidden = intersection(moving, post) > 0.5 * box_area(moving)
        return np.concatenate([post, moving[~hidden]])

    assert [len(visible(STEP * number)) for number in (3, 4, 5)] == [2, 1, 2], "one search does not see it"
    use(Finder(nothing, 1, size), Finder(visible, STEP, size))
    control = parse_label_config(label_config("person", "square")).video_controls[0]
    found: list[Track] = []
    predict_video(video, control, 25, settings(), resolved=DETECTOR, text_detector=MODEL, on_track=found.append)
    ways = [np.repeat(post, FRAMES, axis=0), np.concatenate([square(frame) for frame in range(FRAMES)])]
    assert len(found) == len(ways)
    for track, way in zip(sorted(found, key=lambda track: float(np.ptp(track.xyxy[:, 0]))), ways, strict=True):
        assert track.frames.tolist() == list(range(FRAMES))
        assert iou_pairs(track.xyxy, way).min() > 0.5, "never on the other object"


@pytest.mark.parametrize("stride", [1, 3])
def test_every_frame_has_the_followed_object(scene: tuple[Path, VideoInfo], settings: Make, stride: int) -> None:
    video, info = scene
    finder = Finder(square, STEP, (info.width, info.height))
    added = AddedObjects(
        finder, {"square": ("square",)}, {0: "person"}, frozenset({"person"}), settings(stride=stride), video, info
    )
    assert added.names == {0: "person", 1: "square"}
    seen = list(added.add_to(empty_frames(range(FRAMES))))
    assert [features.index for features in seen] == list(range(FRAMES))
    assert finder.seen == -(-FRAMES // STEP)
    for features in seen:
        found = features.detections
        assert found.class_id.tolist() == [1]
        assert found.conf[0] == pytest.approx(0.5 + 0.5 * (0.6 - 0.3) / 0.7)
        assert found.colours is not None
        assert np.isfinite(found.colours).all()
        assert iou_pairs(found.xyxy, square(features.index))[0] > 0.8


def test_few_frames_are_in_memory(
    scene: tuple[Path, VideoInfo], settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    video, info = scene
    batches: list[int] = []

    class Counted(Finder):
        def detect(self, images: Sequence[Image], *_: object) -> list[Detections]:  # type: ignore[override]
            batches.append(len(images))
            return super().detect(images)

    def found() -> list[FloatArray]:
        batches.clear()
        finder = Counted(square, STEP, (info.width, info.height))
        added = AddedObjects(finder, {"square": ("square",)}, {}, frozenset(), settings(stride=1), video, info)
        return [features.detections.xyxy for features in added.add_to(empty_frames(range(FRAMES)))]

    whole = found()
    assert batches == [4, 3]
    monkeypatch.setattr(open_vocabulary, "HELD", STEP // 2)
    np.testing.assert_allclose(found(), whole, atol=1e-3)
    assert batches == [2, 1, 1, 1, 1, 1]


def test_the_surest_of_too_many_boxes_are_followed(
    scene: tuple[Path, VideoInfo], settings: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    video, info = scene

    class Surer(Finder):
        def _detect(self, image: Image) -> Detections:
            found = super()._detect(image)
            return Detections(found.xyxy, np.array([0.5, 0.9, 0.7], np.float32), found.class_id)

    def three(frame: int) -> FloatArray:
        return np.concatenate([square(frame) + np.array([shift, 0, shift, 0], np.float32) for shift in (0, 8, 16)])

    monkeypatch.setattr(open_vocabulary, "MAX_FOLLOWED", 2)
    finder = Surer(three, STEP, (info.width, info.height))
    added = AddedObjects(finder, {"square": ("square",)}, {}, frozenset(), settings(stride=1), video, info)
    counts = [len(features.detections) for features in added.add_to(empty_frames(range(FRAMES)))]
    assert max(counts) == 2
    assert [record.message for record in caplog.records if "too many to follow" in record.message] == [
        "3 boxes were found by text on frame 0, too many to follow: the surest 2 of a frame are used. "
        "Fix: raise OPEN_VOCABULARY_CONF, or describe the labels more precisely."
    ]


def empty_frames(indices: Sequence[int]) -> Generator[FrameFeatures, None, None]:
    none = Detections(nothing(0), np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros((0, 9), np.float32))
    yield from (FrameFeatures(index, none) for index in indices)


def test_chunks_are_searched_as_one_video(
    scene: tuple[Path, VideoInfo], use: Callable[..., None], settings: Make
) -> None:
    video, info = scene
    values = settings(segment_s=1.0)
    size = info.width, info.height
    search = TextSearch(MODEL, labels('value="person"', 'value="square"'))

    def chunked(
        info: VideoInfo, chunks: Sequence[VideoChunk], detect: DetectChunk
    ) -> Generator[FrameFeatures, None, None]:
        assert len(chunks) > 1
        for chunk in chunks:
            yield from detect(chunk)

    use(Finder(nothing, 1, size), Finder(square, STEP, size))
    whole = detect_tracks(video, 25, values, DETECTOR, text_search=search)
    use(Finder(nothing, 1, size), Finder(square, STEP, size))
    parts = detect_tracks(video, 25, values, DETECTOR, text_search=search, chunk_runner=chunked)
    assert len(whole.tracks) == 1
    assert whole.class_names == ("person", "square")
    assert whole == parts
    assert TrackSet.load(whole.dump()) == whole


@pytest.mark.parametrize("conf", [0.0, 0.9])
def test_changes_of_labels_that_do_not_matter_find_the_same(
    scene: tuple[Path, VideoInfo], use: Callable[..., None], settings: Make, conf: float
) -> None:
    video, info = scene
    size = info.width, info.height
    use(Finder(square if conf else nothing, 1, size), Finder(square, STEP, size))
    square_label = 'value="square" prompt="bright square"'
    search = TextSearch(MODEL, labels(square_label), source="a")
    tracks = detect_tracks(video, 25, settings(stride=1), DETECTOR, text_search=search)
    assert [tracks.is_found_by_text(track) for track in tracks.tracks] == [True]

    def same(*specs: str, source: str = "a") -> bool:
        return TextSearch(MODEL, labels(*specs), source=source).would_find(tracks)

    assert same(square_label)
    assert same(square_label + ' background="red"', 'value="crane" predicted_values="person"') is not bool(conf), (
        "where both have found one object, its class has a label now"
    )
    assert not same(square_label, 'value="crane"')
    assert not same('value="square"')
    assert not same(square_label, source="b")
    assert not same('value="square" predicted_values="person"')


def test_one_object_that_both_find_is_one_detection(scene: tuple[Path, VideoInfo], settings: Make) -> None:
    video, info = scene
    one = np.array([0.7], np.float32), np.zeros(1, np.int64), np.zeros((1, 9), np.float32)

    def classes(conf: float, labelled: frozenset[str]) -> list[int]:
        added = AddedObjects(
            Finder(square, STEP, (info.width, info.height)), {"square": ("square",)}, {0: "box"}, labelled,
            settings(stride=1), video, info,
        )  # fmt: skip
        own = Detections(square(0) + 2, np.array([conf], np.float32), *one[1:])
        (seen,) = added.add_to(frame for frame in [FrameFeatures(0, own)])
        return seen.detections.class_id.tolist()

    assert classes(0.9, frozenset({"box"})) == [0], "the surer one"
    assert classes(0.6, frozenset({"box"})) == [1]
    assert classes(0.9, frozenset()) == [1], "a class without a label would lose the object"


def test_what_the_detector_knows_needs_no_text_detector(
    scene: tuple[Path, VideoInfo], use: Callable[..., None], settings: Make
) -> None:
    video, info = scene
    use(Finder(square, 1, (info.width, info.height)), None)
    search = TextSearch(MODEL, labels('value="worker" predicted_values="person"'))
    tracks = detect_tracks(video, 25, settings(stride=1), DETECTOR, text_search=search)
    assert [track.top_class for track in tracks.tracks] == ["person"]
