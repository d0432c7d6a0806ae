"""Videos of one name are told apart by what is known of them, or not taken at all; odd names are found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ml_backend.core.errors import ConfigError, MediaError
from ml_backend.datasets.annotation_reader import AnnotationReader
from ml_backend.datasets.selection import infer_controls
from ml_backend.datasets.video_files import VideoFacts, VideoFolder, video_name
from ml_backend.rendering.layers import AnnotationFile, file_layer
from tests.datasets.builders import key, make_annotation, make_region, make_task, write_export
from tests.video.builders import make_video

DAYS: dict[str, dict[str, Any]] = {"day1": {}, "day2": {"frames": 45, "size": (160, 120)}}


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    for day, made in DAYS.items():
        (folder / day).mkdir(parents=True)
        make_video(folder / day / "clip.mp4", **made)
    return folder


def uploads(**facts: Any) -> list[dict[str, Any]]:
    """Tasks of two uploads that were both called ``clip.mp4``; ``facts`` are of each task's data, as pairs."""
    tasks = []
    for n, prefix in enumerate(("aaaa1111", "bbbb2222")):
        region = make_region(key(1, 10), frames_count=(30, 45)[n], duration=(1.0, 1.5)[n])
        if facts:
            del region["value"]["duration"]
        task = make_task("clip.mp4", make_annotation(region), task_id=n + 1)
        task["data"] |= {"video": f"/data/upload/1/{prefix}-clip.mp4"} | {name: pair[n] for name, pair in facts.items()}
        tasks.append(task)
    return tasks


def found(source: AnnotationReader) -> dict[int, str]:
    return {video.task_id: video.path.parent.name for video in source.videos()}


@pytest.mark.parametrize(
    "facts", [{"frames": (30, 45)}, {"width": (320, 160), "height": (240, 120)}, {"duration": ("1.0", "1.5")}, {}]
)
def test_uploads_of_one_name_are_told_apart(videos: Path, facts: dict[str, Any]) -> None:
    export = write_export(videos.parent / "e.json", uploads(**facts))
    source = AnnotationReader.from_file(export, videos=videos)
    assert (found(source), source.skipped) == ({1: "day1", 2: "day2"}, [])
    shutil.rmtree(videos / "day2")
    for folder in (videos, videos / "day1" / "clip.mp4"):
        source = AnnotationReader.from_file(export, videos=folder)
        assert found(source) == {1: "day1"}
        ((item),) = source.skipped
        assert item.task_id == 2
        assert "is another video" in item.reason
        assert "--video-map" in item.reason


def test_what_nobody_can_tell_apart_is_not_taken(videos: Path) -> None:
    tasks = uploads(anything=(1, 2))
    source = AnnotationReader.from_file(write_export(videos.parent / "e.json", tasks), videos=videos)
    assert found(source) == {}
    assert len(source.skipped) == 2
    assert all(str(videos / day / "clip.mp4") in source.skipped[0].reason for day in DAYS)
    # Copies of one file are one.
    shutil.copy(videos / "day1" / "clip.mp4", videos / "day2" / "clip.mp4")
    assert found(source) == {1: "day1", 2: "day1"}


def test_a_list_says_which_file_is_which_video(videos: Path) -> None:
    tasks = uploads(anything=(1, 2))
    (videos / "day2" / "clip.mp4").rename(videos / "renamed, later.mp4")
    export, listed = write_export(videos.parent / "e.json", tasks), videos.parent / "map.csv"

    def paths(**options: Any) -> dict[int, Path]:
        source = AnnotationReader.from_file(export, video_map=listed, **options)
        return {video.task_id: video.path for video in source.videos()}

    for which in ("2", "/data/upload/1/bbbb2222-clip.mp4", "bbbb2222-clip.mp4"):
        listed.write_text(f'{which},"videos/renamed, later.mp4"\n\n1,{videos}/day1/clip.mp4\n')
        wanted = {1: videos / "day1" / "clip.mp4", 2: videos / "renamed, later.mp4"}
        assert paths() == paths(videos=videos / "day1") == wanted
    listed.write_text("clip.mp4,videos/day1/clip.mp4\n")  # the name of both, without their prefixes
    assert set(paths().values()) == {videos / "day1" / "clip.mp4"}
    # What a task states of its video is true, whatever the list says.
    write_export(export, uploads())
    assert set(paths(videos=videos)) == {1}
    source = AnnotationReader.from_file(export, video_map=listed)
    list(source.videos())
    assert "lasts 1.000 s instead of 1.500 s" in source.skipped[0].reason
    assert "--video-map" in source.skipped[0].reason
    listed.write_text("1,gone.mp4\n")
    source = AnnotationReader.from_file(export, videos=videos, video_map=listed)
    assert set(found(source)) == set()
    assert "gone.mp4" in source.skipped[0].reason
    for text in ("1\n", "1,a,b\n", "1,\xff"):
        listed.write_bytes(text.encode("latin-1"))
        with pytest.raises(ConfigError, match=r"map\.csv"):
            AnnotationReader.from_file(export, video_map=listed)


