"""Playable copies: made only where needed, the same frames, upright, in step with their sound."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from ml_backend.core.errors import StorageError, VideoError
from ml_backend.video.probe import frame_times, probe
from ml_backend.video.reader import read_frames
from ml_backend.video.transcode import plan_transcode, transcode
from tests.video.builders import cut_start, join, make_audio, make_video, merge, read_number, truncate

BFRAMES = {"bf": "3", "g": "12"}
FRONT = {"movflags": "+faststart"}
FAST_VP9 = {"deadline": "realtime", "cpu-used": "8"}
QUIET_HEVC = {"x265-params": "log-level=none"}
NTSC = Fraction(30000, 1001)


def numbers(path: Path) -> list[int]:
    return [read_number(frame.image) for frame in read_frames(path)]


def pictures(path: Path) -> list[bytes]:
    """The coded pictures themselves."""
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("plain.mp4", {"container_options": FRONT}),
        ("bframes.mp4", {"options": BFRAMES, "container_options": FRONT, "audio_s": 1.2}),
        ("turned.mp4", {"rotation": 90, "container_options": FRONT}),
        ("ntsc.mp4", {"fps": NTSC, "container_options": FRONT}),
        ("wide.mp4", {"aspect": Fraction(4, 3), "container_options": FRONT}),
        ("vp9.webm", {"codec": "libvpx-vp9", "options": FAST_VP9, "audio_s": 1.0, "audio_codec": "libopus"}),
        ("one.mp4", {"frames": 1, "container_options": FRONT}),
    ],
)
def test_playable_videos_are_left_alone(tmp_path: Path, name: str, made: dict[str, Any]) -> None:
    assert plan_transcode(make_video(tmp_path / name, **made)).action == "keep"


@pytest.mark.parametrize(
    ("name", "made", "reason"),
    [
        ("end.mp4", {"options": BFRAMES, "audio_s": 1.0}, "index is at the end"),
        ("turned.mp4", {"rotation": 90}, "index is at the end"),
        ("fragments.mp4", {"options": BFRAMES, "container_options": {"movflags": "frag_keyframe+empty_moov"}}, "fragm"),
        ("clip.mkv", {"options": BFRAMES, "audio_s": 1.0}, "container (matroska)"),
        ("ntsc.mkv", {"fps": NTSC, "options": BFRAMES}, "container (matroska)"),
        ("late.mkv", {"pts": range(150, 180), "options": BFRAMES}, "container (matroska)"),
        ("clip.mov", {"options": BFRAMES}, "QuickTime"),
        ("clip.ts", {"options": BFRAMES, "audio_s": 1.0}, "container (mpegts)"),
        (
            "noedit.mp4",
            {"options": BFRAMES, "container_options": {"use_editlist": "0"} | FRONT},
            "after its stated end",
        ),
        ("clip.flv", {"options": BFRAMES}, "container (flv)"),
        ("clip.m4v", {"container": "mp4", "container_options": FRONT}, "*.m4v"),
        ("vp9.mkv", {"codec": "libvpx-vp9", "options": FAST_VP9}, "container (matroska)"),
        (
            "live.webm",
            {"codec": "libvpx-vp9", "options": FAST_VP9, "container_options": {"live": "1"}, "audio_s": 1.0}
            | {"audio_codec": "libopus"},
            "state its length",
        ),
    ],
)
def test_a_wrong_container_is_changed_without_encoding(
    tmp_path: Path, name: str, made: dict[str, Any], reason: str
) -> None:
    source, out = make_video(tmp_path / name, **made), tmp_path / "out" / "copy.mp4"
    before = probe(source)
    assert plan_transcode(source).action == "remux"
    assert reason in plan_transcode(source).reason
    info = transcode(source, out)
    assert info == probe(out)
    assert plan_transcode(out).action == "keep"
    assert (info.frames, info.codec, info.rotation) == (before.frames, before.codec, before.rotation)
    assert (info.width, info.height) == (before.width, before.height)
    assert info.fps == pytest.approx(before.fps, rel=1e-9)
    assert frame_times(out)[0] == pytest.approx(0, abs=1e-6)
    assert numbers(out) == list(range(30))
    assert sorted(map(len, pictures(out))) == pytest.approx(sorted(map(len, pictures(source))), abs=64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "made", "reason"),
    [
        ("hevc.mp4", {"codec": "libx265", "options": QUIET_HEVC, "audio_s": 1.0}, "hevc"),
        ("turned.mp4", {"codec": "libx265", "options": QUIET_HEVC, "rotation": 270}, "hevc"),
        ("mpeg4.avi", {"codec": "mpeg4", "options": {"bf": "2"}}, "mpeg4"),
        ("h264.avi", {"options": BFRAMES}, "container (avi)"),
        ("mjpeg.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p", "size": (321, 241)}, "mjpeg"),
        ("tenbit.mp4", {"pix_fmt": "yuv420p10le", "container_options": FRONT}, "yuv420p10le"),
        ("mirrored.mp4", {"mirrored": True, "rotation": 90, "container_options": FRONT}, "mirrors"),
        ("live.webm", {"codec": "libvpx", "options": FAST_VP9, "container_options": {"live": "1"}}, "state its length"),
        ("full.mp4", {"pix_fmt": "yuv444p", "container_options": FRONT}, "yuv444p"),
        ("wide.mp4", {"codec": "mpeg4", "aspect": Fraction(4, 3)}, "mpeg4"),
        ("vp8.mkv", {"codec": "libvpx", "options": FAST_VP9}, "container (matroska)"),
        ("animation.gif", {"codec": "gif", "pix_fmt": "rgb8", "fps": 10}, "gif"),
        ("broadcast.mpg", {"codec": "mpeg2video", "options": {"bf": "2"}}, "mpeg2video"),
        ("bare.h264", {"options": BFRAMES, "fps": 25}, "container (h264)"),
    ],
)
def test_what_browsers_cannot_decode_is_encoded_frame_for_frame(
    tmp_path: Path, name: str, made: dict[str, Any], reason: str
) -> None:
    source, out = make_video(tmp_path / name, **made), tmp_path / "copy.mp4"
    before = probe(source)
    assert reason in plan_transcode(source).reason
    info = transcode(source, out)
    assert plan_transcode(out).action == "keep"
    assert (info.codec, info.pix_fmt, info.rotation, info.variable_frame_rate) == ("h264", "yuv420p", 0, False)
    assert (info.width, info.height) == (before.width + before.width % 2, before.height + before.height % 2)
    assert (info.frames, info.has_audio) == (before.frames, before.has_audio)
    assert info.fps == pytest.approx(before.fps, rel=1e-6)
    assert numbers(out) == list(range(30))


def test_variable_rate_becomes_constant_at_the_same_times(tmp_path: Path) -> None:
    pts = [0, 3, 6, 9, 30, 33, 36, 39, 42, 45]  # units of 1/90 s: 30 frames/s with a pause of 0.23 s
    source = make_video(tmp_path / "vfr.mp4", frames=10, pts=pts, time_base=Fraction(1, 90), container_options=FRONT)
    assert "varies" in plan_transcode(source).reason
    out = tmp_path / "copy.mp4"
    info = transcode(source, out)
    assert (info.fps, info.variable_frame_rate) == (30.0, False)
    assert info.duration == pytest.approx(probe(source).duration, abs=1 / 30)
    shown = numbers(out)
    for moment in np.arange(0.01, info.duration, 0.02):
        wanted = int(np.searchsorted(frame_times(source), moment, side="right")) - 1
        got = int(np.searchsorted(frame_times(out), moment, side="right")) - 1
        assert shown[got] == wanted, f"at {moment:.2f} s"


def _loud_from(path: Path, after: float = 0.0) -> float:
    """Seconds on the video's clock at which the sound sets in."""
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            loud = np.flatnonzero(np.abs(frame.to_ndarray()).max(axis=0) > 0.05)
            if frame.time >= after and len(loud):
                return float(frame.time) + float(loud[0]) / float(frame.sample_rate)
    raise AssertionError("silent")


