"""Map frames of Label Studio's player to decoded frames.

The player does not know the file's frames. It counts 1-based frames of ``1 / frame_rate`` seconds and, to show frame
``f``, seeks the browser to ``(f - 1) / frame_rate`` rounded to the nearest 2 ms, plus 2 ms. The browser then shows the
last decoded frame whose timestamp, in whole microseconds, has been reached.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.core.errors import ConfigError
from ml_backend.core.types import Float64Array, IntArray
from ml_backend.label_studio.label_config import DEFAULT_FRAME_RATE
from ml_backend.video.probe import frame_times, playback_duration, probe

#: The player's seek grid in seconds, and the offset that it adds to be inside the frame.
SEEK_STEP = 0.002

#: Maximum frames of a timeline, 46 hours at 30 fps: a typo in a task must not exhaust memory.
MAX_TIMELINE = 5_000_000

#: Maximum frames per second: the player's seek grid tells no more than 500 apart, and cost grows with the rate.
MAX_RATE = 1000.0

_COMMON_RATES = (
    10.0,
    12.5,
    15.0,
    20.0,
    23.976,
    24.0,
    25.0,
    29.97,
    30.0,
    47.952,
    48.0,
    50.0,
    59.94,
    60.0,
    119.88,
    120.0,
)

_US = 1_000_000


def _js_round(value: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Round like JavaScript's ``Math.round``: halves up, where numpy rounds to even."""
    out: npt.NDArray[np.float64] = np.floor(value + 0.5)
    return out


class Timeline:
    """Maps Label Studio's frames of one video to decoded frames, by presentation time.

    Args:
        frame_rate: value of the ``Video`` tag's ``frameRate``, not the file's.
        times: ``(n,)`` presentation time of each decoded frame in seconds, ascending, the first normally 0.
        duration: of the video in seconds as browsers report it (the longest stream's).

    Raises:
        ValueError: no frames, descending times, or a frame rate or duration that is not a positive number.
    """

    def __init__(self, frame_rate: float, times: Sequence[float] | npt.NDArray[Any], duration: float) -> None:
        self.frame_rate = float(frame_rate)
        self.times: Float64Array = np.asarray(times, dtype=np.float64)
        self.duration = float(duration)
        if not (math.isfinite(self.frame_rate) and self.frame_rate > 0):
            raise ValueError(f"expected a positive frame rate, got {frame_rate}")
        if not (math.isfinite(self.duration) and self.duration >= 0):
            raise ValueError(f"expected a duration of at least 0 s, got {duration}")
        if self.times.ndim != 1 or not len(self.times):
            raise ValueError(f"expected times of shape (n,) with n > 0, got {self.times.shape}")
        if bool((np.diff(self.times) < 0).any()):
            raise ValueError("expected ascending times")
        self._pts_us = np.rint(self.times * _US).astype(np.int64)

    @property
    def frames_count(self) -> int:
        """Number of frames in Label Studio's counter."""
        return max(1, math.floor(self.duration * self.frame_rate + 0.5))

    def seek_times(self, ls_frames: npt.ArrayLike) -> Float64Array:
        """Return the times ``(n,)`` in seconds to which the player seeks for the 1-based frames ``ls_frames``."""
        frames = np.clip(np.asarray(ls_frames, dtype=np.float64), 1, self.frames_count)
        out: Float64Array = _js_round((frames - 1) / self.frame_rate / SEEK_STEP) * SEEK_STEP + SEEK_STEP
        return out

    def shown_at(self, first: int, last: int) -> dict[int, list[int]]:
        """Return the 1-based frames, of ``first`` to ``last``, that show each decoded frame, by its index."""
        shown: dict[int, list[int]] = {}
        for frame, index in enumerate(self.decoded_index(np.arange(first, last + 1)).tolist(), start=first):
            shown.setdefault(index, []).append(frame)
        return shown

    def decoded_index(self, ls_frames: npt.ArrayLike) -> IntArray:
        """Return the 0-based decoded frame ``(n,)`` on screen at each of the 1-based frames ``ls_frames``."""
        seek_us = (self.seek_times(ls_frames) * _US).astype(np.int64)
        index = np.searchsorted(self._pts_us, seek_us, side="right") - 1
        out: IntArray = np.clip(index, 0, len(self._pts_us) - 1).astype(np.int64)
        return out

    def resample(self, frames: npt.ArrayLike, xyxy: npt.ArrayLike) -> list[tuple[IntArray, Float64Array]]:
        """Convert boxes on decoded frames to boxes on Label Studio's frames.

        Args:
            frames: ``(n,)`` strictly increasing 0-based decoded indices; missing ones mean hidden.
            xyxy: ``(n, 4)`` boxes on them.

        Returns:
            Non-empty spans in which the object is visible without a gap: ``(ls_frames, xyxy)`` with consecutive
            1-based frames ``(m,)`` int64 and float64 boxes ``(m, 4)``.
        """
        indices = np.asarray(frames, dtype=np.int64)
        boxes = np.asarray(xyxy, dtype=np.float64)
        if boxes.shape != (len(indices), 4):
            raise ValueError(f"expected xyxy of shape ({len(indices)}, 4), got {boxes.shape}")
        if not len(indices):
            return []
        # Only the range that shows the track: a long video has thousands of short tracks.
        begin = np.searchsorted(self._decoded, indices[0])
        end = np.searchsorted(self._decoded, indices[-1], side="right")
        decoded = self._decoded[begin:end]
        rows = np.minimum(np.searchsorted(indices, decoded), len(indices) - 1)
        visible = np.flatnonzero(indices[rows] == decoded)
        if not len(visible):
            return []
        spans = np.split(visible, np.flatnonzero(np.diff(visible) > 1) + 1)
        return [(begin + 1 + span, boxes[rows[span]]) for span in spans]

    @cached_property
    def _decoded(self) -> IntArray:
        """Decoded frame at each frame of the timeline ``(frames_count,)``, ascending."""
        return self.decoded_index(np.arange(1, self.frames_count + 1))


