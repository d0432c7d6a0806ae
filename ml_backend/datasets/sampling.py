"""Select the frames of a video for a dataset and assign them to train, val and test."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from ml_backend.core.boxes import iou_pairs
from ml_backend.core.errors import ConfigError
from ml_backend.core.types import Float64Array, Image, IntArray
from ml_backend.datasets.annotated_video import AnnotatedVideo, FrameBoxes, VideoObject

SPLITS = ("train", "val", "test")
SplitBy = Literal["auto", "video", "time", "ratio"]

#: With fewer videos, whole ones make no fair validation set.
MIN_VIDEOS_TO_SPLIT = 5
#: Frames are compared at this size: noise averages out, a distant person is still visible.
_THUMBNAIL = (96, 54)
#: Mean absolute difference of near duplicates, in grey levels of 255.
_MAX_DIFFERENCE = 1.0
#: IoU of a box that has not moved.
_MIN_IOU = 0.97


@dataclass(frozen=True, slots=True)
class Sampling:
    """How frames are sampled and split.

    Attributes:
        stride: sample every n-th frame, starting with the first.
        keyframes: sample the frames with a keyframe instead.
        negatives: maximum number of frames without objects, as a share of those with objects; ``None``: no limit.
        near_duplicates: whether to keep frames that hardly differ from the previous one.
        split: ``"video"`` (whole videos), ``"time"`` (the end of each video), ``"ratio"`` (random frames, so that
            similar frames leak into val), ``"auto"`` (by video if there are five or more, else by time).
        ratio: shares of train, val and test.
        seed: of all random choices.
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
            raise ConfigError(f"{self.stride} is not a stride.", "Use 1 or more.")
        if self.negatives is not None and self.negatives < 0:
            raise ConfigError(f"{self.negatives:g} is not a share of negatives.", "Use 0 or more.")
        if min(self.ratio) < 0 or not self.ratio[0] > 0:
            raise ConfigError(f"{self.ratio} are not shares of train, val and test.", "Use shares such as 80:20:0.")

    @property
    def even_stride(self) -> int | None:
        """The stride if only frames without objects are left out; ``None`` if a file may lack others too."""
        uneven = self.keyframes or not self.near_duplicates or self.split == "ratio"
        return None if uneven else self.stride

    @property
    def shares(self) -> Float64Array:
        """Shares of train, val and test ``(3,)``, normalised to sum to 1."""
        ratio = np.asarray(self.ratio, np.float64)
        out: Float64Array = ratio / ratio.sum()
        return out


def parse_ratio(text: str) -> tuple[float, float, float]:
    """Parse the shares of train, val and test from ``80:20`` or ``0.7,0.2,0.1``.

    Raises:
        ConfigError: the text is not a ratio.
    """
    try:
        shares = [float(share) for share in text.replace(",", ":").split(":")]
        if not 1 <= len(shares) <= 3 or not np.isfinite(shares).all():
            raise ValueError(text)
    except ValueError as error:
        raise ConfigError(f"{text!r} is not a ratio.", "Use shares of train, val and test, such as 80:20.") from error
    train, val, test = [*shares, 0.0, 0.0][:3]
    return train, val, test


def split_videos(count: int, sampling: Sampling) -> list[str]:
    """Return the split of each of ``count`` videos, shuffled with the seed.

    If there are enough videos, every split with a share gets at least one.
    """
    shares = sampling.shares
    sizes = [round(float(share) * count) for share in shares]
    for split in (1, 2):
        if shares[split] > 0 and count > split:
            sizes[split] = max(sizes[split], 1)
    sizes[0] = max(count - sizes[1] - sizes[2], min(count, 1))
    names = [name for name, size in zip(SPLITS, sizes, strict=True) for _ in range(size)]
    order = np.random.default_rng(sampling.seed).permutation(count)
    out = ["train"] * count
    for index, name in zip(order.tolist(), names, strict=False):
        out[index] = name
    return out


def split_frames(
    frames: IntArray, name: str, by: SplitBy, sampling: Sampling, frame_count: int | None = None
) -> list[str]:
    """Return the split of each frame of one video, by time or by ratio.

    Args:
        frames: ``(n,)`` ascending decoded indices.
        name: of the video; together with the seed it determines a split by ratio.
        frame_count: of the video. If given, a split by time cuts at a share of the video instead of the sampled
            frames, so that several exports of one video agree.
    """
    edges = np.cumsum(sampling.shares)[:2]
    if by == "time" and frame_count is not None:
        positions = (frames + 0.5) / frame_count
    elif by == "time":
        positions = (np.arange(len(frames)) + 0.5) / max(len(frames), 1)
    else:
        positions = np.array([_hash_to_unit(f"{sampling.seed}/{name}/{frame}") for frame in frames.tolist()])
    # An edge of about 1, a sum of rounded shares, means that the splits after it are empty.
    return [SPLITS[int(i)] for i in np.searchsorted(np.where(edges > 1 - 1e-9, 2.0, edges), positions, side="right")]


def _hash_to_unit(text: str) -> float:
    """Hash a text to a number in [0, 1)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / (1 << 48)


def sampled_frames(video: AnnotatedVideo, objects: Sequence[VideoObject], name: str, sampling: Sampling) -> IntArray:
    """Return the decoded frames ``(n,)`` to export, ascending, before near duplicates are dropped."""
    frames = video.keyframes(objects) if sampling.keyframes else np.arange(0, video.info.frames, sampling.stride)
    if sampling.negatives is None:
        return frames
    positive = np.array([bool(frame.objects) for frame in video.frames(frames, objects)], bool)
    negative = frames[~positive]
    count = min(len(negative), round(sampling.negatives * int(positive.sum())))
    # Seeded by the video, so that other videos do not change the choice.
    rng = np.random.default_rng(int(_hash_to_unit(f"{sampling.seed}/{name}") * (1 << 48)))
    chosen = rng.choice(negative, count, replace=False) if count else negative[:0]
    out: IntArray = np.sort(np.concatenate([frames[positive], chosen]))
    return out


class NearDuplicates:
    """Detects frames on which nothing has moved since the last kept one; call in order of frames."""

    def __init__(self) -> None:
        self._last: tuple[Image, FrameBoxes] | None = None

    def __call__(self, image: Image, boxes: FrameBoxes) -> bool:
        """Return whether a frame is a near duplicate; if not, the next one is compared with it."""
        thumbnail = cv2.cvtColor(cv2.resize(image, _THUMBNAIL, interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2GRAY)
        if self._last is not None:
            last_thumbnail, last = self._last
            if (
                [item.track_id for item in last.objects] == [item.track_id for item in boxes.objects]
                and float(cv2.absdiff(thumbnail, last_thumbnail).mean()) < _MAX_DIFFERENCE
                and bool((iou_pairs(last.xyxy, boxes.xyxy) >= _MIN_IOU).all())
            ):
                return True
        self._last = (np.asarray(thumbnail, np.uint8), boxes)
        return False
