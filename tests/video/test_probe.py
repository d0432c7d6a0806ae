"""Facts about ordinary and odd videos, and clear refusals of what is none."""

from __future__ import annotations

import logging
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_backend.core.errors import VideoError
from ml_backend.video.probe import frame_times, playback_duration, probe
from ml_backend.video.reader import read_frames
from tests.video.builders import cut_start, make_audio, make_video, truncate

BFRAMES = {"bf": "3", "g": "12"}
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov"}
NTSC = Fraction(30000, 1001)


@pytest.mark.parametrize(
    ("name", "made", "fps", "codec"),
    [
        ("plain.mp4", {}, 30, "h264"),
        ("bframes.mp4", {"options": BFRAMES}, 30, "h264"),
        ("ntsc.mp4", {"fps": NTSC}, float(NTSC), "h264"),
        ("ntsc.mkv", {"fps": NTSC, "options": BFRAMES}, float(NTSC), "h264"),
        ("hevc.mp4", {"codec": "libx265", "options": {"x265-params": "log-level=none"}}, 30, "hevc"),
        ("vp9.webm", {"codec": "libvpx-vp9", "options": {"deadline": "realtime"}}, 30, "vp9"),
        ("altref.webm", {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "12"}}, 30, "vp8"),
        ("mpeg4.avi", {"codec": "mpeg4", "options": {"bf": "2"}}, 30, "mpeg4"),
        ("h264.avi", {"options": BFRAMES}, 30, "h264"),
        ("mjpeg.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}, 30, "mjpeg"),
        ("tenbit.mp4", {"pix_fmt": "yuv420p10le"}, 30, "h264"),
        ("odd.mp4", {"size": (321, 241), "codec": "mpeg4"}, 30, "mpeg4"),
        ("fragments.mp4", {"options": BFRAMES, "container_options": FRAGMENTED}, 30, "h264"),
        ("stream.ts", {"options": BFRAMES}, 30, "h264"),
        ("bare.h264", {"options": BFRAMES, "fps": 25}, 25, "h264"),
        ("sound.mp4", {"audio_s": 2.0}, 30, "h264"),
        ("animation.gif", {"codec": "gif", "pix_fmt": "rgb8", "fps": 10}, 10, "gif"),
    ],
)  # fmt: skip
def test_facts_and_every_frame_is_read(tmp_path: Path, name: str, made: dict[str, Any], fps: float, codec: str) -> None:
    path = make_video(tmp_path / name, frames=40, **made)
    info = probe(path)
    assert (info.width, info.height) == made.get("size", (320, 240))
    assert info.frames == 40
    assert info.fps == pytest.approx(fps, rel=1e-9)
    assert info.duration == pytest.approx(40 / fps)
    assert info.codec == codec
    assert not info.variable_frame_rate
    assert info.has_audio == ("audio_s" in made)
    times = frame_times(path)
    assert times.shape == (40,)
    np.testing.assert_allclose(np.diff(times), 1 / fps, atol=1.1e-3)
    read = [(frame.index, frame.time) for frame in read_frames(path, info)]
    assert read == list(enumerate(times))


def test_times_of_variable_rate(tmp_path: Path) -> None:
    pts = [0, 3, 6, 20, 23, 26, 29, 60, 61, 62]
    path = make_video(tmp_path / "vfr.mp4", frames=10, pts=pts, time_base=Fraction(1, 90), options=BFRAMES)
    np.testing.assert_allclose(frame_times(path), np.array(pts) / 90, atol=1e-6)
    assert probe(path).variable_frame_rate


def test_one_dropped_frame_makes_the_rate_variable(tmp_path: Path) -> None:
    path = make_video(tmp_path / "drop.mp4", frames=20, pts=[*range(10), *range(11, 21)])
    assert probe(path).variable_frame_rate


def test_single_frame(tmp_path: Path) -> None:
    info = probe(make_video(tmp_path / "one.mp4", frames=1, fps=25))
    assert (info.frames, info.fps, info.duration) == (1, 25.0, 0.04)


def test_video_that_begins_later_keeps_its_times(tmp_path: Path) -> None:
    path = make_video(tmp_path / "late.mkv", pts=range(150, 180))
    times = frame_times(path)
    assert times[0] == pytest.approx(5.0)
    assert probe(path).duration == pytest.approx(1.0)
    assert playback_duration(path) == pytest.approx(6.0)


def test_playback_lasts_as_long_as_the_sound(tmp_path: Path) -> None:
    path = make_video(tmp_path / "sound.mp4", audio_s=3.0)
    assert probe(path).duration == pytest.approx(1.0)
    assert playback_duration(path) == pytest.approx(3.0, abs=0.05)


def test_frames_before_an_edit_are_not_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = make_video(tmp_path / "whole.mp4", frames=30, options=BFRAMES)
    path = cut_start(whole, tmp_path / "cut.mp4", 8 / 30)
    assert probe(path).frames == 22
    assert frame_times(path)[0] == pytest.approx(0, abs=1e-6)
    assert not caplog.records, "such a file is not damaged"


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_size_is_that_after_rotation(tmp_path: Path, rotation: int) -> None:
    info = probe(make_video(tmp_path / "turned.mp4", size=(320, 192), rotation=rotation))
    assert (info.width, info.height, info.rotation) == (320, 192, rotation)


@pytest.mark.parametrize(
    ("aspect", "rotation", "size"),
    [
        (Fraction(4, 3), 0, (427, 240)),
        (Fraction(3, 4), 0, (320, 320)),
        (Fraction(4, 3), 90, (320, 320)),
    ],
)
def test_size_is_in_square_pixels(tmp_path: Path, aspect: Fraction, rotation: int, size: tuple[int, int]) -> None:
    info = probe(make_video(tmp_path / "wide.mp4", aspect=aspect, rotation=rotation))
    assert (info.width, info.height) == size


