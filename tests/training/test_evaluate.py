"""Measures of detectors on held-out parts of videos."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_backend.core.errors import VideoError
from ml_backend.core.settings import Settings
from ml_backend.core.types import Detections, Track
from ml_backend.detectors.average_precision import AveragePrecision
from ml_backend.detectors.weights import MOTION, ResolvedDetector
from ml_backend.detectors.yolo import YoloDetector
from ml_backend.inference.pipeline import detect_tracks
from ml_backend.label_studio.label_config import parse_label_config
from ml_backend.label_studio.timeline import video_facts
from ml_backend.labeling.label_assignment import DetectorLabels
from ml_backend.training.evaluate import EvaluationPlan, MeasuredModel, evaluate
from ml_backend.video.probe import probe
from ml_backend.video.reader import read_frames
from ml_backend.video.writer import VideoWriter
from tests.builders import label_config, make_clip, make_tiny_yolo

Boxes = list[list[float]]


def boxes_of(video: Path, settings: Settings, detector: ResolvedDetector, frames: int, label: int = 0) -> Boxes:
    """What the pipeline itself finds, as held-out boxes."""
    tracks: list[Track] = []
    detect_tracks(video, 20, settings, detector, on_track=tracks.append)
    return [
        [int(frame), track.track_id, label, *map(float, xyxy)]
        for track in tracks
        for frame, xyxy in zip(track.frames, track.xyxy, strict=True)
        if frame < frames
    ]


def hold_out(path: Path, boxes: Boxes, spans: list[list[int]], pictures: list[int], classes: list[str]) -> Path:
    video = {"name": "v", "uri": "v", "task_id": 1, "spans": spans, "pictures": pictures, "boxes": boxes}
    path.write_text(json.dumps({"classes": classes, "videos": [video]}))
    return path


def measure(
    held_out: Path, video: Path, model: dict[str, Any], settings: Settings
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    plan = {"kind": "evaluate", "held_out": str(held_out), "videos": {"v": str(video)}}
    events: list[dict[str, Any]] = []
    plan |= {"models": [{"name": "m", "path": None} | model]}
    read = replace(EvaluationPlan.from_json(plan), settings=settings)
    done = evaluate(read, lambda event, **values: events.append(values))
    return done["results"]["m"], events


@pytest.mark.slow
def test_what_the_pipeline_finds_is_measured_as_perfect(tmp_path: Path, settings: Callable[..., Settings]) -> None:
    video = make_clip(tmp_path / "clip.mp4")
    boxes = boxes_of(video, settings(), MOTION, 40)
    held_out = hold_out(tmp_path / "held_out.json", boxes, [[0, 39]], list(range(0, 40, 2)), ["other", "thing"])
    result, events = measure(held_out, video, {"kind": "motion", "default": "other"}, settings())
    assert result["hota"] == pytest.approx(1)
    assert result["idf1"] == pytest.approx(1)
    assert result["map50"] == pytest.approx(0.995, abs=0.01)
    assert list(result["labels"]) == ["other"], "labels without held-out boxes do not count"
    assert result["labels"]["other"]["boxes"] == len([b for b in boxes if b[0] % 2 == 0])
    assert (result["pictures"], result["frames"]) == (20, 40)
    assert (result["videos"], result["tracks"]) == (1, len({box[1] for box in boxes}))
    assert events[-1] == {"model": "m", "done": 40, "of": 40}


@pytest.mark.slow
def test_motion_on_parts_of_a_clip(tmp_path: Path, settings: Callable[..., Settings]) -> None:
    """Against where the block really is; the parts begin in the middle."""
    video = make_clip(tmp_path / "clip.mp4", frames=80)
    boxes: Boxes = [
        [f, 7, 0, left, 80, left + 40, 160] for f in range(10, 80) if (left := 10 + (f - 10) * 250 // 70) or True
    ]
    held_out = hold_out(tmp_path / "held_out.json", boxes, [[20, 39], [60, 79]], [25, 30, 65], ["thing"])
    result, _ = measure(held_out, video, {"kind": "motion", "default": "thing"}, settings())
    assert result["hota"] > 0.7
    assert result["idf1"] > 0.9
    assert result["map50"] > 0.9
    assert (result["pictures"], result["frames"]) == (3, 40)
    unnamed, _ = measure(held_out, video, {"kind": "motion"}, settings())
    assert unnamed["map50"] == 0
    assert unnamed["hota"] == pytest.approx(result["hota"]), "tracks are compared whatever their label"


def test_without_boxes_nothing_is_known(tmp_path: Path, settings: Callable[..., Settings]) -> None:
    video = make_clip(tmp_path / "clip.mp4")
    held_out = hold_out(tmp_path / "held_out.json", [], [[0, 9]], [0, 5], ["thing"])
    result, _ = measure(held_out, video, {"kind": "motion", "default": "thing"}, settings())
    assert [result[name] for name in ("map50", "map50_95", "hota", "idf1")] == [None] * 4
    assert result["labels"] == {}
    assert result["frames"] == 10


@pytest.mark.slow
def test_classes_get_their_labels_by_the_label_config(tmp_path: Path, settings: Callable[..., Settings]) -> None:
    video = make_clip(tmp_path / "clip.mp4")
    weights = make_tiny_yolo(tmp_path / "tiny.pt", {0: "car", 1: "truck"})
    boxes: Boxes = [[f, 1, 0, 40, 80, 200, 160] for f in range(4)]
    held_out = hold_out(tmp_path / "held_out.json", boxes, [[0, 3]], [0, 1, 2, 3], ["vehicle", "tree"])
    small = settings(imgsz=64)
    model = {"kind": "yolo", "path": str(weights)}
    config = label_config("vehicle", "tree", predicted={"vehicle": "car,truck"})
    found, _ = measure(held_out, video, model | {"label_config": config}, small)
    assert list(found["labels"]) == ["vehicle"]
    config = label_config("unheard of", predicted={"unheard of": "car,truck"})
    nothing, _ = measure(held_out, video, model | {"label_config": config}, small)
    assert (nothing["map50"], nothing["hota"]) == (0, 0)


def labels_of(config: str, names: list[str], *, trained: bool) -> dict[str, str]:
    model = MeasuredModel("m", "yolo", "m.pt", "", config, trained)
    return dict(model.labels_of(names))


def test_trained_detectors_are_measured_as_they_are_served() -> None:
    config = label_config("first_responder", "person", "new", predicted={"first_responder": "person", "new": "old"})
    names = ["first_responder", "person", "old"]
    by_name = {"first_responder": "first_responder", "person": "person", "old": "new"}
    assert labels_of(config, names, trained=True) == by_name
    assert labels_of(config, names, trained=False) == by_name | {"person": "first_responder"}
    control = parse_label_config(config).video_controls[0]
    served = DetectorLabels(control, names, False, trained=True)
    assert {name: served({name: 1.0}) for name in names} == by_name


def test_whether_a_detector_was_trained_is_in_the_plan(tmp_path: Path) -> None:
    held_out = hold_out(tmp_path / "held_out.json", [], [[0, 1]], [0], ["a"])
    model = {"name": "m", "kind": "yolo", "path": "m.pt", "label_config": label_config("a")}
    models = [model, model | {"trained": True}]
    plan = EvaluationPlan.from_json({"held_out": str(held_out), "videos": {}, "models": models})
    assert [measured.trained for measured in plan.models] == [False, True]


def test_real_detections_are_measured_as_perfect(
    people_video: Path, yolo_weights: Path, tmp_path: Path, settings: Callable[..., Settings]
) -> None:
    clip = tmp_path / "people.mp4"
    with VideoWriter(clip, 960, 540, 30) as writer:
        for frame in read_frames(people_video, size=(960, 540)):
            if frame.index == 12:
                break
            writer.write(frame.image)
    assert video_facts(clip)["frames"] == 12
    resolved = ResolvedDetector("yolo", "yolo11n", yolo_weights)
    small = settings(imgsz=320, device="cpu")
    boxes = boxes_of(clip, small, resolved, 12, label=1)
    held_out = hold_out(tmp_path / "held_out.json", boxes, [[0, 11]], [5, 9], ["x", "anyone"])
    names = ",".join(YoloDetector(yolo_weights, small).names.values())
    config = label_config("x", "anyone", predicted={"anyone": names})
    result, _ = measure(held_out, clip, {"kind": "yolo", "path": str(yolo_weights), "label_config": config}, small)
    assert result["hota"] == pytest.approx(1)
    assert result["idf1"] == pytest.approx(1)
    assert result["map50"] > 0.6


def test_a_video_that_has_changed(tmp_path: Path, settings: Callable[..., Settings]) -> None:
    video = make_clip(tmp_path / "clip.mp4")
    held_out = hold_out(tmp_path / "held_out.json", [], [[0, 99]], [0], ["thing"])
    with pytest.raises(VideoError, match="40 frames"):
        measure(held_out, video, {"kind": "motion"}, settings())


# -- other videos


def changed_yolo(weights: Path, path: Path, names: dict[int, str], unlearned: int | None = None) -> Path:
    """The checkpoint with some classes renamed, and perhaps one that it does not find any more."""
    import torch
    from ultralytics import YOLO

    yolo = YOLO(weights)
    model: Any = yolo.model
    model.names = {**model.names, **names}
    if unlearned is not None:
        with torch.no_grad():
            for branch in model.model[-1].cv3:
                branch[-1].bias[unlearned] = -30.0
    yolo.save(path)
    return path


@pytest.fixture(scope="module")
def street(people_video: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of a street, 30 frames."""
    clip = tmp_path_factory.mktemp("street") / "street.mp4"
    with VideoWriter(clip, 960, 540, 15) as writer:
        for frame in read_frames(people_video, size=(960, 540)):
            if frame.index == 60:
                break
            if frame.index % 2 == 0:
                writer.write(frame.image)
    return clip


