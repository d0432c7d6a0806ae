"""Label Studio's player: which decoded picture is on screen at which of its frames.

The player knows nothing of the file's frames. It counts 1-based frames of ``1 / frame_rate`` seconds and, to show
frame ``f``, seeks the browser to ``(f - 1) / frame_rate`` rounded to the nearest 2 ms, plus 2 ms. The browser then
shows the last picture whose timestamp, in whole microseconds, has been reached.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.core.boxes import Float64Array
from ml_backend.core.errors import ConfigError
from ml_backend.core.types import IntArray
from ml_backend.video.probe import frame_times, playback_duration, probe

#: Seconds: the grid on which the player seeks, which is also what it adds to be inside the frame.
SEEK_STEP = 0.002

#: Frames of Label Studio's timeline: 46 hours at 30 a second. A typing error in a task must not fill the memory.
MAX_TIMELINE = 5_000_000

#: What people know frame rates as.
_USUAL_RATES = (10.0, 12.5, 15.0, 20.0, 23.976, 24.0, 25.0, 29.97, 30.0, 47.952, 48.0, 50.0, 59.94, 60.0, 119.88, 120.0)

_US = 1_000_000


def _js_round(value: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """JavaScript's ``Math.round``: halves go up, where numpy's go to the even neighbour."""
    out: npt.NDArray[np.float64] = np.floor(value + 0.5)
    return out


class Timeline:
    """Maps Label Studio's frames of one video to decoded pictures, by presentation time.

    Args:
        frame_rate: what the ``Video`` tag's ``frameRate`` comes to; not the file's.
        times: ``(n,)`` presentation time of each decoded picture in seconds, ascending, the first normally 0.
        duration: what the browser reports as the video's duration in seconds (the longest stream's).

    Raises:
        ValueError: no pictures, times that go back, or a frame rate or duration that is not a positive number.
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
        """Seconds to which the player seeks for the 1-based frames ``ls_frames``; ``(n,)``."""
        frames = np.clip(np.asarray(ls_frames, dtype=np.float64), 1, self.frames_count)
        out: Float64Array = _js_round((frames - 1) / self.frame_rate / SEEK_STEP) * SEEK_STEP + SEEK_STEP
        return out

    def decoded_index(self, ls_frames: npt.ArrayLike) -> IntArray:
        """0-based index of the picture on screen at each of the 1-based frames ``ls_frames``; ``(n,)``."""
        seek_us = (self.seek_times(ls_frames) * _US).astype(np.int64)
        index = np.searchsorted(self._pts_us, seek_us, side="right") - 1
        out: IntArray = np.clip(index, 0, len(self._pts_us) - 1).astype(np.int64)
        return out

    def resample(self, frames: npt.ArrayLike, xyxy: npt.ArrayLike) -> list[tuple[IntArray, Float64Array]]:
        """Boxes on decoded frames to boxes on Label Studio's frames.

        Args:
            frames: ``(n,)`` strictly increasing 0-based decoded indices; a missing index means hidden.
            xyxy: ``(n, 4)`` boxes on them.

        Returns:
            Spans in which the object is visible without a break: ``(ls_frames, xyxy)`` with consecutive 1-based
            frames ``(m,)`` int64 and float64 boxes ``(m, 4)``. A span is empty of nothing: at least one frame.
        """
        have = np.asarray(frames, dtype=np.int64)
        boxes = np.asarray(xyxy, dtype=np.float64)
        if boxes.shape != (len(have), 4):
            raise ValueError(f"expected xyxy of shape ({len(have)}, 4), got {boxes.shape}")
        if not len(have):
            return []
        # Only the part of the timeline that shows the track: a long video has thousands of short ones.
        begin, end = np.searchsorted(self._shown, have[0]), np.searchsorted(self._shown, have[-1], side="right")
        shown = self._shown[begin:end]
        at = np.minimum(np.searchsorted(have, shown), len(have) - 1)
        visible = np.flatnonzero(have[at] == shown)
        if not len(visible):
            return []
        spans = np.split(visible, np.flatnonzero(np.diff(visible) > 1) + 1)
        return [(begin + 1 + span, boxes[at[span]]) for span in spans]

    @cached_property
    def _shown(self) -> IntArray:
        """Index of the picture on screen at each frame of the timeline, ascending; ``(frames_count,)``."""
        return self.decoded_index(np.arange(1, self.frames_count + 1))


def recommended_fps(times: Sequence[float] | npt.NDArray[Any], duration: float) -> float:
    """The ``frameRate`` with which Label Studio's frame n shows decoded picture n - 1, through the whole video.

    The usual, or else the shortest, decimal that does so is taken (25, 29.97), so that people recognise it. Where
    none can (variable frame rate, rates under 1, a late first picture), the average rate is returned: boxes are
    then placed by time.

    Args:
        times: ``(n,)`` presentation seconds of the decoded pictures, ascending.
        duration: seconds; the browser's duration of the video.

    Returns:
        At least 1, since Label Studio takes the inverse of smaller rates; 24, its default, where nothing is known.
    """
    pts = np.asarray(times, dtype=np.float64)
    span = float(pts[-1] - pts[0]) if len(pts) > 1 else 0.0
    if span > 0:
        exact = (len(pts) - 1) / span
    elif len(pts) and duration > 0:
        exact = len(pts) / duration
    else:
        return 24.0
    if exact < 1:
        return 1.0
    wanted = np.arange(len(pts))
    frames_count = Timeline(exact, pts, duration).frames_count
    usual = min(_USUAL_RATES, key=lambda rate: abs(rate - exact))
    candidates = [usual] if abs(usual - exact) < 1e-4 * exact else []
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
    """Label Studio's timeline of a file, at ``frame_rate`` or at the rate that suits the file best.

    Raises:
        VideoError: the file cannot be used.
        ConfigError: the rate is none, or makes more frames than can be handled.
    """
    times, duration = frame_times(path), playback_duration(path)
    rate = recommended_fps(times, duration) if frame_rate is None else frame_rate
    if not rate > 0:
        raise ConfigError(f"{rate:g} is no frame rate.", "Give frames per second, such as 25.")
    if duration * rate > MAX_TIMELINE:
        raise ConfigError(
            f"At {rate:g} frames a second, {duration:g} s of video are more frames than can be handled.",
            "Correct the task's frame rate, or the label config's frameRate.",
        )
    return Timeline(rate, times, duration)


#: Fields of a task that :func:`video_facts` fills.
VIDEO_FIELDS = ("fps", "frames", "width", "height", "duration")


def video_facts(path: Path | str) -> dict[str, float | int]:
    """What a task's data says of its video, by ``VIDEO_FIELDS``; ``fps`` is of Label Studio's timeline.

    Raises:
        VideoError: the file cannot be used.
    """
    info, timeline = probe(path), video_timeline(path)
    return {
        "fps": timeline.frame_rate,
        "frames": info.frames,
        "width": info.width,
        "height": info.height,
        "duration": round(timeline.duration, 6),
    }
