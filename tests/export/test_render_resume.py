"""A rendered video that was interrupted goes on, and becomes what it would have become in one go."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import FrameType
from typing import Any

import av
import numpy as np
import pytest

from ml_backend.errors import ConfigError
from ml_backend.export import render as rendering
from ml_backend.export.draw import Look
from ml_backend.export.layers import Export, file_layer
from ml_backend.export.render import Options, render
from ml_backend.export.segments import segments_of
from ml_backend.video.join import decoding_times
from ml_backend.video.probe import frame_times, playback_duration, probe
from ml_backend.video.reader import read_frames
from ml_backend.video.writer import VideoWriter
from tests.builders import ROOT
from tests.export.drawing import COLOURS, make_region, write_prediction
from tests.video.builders import make_video, read_number

COUNT = 600
#: Not every interval is the same, and they grow: the decoding times of segments counted alone would overlap.
UNEVEN = np.cumsum([3 + n % 3 + 8 * (n // 250) for n in range(COUNT)]).tolist()
MADE: dict[str, dict[str, Any]] = {
    "even": {"audio_s": 20.0, "options": {"bf": "3"}},
    "uneven": {"audio_s": 20.0, "pts": UNEVEN, "time_base": Fraction(1, 120)},
    "turned": {"audio_s": 20.0, "rotation": 90, "size": (120, 160)},
}
#: Constant rate factor at which what is drawn can be compared exactly: with several threads x264 encodes the same
#: pictures differently from run to run.
LOSSLESS = 0


def prediction(path: Path, source: Path, shift: float = 0) -> Path:
    """Objects that cross, come and go, so that trails and names depend on what was before."""
    info = probe(source)
    regions = []
    for n in range(4):
        keys = [
            (f, (10 + n * 20 + f // 7 * (n + 1) + shift) % 80, 50 + (f // 5 * n) % 30, 15, 20, f % 180 != 120)
            for f in range(1 + n * 9, info.frames, 60)
        ]
        regions.append(
            make_region(keys, count=info.frames, fps=info.frames / playback_duration(source), name=f"r{n}", score=0.8)
        )
    return write_prediction(path, regions)


def command(source: Path, given: Path, out: Path, *more: str) -> list[str]:
    script = ROOT / "scripts" / "render_video.py"
    drawn = ["--trails", "--legend", "--crf", str(LOSSLESS)]
    return [sys.executable, str(script), str(source), "--prediction", str(given), "--out", str(out), *drawn, *more]


def run(*arguments: Any, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300, check=False, **more)


def state(out: Path) -> Path:
    return out.parent / f".{out.name}.render"


def finished(out: Path) -> dict[str, tuple[int, int]]:
    """Segments that are complete, and by what they are known again."""
    paths = [path.with_suffix(".mp4") for path in state(out).glob("[0-9]*.json")]
    return {path.name: ((at := path.stat()).st_ino, at.st_mtime_ns) for path in paths}


def killed(source: Path, given: Path, out: Path) -> dict[str, tuple[int, int]]:
    """Segments that a process leaves that is killed when the first has appeared."""
    process = subprocess.Popen(command(source, given, out), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not finished(out) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it was killed on its way"
    assert not out.exists()
    return finished(out)


def sound(path: Path) -> list[tuple[Any, ...]]:
    """Its packets."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        return [(p.pts, p.dts, p.duration, p.time_base, bytes(p)) for p in container.demux(stream) if p.size]


def assert_same(path: Path, other: Path) -> None:
    assert sound(path) == sound(other)
    assert playback_duration(path) == playback_duration(other)
    assert_same_pictures(path, other)


def assert_same_pictures(path: Path, other: Path) -> None:
    np.testing.assert_array_equal(frame_times(path), frame_times(other))
    for frame, wanted in zip(read_frames(path), read_frames(other), strict=True):
        assert np.array_equal(frame.image, wanted.image), frame.index


