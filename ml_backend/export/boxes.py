"""The boxes of Label Studio's regions on decoded pictures."""

from __future__ import annotations

from typing import Any

import numpy as np

from ml_backend.geometry import Float64Array, clip_xyxy
from ml_backend.label_studio.regions import RegionKeys
from ml_backend.label_studio.timeline import Timeline
from ml_backend.types import IntArray


class Pictures:
    """Label Studio's player turned round: what it draws on each decoded picture of one video.

    Where several frames of its timeline show one picture, the first on which the region is visible counts. A picture
    that the timeline passes over (a ``frameRate`` below the file's) gets the box between those of its neighbours, by
    time, if the region is visible on both: a training picture without it would teach that nothing is there.

    Args:
        timeline: of the video, at the task's frame rate.
        width, height: displayed size in pixels.
    """

    def __init__(self, timeline: Timeline, width: int, height: int) -> None:
        self.timeline = timeline
        self.width, self.height = width, height
        self.count = len(timeline.times)
        self._shown = timeline.decoded_index(np.arange(1, timeline.frames_count + 1))

    def span(self, keys: RegionKeys) -> tuple[int, int] | None:
        """First and last picture on which a region may be drawn, found without going through them; or ``None``."""
        if not len(keys.frames):
            return None
        first, last, stays = int(keys.frames[0]), int(keys.frames[-1]), _stays(keys)
        if first > len(self._shown) or (last < 1 and not stays):
            return None
        # Other tools count from 0: the player shows such a region from its first frame on.
        first, last = max(first, 1), max(last, 1)
        if stays or last >= len(self._shown):
            return int(self._shown[first - 1]), self.count - 1
        return int(self._shown[first - 1]), int(self._shown[last - 1])

    def keyframes(self, keys: RegionKeys) -> IntArray:
        """``(n,)`` ascending pictures on which the keyframes lie."""
        at = keys.frames
        out: IntArray = np.unique(self._shown[at[(at >= 1) & (at <= len(self._shown))] - 1])
        return out

    def boxes(self, keys: RegionKeys, first: int = 0, last: int | None = None) -> tuple[IntArray, Float64Array]:
        """Where a region is visible.

        Args:
            keys: of the region.
            first, last: pictures to look at, both included; by default all.

        Returns:
            ``(pictures (n,), xyxy (n, 4))``: ascending decoded indices and pixels, cut off at the edges. What lies
            outside or has no area is left out.
        """
        last = self.count - 1 if last is None else last
        life = self.span(keys)
        if life is None or life[0] > last or life[1] < first:
            return np.zeros(0, np.int64), np.zeros((0, 4))
        low, high = max(first, life[0]), min(last, life[1])
        # One frame more on either side: a picture between two frames needs both.
        begin = max(int(np.searchsorted(self._shown, low)) - 1, 0)
        end = min(int(np.searchsorted(self._shown, high, side="right")) + 1, len(self._shown))
        xyxy, visible = keys.boxes(self.width, self.height, np.arange(begin + 1, end + 1))
        shown = self._shown[begin:end]
        seen = np.flatnonzero(visible)
        pictures, where = np.unique(shown[seen], return_index=True)
        boxes = xyxy[seen[where]]
        passed, between = self._passed_over(shown, xyxy, visible, end, _stays(keys))
        if len(passed):
            pictures, boxes = np.concatenate([pictures, passed]), np.concatenate([boxes, between])
            order = np.argsort(pictures, kind="stable")
            pictures, boxes = pictures[order], boxes[order]
        boxes = clip_xyxy(boxes, self.width, self.height)
        kept = (pictures >= low) & (pictures <= high) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        return pictures[kept].astype(np.int64), boxes[kept]

    def _passed_over(
        self, shown: IntArray, xyxy: Float64Array, visible: Any, end: int, stays: bool
    ) -> tuple[IntArray, Float64Array]:
        """Boxes on pictures that no frame of the timeline shows."""
        times = self.timeline.times
        before = np.flatnonzero((np.diff(shown) > 1) & visible[:-1] & visible[1:])
        counts = shown[before + 1] - shown[before] - 1
        start = np.repeat(before, counts)
        within = np.arange(len(start)) - np.repeat(np.cumsum(counts) - counts, counts)
        pictures = shown[start] + 1 + within
        t0, t1 = times[shown[start]], times[shown[start + 1]]
        ratio = np.divide(times[pictures] - t0, t1 - t0, out=np.zeros(len(pictures)), where=t1 > t0)[:, None]
        boxes = xyxy[start] + (xyxy[start + 1] - xyxy[start]) * ratio
        if end == len(self._shown) and len(shown) and visible[-1] and stays:
            # An object that stays does so to the last picture, which a short timeline may not reach.
            rest = np.arange(shown[-1] + 1, self.count)
            pictures = np.concatenate([pictures, rest])
            boxes = np.concatenate([boxes, np.repeat(xyxy[-1:], len(rest), axis=0)])
        return pictures, boxes


def _stays(keys: RegionKeys) -> bool:
    """Whether the box stays after the last keyframe; where that frame has two, one is enough."""
    return bool(keys.enabled[keys.frames == keys.frames[-1:]].any())
