"""Which pictures of a video go into a dataset, and into which part of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from ml_backend.core.boxes import Float64Array, iou_pairs
from ml_backend.core.errors import ConfigError
from ml_backend.core.types import Image, IntArray
from ml_backend.datasets.annotated_video import AnnotatedVideo, FrameBoxes, VideoObject

SPLITS = ("train", "val", "test")
SplitBy = Literal["auto", "video", "time", "ratio"]

#: From so many videos on, whole ones make a fair validation set.
VIDEOS_TO_SPLIT = 5
#: Pictures are compared at this size: noise is averaged away, a person in the distance still shows.
_THUMBNAIL = (96, 54)
#: Grey levels of 255 by which pictures differ on average if anything has moved.
_SAME_LEVELS = 1.0
#: Boxes that overlap so have not moved.
_SAME_IOU = 0.97


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which pictures are taken.

    Attributes:
        stride: every so many pictures, from the first on.
        keyframes: instead, the pictures that carry a keyframe.
        negatives: most pictures without any object, as a share of those with objects; ``None``: all.
        near_duplicates: whether pictures are kept that hardly differ from the one taken before.
        split: ``"video"`` (whole videos), ``"time"`` (the end of each video), ``"ratio"`` (pictures at random; those
            of one second then lie on both sides), ``"auto"`` (by video from five videos on, else by time).
        ratio: shares of train, val and test.
        seed: of everything that is left to chance.
    """

    stride: int = 1
    keyframes: bool = False
    negatives: float | None = None
    near_duplicates: bool = True
    split: SplitBy = "auto"
    ratio: tuple[float, float, float] = (0.8, 0.2, 0.0)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise ConfigError(f"A stride of {self.stride} takes no pictures.", "Give 1 or more.")
        if self.negatives is not None and self.negatives < 0:
            raise ConfigError(f"{self.negatives:g} is no share of negatives.", "Give 0 or more.")
        if min(self.ratio) < 0 or not self.ratio[0] > 0:
            raise ConfigError(
                f"{self.ratio} cannot be the shares of train, val and test.", "Give some such as 80:20:0."
            )

    @property
    def shares(self) -> Float64Array:
        """``(3,)`` shares of train, val and test that sum to 1."""
        ratio = np.asarray(self.ratio, np.float64)
        out: Float64Array = ratio / ratio.sum()
        return out


def parse_ratio(text: str) -> tuple[float, float, float]:
    """Shares of train, val and test from ``80:20`` or ``0.7,0.2,0.1``.

    Raises:
        ConfigError: something else.
    """
    try:
        parts = [float(part) for part in text.replace(",", ":").split(":")]
        if not 1 <= len(parts) <= 3 or not np.isfinite(parts).all():
            raise ValueError(text)
    except ValueError as error:
        raise ConfigError(f"{text!r} is no ratio.", "Give shares of train, val and test, such as 80:20.") from error
    first, second, third = [*parts, 0.0, 0.0][:3]
    return first, second, third


def split_videos(count: int, sampling: Sampling) -> list[str]:
    """Which part each of ``count`` videos belongs to, as a whole: shuffled with the seed, then cut.

    Where there are enough videos, every part with a share gets one.
    """
    shares = sampling.shares
    sizes = [round(float(share) * count) for share in shares]
    for part in (1, 2):
        if shares[part] > 0 and count > part:
            sizes[part] = max(sizes[part], 1)
    sizes[0] = max(count - sizes[1] - sizes[2], min(count, 1))
    names = [name for name, size in zip(SPLITS, sizes, strict=True) for _ in range(size)]
    order = np.random.default_rng(sampling.seed).permutation(count)
    out = ["train"] * count
    for place, name in zip(order.tolist(), names, strict=False):
        out[place] = name
    return out


def split_frames(
    pictures: IntArray, name: str, by: SplitBy, sampling: Sampling, frames: int | None = None
) -> list[str]:
    """Which part each picture of one video belongs to, for a split by time or by ratio.

    Args:
        pictures: ``(n,)`` ascending.
        name: of the video; with the seed it decides a split by ratio, whatever else is exported.
        frames: of the video: a split by time cuts where so much of it is over, not of the pictures. For videos that
            are exported several times with different pictures.
    """
    edges = np.cumsum(sampling.shares)[:2]
    if by == "time" and frames is not None:
        where = (pictures + 0.5) / frames
    elif by == "time":
        where = (np.arange(len(pictures)) + 0.5) / max(len(pictures), 1)
    else:
        where = np.array([_chance(f"{sampling.seed}/{name}/{picture}") for picture in pictures.tolist()])
    # The edges are sums of rounded shares: 1 means that nothing is beyond.
    return [SPLITS[int(i)] for i in np.searchsorted(np.where(edges > 1 - 1e-9, 2.0, edges), where, side="right")]


def _chance(text: str) -> float:
    """A number in 0..1 that depends on nothing but the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / (1 << 48)


def sampled_frames(video: AnnotatedVideo, objects: Sequence[VideoObject], name: str, sampling: Sampling) -> IntArray:
    """``(n,)`` ascending decoded pictures of a video to be exported, near duplicates not yet considered."""
    at = video.keyframes(objects) if sampling.keyframes else np.arange(0, video.info.frames, sampling.stride)
    if sampling.negatives is None:
        return at
    positive = np.array([bool(frame.objects) for frame in video.frames(at, objects)], bool)
    nothing = at[~positive]
    wanted = min(len(nothing), round(sampling.negatives * int(positive.sum())))
    # The same numbers for the same video, whatever other videos there are.
    rng = np.random.default_rng(int(_chance(f"{sampling.seed}/{name}") * (1 << 48)))
    chosen = rng.choice(nothing, wanted, replace=False) if wanted else nothing[:0]
    out: IntArray = np.sort(np.concatenate([at[positive], chosen]))
    return out


class NearDuplicates:
    """Tells pictures on which nothing has moved since the last one that was kept. To be asked in order."""

    def __init__(self) -> None:
        self._kept: tuple[Image, FrameBoxes] | None = None

    def __call__(self, image: Image, boxes: FrameBoxes) -> bool:
        """Whether a picture can go; one that cannot is what the next is compared with."""
        small = cv2.cvtColor(cv2.resize(image, _THUMBNAIL, interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2GRAY)
        if self._kept is not None:
            before, known = self._kept
            still = [item.track for item in known.objects] == [item.track for item in boxes.objects]
            if (
                still
                and float(cv2.absdiff(small, before).mean()) < _SAME_LEVELS
                and bool((iou_pairs(known.xyxy, boxes.xyxy) >= _SAME_IOU).all())
            ):
                return True
        self._kept = (np.asarray(small, np.uint8), boxes)
        return False