@pytest.mark.parametrize("kind", MADE)
def test_killed_and_continued(tmp_path: Path, kind: str) -> None:
    source = make_video(tmp_path / "s.mp4", **{"frames": COUNT, "size": (160, 120), "fps": 30} | MADE[kind])
    given = prediction(tmp_path / "p.json", source)
    out, whole = tmp_path / "o.mp4", tmp_path / "whole.mp4"
    assert run(source, given, whole).returncode == 0
    kept = killed(source, given, out)
    assert 1 <= len(kept) < 3
    done = run(source, given, out)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["frames"] == COUNT
    assert_same(out, whole)
    assert not state(out).exists()
    assert not state(whole).exists()
    # What was one go before segments came: the same pictures at the same times.
    layer = file_layer(source, Export(given))
    plain = tmp_path / "plain.mp4"
    render(source, plain, [layer], Options(Look(trails=2, legend=True), crf=LOSSLESS))
    np.testing.assert_allclose(frame_times(plain), frame_times(whole), atol=1e-6)
    assert playback_duration(plain) == pytest.approx(playback_duration(whole), abs=1e-3)
    assert sound(plain) == sound(whole)
    assert [probe(plain).has_audio, probe(plain).rotation] == [probe(whole).has_audio, probe(whole).rotation]
    for frame, wanted in zip(read_frames(whole), read_frames(plain), strict=True):
        assert np.abs(frame.image.astype(int) - wanted.image).mean() < 3


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Path, Path]:
    """Segments of ten pictures, a video of 35 and what is on it."""
    monkeypatch.setattr(rendering, "_KEY", 10)
    monkeypatch.setattr(rendering, "_SEGMENT_S", 1 / 3)
    source = make_video(tmp_path / "s.mp4", frames=35, audio_s=1.0)
    return source, prediction(tmp_path / "p.json", source)


def go(source: Path, given: Path, out: Path, stop: int | None = None, **more: Any) -> list[int]:
    """Render, until a picture; returns the pictures that were drawn."""
    seen: list[int] = []

    def progress(done: int, total: int) -> None:
        assert total == 35
        seen.append(done)
        if done == stop:
            raise KeyboardInterrupt

    layers = [file_layer(source, Export(given))]
    options = Options(Look(trails=1), COLOURS, crf=LOSSLESS, **more)
    if stop is None:
        render(source, out, layers, options, progress, resume=True)
    else:
        with pytest.raises(KeyboardInterrupt):
            render(source, out, layers, options, progress, resume=True)
    return seen


def test_wherever_it_is_interrupted(short: tuple[Path, Path], tmp_path: Path) -> None:
    whole = tmp_path / "whole.mp4"
    go(*short, whole)
    for stop in (9, 10, 11, 25, 30, 34, 35):
        out = tmp_path / "o.mp4"
        out.unlink(missing_ok=True)
        go(*short, out, stop)
        kept = finished(out)
        assert len(kept) == stop // 10
        assert state(out).exists() == bool(kept)
        assert go(*short, out, sound=False)[0] == stop // 10 * 10 + 1
        assert_same_pictures(out, whole)
        assert not probe(out).has_audio
        assert not state(out).exists()


def test_interrupted_again_and_again(short: tuple[Path, Path], tmp_path: Path) -> None:
    whole, out = tmp_path / "whole.mp4", tmp_path / "o.mp4"
    go(*short, whole)
    before: dict[str, tuple[int, int]] = {}
    for stop in (12, 23, 31):
        go(*short, out, stop)
        assert before.items() <= finished(out).items(), "what is done stays untouched"
        before = finished(out)
    go(*short, out)
    assert_same(out, whole)


def _annotation(source: Path, given: Path) -> dict[str, Any]:
    prediction(given, source, shift=5)
    return {}


def _video(source: Path, given: Path) -> dict[str, Any]:
    make_video(source, frames=35, audio_s=1.0, options={"crf": "30"})
    return {}


@pytest.mark.parametrize(
    "change", [_annotation, _video, lambda *_: {"preset": "ultrafast"}, lambda *_: {"height": 120}]
)
def test_another_video_begins_anew(
    short: tuple[Path, Path], tmp_path: Path, change: Callable[[Path, Path], dict[str, Any]]
) -> None:
    out, whole = tmp_path / "o.mp4", tmp_path / "whole.mp4"
    go(*short, out, 25)
    more = change(*short)
    assert go(*short, out, **more)[0] == 1
    go(*short, whole, **more)
    assert_same(out, whole)


