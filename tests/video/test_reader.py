"""Decoding: the right pictures, upright, in order, in constant memory."""

from __future__ import annotations

import logging
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter

from ml_backend.core.errors import VideoError
from ml_backend.core.types import Frame
from ml_backend.video import reader
from ml_backend.video.container import demux
from ml_backend.video.probe import frame_times, probe
from ml_backend.video.reader import read_at, read_frames
from tests.builders import ROOT
from tests.video.builders import cut_start, join, make_video, merge, numbered_image, read_number

BFRAMES = {"bf": "3", "g": "12"}


def numbers(path: Path, **given: Any) -> list[tuple[int, int]]:
    return [(frame.index, read_number(frame.image)) for frame in read_frames(path, **given)]


def damage(path: Path, packets: slice) -> None:
    """Overwrite the content of some packets; what tells where they are stays whole."""
    with av.open(str(path)) as container:
        hurt = [packet for packet in container.demux(video=0) if packet.size][packets]
        data = bytearray(path.read_bytes())
        for packet in hurt:
            data[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    path.write_bytes(data)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by an entry with each picture that is decoded."""
    counted: list[int] = []
    decode = reader.decode

    def counting(*args: Any, **given: Any) -> Iterator[Any]:
        for picture in decode(*args, **given):
            counted.append(len(counted))
            yield picture

    monkeypatch.setattr(reader, "decode", counting)
    return counted


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("bframes.mp4", {"options": BFRAMES}),
        ("mpeg4.avi", {"codec": "mpeg4", "options": {"bf": "2"}}),
        ("h264.avi", {"options": BFRAMES}),
        ("tenbit.mkv", {"pix_fmt": "yuv420p10le", "options": BFRAMES}),
        ("altref.webm", {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "12"}}),
        ("vfr.mp4", {"pts": [n * n for n in range(40)], "time_base": Fraction(1, 600)}),
    ],
)
def test_pictures_come_in_display_order(tmp_path: Path, name: str, made: dict[str, Any]) -> None:
    path = make_video(tmp_path / name, frames=40, **made)
    assert numbers(path) == [(n, n) for n in range(40)]


def test_hidden_frames_before_an_edit_are_left_out(tmp_path: Path) -> None:
    whole = make_video(tmp_path / "whole.mp4", frames=30, options=BFRAMES)
    path = cut_start(whole, tmp_path / "cut.mp4", 8 / 30)
    assert numbers(path) == [(n, n + 8) for n in range(22)]


MPEG2: dict[str, Any] = {"codec": "mpeg2video", "options": {"bf": "2"}}


@pytest.mark.parametrize(
    ("name", "made", "second"),
    [
        ("same.ts", {"options": BFRAMES}, range(21)),
        ("overlapping.ts", {"options": BFRAMES}, range(10, 31)),
        ("clock_ahead.ts", {"options": BFRAMES}, range(15000, 15021)),
        ("broadcast.m2ts", MPEG2 | {"container": "mpegts"}, range(21)),
        ("same.mpg", MPEG2, range(21)),
        ("overlapping.vob", MPEG2, range(10, 31)),
        ("same.webm", {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}, range(21)),
    ],
)
def test_joined_recordings_follow_each_other(
    tmp_path: Path, name: str, made: dict[str, Any], second: range, caplog: pytest.LogCaptureFixture
) -> None:
    first = make_video(tmp_path / f"first-{name}", **made)
    path = join(tmp_path / name, first, make_video(tmp_path / f"second-{name}", frames=21, pts=second, **made))
    info = probe(path)
    wanted = list(enumerate([*range(30), *range(21)]))
    assert (info.frames, info.fps, info.variable_frame_rate) == (51, 30, False)
    assert info.duration == pytest.approx(51 / 30)
    np.testing.assert_allclose(np.diff(frame_times(path)), 1 / 30, atol=1.1e-3)
    assert numbers(path) == wanted
    assert numbers(path, start=28) == wanted[28:]
    assert [(frame.index, read_number(frame.image)) for frame in read_at(path, None, [3, 31, 49])] == [
        wanted[n] for n in (3, 31, 49)
    ]
    assert not caplog.records, "such a file is not damaged"


class LateStream:
    """A container as PyAV leaves it at the end of a file in which another stream has begun late."""

    def demux(self, stream: str) -> Iterator[str]:
        yield from (f"{stream} 1", f"{stream} 2", "flush")
        raise IndexError("list index out of range")


def test_a_stream_that_begins_late_is_no_error() -> None:
    assert list(demux(LateStream(), "video")) == ["video 1", "video 2", "flush"]


@pytest.mark.parametrize("name", ["late.ts", "late.mpg"])
def test_sound_that_only_the_second_recording_has(tmp_path: Path, name: str) -> None:
    made: dict[str, Any] = MPEG2 if name.endswith("mpg") else {}
    silent = make_video(tmp_path / f"silent-{name}", **made)
    loud = make_video(tmp_path / f"loud-{name}", audio_s=1.0, audio_codec="mp2", **made)
    assert numbers(join(tmp_path / name, silent, loud)) == list(enumerate([*range(30)] * 2))


def test_clock_that_starts_far_below_is_no_gap(tmp_path: Path) -> None:
    late = make_video(tmp_path / "late.ts", pts=range(15000, 15030), options=BFRAMES)
    path = join(tmp_path / "joined.ts", late, make_video(tmp_path / "early.ts", frames=20, options=BFRAMES))
    assert probe(path).duration == pytest.approx(50 / 30)
    assert numbers(path) == list(enumerate([*range(30), *range(20)]))


def test_what_follows_damage_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = make_video(tmp_path / "clip.ts", frames=60, options={"bf": "0", "g": "10"})
    data = path.read_bytes()
    with av.open(str(path)) as container:
        lost = [packet.pos for packet in container.demux(video=0) if packet.size and packet.is_keyframe][2]
    path.write_bytes(data[: lost + 376] + data[lost + 564 :])
    got = numbers(path)
    assert got[-1][1] == 59
    assert len(got) >= 58
    assert "damaged or truncated" in caplog.text


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_pictures_are_upright_and_bgr(tmp_path: Path, rotation: int, mirrored: bool) -> None:
    made: dict[str, Any] = {"size": (320, 192), "rotation": rotation, "mirrored": mirrored, "options": {"crf": "8"}}
    path = make_video(tmp_path / "turned.mp4", frames=4, **made)
    for frame in read_frames(path):
        wanted = numbered_image(frame.index, 320, 192)
        assert frame.image.shape == wanted.shape
        assert frame.image.dtype == np.uint8
        assert np.abs(frame.image.astype(int) - wanted).mean() < 6


def test_pixels_are_square(tmp_path: Path) -> None:
    path = make_video(tmp_path / "wide.mp4", frames=3, aspect=Fraction(4, 3))
    images = [frame.image for frame in read_frames(path)]
    assert {image.shape for image in images} == {(240, 427, 3)}
    assert [read_number(image) for image in images] == [0, 1, 2]


@pytest.mark.parametrize(("enabled", "numbers_read"), [((False, True), range(12)), ((False, False), range(8))])
def test_of_several_tracks_the_one_that_browsers_play(
    tmp_path: Path, enabled: tuple[bool, bool], numbers_read: range
) -> None:
    small = make_video(tmp_path / "a.mp4", frames=8, size=(160, 120))
    path = merge(tmp_path / "both.mp4", small, make_video(tmp_path / "b.mp4", frames=12), enabled=enabled)
    assert numbers(path) == [(n, n) for n in numbers_read]


@pytest.mark.parametrize(("size", "rotation"), [((160, 120), 0), ((160, 120), 90), ((640, 480), 0)])
def test_scaling(tmp_path: Path, size: tuple[int, int], rotation: int) -> None:
    path = make_video(tmp_path / "clip.mp4", frames=3, rotation=rotation)
    images = [frame.image for frame in read_frames(path, size=size)]
    assert {image.shape for image in images} == {(size[1], size[0], 3)}
    assert [read_number(image) for image in images] == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("start", [0, 1, 11, 12, 13, 39])
@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.avi", "clip.h264", "clip.ts", "clip.flv"])
def test_start_gives_the_same_frames_as_reading_from_the_beginning(tmp_path: Path, start: int, name: str) -> None:
    path = make_video(tmp_path / name, frames=40, options=BFRAMES)
    times = frame_times(path)
    got = list(read_frames(path, start=start))
    assert [(frame.index, frame.time, read_number(frame.image)) for frame in got] == [
        (n, times[n], n) for n in range(start, 40)
    ]


def test_start_outside_the_video(tmp_path: Path) -> None:
    path = make_video(tmp_path / "clip.mp4", frames=4)
    with pytest.raises(ValueError, match=r"0\.\.3"):
        next(read_frames(path, start=4))


def test_damage_in_the_middle_keeps_later_indices(tmp_path: Path) -> None:
    path = make_video(tmp_path / "clip.mp4", frames=40, options={"bf": "0", "g": "10"})
    damage(path, slice(10, 14))  # a key frame and three that build on it
    got = numbers(path)
    assert got[:10] == [(n, n) for n in range(10)]
    assert got[-20:] == [(n, n) for n in range(20, 40)]


def test_broken_tail_ends_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = make_video(tmp_path / "clip.mp4", frames=40, options={"bf": "0", "g": "10"})
    damage(path, slice(30, None))
    with caplog.at_level(logging.WARNING):
        assert numbers(path) == [(n, n) for n in range(30)]
    assert "decoding ended after frame 30 of 40" in caplog.text
    with pytest.raises(VideoError, match="no frame from 30 on"):
        list(read_frames(path, start=30))


@pytest.mark.parametrize("read", [read_frames, partial(read_at, indices=[3, 20])])
def test_info_of_another_state_of_the_file_is_refused(tmp_path: Path, read: Callable[..., Iterator[Frame]]) -> None:
    path = make_video(tmp_path / "clip.mp4", frames=30)
    info = probe(path)
    make_video(path, frames=25)
    with pytest.raises(VideoError, match="changed"):
        next(read(path, info=info))


@pytest.mark.parametrize("read", [read_frames, partial(read_at, indices=[3, 20])])
def test_stopping_early_releases_the_file(tmp_path: Path, read: Callable[..., Iterator[Frame]]) -> None:
    path = make_video(tmp_path / "clip.mp4", frames=40)
    frames = read(path, info=None)
    next(frames)
    frames.close()  # type: ignore[attr-defined]
    open_files = [link.resolve() for link in Path("/proc/self/fd").iterdir()]
    assert path.resolve() not in open_files


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    """In processes of their own, since a process' peak never falls."""
    peaks = []
    for frames in (60, 600):
        path = make_video(tmp_path / f"{frames}.mp4", frames=frames, size=(640, 480), options={"preset": "ultrafast"})
        code = (
            "import sys; from benchmarks.measuring import peak_mb; from ml_backend.video.reader import read_frames\n"
            "assert sum(1 for _ in read_frames(sys.argv[1])) == int(sys.argv[2])\n"
            "print(peak_mb())"
        )
        command = [sys.executable, "-c", code, str(path), str(frames)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        peaks.append(float(done.stdout))
    assert peaks[1] < 1.1 * peaks[0]


OPEN_GOP = {"x264-params": "open-gop=1:keyint=24:bframes=3:scenecut=0"}  # pictures shown before their key frame


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("bframes.mp4", {"options": {"bf": "3", "g": "24"}}),
        ("bframes.mkv", {"options": {"bf": "3", "g": "24"}}),
        ("bframes.ts", {"options": {"bf": "3", "g": "24"}}),
        ("one_key.mp4", {"options": {"bf": "3", "g": "999"}}),
        ("opengop.mp4", {"options": OPEN_GOP}),
        ("opengop.ts", {"options": OPEN_GOP}),
        ("refresh.mp4", {"options": {"x264-params": "intra-refresh=1:keyint=24"}}),  # no whole key frame but the first
        ("mpeg2.mpg", {"codec": "mpeg2video", "options": {"bf": "2", "g": "24", "b": "4M"}}),
        ("altref.webm", {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "12", "g": "24"}}),
        ("bframes.avi", {"options": {"bf": "3", "g": "24"}}),  # without timestamps that can be sought
        ("vfr.mp4", {"pts": [n * n for n in range(120)], "time_base": Fraction(1, 6000), "options": {"g": "24"}}),
        ("turned.mp4", {"rotation": 90, "options": {"bf": "3", "g": "24"}}),
        ("wide.mp4", {"aspect": Fraction(4, 3), "options": {"g": "24"}}),
    ],
)
def test_single_frames_are_those_of_reading_all(tmp_path: Path, name: str, made: dict[str, Any]) -> None:
    path = make_video(tmp_path / name, frames=120, **made)
    whole = list(read_frames(path))
    info, choose = probe(path), random.Random(7)
    for indices in (
        [0],
        [119],
        [0, 119],
        [22, 23, 24, 25],
        *(sorted(choose.sample(range(120), n)) for n in (3, 9, 40)),
    ):
        got = list(read_at(path, info, indices))
        assert [frame.index for frame in got] == indices
        for frame in got:
            assert frame.time == whole[frame.index].time
            assert np.array_equal(frame.image, whole[frame.index].image)