def recommended_fps(times: Sequence[float] | npt.NDArray[Any], duration: float) -> float:
    """Return the ``frameRate`` for which Label Studio's frame n shows decoded frame n - 1 throughout the video.

    A common rate (25, 29.97) is preferred, else the shortest decimal. If none works (variable frame rate, rates below
    1, a late first frame), the average rate is returned, and boxes are placed by time.

    Args:
        times: ``(n,)`` presentation times of the decoded frames in seconds, ascending.
        duration: of the video in seconds, as browsers report it.

    Returns:
        At least 1, since Label Studio inverts smaller rates, and at most :data:`MAX_RATE`; 24, its default, for a video
        without duration.
    """
    pts = np.asarray(times, dtype=np.float64)
    span = float(pts[-1] - pts[0]) if len(pts) > 1 else 0.0
    if span > 0:
        exact = (len(pts) - 1) / span
    elif len(pts) and duration > 0:
        exact = len(pts) / duration
    else:
        return DEFAULT_FRAME_RATE
    if not 1 <= exact <= MAX_RATE:
        return min(max(exact, 1.0), MAX_RATE)
    wanted = np.arange(len(pts))
    frames_count = Timeline(exact, pts, duration).frames_count
    common = min(_COMMON_RATES, key=lambda rate: abs(rate - exact))
    candidates = [common] if abs(common - exact) < 1e-4 * exact else []
    candidates += [round(exact, digits) for digits in range(0, 7)]
    for rate in candidates:
        if rate < 1:
            continue
        timeline = Timeline(rate, pts, duration)
        same_length = timeline.frames_count == max(frames_count, len(pts))
        if same_length and bool((timeline.decoded_index(wanted + 1) == wanted).all()):
            return rate
    return round(exact, 6)


def video_timeline(path: Path | str, frame_rate: float | None = None) -> Timeline:
    """Return Label Studio's timeline of a file, at ``frame_rate`` or else the recommended rate.

    Raises:
        VideoError: the file cannot be decoded.
        ConfigError: the rate is not positive, above :data:`MAX_RATE`, or gives more than :data:`MAX_TIMELINE` frames.
    """
    times, duration = frame_times(path), playback_duration(path)
    rate = recommended_fps(times, duration) if frame_rate is None else frame_rate
    if not rate > 0:
        raise ConfigError(f"{rate:g} is not a frame rate.", "Use frames per second, such as 25.")
    if rate > MAX_RATE:
        raise ConfigError(
            f"{rate:g} frames per second are more than the {MAX_RATE:g} that a timeline may have.",
            "Correct the task's frame rate, or the label config's frameRate.",
        )
    if duration * rate > MAX_TIMELINE:
        raise ConfigError(
            f"At {rate:g} frames per second, {duration:g} s of video have more than {MAX_TIMELINE} frames.",
            "Correct the task's frame rate, or the label config's frameRate.",
        )
    return Timeline(rate, times, duration)


#: Keys of :func:`video_facts`, which are fields of a task.
VIDEO_FIELDS = ("fps", "frames", "width", "height", "duration")


def video_facts(path: Path | str) -> dict[str, float | int]:
    """Return the facts of a video for a task's data, by ``VIDEO_FIELDS``; ``fps`` is of Label Studio's timeline.

    Raises:
        VideoError: the file cannot be decoded.
    """
    info, timeline = probe(path), video_timeline(path)
    return {
        "fps": timeline.frame_rate,
        "frames": info.frames,
        "width": info.width,
        "height": info.height,
        "duration": round(timeline.duration, 6),
    }