def test_a_segment_that_was_lost(short: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "o.mp4"
    go(*short, out, 35)
    (state(out) / "00001.mp4").write_bytes(b"")  # as after a power cut
    assert go(*short, out)[0] == 11
    assert [read_number(frame.image) for frame in read_frames(out)][-1] == 34


def test_two_at_once(short: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "o.mp4"
    go(*short, out, 15)
    handle = os.open(state(out), os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(ConfigError, match="another process"):
        go(*short, out)
    os.close(handle)
    assert go(*short, out)[0] == 11


def test_ended_before_the_first_picture(tmp_path: Path) -> None:
    """After whatever call a signal comes, also between making the folder and locking it, nothing is left."""
    left, raised, at, begun = 0, False, 0, False

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal left, raised
        # Where signals are handled. Not in tempfile, which would keep its lock for ever; a process ends.
        left -= event in ("call", "c_return") and frame.f_code.co_filename != tempfile.__file__
        if left == 0 and not raised:
            raised = True
            raise SystemExit(143)

    before = sys.getprofile()
    while not begun:
        at += 1
        left, raised = at, False
        sys.setprofile(profile)
        try:
            with segments_of(tmp_path / "o.mp4", {"of": 1}, 10, lambda path: VideoWriter(path, 16, 16, 10)):
                sys.setprofile(before)
                begun = not raised
        except SystemExit:
            assert raised
        finally:
            sys.setprofile(before)
        assert list(tmp_path.iterdir()) == [], f"call {at} of its way"
    assert at > 50


def test_pictures_that_are_missing(short: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged stretch longer than a segment, and a tail that is broken."""
    gone = {*range(8, 23), 33, 34}

    def damaged(*given: Any, **more: Any) -> Any:
        return (frame for frame in read_frames(*given, **more) if frame.index not in gone)

    monkeypatch.setattr(rendering, "read_frames", damaged)
    out, whole = tmp_path / "o.mp4", tmp_path / "whole.mp4"
    go(*short, whole)
    go(*short, out, 25)
    go(*short, out)
    assert_same_pictures(out, whole)
    kept = [n for n in range(35) if n not in gone]
    assert [read_number(frame.image) for frame in read_frames(out)] == kept
    np.testing.assert_allclose(frame_times(out), np.array(kept) / 30, atol=1e-6)


def test_a_full_disk(tmp_path: Path) -> None:
    """The segments fit, the whole does not; and then not even the second segment."""
    source = make_video(tmp_path / "s.mp4", frames=COUNT, size=(160, 120), audio_s=20.0)
    given = prediction(tmp_path / "p.json", source)
    whole, out = tmp_path / "whole.mp4", tmp_path / "o.mp4"
    assert run(source, given, whole).returncode == 0
    killed(source, given, out)
    sizes = [path.stat().st_size for path in state(out).glob("[0-9]*.mp4")]

    def limit(size: int) -> Callable[[], None]:
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    for size in (max(sizes) // 2, whole.stat().st_size * 3 // 4):
        before = finished(out)
        done = run(source, given, out, preexec_fn=limit(size))
        assert done.returncode == 1
        assert "Cannot write" in done.stderr
        assert "Traceback" not in done.stderr
        assert before.items() <= finished(out).items()
        assert not out.exists()
    assert len(finished(out)) == 3
    assert run(source, given, out).returncode == 0
    assert_same(out, whole)
    assert not state(out).exists()


def test_decoding_times() -> None:
    assert decoding_times(np.array([7])).tolist() == [7]
    assert decoding_times(np.array([0, 1, 5])).tolist() == [0, 1, 5]
    pts = np.array([0, 30, 10, 20, 40, 1000, 600, 800])
    dts = decoding_times(pts)
    assert (np.diff(dts) > 0).all()
    assert (dts <= pts).all()