def test_single_frames_after_a_cut(tmp_path: Path) -> None:
    whole = make_video(tmp_path / "whole.mp4", frames=90, options=BFRAMES)
    path = cut_start(whole, tmp_path / "cut.mp4", 8 / 30)
    got = read_at(path, None, [0, 3, 40, 81])
    assert [(frame.index, read_number(frame.image)) for frame in got] == [(0, 8), (3, 11), (40, 48), (81, 89)]


def test_far_frames_are_sought_and_near_ones_are_not(tmp_path: Path, decoded: list[int]) -> None:
    path = make_video(tmp_path / "clip.mp4", frames=600, options={"bf": "0", "g": "50"})
    assert [frame.index for frame in read_at(path, None, [3, 305, 308, 570])] == [3, 305, 308, 570]
    assert len(decoded) < 60  # 4 + 9 + 21, and what comes out with the last
    decoded.clear()
    assert len(list(read_at(path, None, range(300, 350)))) == 50
    assert len(decoded) == 50


def test_within_one_key_frame_nothing_is_decoded_twice(tmp_path: Path, decoded: list[int]) -> None:
    path = make_video(tmp_path / "clip.mp4", frames=300, options={"bf": "2", "g": "999"})
    assert len(list(read_at(path, None, range(0, 300, 30)))) == 10
    assert len(decoded) == 271


