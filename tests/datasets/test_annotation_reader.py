"""Annotated tasks from every source, with boxes on decoded pictures."""

from __future__ import annotations

import json
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ml_backend.core.errors import ConfigError, MediaError
from ml_backend.datasets.annotated_video import AnnotatedVideo, FrameMap
from ml_backend.datasets.annotation_reader import AnnotationReader
from ml_backend.datasets.selection import infer_frame_rate
from ml_backend.datasets.task_files import read_tasks
from ml_backend.datasets.video_files import VideoFolder, media_parts, video_name
from ml_backend.label_studio.label_config import parse_label_config
from ml_backend.label_studio.regions import RegionKeys, region_boxes
from ml_backend.label_studio.timeline import Timeline
from tests.builders import CONFIG, TWO_VIDEOS
from tests.datasets.builders import key, make_annotation, make_region, make_task, write_export
from tests.video.builders import make_video

MOVING = make_region(key(1, 10), key(11, 30), key(21, 30, enabled=False))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one video, ``clip.mp4``."""
    videos = tmp_path / "videos"
    videos.mkdir()
    make_video(videos / "clip.mp4")
    return videos


def only_video(source: AnnotationReader) -> AnnotatedVideo:
    (video,) = source.videos()
    return video


def export(folder: Path, *tasks: dict[str, Any], **options: Any) -> AnnotationReader:
    return AnnotationReader.from_file(write_export(folder.parent / "export.json", tasks), videos=folder, **options)


def test_boxes_are_on_decoded_pictures(folder: Path) -> None:
    video = only_video(export(folder, make_task("clip.mp4", make_annotation(MOVING))))
    (item,) = video.objects
    frames, xyxy = video.boxes(item)
    assert frames.tolist() == list(range(21))
    assert xyxy[0].tolist() == [32, 24, 96, 96]
    assert xyxy[5].tolist() == pytest.approx([64, 24, 128, 96])
    assert (video.name, video.task_video.stem, video.task_id) == ("clip.mp4", "clip", 1)
    assert (item.track_id, item.label, item.source, item.confidence, item.original_class) == (
        1,
        "person",
        "manual",
        None,
        None,
    )
    assert (item.first, item.last) == (0, 20)


def test_frames_are_given_in_order_with_those_on_which_nothing_is(folder: Path) -> None:
    late = make_region(key(16, 50), key(18, 50, enabled=False), region_id="r2", label="car")
    video = only_video(export(folder, make_task("clip.mp4", make_annotation(late, MOVING))))
    found = list(video.frames([0, 15, 25]))
    assert [frame.index for frame in found] == [0, 15, 25]
    assert [[item.label for item in frame.objects] for frame in found] == [["person"], ["person", "car"], []]
    assert [item.track_id for item in video.objects] == [1, 2]
    assert found[1].time == pytest.approx(0.5)
    assert video.keyframes().tolist() == [0, 10, 15, 17, 20]


def test_long_videos_are_done_in_pieces(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = only_video(export(folder, make_task("clip.mp4", make_annotation(MOVING))))
    whole = [frame.xyxy.tolist() for frame in video.frames()]
    monkeypatch.setattr("ml_backend.datasets.annotated_video.CHUNK_FRAMES", 7)
    assert [frame.xyxy.tolist() for frame in video.frames()] == whole


@hypothesis_settings(deadline=None)
@given(
    keys=st.lists(st.tuples(st.integers(1, 40), st.floats(-20, 90), st.booleans()), min_size=1, max_size=6),
    rate=st.sampled_from([10.0, 24.0, 25.0, 29.97, 60.0]),
    late=st.booleans(),
)
def test_pictures_show_what_the_player_shows(keys: list[tuple[int, float, bool]], rate: float, late: bool) -> None:
    """On each picture that the player shows the box is the player's; a piece of it is that piece of the whole."""
    times = np.arange(40) / 25
    if late:
        times = np.sort(np.random.default_rng(1).uniform(0, 1.6, 40))
        times[0] = 0
    timeline = Timeline(rate, times, 1.6)
    region = make_region(*(key(*values) for values in keys), frames_count=timeline.frames_count)
    pictures = FrameMap(timeline, 200, 100)
    keys_read = RegionKeys.read(region)
    frames, xyxy = pictures.boxes(keys_read)
    at, wanted, visible = region_boxes(region, 200, 100, np.arange(1, timeline.frames_count + 1))
    shown = timeline.decoded_index(at)
    expected = {}
    for picture, box, seen in zip(shown.tolist(), np.clip(wanted, 0, [200, 100, 200, 100]), visible, strict=True):
        if seen and picture not in expected:
            expected[picture] = box
    got = dict(zip(frames.tolist(), xyxy, strict=True))
    for picture in set(shown.tolist()):
        if picture in expected and expected[picture][2] > expected[picture][0]:
            assert got[picture].tolist() == pytest.approx(expected[picture].tolist())
        else:
            assert picture not in got
    life = pictures.span(keys_read)
    if len(frames):
        assert life is not None
        assert life[0] <= frames[0] <= frames[-1] <= life[1]
    for first, last in ((0, 12), (13, 27), (28, 39)):
        piece, boxes = pictures.boxes(keys_read, first, last)
        inside = (frames >= first) & (frames <= last)
        assert piece.tolist() == frames[inside].tolist()
        assert boxes == pytest.approx(xyxy[inside])


