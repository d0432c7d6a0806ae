"""Chromium agrees: size, length, and which picture is on screen at which time."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_backend.video.probe import frame_times, playback_duration, probe
from ml_backend.video.reader import read_frames
from ml_backend.video.transcode import transcode
from tests.video.builders import BITS, cut_start, make_video, merge, read_number
from tests.video.chromium import VIDEO

pytestmark = pytest.mark.browser

BFRAMES = {"bf": "3", "g": "12"}
NO_EDITS = {"use_editlist": "0"}
VARIABLE: dict[str, Any] = {"pts": [n * 5 + n % 3 * 2 for n in range(30)], "time_base": Fraction(1, 90)}
MIME = {".webm": "video/webm", ".mkv": "video/x-matroska", ".mov": "video/quicktime"}
# Reads at each time the number in the picture.
PLAYER = (
    """async ([content, mime, times, bits, wanted]) => {"""
    + VIDEO
    + """
  const video = await load(content, mime);
  const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  const context = canvas.getContext('2d', {willReadFrequently: true});
  const look = () => {
    context.drawImage(video, 0, 0);
    const row = context.getImageData(0, Math.floor(canvas.height / 10), canvas.width, 1).data;
    const block = Math.floor(canvas.width / bits);
    let number = 0;
    for (let bit = 0; bit < bits; bit++) {
      const at = 4 * Math.floor((bit + 0.5) * block);
      if (row[at] + row[at + 1] + row[at + 2] > 384) number |= 1 << bit;
    }
    return number;
  };
  const seen = await lookAt(video, times, look, (number, n) => number === wanted[n]);
  return {width: video.videoWidth, height: video.videoHeight, duration: video.duration, seen};
}"""
)


@pytest.fixture(scope="module")
def page(chromium: Any) -> Iterator[Any]:
    opened = chromium.new_page()
    yield opened
    opened.close()


def play(page: Any, path: Path, times: list[float], wanted: list[int]) -> Any:
    content = base64.b64encode(path.read_bytes()).decode()
    return page.evaluate(PLAYER, [content, MIME.get(path.suffix, "video/mp4"), times, BITS, wanted])


def assert_browser_agrees(page: Any, path: Path) -> None:
    info, times = probe(path), frame_times(path)
    ends = np.append(times[1:], times[0] + info.duration)
    chosen = sorted({0, 1, 2, *range(3, info.frames, 5), info.frames - 1})
    ours = {frame.index: read_number(frame.image) for frame in read_frames(path)}
    wanted = [ours[n] for n in chosen]
    shown = play(page, path, [float((times[n] + ends[n]) / 2) for n in chosen], wanted)
    assert (shown["width"], shown["height"]) == (info.width, info.height)
    assert shown["duration"] == pytest.approx(playback_duration(path), abs=1e-3)
    assert shown["seen"] == wanted


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("bframes.mp4", {"options": BFRAMES}),
        ("ntsc.mp4", {"fps": Fraction(30000, 1001)}),
        ("sound.mp4", {"audio_s": 2.0, "options": BFRAMES}),
        ("late.mkv", {"pts": range(30, 60)}),
        ("after_sound.mp4", {"pts": range(30, 60), "audio_s": 3.0}),
        # With B-frames, durations in the file are those of the decoding order, and Chromium 150 goes by them.
        ("vfr.mp4", VARIABLE | {"options": {"bf": "0"}}),
        ("turned90.mp4", {"rotation": 90}),
        ("turned180.mp4", {"rotation": 180}),
        ("turned270.mp4", {"rotation": 270}),
        ("mirrored.mp4", {"mirrored": True}),
        ("mirrored90.mp4", {"mirrored": True, "rotation": 90}),
        ("mirrored180.mp4", {"mirrored": True, "rotation": 180}),
        ("mirrored270.mp4", {"mirrored": True, "rotation": 270}),
        ("mirrored.mkv", {"mirrored": True, "rotation": 90}),
        ("wide.mp4", {"aspect": Fraction(4, 3)}),
        ("tall.mp4", {"aspect": Fraction(3, 4)}),
        ("wide_turned.mp4", {"aspect": Fraction(4, 3), "rotation": 90}),
        ("negative_offsets.mp4", {"options": BFRAMES, "container_options": {"movflags": "negative_cts_offsets"}}),
        ("vp9.webm", {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}),
    ],
)
def test_same_picture_at_the_same_time(tmp_path: Path, page: Any, name: str, made: dict[str, Any]) -> None:
    assert_browser_agrees(page, make_video(tmp_path / name, **made))


def test_cut_by_an_edit_list(tmp_path: Path, page: Any) -> None:
    whole = make_video(tmp_path / "whole.mp4", options=BFRAMES)
    path = cut_start(whole, tmp_path / "cut.mp4", 8 / 30)
    info, times = probe(path), frame_times(path)
    wanted = list(range(8, 30))
    assert play(page, path, [float(time) + 0.01 for time in times], wanted)["seen"] == wanted
    assert info.frames == 22


@pytest.mark.parametrize("enabled", [(True, True), (False, True), (True, False), (False, False)])
def test_the_same_of_several_tracks(tmp_path: Path, page: Any, enabled: tuple[bool, bool]) -> None:
    small = make_video(tmp_path / "a.mp4", size=(160, 120))
    assert_browser_agrees(page, merge(tmp_path / "both.mp4", small, make_video(tmp_path / "b.mp4"), enabled=enabled))


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("mirrored.mp4", {"mirrored": True, "rotation": 270}),
        ("live.webm", {"codec": "libvpx", "container_options": {"live": "1"}}),
        (
            "hevc.mp4",
            {"codec": "libx265", "options": {"x265-params": "log-level=none"}, "rotation": 90, "audio_s": 1.0},
        ),
        ("mpeg4.avi", {"codec": "mpeg4", "options": {"bf": "2"}}),
        ("fragments.mp4", {"options": BFRAMES, "container_options": {"movflags": "frag_keyframe+empty_moov"}}),
        ("noedit.mp4", {"options": BFRAMES, "container_options": NO_EDITS}),
        ("late.mp4", {"pts": range(30, 60)}),
        ("clip.ts", {"options": BFRAMES, "audio_s": 1.0}),
        ("ntsc.mkv", {"options": BFRAMES, "fps": Fraction(30000, 1001)}),
        ("turned.mov", {"rotation": 90, "audio_s": 1.0, "audio_codec": "pcm_s16le"}),
        ("vfr.mp4", VARIABLE),
    ],
)
def test_playable_copies_play(tmp_path: Path, page: Any, name: str, made: dict[str, Any]) -> None:
    copy = tmp_path / "copy.mp4"
    transcode(make_video(tmp_path / name, **made), copy)
    assert_browser_agrees(page, copy)


def test_the_browser_does_refuse_what_is_encoded_anew(tmp_path: Path, page: Any) -> None:
    """The premise of the copies; a browser that plays it would make them needless."""
    path = make_video(tmp_path / "mpeg4.mp4", codec="mpeg4")
    with pytest.raises(Exception, match="no supported streams"):
        play(page, path, [0.0], [0])
