"""Rendered video: the right box on the right picture at the right time, with the sound, or nothing at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from ml_backend.core.errors import ConfigError, StorageError, VideoError
from ml_backend.core.settings import Settings
from ml_backend.label_studio.label_config import read_label_config
from ml_backend.label_studio.regions import region_boxes
from ml_backend.label_studio.timeline import video_timeline
from ml_backend.rendering.draw import BoxStyle
from ml_backend.rendering.layers import AnnotationFile, LayerModel, file_layer, named_layer
from ml_backend.rendering.render import RenderOptions, check_out, render
from ml_backend.video.probe import frame_times, playback_duration, probe
from ml_backend.video.reader import read_frames
from ml_backend.video.transcode import plan_transcode
from tests.rendering.drawing import (
    COLOURS,
    CONFIG,
    GREEN,
    MAGENTA,
    box_of,
    make_region,
    painted,
    write_export,
    write_prediction,
)
from tests.video.builders import make_video, read_number

BARE = BoxStyle(names=False, numbers=False, confidence=False)
#: Nearly lossless, so that colours and edges can be measured.
EXACT = RenderOptions(BARE, COLOURS, crf=2)


def walking(fps: float, count: int, **more: Any) -> dict[str, Any]:
    """Visible on Label Studio's frames 4 to count - 5, below the numbers, moving right."""
    return make_region([(4, 20, 50, 10, 20, True), (count - 5, 60, 40, 20, 30, False)], count=count, fps=fps, **more)


def assert_boxes(source: Path, out: Path, region: dict[str, Any], first: int = 0, tolerance: float = 2.5) -> None:
    """On each picture of ``out`` is the box that Label Studio shows on that picture of the source."""
    info, timeline = probe(source), video_timeline(source, region["value"]["framesCount"] / _duration(region))
    at, xyxy, visible = region_boxes(region, info.width, info.height)
    shown = timeline.decoded_index(at)
    seen = 0
    for frame in read_frames(out):
        number = frame.index + first
        rows = np.flatnonzero(shown == number)
        assert len(rows), "the timeline shows each picture"
        found = box_of(frame.image, GREEN)
        if not visible[rows].any():
            assert found is None, number
            continue
        seen += 1
        wanted = xyxy[rows[visible[rows]][0]]
        assert found is not None, number
        # The line is 2 px wide, and colours have half the resolution.
        assert np.abs(np.array(found) - wanted).max() <= tolerance, (number, found, wanted)
    assert seen > 3