def test_a_keyframe_on_every_frame_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the JSON for each piece of a long video takes time that grows with the square of its length."""
    reads = []
    read = RegionKeys.read

    def counted(region: Any) -> RegionKeys:
        reads.append(region)
        return read(region)

    monkeypatch.setattr(RegionKeys, "read", counted)
    monkeypatch.setattr("ml_backend.datasets.annotated_video.CHUNK_FRAMES", 4)
    region = make_region(*(key(n, n) for n in range(1, 31)))
    source = AnnotationReader.from_file(
        write_export(folder / "e.json", [make_task("clip.mp4", make_annotation(region))])
    )
    for video in source.videos():
        assert sum(len(frame.objects) for frame in video.frames()) == 30
        assert video.keyframes().tolist() == list(range(30))
    assert len(reads) == 1


def test_pictures_that_the_timeline_passes_over_are_between_their_neighbours() -> None:
    timeline = Timeline(10, np.arange(30) / 30, 1.0)
    region = make_region(key(1, 0), key(4, 30), key(8, 30, enabled=False), frames_count=10)
    frames, xyxy = FrameMap(timeline, 100, 100).boxes(RegionKeys.read(region))
    assert frames.tolist() == list(range(22))
    assert xyxy[:10, 0] == pytest.approx(np.arange(10) * 10 / 3)
    stays = make_region(key(1, 0), frames_count=10)
    assert FrameMap(timeline, 100, 100).boxes(RegionKeys.read(stays))[0].tolist() == list(range(30))


# -- which annotation


def test_ground_truth_counts_before_the_latest_and_cancelled_never(folder: Path) -> None:
    first = make_annotation(MOVING, annotation_id=1, ground_truth=True, completed_by={"id": 5, "email": "a@b.c"})
    last = make_annotation(annotation_id=2)
    skipped = make_annotation(MOVING, annotation_id=3, was_cancelled=True)
    task = make_task("clip.mp4", first, last, skipped)
    assert only_video(export(folder, task)).task_video.submission.annotator == "a@b.c"
    first["ground_truth"] = False
    assert only_video(export(folder, task)).objects == ()
    videos = list(export(folder, task, all_annotators=True).videos())
    assert [video.task_video.submission.annotator for video in videos] == ["a@b.c", "1"]
    assert list(export(folder, make_task("clip.mp4", skipped)).videos()) == []


@pytest.mark.parametrize(
    ("origin", "source"),
    [("manual", "manual"), ("prediction", "auto"), ("prediction-changed", "manual"), (None, "manual")],
)
def test_where_a_region_comes_from(folder: Path, origin: str | None, source: str) -> None:
    region = {**MOVING, "origin": origin, "score": 0.75, "meta": {"original_class": "dog"}}
    (item,) = only_video(export(folder, make_task("clip.mp4", make_annotation(region)))).objects
    assert item.source == source
    assert (item.confidence, item.original_class) == ((0.75, "dog") if source == "auto" else (None, None))


def test_an_accepted_regions_score_is_looked_up_in_its_prediction(folder: Path) -> None:
    predicted = {**MOVING, "score": 0.6, "meta": {"original_class": "dog"}}
    accepted = {**MOVING, "origin": "prediction"}
    task = make_task("clip.mp4", make_annotation(accepted), predictions=[{"id": 9, "result": [predicted]}])
    (item,) = only_video(export(folder, task)).objects
    assert (item.confidence, item.original_class) == (0.6, "dog")


def test_predictions_on_request(folder: Path) -> None:
    old = {"id": 1, "model_version": "a", "created_at": "2026-01-01", "result": [], "score": 0.4}
    new = {"id": 2, "model_version": "b", "created_at": "2026-01-02", "result": [MOVING], "score": 0.5}
    task = make_task("clip.mp4", predictions=[new, old])
    assert list(export(folder, task).videos()) == []
    (item,) = only_video(export(folder, task, predictions="missing")).objects
    assert (item.source, item.confidence, item.original_class) == ("auto", 0.5, "person")
    assert only_video(export(folder, task, predictions="only", model_version="a")).objects == ()
    part = {**old, "id": 3, "model_version": "c.partial", "created_at": "2026-01-03"}
    growing = make_task("clip.mp4", predictions=[part])  # what is found so far does not say what else there is
    assert list(export(folder, growing, predictions="missing").videos()) == []
    growing = make_task("clip.mp4", predictions=[part, new])
    assert len(only_video(export(folder, growing, predictions="missing")).objects) == 1
    assert only_video(export(folder, growing, predictions="only", model_version="c.partial")).objects == ()
    annotated = make_task("clip.mp4", make_annotation(), predictions=[new])
    assert only_video(export(folder, annotated, predictions="missing")).objects == ()
    assert len(only_video(export(folder, annotated, predictions="only")).objects) == 1
    ids_only = {**task, "predictions": [1, 2]}
    assert list(export(folder, ids_only, predictions="missing").videos()) == []


# -- files


def test_json_min(folder: Path) -> None:
    row = {"video": "/data/upload/1/35deac95-clip.mp4", "fps": 30, "id": 7, "box": [MOVING["value"]]}
    row |= {"annotator": 3, "annotation_id": 4, "created_at": "2026-01-01", "updated_at": "2026-01-01", "lead_time": 1}
    other = row | {"annotation_id": 5, "annotator": 8, "updated_at": "2026-01-02", "box": []}
    empty = {"video": "/data/upload/1/35deac95-clip.mp4", "id": 8, "annotator": {}, "annotation_id": None}
    path = folder.parent / "min.json"
    path.write_text(json.dumps([row, other, empty]))
    videos = list(AnnotationReader.from_file(path, videos=folder, all_annotators=True).videos())
    assert [(v.task_id, len(v.objects), v.task_video.submission.annotator) for v in videos] == [
        (7, 1, "3"),
        (7, 0, "8"),
    ]
    assert (videos[0].objects[0].source, videos[0].task_video.frame_rate) == ("manual", 30)
    config = parse_label_config(CONFIG)
    assert [len(v.objects) for v in AnnotationReader.from_file(path, videos=folder, config=config).videos()] == [0]


def test_json_min_of_a_config_with_other_controls_of_a_region(folder: Path) -> None:
    own = MOVING["value"] | {"title": "a field of an import"}
    row = {"video": "/data/upload/1/35deac95-clip.mp4", "fps": 30, "id": 7, "annotator": 3, "annotation_id": 4}
    row |= {"tl": [MOVING["value"] | {"timelinelabels": ["a"]}], "stars": [MOVING["value"] | {"rating": 3}]}
    for boxes in ([MOVING["value"]] * 2, [own] * 2):
        if own in boxes:  # of no other control, so that nothing is lost
            row |= {"tl": [], "stars": []}
        path = write_export(folder.parent / "min.json", [row | {"box": boxes}])
        video = only_video(AnnotationReader.from_file(path, videos=folder))
        assert [item.label for item in video.objects] == ["person"] * 2


def test_annotations_of_a_target_storage(folder: Path) -> None:
    make_video(folder / "other.mp4", frames=45)
    tasks = [make_task(name, task_id=n) for n, name in ((1, "clip.mp4"), (2, "other.mp4"), (3, "clip.mp4"))]
    task, other, skipped = ({"id": task["id"], "data": task["data"]} for task in tasks)
    first, latest = make_annotation(task=task), make_annotation(MOVING, annotation_id=3, task=task)
    files = [first, make_annotation(MOVING, annotation_id=2, task=other), latest]
    files.append(make_annotation(MOVING, annotation_id=4, task=skipped, was_cancelled=True))
    path = write_export(folder.parent / "annotations.json", files)
    videos = list(AnnotationReader.from_file(path, videos=folder).videos())
    assert [(video.task_id, video.name) for video in videos] == [(1, "clip.mp4"), (2, "other.mp4")]
    assert [item.source for video in videos for item in video.objects] == ["manual"] * 2
    for annotation, count in ((latest, 1), (files[-1], 0)):
        path.write_text(json.dumps(annotation))
        found = list(AnnotationReader.from_file(path, videos=folder).videos())
        assert [video.task_id for video in found] == [1] * count
    storage = folder.parent / "storage"
    storage.mkdir()
    for number, annotation in enumerate(files):
        (storage / f"{number}{'.json' if number % 2 else ''}").write_text(json.dumps(annotation))
    for name, text in (("5", '{"id":'), ("6.json", json.dumps(tasks[0])), (".7", "hidden"), ("8.txt", "no annotation")):
        (storage / name).write_text(text)
    reader = AnnotationReader.from_file(storage, videos=folder)
    assert [(video.task_id, len(video.objects)) for video in reader.videos()] == [(1, 1), (2, 1)]
    assert [str(item).split(":")[0] for item in reader.skipped] == ["5", "6.json"]
    path.write_text(json.dumps(latest | {"task": 8}))  # as the API gives it
    video = only_video(AnnotationReader.from_file(path, videos=folder / "clip.mp4"))
    assert (video.task_id, video.name, [item.source for item in video.objects]) == (8, "clip.mp4", ["manual"])


def test_a_prediction_file_and_its_video(folder: Path) -> None:
    path = folder.parent / "p.json"
    moving = make_region(*MOVING["value"]["sequence"], duration=1.0, score=0.5)
    path.write_text(json.dumps({"model_version": "v", "score": 0.5, "result": [moving]}))
    for videos in (folder, folder / "clip.mp4"):
        video = only_video(AnnotationReader.from_file(path, videos=videos))
        assert (video.name, video.task_video.stem, video.task_video.frame_rate) == ("clip.mp4", "clip", 30)
        assert [item.source for item in video.objects] == ["auto"]
    beside = folder / "p.json"
    beside.write_text(path.read_text())
    assert only_video(AnnotationReader.from_file(beside)).name == "clip.mp4"
    make_video(folder / "other.mp4")
    source = AnnotationReader.from_file(path, videos=folder)
    assert list(source.videos()) == []
    assert "--videos" in source.skipped[0].reason


def test_exports_with_or_without_blanks(tmp_path: Path) -> None:
    tasks = [make_task("ä" * n + ".mp4", make_annotation(MOVING), task_id=n) for n in range(1, 30)]
    path = write_export(tmp_path / "e.json", tasks)
    assert list(read_tasks(path)) == tasks
    path.write_text(json.dumps(tasks, indent=2))
    assert list(read_tasks(path)) == tasks


@pytest.mark.parametrize("text", ["", "nonsense", "[", '[{"id": 1, "data": {}}', "[1]", '{"a": 1}', '[{"id": 1}, {]'])
def test_files_that_are_something_else(tmp_path: Path, text: str) -> None:
    path = tmp_path / "e.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"e\.json"):
        list(read_tasks(path))
    path.write_bytes(b"\xff\xfe[")
    with pytest.raises(ConfigError, match="UTF-8"):
        list(read_tasks(path))
    with pytest.raises(ConfigError, match="UTF-8"):
        list(read_tasks(tmp_path))
    path.rename(tmp_path / ".hidden")
    with pytest.raises(ConfigError, match="no annotations of a target storage"):
        list(read_tasks(tmp_path))
    with pytest.raises(ConfigError, match="cannot be read"):
        list(read_tasks(tmp_path / "absent.json"))
    path.write_text("[]")
    assert list(read_tasks(path)) == []


def test_videos_that_are_gone_are_listed_and_passed_over(folder: Path) -> None:
    (folder / "broken.mp4").write_bytes(b"no video")
    tasks = [
        make_task(name, make_annotation(MOVING), task_id=n)
        for n, name in enumerate(("gone.mp4", "clip.mp4", "broken.mp4"))
    ]
    source = export(folder, *tasks)
    assert [video.name for video in source.videos()] == ["clip.mp4"]
    assert [(item.task_id, item.name) for item in source.skipped] == [(0, "gone.mp4"), (2, "broken.mp4")]
    with pytest.raises(MediaError, match="does not exist"):
        export(folder / "absent", *tasks)


def test_damaged_regions_are_left_out(folder: Path) -> None:
    damaged: list[dict[str, Any]] = [
        make_region(),
        make_region({"frame": "x"}),
        make_region(key(500, 10)),
        {"type": "videorectangle", "to_name": "video"},
        {"type": "videorectangle", "to_name": "video", "value": None},
        {"type": "choices", "to_name": "video"},
    ]
    video = only_video(export(folder, make_task("clip.mp4", make_annotation(*damaged, MOVING))))
    assert [item.region_id for item in video.objects] == ["r1"]


def test_two_videos_in_a_task(folder: Path) -> None:
    make_video(folder / "second.mp4", frames=10, fps=10)
    right = make_region(key(1, 10), frames_count=10, duration=1.0) | {"from_name": "kästchen", "to_name": "right"}
    left = MOVING | {"from_name": "left-box", "to_name": "left"}
    task: dict[str, Any] = make_task("clip.mp4", make_annotation(left, right))
    task["data"] = {"left": "clip.mp4", "right": "second.mp4", "fps": 30, "right_fps": 10}
    for config in (parse_label_config(TWO_VIDEOS), None):
        videos = list(export(folder, task, config=config).videos())
        assert [(v.name, v.task_video.control.from_name, v.task_video.frame_rate) for v in videos] == [
            ("clip.mp4", "left-box", 30),
            ("second.mp4", "kästchen", 10),
        ]


@pytest.mark.parametrize(
    ("data", "duration", "count", "rate"),
    [
        ({"fps": 30}, 10, 300, 30),
        ({"fps": "29.97"}, 100, 2997, 29.97),
        ({"fps": 30}, 10, 240, 24),  # the field is not what the label config uses
        ({}, 10.0667, 302, 30),
        ({}, 10, 170, 17),
        ({}, None, 170, None),
        ({"fps": 12}, None, None, 12),
        ({"fps": True}, 0, 10**400, None),
    ],
)
def test_frame_rate_without_a_label_config(data: dict[str, Any], duration: Any, count: Any, rate: float | None) -> None:
    region = {"value": {"duration": duration, "framesCount": count}}
    assert infer_frame_rate(data, [region]) == rate


@pytest.mark.parametrize(
    ("data", "count", "rate"), [({}, 24, 24), ({"fps": 30}, 24, 24), ({}, 17, 17), ({"fps": 33}, 31, 33)]
)
def test_frame_rate_of_regions_without_a_duration(folder: Path, data: dict[str, Any], count: int, rate: float) -> None:
    task = make_task("clip.mp4", make_annotation(make_region(key(1, 10), frames_count=count)), fps=None)
    task["data"] |= data
    video = only_video(export(folder, task))
    assert (video.timeline.frame_rate, video.timeline.duration) == (rate, 1)
    config = parse_label_config(CONFIG.replace("$fps", "12"))
    assert only_video(export(folder, task, config=config)).timeline.frame_rate == 12


# -- names


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("/data/upload/3/35deac95-people.mp4", "people.mp4"),
        ("/data/upload/3/35deac95-stra%C3%9Fe.mp4", "straße.mp4"),
        ("http://host:8080/data/upload/3/35deac95-people.mp4?x=1", "people.mp4"),
        ("/data/upload/20240131-cam.mp4", "cam.mp4"),
        ("/label-studio/data/upload/3/35deac95-people.mp4", "people.mp4"),
        ("/data/local-files/?d=a/b%20c.mp4", "b c.mp4"),
        ("/data/local-files/?d=videos/20240131-cam.mp4", "20240131-cam.mp4"),
        ("s3://bucket/35deac95-people.mp4", "35deac95-people.mp4"),
        ("s3://bucket/key/a.mp4", "a.mp4"),
        ("/tasks/7/resolve/?fileuri=czM6Ly9idWNrZXQvYS5tcDQ=", "a.mp4"),
        ("../../etc/passwd", "passwd"),
        ("..", "video"),
        ("", "video"),
        ("c:\\videos\\a.mp4", "a.mp4"),
        ("http://[", "video"),
    ],
)
def test_file_name_of_an_address(uri: str, name: str) -> None:
    assert video_name(uri) == name
    assert ".." not in media_parts(uri)


def test_files_are_found_by_name_only(tmp_path: Path) -> None:
    inside = tmp_path / "in"
    for name in ("a.mp4", "sub/35deac95-b.mp4", "x/same.mp4", "y/same.mp4", "ein film (1).mp4", ".hidden/a.mp4"):
        path = inside / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    (tmp_path / "secret.mp4").write_text("")
    folder = VideoFolder(inside)
    assert folder.look_up("/data/upload/1/00000000-a.mp4").path == inside / "a.mp4"
    assert folder.look_up("/data/upload/1/35deac95-b.mp4").path == inside / "sub" / "35deac95-b.mp4"
    assert folder.look_up("/data/local-files/?d=y/same.mp4").path == inside / "y" / "same.mp4"
    assert folder.look_up("/data/upload/1/35deac95-ein_film_1.mp4").path == inside / "ein film (1).mp4"
    for uri in ("../secret.mp4", f"{tmp_path}/secret.mp4", "/data/local-files/?d=../secret.mp4", "", "sub", "a.mp4\0"):
        assert folder.look_up(uri).path is None
    assert VideoFolder(inside, recursive=False).look_up("b.mp4").path is None
    (inside / "a.txt").write_text("")
    assert folder.look_up("35deac95-b").path == inside / "sub" / "35deac95-b.mp4"
    assert VideoFolder(inside).look_up("a").path == inside / "a.mp4"
    assert folder.look_up("absent").path is None
    assert folder.look_up("ein_film_1").path == inside / "ein film (1).mp4"  # of an export of the upload


@pytest.mark.parametrize("suffix", [".mp4", ".2026.mp4"])
def test_names_that_label_studio_has_cut_are_found(tmp_path: Path, suffix: str) -> None:
    start = "north gate, " + "long " * 12
    for end in ("day 1 of ten", "day 2 of ten", "c"):
        (tmp_path / f"{start}{end}{suffix}").write_text(end)
    several = VideoFolder(tmp_path)
    whole = f"{start}day 2 of ten".replace(" ", "_").replace(",", "")
    uri = f"/data/upload/12/35deac95-{whole[: 73 - len(suffix)]}_Ab3dE6g{suffix}"
    assert len(uri) == len("/data/") + 100
    name = video_name(uri)
    for each in (uri, name, name.removesuffix(".mp4")):
        assert several.look_up(each).path is None
    (tmp_path / f"{start}day 1 of ten{suffix}").unlink()
    folder = VideoFolder(tmp_path)
    for each in (uri, name, name.removesuffix(".mp4")):
        assert folder.look_up(each).path == tmp_path / f"{start}day 2 of ten{suffix}"
    for other in (uri.replace("north", "south"), uri.replace(".mp4", ".mov"), uri.replace("_Ab3", "-Ab3")):
        assert folder.look_up(other).path is None


def test_files_have_the_prefix_of_uploads_or_not(tmp_path: Path) -> None:
    for name in ("35deac95-people.mp4", "both.mp4", "35deac95-both.mp4", "20240131-cam.mp4", "cut.mp4"):
        (tmp_path / name).write_text(name)
    folder = VideoFolder(tmp_path)

    def found(uri: str) -> str | None:
        path = folder.look_up(uri).path
        return path.name if path else None

    assert found("/data/local-files/?d=people.mp4") == found("people.mp4") == "35deac95-people.mp4"
    assert found("/data/upload/1/35deac95-people.mp4") == "35deac95-people.mp4"
    assert found("/data/upload/1/00000001-people.mp4") is None  # another upload of that name
    assert found("both.mp4") == "both.mp4"
    assert found("/data/upload/1/35deac95-both.mp4") == "35deac95-both.mp4"
    assert found("s3://bucket/abcdef01-cut.mp4") == "cut.mp4"
    # A day is part of the name, except where it cannot be one.
    assert found("cam.mp4") is None
    assert found("/data/local-files/?d=20240131-cut.mp4") is None
    assert found("/data/upload/1/20240131-cut.mp4") == "cut.mp4"
    (tmp_path / "11111111-people.mp4").write_text("another")
    assert VideoFolder(tmp_path).look_up("people.mp4").path is None  # which of the two, nobody knows
    assert folder.look_up("abcdef01-cut").path == tmp_path / "cut.mp4"


def test_decomposed_unicode_is_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "stra\u0308sse.mp4").write_text("")
    assert VideoFolder(tmp_path).look_up("str\u00e4sse.mp4").path is not None


@pytest.mark.parametrize("fps", [Fraction(30000, 1001), Fraction(25)])
def test_numbered_frames_lie_where_the_boxes_say(tmp_path: Path, fps: Fraction) -> None:
    make_video(tmp_path / "clip.mp4", fps=fps, frames=40)
    region = make_region(*(key(n, n) for n in range(1, 41)), frames_count=40, duration=float(40 / fps))
    task = make_task("clip.mp4", make_annotation(region), fps=29.97 if fps != 25 else 25)
    video = only_video(
        AnnotationReader.from_file(write_export(tmp_path / "e.json", [task]), config=parse_label_config(CONFIG))
    )
    frames, xyxy = video.boxes(video.objects[0])
    assert frames.tolist() == list(range(40))
    assert xyxy[:, 0] == pytest.approx((np.arange(40) + 1) * 3.2)
    assert os.path.samefile(video.path, tmp_path / "clip.mp4")