def test_a_frame_or_two_do_not_matter(videos: Path) -> None:
    for frames, fits in ((28, True), (32, True), (33, False)):
        choice = VideoFolder(videos / "day1").look_up("clip.mp4", VideoFacts(frames=(frames, frames)))
        assert (choice.path is not None) == fits
    # Of two that would do none is taken.
    make_video(videos / "day2" / "clip.mp4", frames=33)
    assert VideoFolder(videos).look_up("clip.mp4", VideoFacts(frames=(30, 30))).path == videos / "day1" / "clip.mp4"
    assert VideoFolder(videos).look_up("clip.mp4", VideoFacts(frames=(32, 32))).path is None


def test_a_playable_copy_of_a_varying_rate_has_other_frames(tmp_path: Path) -> None:
    pts = [0, 3, 6, 9, 30, 33, 36, 39, 42, 45, 48]
    made = make_video(tmp_path / "clip.mp4", frames=11, pts=pts, fps=30)
    assert VideoFacts(frames=(50, 50), durations=(49 / 30,)).difference(made) == ""
    assert VideoFacts(frames=(50, 50), durations=(3.0,)).difference(made)


def test_facts_of_another_video_of_the_task_do_not_count() -> None:
    data = {"frames": 900, "width": 64, "height": 48, "duration": 30}
    region = make_region(key(1, 10), duration=1.0)
    assert VideoFacts.of_task(data, [region]) == VideoFacts(durations=(1.0,))
    assert VideoFacts.of_task({"frames": "many", "width": 2.5, "height": True}, []) == VideoFacts()


def test_a_video_that_is_named_itself_is_checked(videos: Path) -> None:
    export = write_export(videos.parent / "e.json", uploads())
    assert file_layer(videos / "day2" / "clip.mp4", AnnotationFile(export)).video.task_id == 2
    with pytest.raises(MediaError, match="another video than that of task 1"):
        file_layer(videos / "day2" / "clip.mp4", AnnotationFile(export, task=1))


@pytest.mark.parametrize("name", ["cam#1.mp4", "a?b.mp4", "100%20x.mp4", "a:b.mp4", "R&D+1.mp4"])
def test_odd_names_are_found(tmp_path: Path, name: str) -> None:
    for other in (name, "a&b.mp4", "b.mp4", "100 x.mp4", "cam1.mp4", "a_b.mp4"):
        (tmp_path / other).write_text(other)
    folder = VideoFolder(tmp_path)
    for spelled in (name, f"day/{name}", Path(name).stem):
        assert folder.look_up(spelled).path == tmp_path / name


def test_other_punctuation_is_another_name(tmp_path: Path) -> None:
    (tmp_path / "a&b.mp4").write_text("")
    folder = VideoFolder(tmp_path)
    assert folder.look_up("a?b").path is None
    assert folder.look_up("a?b.mp4").path is None
    assert folder.look_up("/data/upload/1/35deac95-ab.mp4").path == tmp_path / "a&b.mp4"  # as Label Studio names it


def test_names_that_look_like_addresses() -> None:
    assert video_name("cam#1.mp4") == "cam#1.mp4"
    assert video_name("a:b.mp4") == "a:b.mp4"


# -- which field of a task has the video


def test_the_importers_note_is_no_video(tmp_path: Path) -> None:
    data = {"fps": 30, "source": "clip.avi", "source_sha256": "0" * 64, "film": "/data/upload/1/35deac95-clip.mp4"}
    region = make_region(key(1, 10))
    for result in ([region], []):
        assert [control.value_key for control in infer_controls(data, result)] == ["film"]
    # Without the importer's mark it is a field as any other.
    assert [c.value_key for c in infer_controls({"source": "clip.avi"}, [region])] == ["source"]


def test_of_several_fields_none_is_guessed(tmp_path: Path) -> None:
    for name in ("left.mp4", "right.mp4"):
        make_video(tmp_path / name, frames=10)
    data = {"left": "left.mp4", "right": "right.mp4"}
    task = make_task("x", make_annotation(make_region(key(1, 10))))
    task["data"] = data
    source = AnnotationReader.from_file(write_export(tmp_path / "e.json", [task]))
    assert list(source.videos()) == []
    assert "left, right" in source.skipped[0].reason
    assert "--config" in source.skipped[0].reason
    assert [c.value_key for c in infer_controls(data, [make_region(key(1, 1), to_name="right")])] == ["right"]
    both = [make_region(key(1, 1), to_name=name) for name in ("right", "other")]
    assert [c.value_key for c in infer_controls(data, both)] == ["right", "left"]
    with pytest.raises(ConfigError, match="--config"):
        infer_controls(data, [])
    task["annotations"][0]["result"][0]["to_name"] = "right"
    (tmp_path / "e.json").write_text(json.dumps([task]))
    assert [video.name for video in source.videos()] == ["right.mp4"]
