"""H.264 output: complete and playable, or not there at all."""

from __future__ import annotations

import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import FrameType
from typing import Any

import av
import numpy as np
import pytest

from ml_backend.core.errors import StorageError, VideoError
from ml_backend.video.audio import AudioTrack
from ml_backend.video.container import mp4_layout
from ml_backend.video.probe import frame_times, probe
from ml_backend.video.reader import read_frames
from ml_backend.video.transcode import plan_transcode
from ml_backend.video.writer import VideoWriter
from tests.video.builders import make_video, numbered_image, read_number


def write(path: Path, *, frames: int = 30, size: tuple[int, int] = (320, 240), fps: float = 25) -> Path:
    with VideoWriter(path, *size, fps) as writer:
        for number in range(frames):
            writer.write(numbered_image(number, *size))
    return path


def fail_while_writing(path: Path) -> None:
    with VideoWriter(path, 64, 64, 25) as writer:
        writer.write(np.zeros((64, 64, 3), np.uint8))
        raise KeyError("stop")


@pytest.mark.parametrize("fps", [25, 29.97, 30000 / 1001, 12.5, 59.94, 1, 0.5])
def test_what_is_written_is_read(tmp_path: Path, fps: float) -> None:
    path = write(tmp_path / "new" / "clip.mp4", fps=fps)
    info = probe(path)
    assert (info.codec, info.pix_fmt, info.frames) == ("h264", "yuv420p", 30)
    assert info.fps == pytest.approx(fps, rel=1e-5)
    assert plan_transcode(path).action == "keep"
    assert [read_number(frame.image) for frame in read_frames(path)] == list(range(30))


def test_index_is_in_front(tmp_path: Path) -> None:
    assert mp4_layout(write(tmp_path / "clip.mp4")) == (False, False)


@pytest.mark.parametrize("size", [(321, 241), (320, 241), (321, 240), (2, 2), (17, 9)])
def test_odd_sizes_are_padded_on_the_right_and_below(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "odd.mp4"
    image = np.full((size[1], size[0], 3), 200, np.uint8)
    with VideoWriter(path, *size, 25, crf=5) as writer:
        writer.write(image)
    frame = next(read_frames(path))
    assert frame.image.shape[:2] == (size[1] + size[1] % 2, size[0] + size[0] % 2)
    assert np.abs(frame.image.astype(int) - 200).max() < 12, "the padding repeats the picture"


@pytest.mark.parametrize("size", [(320, 240), (1280, 720)])
def test_colours_survive(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "colours.mp4"
    wanted = numbered_image(5, *size)
    with VideoWriter(path, *size, 25, crf=5) as writer:
        writer.write(wanted)
    got = next(read_frames(path)).image.astype(int)
    assert np.abs(got - wanted).mean() < 4
    assert abs((got - wanted).mean()) < 3
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_range) == (1, 1), "players must not guess"


def test_explicit_times(tmp_path: Path) -> None:
    path = tmp_path / "vfr.mp4"
    with VideoWriter(path, 64, 64, Fraction(10)) as writer:
        for pts in (0, 1, 5, 6):
            writer.write(np.zeros((64, 64, 3), np.uint8), pts)
    np.testing.assert_allclose(frame_times(path), [0, 0.1, 0.5, 0.6], atol=1e-6)


def test_times_in_units_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "vfr.mp4"
    with VideoWriter(path, 64, 64, 30, time_base=Fraction(1, 90_000)) as writer:
        for pts in (0, 3003, 12_000, 12_001):
            writer.write(np.zeros((64, 64, 3), np.uint8), pts)
    np.testing.assert_allclose(frame_times(path) * 90_000, [0, 3003, 12_000, 12_001], atol=0.01)


def tone_begins(path: Path) -> tuple[float, float]:
    """Seconds at which a file's sound becomes a tone, and ends."""
    with av.open(str(path)) as container:
        pieces = list(container.decode(container.streams.audio[0]))
    wave = np.concatenate([piece.to_ndarray()[0] for piece in pieces])
    rate = pieces[0].sample_rate
    begin = float(pieces[0].time)
    return begin + int(np.argmax(np.abs(wave) > 0.05)) / rate, begin + len(wave) / rate


@pytest.mark.parametrize(("name", "codec"), [("s.mp4", "aac"), ("s.mkv", "pcm_s16le"), ("s.mkv", "libopus")])
@pytest.mark.parametrize(("start", "end"), [(0.0, None), (0.4, None), (0.4, 0.9)])
def test_sound(tmp_path: Path, name: str, codec: str, start: float, end: float | None) -> None:
    source = make_video(tmp_path / name, audio_s=2.0, audio_silence_s=0.5, audio_codec=codec)
    path = tmp_path / "heard.mp4"
    with VideoWriter(path, 320, 240, 30, audio=AudioTrack(source, start, end)) as writer:
        for number in range(15):
            writer.write(numbered_image(number))
    assert plan_transcode(path).action == "keep"
    assert probe(path).frames == 15
    tone, ends = tone_begins(path)
    assert tone == pytest.approx(0.5 - start, abs=0.03)
    assert ends == pytest.approx((end or 2.0) - start, abs=0.06)
    assert list(tmp_path.glob(".*")) == []


def test_sound_of_a_silent_video(tmp_path: Path) -> None:
    silent = write(tmp_path / "silent.mp4", frames=5)
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, 320, 240, 25, audio=AudioTrack(silent)) as writer:
        writer.write(numbered_image(0))
    assert not probe(path).has_audio