@pytest.fixture
def compare(
    street: Path, yolo_weights: Path, tmp_path: Path, settings: Callable[..., Settings]
) -> Callable[..., dict[str, Any]]:
    """Compares a detector with the real one on the street, which nobody has annotated."""
    video = make_clip(tmp_path / "annotated.mp4")
    held_out = hold_out(tmp_path / "held_out.json", [[0, 1, 0, 9, 9, 99, 99]], [[0, 1]], [0], ["thing"])

    def run(candidate: Path, **plan: Any) -> dict[str, Any]:
        facts = {"kind": "yolo", "label_config": label_config("thing", "person", "bicycle")}
        models = [
            {"name": "candidate", "title": "v1", "path": str(candidate), "trained": True, **facts},
            {"name": "incumbent", "title": "base", "path": str(yolo_weights), **facts},
        ]
        others = [{"task": 7, "path": str(street)}]
        plan = {"held_out": str(held_out), "videos": {"v": str(video)}, "models": models, "others": others, **plan}
        read = replace(EvaluationPlan.from_json(plan), settings=settings(imgsz=320, device="cpu", gate_frames=30))
        return evaluate(read, lambda event, **values: None)

    return run


def test_the_same_detector_keeps_all_tracks(compare: Callable[..., dict[str, Any]], yolo_weights: Path) -> None:
    others = compare(yolo_weights)["others"]
    assert others["tracks"] >= 3
    assert (others["videos"], others["frames"]) == (1, 30)
    assert [others[name] for name in ("lost", "relabelled", "gained", "worse")] == [0] * 4