# -- refusals


def _audio(folder: Path) -> Path:
    return make_audio(folder / "sound.m4a")


def _cover(folder: Path) -> Path:
    # A picture of one frame is a video; the same as attached cover of a sound file is not.
    import av

    path = folder / "song.mp3"
    picture = make_video(folder / "cover.mjpeg", frames=1, codec="mjpeg", pix_fmt="yuvj420p", container="mjpeg")
    tone = make_audio(folder / "tone.mp3", codec="libmp3lame")
    with av.open(str(tone)) as sound, av.open(str(picture)) as cover, av.open(str(path), "w", format="mp3") as out:
        audio = out.add_stream_from_template(sound.streams.audio[0])
        image = out.add_stream_from_template(cover.streams.video[0])
        image.disposition = 1024  # attached_pic
        for source, stream in ((cover.demux(video=0), image), (sound.demux(audio=0), audio)):
            for packet in source:
                if packet.size:
                    packet.stream = stream
                    packet.pts = packet.dts = packet.pts or 0
                    out.mux(packet)
    return path


def _write(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _cut_off(folder: Path) -> Path:
    return truncate(make_video(folder / "whole.mp4"), folder / "half.mp4", 0.5)  # the index is at the end


def _zeroed(folder: Path) -> Path:
    import av

    path = make_video(folder / "whole.mp4", container_options={"movflags": "+faststart"})
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        start = min(packet.pos for packet in container.demux() if packet.pos is not None)
    data[start:] = bytes(len(data) - start)
    return _write(folder, "zeroed.mp4", bytes(data))


def _same_times(folder: Path) -> Path:
    return make_same_times(folder / "frozen.mkv")


def make_same_times(path: Path) -> Path:
    import av

    source = make_video(path.with_suffix(".mp4"), frames=5, options={"bf": "0"})
    with av.open(str(source)) as inp, av.open(str(path), "w") as out:
        copy = out.add_stream_from_template(inp.streams.video[0])
        for packet in inp.demux(video=0):
            if packet.size:
                packet.pts = packet.dts = 0
                packet.stream = copy
                out.mux(packet)
    return path


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (lambda folder: folder / "nowhere.mp4", "does not exist"),
        (lambda folder: folder, "is a folder"),
        (lambda folder: _write(folder, "empty.mp4", b""), "is empty"),
        (lambda folder: _write(folder, "notes.mp4", "This is not a video at all.\n" * 50), "is a text file"),
        (lambda folder: _write(folder, "noise.mp4", np.random.default_rng(3).bytes(50_000)), "not a video"),
        (_cut_off, "without a usable index"),
        (_zeroed, "can be decoded"),
        (_audio, "only audio"),
        (_cover, "only audio"),
        (_same_times, "no frame rate"),
        (lambda folder: make_video(folder / "gap.mkv", frames=5, pts=[0, 1, 2, 3, 3_240_000]), "30 hours after"),
    ],
)  # fmt: skip
def test_refusals_name_cause_and_cure(tmp_path: Path, make: Any, cause: str) -> None:
    path = make(tmp_path)
    with pytest.raises(VideoError) as caught:
        probe(path)
    assert cause in caught.value.message
    assert caught.value.hint


def test_fifo_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(VideoError, match="not a regular file"):
        probe(tmp_path / "pipe.mp4")


@pytest.mark.parametrize(
    "playlist",
    [
        "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.0,\n{other}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {other}\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{other}</BaseURL></MPD>',
        "v=0\nm=video 5004 RTP/AVP 96\nc=IN IP4 127.0.0.1\na=rtpmap:96 H264/90000\n",
    ],
)
@pytest.mark.parametrize("name", ["upload.mp4", "upload.m3u8", "upload.ffconcat", "upload.mpd", "upload.sdp"])
def test_playlists_cannot_reach_other_files(tmp_path: Path, playlist: str, name: str) -> None:
    other = make_video(tmp_path / "private.ts")
    path = _write(tmp_path, name, playlist.format(other=other.name))
    with pytest.raises(VideoError) as caught:
        probe(path)
    assert "playlist" in caught.value.message or "not in a supported" in caught.value.message


def test_urls_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    video = make_video(tmp_path / "there.mp4")
    for name in (f"file:{video}", "http://127.0.0.1:9/video.mp4", f"concat:{video}"):
        with pytest.raises(VideoError, match="does not exist"):
            probe(name)


# -- damaged but usable


def test_cut_off_file_is_used_and_said_to_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = make_video(tmp_path / "whole.mp4", frames=60, container_options={"movflags": "+faststart"}, options=BFRAMES)
    path = truncate(whole, tmp_path / "half.mp4", 0.7)
    with caplog.at_level(logging.WARNING):
        info = probe(path)
    assert 5 < info.frames < 60
    assert "damaged or truncated" in caplog.text
    assert [frame.index for frame in read_frames(path, info)] == list(range(info.frames))


def test_a_changed_file_is_probed_anew(tmp_path: Path) -> None:
    path = make_video(tmp_path / "clip.mp4", frames=10)
    assert probe(path).frames == 10
    make_video(path, frames=25)
    assert probe(path).frames == 25


def test_real_video(people_video: Path) -> None:
    info = probe(people_video)
    assert (info.width, info.height, info.frames, info.fps) == (1920, 1080, 302, 30.0)
    assert (info.codec, info.pix_fmt, info.rotation, info.variable_frame_rate) == ("h264", "yuv420p", 0, False)