def test_sound_that_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no video")
    with pytest.raises(VideoError), VideoWriter(tmp_path / "o.mp4", 64, 64, 25, audio=AudioTrack(tmp_path / "text")):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["text"]


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        fail_while_writing(tmp_path / "clip.mp4")
    assert list(tmp_path.iterdir()) == []


def test_an_exception_keeps_the_file_that_was_there(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mp4", frames=5)
    before = path.read_bytes()
    with pytest.raises(KeyError):
        fail_while_writing(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_appears_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, 64, 64, 25) as writer:
        writer.write(np.zeros((64, 64, 3), np.uint8))
        assert not path.exists()
    assert probe(path).frames == 1


def test_ended_before_the_first_picture(tmp_path: Path) -> None:
    """After whatever call a signal comes, nothing is left."""
    left, raised, at, begun = 0, False, 0, False

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal left, raised
        left -= event in ("call", "c_return")  # where signals are handled
        if left == 0 and not raised:
            raised = True
            raise SystemExit(143)

    before = sys.getprofile()
    while not begun:
        at += 1
        left, raised = at, False
        sys.setprofile(profile)
        try:
            with VideoWriter(tmp_path / "o.mp4", 16, 16, 10):
                sys.setprofile(before)
                begun = not raised
                raise SystemExit(0)
        except SystemExit:
            pass
        finally:
            sys.setprofile(before)
        assert list(tmp_path.iterdir()) == [], f"call {at} of its way"
    assert at > 20


def test_no_frames(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="No frame"), VideoWriter(tmp_path / "clip.mp4", 64, 64, 25):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((64, 60, 3), np.uint8), r"expected \(64, 64, 3\) uint8, got \(64, 60, 3\)"),
        (np.zeros((64, 64, 3), np.float32), "float32"),
        (np.zeros((64, 64), np.uint8), r"got \(64, 64\)"),
    ],
)
def test_wrong_images(tmp_path: Path, image: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message), VideoWriter(tmp_path / "clip.mp4", 64, 64, 25) as writer:
        writer.write(image)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1_000, 100_000, 1_500_000])
def test_a_disk_that_takes_no_more(tmp_path: Path, limit: int) -> None:
    """The system refuses writes past ``limit`` bytes: before the header, in the middle, when the index moves."""
    code = """
import resource, signal, sys
import numpy as np
from ml_backend.core.errors import StorageError
from ml_backend.video.writer import VideoWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
noise = np.random.default_rng(0)
try:
    with VideoWriter(sys.argv[1], 320, 240, 25) as writer:
        for _ in range(60):
            writer.write(noise.integers(0, 255, (240, 320, 3), dtype=np.uint8))
except StorageError as error:
    print(error)
    sys.exit(3)
"""
    assert hasattr(signal, "SIGXFSZ")
    command = [sys.executable, "-c", code, str(tmp_path / "clip.mp4"), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "clip.mp4" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError), VideoWriter(tmp_path / "file" / "clip.mp4", 64, 64, 25):
        pass