def _duration(region: dict[str, Any]) -> float:
    return float(region["value"]["duration"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "made",
    [
        {},
        {"fps": 25, "options": {"bf": "3", "g": "12"}},
        {"fps": Fraction(30000, 1001)},
        {"size": (321, 241)},
        {"rotation": 90, "size": (240, 320)},
        {"rotation": 270},
        {"aspect": Fraction(4, 3)},
        {"codec": "mpeg4"},
        {"audio_s": 1.0},
    ],
    ids=lambda made: "-".join(map(str, made)) or "plain",
)
def test_the_right_box_on_the_right_picture(tmp_path: Path, made: dict[str, Any]) -> None:
    if made.get("size") == (321, 241):
        made = made | {"pix_fmt": "yuv444p"}
    source = make_video(tmp_path / "source.mp4", **made)
    info = probe(source)
    region = walking(info.fps, info.frames)
    out = tmp_path / "new folder" / "out.mp4"
    summary = render(
        source, out, [file_layer(source, AnnotationFile(write_prediction(tmp_path / "p.json", [region])))], EXACT
    )
    after = probe(out)
    assert plan_transcode(out).action == "keep"
    assert (after.width, after.height) == (info.width + info.width % 2, info.height + info.height % 2)
    assert (after.frames, after.rotation, after.pix_fmt) == (info.frames, 0, "yuv420p")
    assert after.fps == pytest.approx(info.fps, rel=1e-6)
    assert after.has_audio == info.has_audio
    assert [read_number(frame.image[: info.height, : info.width]) for frame in read_frames(out)] == list(range(30))
    assert_boxes(source, out, region)
    assert summary["frames"] == 30
    assert summary["labels"] == [{"thing": 1}]
    assert list(out.parent.iterdir()) == [out]


def test_uneven_times_stay(tmp_path: Path) -> None:
    pts = [n * 5 + n % 3 * 2 for n in range(30)]
    source = make_video(tmp_path / "vfr.mp4", pts=pts, time_base=Fraction(1, 90))
    assert probe(source).variable_frame_rate
    count = 40
    region = walking(count / playback_duration(source), count)
    out = tmp_path / "out.mp4"
    render(source, out, [file_layer(source, AnnotationFile(write_prediction(tmp_path / "p.json", [region])))], EXACT)
    np.testing.assert_allclose(frame_times(out), frame_times(source), atol=1e-4)
    assert [read_number(frame.image) for frame in read_frames(out)] == list(range(30))
    timeline = video_timeline(source, count / playback_duration(source))
    at, xyxy, visible = region_boxes(region, 320, 240)
    shown = timeline.decoded_index(at)
    compared = 0
    for frame in read_frames(out):
        rows = np.flatnonzero((shown == frame.index) & visible)
        if len(rows):
            found = box_of(frame.image, GREEN)
            assert found is not None
            assert np.abs(np.array(found) - xyxy[rows[0]]).max() <= 2.5
            compared += 1
    assert compared > 12


def test_a_video_that_begins_late(tmp_path: Path) -> None:
    source = make_video(tmp_path / "late.mkv", pts=range(30, 60), audio_s=2.0, audio_silence_s=1.2)
    out = tmp_path / "out.mp4"
    prediction = write_prediction(tmp_path / "p.json", [])
    render(source, out, [file_layer(source, AnnotationFile(prediction))], EXACT)
    np.testing.assert_allclose(frame_times(out), np.arange(30) / 30, atol=1e-3)
    assert tone_begins(out) == pytest.approx(0.2, abs=0.05)


def tone_begins(path: Path) -> float:
    with av.open(str(path)) as container:
        pieces = list(container.decode(container.streams.audio[0]))
    wave = np.concatenate([piece.to_ndarray()[0] for piece in pieces])
    return float(pieces[0].time) + int(np.argmax(np.abs(wave) > 0.05)) / pieces[0].sample_rate


@pytest.mark.parametrize(("codec", "name"), [("aac", "s.mp4"), ("pcm_s16le", "s.mkv"), ("libopus", "s.mkv")])
def test_a_stretch_with_its_sound(tmp_path: Path, codec: str, name: str) -> None:
    source = make_video(tmp_path / name, audio_s=1.0, audio_silence_s=0.6, audio_codec=codec)
    region = walking(30, 30)
    out = tmp_path / "out.mp4"
    layer = file_layer(source, AnnotationFile(write_prediction(tmp_path / "p.json", [region])))
    render(source, out, [layer], RenderOptions(BARE, COLOURS, start=0.3, end=0.9, crf=2))
    assert [read_number(frame.image) for frame in read_frames(out)] == list(range(9, 27))
    assert_boxes(source, out, region, first=9)
    assert tone_begins(out) == pytest.approx(0.3, abs=0.03)
    assert playback_duration(out) == pytest.approx(0.6, abs=0.05)
    render(source, out, [layer], RenderOptions(BARE, sound=False))
    assert not probe(out).has_audio


@pytest.mark.parametrize(
    ("start", "end", "numbers"),
    [
        (0.0, None, range(30)),
        (0.95, None, [28, 29]),
        (None, 0.01, [0]),
        (0.5, 0.5 + 1 / 30, [15]),
        (None, 99, range(30)),
    ],
)
def test_start_and_end(tmp_path: Path, start: float | None, end: float | None, numbers: Any) -> None:
    source = make_video(tmp_path / "s.mp4")
    out = tmp_path / "out.mp4"
    layer = file_layer(source, AnnotationFile(write_prediction(tmp_path / "p.json", [walking(30, 30)])))
    render(source, out, [layer], RenderOptions(start=start, end=end))
    assert [read_number(frame.image) for frame in read_frames(out)] == list(numbers)


@pytest.mark.parametrize(("start", "end"), [(1.0, None), (50, None), (0.5, 0.5), (0.5, 0.2), (float("nan"), None)])
def test_a_stretch_that_is_none(tmp_path: Path, start: float, end: float | None) -> None:
    source = make_video(tmp_path / "s.mp4")
    layer = file_layer(source, AnnotationFile(write_prediction(tmp_path / "p.json", [])))
    with pytest.raises(ConfigError, match=r"The (start|end) at"):
        render(source, tmp_path / "out.mp4", [layer], RenderOptions(start=start, end=end))
    assert not (tmp_path / "out.mp4").exists()


def test_smaller_pictures(tmp_path: Path) -> None:
    source = make_video(tmp_path / "s.mp4", size=(640, 480))
    region = make_region([(1, 25, 50, 25, 25, True)], count=30, fps=30)
    out = tmp_path / "out.mp4"
    layer = file_layer(source, AnnotationFile(write_prediction(tmp_path / "p.json", [region])))
    render(source, out, [layer], RenderOptions(BARE, COLOURS, height=240, crf=2))
    image = next(read_frames(out)).image
    assert image.shape == (240, 320, 3)
    assert np.abs(np.array(box_of(image, GREEN)) - (80, 120, 160, 180)).max() <= 2


def test_no_boxes_leave_the_picture_as_it_is(tmp_path: Path) -> None:
    source = make_video(tmp_path / "s.mp4", options={"crf": "2"})
    out = tmp_path / "out.mp4"
    empty = [make_region([], count=30, fps=30), make_region([(99, 1, 1, 5, 5, True)], count=30, fps=30)]
    summary = render(
        source, out, [file_layer(source, AnnotationFile(write_prediction(tmp_path / "p.json", empty)))], EXACT
    )
    assert summary["tracks"] == [0]
    for before, after in zip(read_frames(source), read_frames(out), strict=True):
        assert np.abs(before.image.astype(int) - after.image).mean() < 3


def test_gaps(tmp_path: Path) -> None:
    keys = [(1, 20, 50, 20, 20, True), (10, 20, 50, 20, 20, False), (20, 60, 50, 20, 20, True)]
    source = make_video(tmp_path / "s.mp4")
    out = tmp_path / "out.mp4"
    prediction = write_prediction(tmp_path / "p.json", [make_region(keys, count=30, fps=30)])
    render(source, out, [file_layer(source, AnnotationFile(prediction))], EXACT)
    seen = [box_of(frame.image, GREEN) is not None for frame in read_frames(out)]
    assert seen == [True] * 10 + [False] * 9 + [True] * 11


def test_pictures_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged stretch and a broken tail: what can be read keeps its time."""
    gone = {*range(8, 23), 28, 29}

    def damaged(*given: Any, **more: Any) -> Any:
        return (frame for frame in read_frames(*given, **more) if frame.index not in gone)

    monkeypatch.setattr("ml_backend.rendering.render.read_frames", damaged)
    source, layer = prepared(tmp_path)
    out = tmp_path / "out.mp4"
    assert render(source, out, [layer])["frames"] == 30 - len(gone)
    kept = [n for n in range(30) if n not in gone]
    assert [read_number(frame.image) for frame in read_frames(out)] == kept
    np.testing.assert_allclose(frame_times(out), np.array(kept) / 30, atol=1e-6)


# -- what is drawn


def still(label: str, x: float, name: str, **more: Any) -> dict[str, Any]:
    return make_region([(1, x, 50, 20, 30, True)], count=30, fps=30, label=label, name=name, **more)


def test_manual_and_auto_are_told_apart(tmp_path: Path) -> None:
    source = make_video(tmp_path / "clip.mp4", size=(640, 480))
    regions = [
        still("thing", 10, "a", origin="manual"),
        still("thing", 40, "b", origin="prediction"),
        still("thing", 70, "c", origin="prediction-changed"),
    ]
    out = tmp_path / "out.mp4"
    layer = file_layer(source, AnnotationFile(write_export(tmp_path / "e.json", "clip.mp4", regions)))
    render(source, out, [layer], RenderOptions(BARE, COLOURS, crf=2))
    # Dashes of 2 px lose colour to the encoding, which has half the resolution for it.
    green = painted(next(read_frames(out)).image, GREEN, 140)[238:243]
    parts = [green[:, 74:182], green[:, 266:374], green[:, 458:566]]
    shares = [part.any(axis=0).mean() for part in parts]
    assert shares[0] > 0.97
    assert 0.3 < shares[1] < 0.8
    assert shares[2] > 0.97


def test_labels_with_colours_of_their_own(tmp_path: Path) -> None:
    source = make_video(tmp_path / "clip.mp4")
    regions = [still("thing", 10, "a"), still("ding", 60, "b"), still("", 40, "c"), still("Fußgänger 사람", 30, "d")]
    out = tmp_path / "out.mp4"
    layer = file_layer(source, AnnotationFile(write_export(tmp_path / "e.json", "clip.mp4", regions)))
    summary = render(source, out, [layer], RenderOptions(BoxStyle(legend=True), COLOURS))
    assert summary["labels"] == [{"thing": 1, "ding": 1, "": 1, "Fußgänger 사람": 1}]
    image = next(read_frames(out)).image
    assert painted(image, GREEN, 100).any()
    assert painted(image, MAGENTA, 100).any()


# -- which task


def test_the_task_is_found_by_the_name_of_its_video(tmp_path: Path) -> None:
    source = make_video(tmp_path / "clip.mp4")
    rows = []
    for task, name in ((1, "other.mp4"), (2, "clip.mp4"), (3, "third.mp4")):
        path = write_export(tmp_path / "one.json", name, [still("thing", 10 * task, f"r{task}")], task=task)
        rows += json.loads(path.read_text())
    export = tmp_path / "all.json"
    export.write_text(json.dumps(rows))
    assert file_layer(source, AnnotationFile(export)).video.task_id == 2
    assert file_layer(source, AnnotationFile(export, task=3)).video.task_id == 3
    with pytest.raises(ConfigError, match="task 9"):
        file_layer(source, AnnotationFile(export, task=9))
    elsewhere = make_video(tmp_path / "fourth.mp4", frames=3)
    with pytest.raises(ConfigError, match=r"1 \(other.mp4\), 2 \(clip.mp4\), 3 \(third.mp4\)"):
        file_layer(elsewhere, AnnotationFile(export))
    export.write_text(json.dumps([*rows, rows[1] | {"id": 5}]))
    with pytest.raises(ConfigError, match="2, 5"):
        file_layer(source, AnnotationFile(export))


def test_the_only_task_is_meant_whatever_its_name(tmp_path: Path) -> None:
    source = make_video(tmp_path / "clip.mp4")
    export = write_export(tmp_path / "e.json", "renamed since.mp4", [still("thing", 10, "a")])
    assert len(file_layer(source, AnnotationFile(export)).video.objects) == 1


def test_annotations_predictions_versions(tmp_path: Path) -> None:
    source = make_video(tmp_path / "clip.mp4")
    export = AnnotationFile(
        write_export(tmp_path / "e.json", "clip.mp4", [still("thing", 10, "a")], [still("ding", 10, "p")])
    )
    model = LayerModel(tmp_path / "c.xml", Settings())

    def labels(name: str) -> list[str]:
        return [item.label for item in named_layer(source, name, model, export).video.objects]

    assert [item.label for item in file_layer(source, export).video.objects] == ["thing"]
    assert labels("annotations") == ["thing"]
    assert labels("predictions") == ["ding"]
    assert labels("v1") == ["ding"]
    assert labels(str(export.path)) == ["thing"]
    with pytest.raises(ConfigError, match="v2"):
        labels("v2")
    with pytest.raises(ConfigError, match="--from-json"):
        named_layer(source, "annotations", model)
    unseen = AnnotationFile(write_export(tmp_path / "u.json", "clip.mp4", [], [still("ding", 10, "p")]))
    raw = json.loads(unseen.path.read_text())
    raw[0]["annotations"] = []
    unseen.path.write_text(json.dumps(raw))
    assert [item.label for item in file_layer(source, unseen).video.objects] == ["ding"]
    with pytest.raises(ConfigError, match="no annotations"):
        file_layer(source, unseen, "annotations")


def test_a_config_with_other_names_is_good_for_colours(tmp_path: Path) -> None:
    source = make_video(tmp_path / "clip.mp4")
    config = tmp_path / "config.xml"
    for text in (CONFIG, CONFIG.replace('"video"', '"v"').replace('"box"', '"b"')):
        config.write_text(text)
        export = AnnotationFile(
            write_export(tmp_path / "e.json", "clip.mp4", [still("thing", 10, "a")]), None, read_label_config(config)
        )
        assert len(file_layer(source, export).video.objects) == 1


# -- side by side


def test_two_side_by_side(tmp_path: Path) -> None:
    source = make_video(tmp_path / "clip.mp4", audio_s=1.0)
    mine, other = walking(30, 30), still("ding", 60, "p", score=0.9)
    export = AnnotationFile(write_export(tmp_path / "e.json", "clip.mp4", [mine], [other]))
    out = tmp_path / "out.mp4"
    layers = [file_layer(source, export, "annotations"), file_layer(source, export, "predictions")]
    summary = render(source, out, layers, EXACT)
    assert summary["labels"] == [{"thing": 1}, {"ding": 1}]
    info = probe(out)
    assert (info.frames, info.has_audio) == (30, True)
    strip, gap = info.height - 240, info.width - 640
    assert strip > 15
    assert gap > 0
    for frame in read_frames(out):
        for title in (frame.image[:strip, :320], frame.image[:strip, 320 + gap :]):
            assert title.max() > 200
        left, right = frame.image[strip:, :320], frame.image[strip:, 320 + gap :]
        assert read_number(left) == read_number(right) == frame.index
        assert not painted(left, MAGENTA).any()
        assert not painted(right, GREEN).any()
        assert np.abs(np.array(box_of(right, MAGENTA)) - (192, 120, 256, 192)).max() <= 2.5
        assert (box_of(left, GREEN) is not None) == (3 <= frame.index <= 24)


# -- nothing half done


def prepared(tmp_path: Path) -> tuple[Path, Any]:
    source = make_video(tmp_path / "clip.mp4")
    return source, file_layer(source, AnnotationFile(write_prediction(tmp_path / "p.json", [walking(30, 30)])))


def test_progress_and_interruption(tmp_path: Path) -> None:
    source, layer = prepared(tmp_path)
    out = tmp_path / "out.mp4"
    out.write_bytes(b"from earlier")
    before = sorted(tmp_path.iterdir())

    def stop(done: int, total: int) -> None:
        assert total == 30
        if done == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render(source, out, [layer], progress=stop)
    assert sorted(tmp_path.iterdir()) == before
    assert out.read_bytes() == b"from earlier"
    calls: list[tuple[int, int]] = []
    render(source, out, [layer], progress=lambda done, total: calls.append((done, total)))
    assert calls == [(n, 30) for n in range(1, 31)]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    source, layer = prepared(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        render(source, tmp_path / "file" / "out.mp4", [layer])


def test_outputs_that_are_refused(tmp_path: Path) -> None:
    source, _ = prepared(tmp_path)
    there, folder = tmp_path / "there.mp4", tmp_path / "folder.mp4"
    there.write_bytes(b"x")
    folder.mkdir()
    link = tmp_path / "link.mp4"
    link.symlink_to(source)
    refused: list[tuple[Path, bool]] = [
        (tmp_path / "out.avi", False),
        (tmp_path / "out", True),
        (there, False),
        (source, True),
        (link, True),
        (folder, True),
    ]
    for out, force in refused:
        with pytest.raises(ConfigError):
            check_out(out, source, force)
    check_out(there, source, True)
    check_out(tmp_path / "new" / "OUT.MP4", source, False)
    with pytest.raises(VideoError):
        check_out(tmp_path / "new.mp4", tmp_path / "gone.mp4", False)


@pytest.mark.parametrize("write", [lambda p: p.write_text("{"), lambda p: p.write_text('{"a": 1}'), lambda p: None])
def test_files_that_are_no_export(tmp_path: Path, write: Callable[[Path], Any]) -> None:
    source = make_video(tmp_path / "clip.mp4", frames=3)
    write(tmp_path / "e.json")
    with pytest.raises(ConfigError, match=r"e\.json"):
        file_layer(source, AnnotationFile(tmp_path / "e.json"))