def test_only_wanted_pictures_are_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_video(tmp_path / "clip.mp4", frames=60)
    converted: list[int] = []

    class Counting:
        def __init__(self) -> None:
            self._scaler = VideoReformatter()

        def reformat(self, frame: Any, **options: Any) -> Any:
            converted.append(frame.pts)
            return self._scaler.reformat(frame, **options)

    monkeypatch.setattr(reader, "VideoReformatter", Counting)
    assert len(list(read_at(path, None, [5, 40]))) == 2
    assert len(converted) == 2


def test_no_single_frames(tmp_path: Path) -> None:
    path = make_video(tmp_path / "clip.mp4", frames=4)
    assert list(read_at(path, None, [])) == []


@pytest.mark.parametrize("indices", [[2, 1], [1, 1], [-1, 2], [0, 4]])
def test_wrong_single_frames(tmp_path: Path, indices: list[int]) -> None:
    path = make_video(tmp_path / "clip.mp4", frames=4)
    with pytest.raises(ValueError, match=r"strictly increasing indices in 0\.\.3"):
        list(read_at(path, None, indices))


def test_single_frames_of_a_damaged_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = make_video(tmp_path / "clip.mp4", frames=120, options={"bf": "0", "g": "30"})
    damage(path, slice(30, 60))
    damage(path, slice(90, None))
    with caplog.at_level(logging.WARNING):
        got = [(frame.index, read_number(frame.image)) for frame in read_at(path, None, [0, 29, 40, 75, 95, 119])]
    assert got == [(0, 0), (29, 29), (75, 75)]
    assert "3 of 6 requested frames cannot be decoded, the first is 40" in caplog.text
    with pytest.raises(VideoError, match="none of the 2 requested frames can be decoded"):
        list(read_at(path, None, [95, 119]))


def test_a_size_that_grows_in_mid_stream(tmp_path: Path) -> None:
    """As that of calls does with the line; beyond 4K, a file of 0.4 MB took gigabytes."""
    quick = {"preset": "ultrafast", "tune": "zerolatency"}
    parts = [
        make_video(tmp_path / f"{width}.h264", frames=frames, size=(width, height), container="h264", options=quick)
        for frames, width, height in ((40, 320, 240), (3, 1280, 720), (3, 4096, 2560))
    ]
    path = join(tmp_path / "all.h264", *parts)
    assert [number for _, number in numbers(path)] == [*range(40), 0, 1, 2]
    large = make_video(tmp_path / "large.mp4", frames=3, size=(4096, 2560), options=quick)
    assert [number for _, number in numbers(large)] == [0, 1, 2], "a file may state it"