@pytest.mark.parametrize(
    ("name", "made", "codec"),
    [
        ("copied.mkv", {"options": BFRAMES}, "aac"),
        ("encoded.mov", {"options": BFRAMES, "audio_codec": "pcm_s16le"}, "aac"),
        ("both.avi", {"codec": "mpeg4", "audio_codec": "pcm_s16le"}, "aac"),
        ("hevc.mkv", {"codec": "libx265", "options": QUIET_HEVC, "audio_codec": "libopus"}, "opus"),
    ],
)
def test_sound_stays_in_step(tmp_path: Path, name: str, made: dict[str, Any], codec: str) -> None:
    source = make_video(tmp_path / name, audio_s=1.0, audio_silence_s=0.5, **made)
    out = tmp_path / "copy.mp4"
    transcode(source, out)
    with av.open(str(out)) as container:
        assert container.streams.audio[0].codec_context.codec.canonical_name == codec
    assert _loud_from(out) == pytest.approx(0.5, abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.8, 1.0, 1.4])
@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("copied.ts", {"options": BFRAMES}),
        ("encoded.mpg", {"codec": "mpeg2video", "options": {"bf": "2"}, "audio_codec": "mp2"}),
    ],
)
def test_joined_recordings_stay_in_step_with_their_sound(
    tmp_path: Path, name: str, made: dict[str, Any], seconds: float
) -> None:
    part = make_video(tmp_path / f"part-{name}", audio_s=seconds, audio_silence_s=0.5, **made)
    source, out = join(tmp_path / name, part, part, part), tmp_path / "copy.mp4"
    info = transcode(source, out)
    assert (info.frames, info.fps) == (90, 30)
    assert plan_transcode(out).action == "keep"
    assert numbers(out) == [*range(30)] * 3
    for n in range(3):
        assert _loud_from(out, n + 0.45) == pytest.approx(n + 0.5, abs=0.1)