def test_what_a_detector_has_unlearned_is_named_and_shown(
    compare: Callable[..., dict[str, Any]], yolo_weights: Path, tmp_path: Path
) -> None:
    """Persons are not found any more: all are lost, and the clips show them, the incumbent on the left."""
    blind = changed_yolo(yolo_weights, tmp_path / "blind.pt", {}, unlearned=0)
    done = compare(blind, clips=str(tmp_path / "clips"))
    assert set(done["results"]) == {"candidate", "incumbent"}
    others = done["others"]
    lost = [change for change in others["changes"] if change["kind"] == "lost"]
    assert {change["label"] for change in lost} == {"person"}
    assert len(lost) == others["lost"] >= 3
    assert all(change["task"] == 7 and 1 <= change["first"] < change["last"] <= 30 for change in lost)
    clips = sorted((tmp_path / "clips").iterdir())
    assert len(clips) == len([change for change in others["changes"] if change["clip"] is not None]) > 0
    for clip in clips:
        facts = probe(clip)
        assert (facts.codec, facts.pix_fmt, facts.frames) == ("h264", "yuv420p", 30)
        assert facts.height < 420
        left, right = np.split(next(iter(read_frames(clip))).image, 2, axis=1)
        assert not np.array_equal(left, right)


def test_another_label_for_the_same_object_is_no_loss(
    compare: Callable[..., dict[str, Any]], yolo_weights: Path, tmp_path: Path
) -> None:
    swapped = changed_yolo(yolo_weights, tmp_path / "swapped.pt", {0: "bicycle", 1: "person"})
    others = compare(swapped)["others"]
    assert others["relabelled"] == others["tracks"] == others["worse"]
    assert {(change["label"], change["now"]) for change in others["changes"]} >= {("person", "bicycle")}


def test_what_people_call_all_such_objects_is_a_renaming(
    compare: Callable[..., dict[str, Any]],
    street: Path,
    yolo_weights: Path,
    tmp_path: Path,
    settings: Callable[..., Settings],
) -> None:
    """People called all that the incumbent finds on the street walkers, and so does the candidate."""
    small = settings(imgsz=320, device="cpu")
    base = ResolvedDetector("yolo", "base", yolo_weights)
    boxes = boxes_of(street, small, base, frames=30)
    held_out = hold_out(tmp_path / "walkers.json", boxes, [[0, 29]], [15], ["walker"])
    config = {"kind": "yolo", "label_config": label_config("walker", "person")}
    walkers = changed_yolo(yolo_weights, tmp_path / "walkers.pt", {0: "walker"})
    models = [
        {"name": "candidate", "path": str(walkers), "trained": True, **config},
        {"name": "incumbent", "path": str(yolo_weights), **config},
        {"name": "base", "path": str(yolo_weights), "held_out": False, **config},
    ]
    others = compare(walkers, held_out=str(held_out), videos={"v": str(street)}, models=models)["others"]
    assert others["renamed"] == others["relabelled"] == others["tracks"] >= 3
    assert (others["worse"], others["base"]["worse"]) == (0, 0)