def test_a_picture_that_browsers_may_turn_differently_is_encoded_upright(tmp_path: Path) -> None:
    path = make_video(tmp_path / "tilted.mp4", rotation=30, container_options=FRONT)
    assert "angle" in plan_transcode(path).reason
    assert transcode(path, tmp_path / "copy.mp4").rotation == 0


def test_joined_recordings_are_never_kept(tmp_path: Path) -> None:
    part = make_video(tmp_path / "part.webm", codec="libvpx-vp9", options=FAST_VP9)
    assert "begin again" in plan_transcode(join(tmp_path / "joined.webm", part, part)).reason


@pytest.mark.parametrize(
    ("suffix", "made"),
    [
        ("mp4", {}),
        ("mp4", {"container_options": FRONT}),
        ("mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}}),
        ("mov", {}),
        ("flv", {}),
    ],
)
def test_recordings_that_nothing_reads_beyond_the_first_are_refused(
    tmp_path: Path, suffix: str, made: dict[str, Any]
) -> None:
    part = make_video(tmp_path / f"part.{suffix}", audio_s=0.5, **made)
    assert plan_transcode(part).action in ("keep", "remux")
    with pytest.raises(VideoError, match=r"(?s)several recordings.*ffmpeg"):
        plan_transcode(join(tmp_path / f"joined.{suffix}", part, part))


def test_variable_rate_with_frames_at_one_time(tmp_path: Path) -> None:
    source = tmp_path / "twice.mkv"
    with av.open(str(make_video(tmp_path / "clip.mp4", options={"bf": "0"}))) as inp, av.open(str(source), "w") as out:
        copy = out.add_stream_from_template(inp.streams.video[0])
        for number, packet in enumerate(inp.demux(video=0)):
            if packet.size:
                packet.pts = packet.dts = (number if number < 3 else number // 10 * 10 + 10) * 33
                packet.stream = copy
                out.mux(packet)
    assert transcode(source, tmp_path / "copy.mp4").frames > 1


def test_of_several_sound_tracks_the_enabled_one_is_copied(tmp_path: Path) -> None:
    early = make_video(tmp_path / "a.mp4", audio_s=1.0, audio_silence_s=0.2)
    late = make_video(tmp_path / "b.mp4", audio_s=1.0, audio_silence_s=0.7)
    source = merge(tmp_path / "both.mp4", early, late, enabled=(True, False, False, True))
    transcode(source, tmp_path / "copy.mp4")
    assert _loud_from(tmp_path / "copy.mp4") == pytest.approx(0.7, abs=0.03)


def test_sound_before_the_first_frame_goes(tmp_path: Path) -> None:
    source = make_video(tmp_path / "late.mkv", pts=range(30, 60), audio_s=2.0, audio_silence_s=1.5, options=BFRAMES)
    out = tmp_path / "copy.mp4"
    transcode(source, out)
    assert numbers(out) == list(range(30))
    assert _loud_from(out) == pytest.approx(0.5, abs=0.03)


def test_frames_hidden_by_an_edit_stay_hidden(tmp_path: Path) -> None:
    whole = make_video(tmp_path / "whole.mp4", frames=30, options=BFRAMES)
    source = cut_start(whole, tmp_path / "cut.mp4", 8 / 30)
    transcode(source, tmp_path / "copy.mp4")
    assert numbers(tmp_path / "copy.mp4") == list(range(8, 30))


def test_cut_off_video_keeps_what_is_left(tmp_path: Path) -> None:
    whole = make_video(tmp_path / "whole.mp4", frames=60, container_options=FRONT, options=BFRAMES)
    source = truncate(whole, tmp_path / "half.mp4", 0.7)
    assert "damaged" in plan_transcode(source).reason
    info = transcode(source, tmp_path / "copy.mp4")
    assert info.frames == probe(source).frames
    assert plan_transcode(tmp_path / "copy.mp4").action == "keep"


def test_a_finished_copy_is_reused_until_the_source_changes(tmp_path: Path) -> None:
    source, out = make_video(tmp_path / "clip.avi", codec="mpeg4"), tmp_path / "copy.mp4"
    transcode(source, out)
    made = out.stat().st_mtime_ns
    assert transcode(source, out).frames == 30
    assert out.stat().st_mtime_ns == made
    make_video(source, codec="mpeg4", frames=20)
    assert transcode(source, out).frames == 20


def test_a_foreign_or_broken_target_is_replaced(tmp_path: Path) -> None:
    source, out = make_video(tmp_path / "clip.avi", codec="mpeg4"), tmp_path / "copy.mp4"
    out.write_bytes(b"half a copy")
    assert transcode(source, out).frames == 30


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="only audio"):
        transcode(make_audio(tmp_path / "sound.m4a"), tmp_path / "copies" / "copy.mp4")
    source = make_video(tmp_path / "clip.avi", codec="mpeg4")

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        transcode(source, tmp_path / "copies" / "copy.mp4", stop)
    assert list((tmp_path / "copies").iterdir()) == []


@pytest.mark.parametrize(("name", "codec"), [("clip.avi", "mpeg4"), ("clip.mkv", "libx264")])
def test_progress_counts_every_frame(tmp_path: Path, name: str, codec: str) -> None:
    seen: list[tuple[int, int]] = []
    source = make_video(tmp_path / name, codec=codec)
    transcode(source, tmp_path / "copy.mp4", lambda done, total: seen.append((done, total)))
    assert seen == [(n, 30) for n in range(1, 31)]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        transcode(make_video(tmp_path / "clip.avi", codec="mpeg4"), tmp_path / "file" / "copy.mp4")


@pytest.mark.slow
def test_the_source_is_never_the_target(tmp_path: Path) -> None:
    source = make_video(tmp_path / "clip.mp4")
    os.link(source, tmp_path / "same.mp4")
    for target in (source, tmp_path / "same.mp4", tmp_path / "other.avi"):
        with pytest.raises(ValueError, match="expected out"):
            transcode(source, target)