def test_the_base_model_is_compared_but_not_measured(
    compare: Callable[..., dict[str, Any]], yolo_weights: Path, tmp_path: Path
) -> None:
    """The incumbent has unlearned persons already: that is no news to the candidate, which has too."""
    blind = changed_yolo(yolo_weights, tmp_path / "blind.pt", {}, unlearned=0)
    facts = {"kind": "yolo", "label_config": label_config("thing", "person", "bicycle")}
    models = [
        {"name": "candidate", "title": "v2", "path": str(blind), "trained": True, **facts},
        {"name": "incumbent", "title": "v1", "path": str(blind), "trained": True, **facts},
        {"name": "base", "title": "base", "path": str(yolo_weights), "held_out": False, **facts},
    ]
    done = compare(blind, models=models)
    assert set(done["results"]) == {"candidate", "incumbent"}
    base = done["others"]["base"]
    assert done["others"]["worse"] == 0
    assert base["worse"] == base["worse_before"] >= 3


def test_a_motion_detector_is_compared_with_nothing(tmp_path: Path, settings: Callable[..., Settings]) -> None:
    video = make_clip(tmp_path / "clip.mp4")
    held_out = hold_out(tmp_path / "held_out.json", [], [[0, 9]], [0], ["thing"])
    models = [{"name": "m", "path": None, "kind": "motion", "default": "thing"}]
    others = [{"task": 7, "path": str(video)}]
    plan = {"held_out": str(held_out), "videos": {"v": str(video)}, "models": models, "others": others}
    read = replace(EvaluationPlan.from_json(plan), settings=settings())
    assert evaluate(read, lambda event, **values: None)["others"] is None


def found(*rows: list[float]) -> Detections:
    """Detections of (x1, y1, x2, y2, conf, class)."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))


def test_average_precision_by_hand() -> None:
    precision = AveragePrecision(["a", "b", "c"])
    truth = np.array([[0, 0, 10, 10], [20, 0, 30, 10.0]])
    precision.add(found([0, 0, 10, 10, 0.9, 0], [20, 0, 30, 10, 0.8, 1]), truth, np.array([0, 1]))
    perfect = precision.result()
    assert perfect["map50_95"] == pytest.approx(0.995)  # the curve's last step, as ultralytics integrates it
    precision.add(found(), truth, np.array([1, 1]))
    result = precision.result()
    assert result["labels"]["a"] == {"ap50": pytest.approx(0.995), "ap50_95": pytest.approx(0.995), "boxes": 1}
    assert result["labels"]["b"]["ap50"] == pytest.approx(1 / 3, abs=0.01)
    assert result["labels"]["b"]["boxes"] == 3
    assert "c" not in result["labels"]


@pytest.mark.slow
def test_a_second_box_on_the_same_object_is_wrong() -> None:
    precision = AveragePrecision(["a"])
    truth = np.array([[0, 0, 10, 10], [20, 0, 30, 10.0]])
    boxes = [[0, 0, 10, 10, 0.9, 0], [0, 0, 10, 9, 0.8, 0], [20, 0, 30, 10, 0.7, 0]]
    precision.add(found(*boxes), truth, np.array([0, 0]))
    assert 0.8 < precision.result()["map50"] < 0.85  # precision 1, 1/2, 2/3


def test_the_interval_of_average_precision_is_that_of_its_blocks() -> None:
    """Half of the seconds are right: anything from few to most of them may be."""
    precision = AveragePrecision(["a"])
    truth, label = np.array([[0, 0, 10, 10]], np.float64), np.zeros(1, np.int64)
    for second in range(20):
        for _ in range(5):
            right = found([0, 0, 10, 10, 0.9, 0]) if second % 2 else found([50, 50, 60, 60, 0.9, 0])
            precision.add(right, truth, label, second)
    low, high = precision.interval() or (0.0, 0.0)
    value = precision.result()["map50"]
    assert low < value < high
    assert high - low > 0.25, "as 100 images of their own they would seem surer"
    assert precision.interval() == (low, high)


def test_two_seconds_have_no_interval() -> None:
    precision = AveragePrecision(["a"])
    for block in range(2):
        precision.add(found([0, 0, 9, 9, 0.9, 0]), np.array([[0, 0, 9, 9]], np.float64), np.zeros(1, np.int64), block)
    assert precision.interval() is None
    assert AveragePrecision(["a"]).interval() is None
