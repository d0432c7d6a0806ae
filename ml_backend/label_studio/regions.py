"""Convert tracks to Label Studio's ``videorectangle`` results, and results to boxes as its player shows them."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.core.boxes import clip_xyxy, iou_pairs, percent_to_xyxy, xyxy_to_percent
from ml_backend.core.keyframes import interpolate, simplify
from ml_backend.core.types import BoolArray, Float64Array, IntArray, Track, VideoInfo
from ml_backend.label_studio.label_config import VideoControl
from ml_backend.label_studio.timeline import MAX_TIMELINE, Timeline

Region = dict[str, Any]

#: Raised while reading a malformed region.
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, OverflowError)

#: Largest global id of an object; people give smaller ones, so that larger ones are left.
MAX_GLOBAL_ID = 2**31 - 1
#: Length of Label Studio's own ids.
_ID_LENGTH = 10


def _region_id(content: Any) -> str:
    """Return an id derived from the content, so that unchanged regions keep their ids in new predictions."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return base64.b32encode(hashlib.sha256(text.encode()).digest()).decode().lower()[:_ID_LENGTH]


def _keyframes(frames: IntArray, percent_xyxy: Float64Array, min_iou: float) -> tuple[IntArray, Float64Array]:
    """Select keyframes as x, y, width, height in percent, rounded such that ``min_iou`` still holds."""
    # Reserve a hundredth of the tolerance for rounding, which keeps the numbers short.
    keys, boxes = simplify(frames, percent_xyxy, min_iou + 0.01 * (1.0 - min_iou))
    exact = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    for decimals in (3, 4, 6, 9):
        rounded = np.round(exact, decimals)
        if (rounded[:, 2:] <= 0).any():
            continue
        corners = np.concatenate([rounded[:, :2], rounded[:, :2] + rounded[:, 2:]], axis=1)
        if (iou_pairs(interpolate(keys, corners, frames), percent_xyxy) >= min_iou).all():
            return keys, rounded
    return keys, exact


def track_to_value(track: Track, timeline: Timeline, video: VideoInfo, min_iou: float = 0.9) -> Region | None:
    """Convert a track to the value of a ``videorectangle``, without labels.

    On each frame of Label Studio's timeline it shows the track's box of the decoded frame on screen, with
    IoU >= ``min_iou``, and is hidden if the track has none.

    Args:
        track: frames are decoded indices, boxes pixels of the displayed video.
        timeline: of the video, at the task's frame rate.
        video: its displayed size is used.
        min_iou: of the keyframe simplification.

    Returns:
        ``{"framesCount", "duration", "sequence"}``, or ``None`` if the track is on no frame of the timeline.
    """
    count = timeline.frames_count
    sequence: list[dict[str, Any]] = []
    for frames, xyxy in timeline.resample(track.frames, track.xyxy):
        percent = xyxy_to_percent(clip_xyxy(xyxy, video.width, video.height), video.width, video.height)
        corners = np.concatenate([percent[:, :2], percent[:, :2] + percent[:, 2:]], axis=1)
        visible = np.flatnonzero((percent[:, 2:] > 0).all(axis=1))
        if not len(visible):
            continue
        for span in np.split(visible, np.flatnonzero(np.diff(visible) > 1) + 1):
            keyframes, boxes = _keyframes(frames[span], np.clip(corners[span], 0.0, 100.0), min_iou)
            for frame, box in zip(keyframes.tolist(), boxes.tolist(), strict=True):
                # A disabled keyframe is still drawn, and hides the box after it; not needed at the end of the video.
                ends = frame == keyframes[-1] and frame < count
                x, y, width, height = box
                sequence.append(
                    {
                        "frame": frame,
                        "enabled": not ends,
                        "x": x,
                        "y": y,
                        "width": width,
                        "height": height,
                        "rotation": 0,
                        # One frame late, like Label Studio's own; it reads only `frame`.
                        "time": round(frame / timeline.frame_rate, 6),
                    }
                )
    if not sequence:
        return None
    return {"framesCount": count, "duration": timeline.duration, "sequence": sequence}


def make_region(
    value: Mapping[str, Any],
    control: VideoControl,
    track_id: int,
    label: str,
    score: float,
    original_class: str,
    extra_meta: Mapping[str, Any] | None = None,
) -> Region:
    """Build a ``videorectangle`` result.

    Args:
        value: of :func:`track_to_value`.
        control: its names are used.
        label: of the project, or ``UNLABELLED``.
        score: 0..1.
        original_class: the detector's class.
        extra_meta: added to the region's ``meta``, such as the origin of the label. The id does not depend on it.
    """
    region: Region = {
        "from_name": control.from_name,
        "to_name": control.to_name,
        "type": "videorectangle",
        "value": {**value, "labels": [label] if label else []},
        "score": round(float(score), 4),
        "meta": {"original_class": original_class},
    }
    with_id = {"id": _region_id([track_id, region]), **region}
    if extra_meta:
        with_id["meta"] = {**region["meta"], **extra_meta}
    return with_id


def track_to_region(
    track: Track, timeline: Timeline, control: VideoControl, video: VideoInfo, min_iou: float = 0.9
) -> Region | None:
    """Convert a labelled track to a ``videorectangle`` result; see :func:`track_to_value`.

    Returns:
        The result, or ``None`` if the track has no label or is on no frame of the timeline.
    """
    if track.label is None or (value := track_to_value(track, timeline, video, min_iou)) is None:
        return None
    return make_region(value, control, track.track_id, track.label, track.score, track.top_class)


@dataclass(frozen=True, slots=True, eq=False)
class RegionKeys:
    """A region's keyframes as arrays, so that its JSON is parsed once.

    Attributes:
        frames: ``(m,)`` ascending, 1-based. If several are equal, the player shows the first there, and goes on from
            the last.
        enabled: ``(m,)``.
        percent: ``(m, 4)`` x, y, width, height.
        rotation: ``(m,)`` degrees, unwrapped; ``None`` without rotation.
    """

    frames: IntArray
    enabled: BoolArray
    percent: Float64Array
    rotation: Float64Array | None

    @classmethod
    def read(cls, region: Mapping[str, Any]) -> RegionKeys:
        """Parse the keyframes of a ``videorectangle`` result.

        Raises:
            KeyError, TypeError, ValueError, OverflowError: the result is malformed.
        """
        sequence = sorted(region["value"].get("sequence") or [], key=lambda key: int(key["frame"]))
        names = ("x", "y", "width", "height")
        rotation = np.array([float(key.get("rotation") or 0.0) for key in sequence], np.float64)
        unwrapped = np.asarray(np.unwrap(rotation, period=360.0), np.float64)
        return cls(
            np.array([int(key["frame"]) for key in sequence], dtype=np.int64),
            np.array([bool(key.get("enabled")) for key in sequence], dtype=np.bool_),
            np.array([[float(key[name]) for name in names] for key in sequence]).reshape(-1, 4),
            unwrapped if rotation.any() else None,  # the player rotates the short way
        )

    def boxes(self, width: float, height: float, frames: IntArray) -> tuple[Float64Array, BoolArray]:
        """Return ``xyxy`` ``(n, 4)`` in pixels and visibility ``(n,)`` on 1-based frames; see :func:`region_boxes`."""
        if not len(self.frames):
            return np.zeros((len(frames), 4)), np.zeros(len(frames), bool)
        previous = np.searchsorted(self.frames, frames, side="right") - 1
        visible: BoolArray = (previous >= 0) & (self.enabled[previous] | (self.frames[previous] == frames))
        first = np.minimum(np.searchsorted(self.frames, frames), len(self.frames) - 1)
        on_key = self.frames[first] == frames
        percent = interpolate(self.frames, self.percent, frames)
        percent[on_key] = self.percent[first[on_key]]
        xyxy = percent_to_xyxy(percent, width, height)
        if self.rotation is not None:
            rotation = np.interp(frames, self.frames, self.rotation)
            rotation[on_key] = self.rotation[first[on_key]]
            xyxy = _upright(xyxy, rotation)
        xyxy[~visible] = 0.0
        return xyxy, visible


def region_boxes(
    region: Mapping[str, Any], width: float, height: float, frames: npt.ArrayLike | None = None
) -> tuple[IntArray, Float64Array, BoolArray]:
    """Compute the boxes of a ``videorectangle`` result as Label Studio's player shows them.

    Args:
        region: a result of a prediction or an annotation.
        width, height: displayed size of the video in pixels.
        frames: ``(n,)`` 1-based frames of Label Studio's timeline; all of them if ``None``.

    Returns:
        ``(frames (n,) int64, xyxy (n, 4) float64 pixels, visible (n,) bool)``; boxes of invisible frames are 0,
        rotated boxes are replaced by the upright boxes around them.
    """
    keys = RegionKeys.read(region)
    last = max([int(region["value"].get("framesCount") or 0), *keys.frames[-1:].tolist()])
    wanted = np.arange(1, last + 1, dtype=np.int64) if frames is None else np.asarray(frames, dtype=np.int64)
    return wanted, *keys.boxes(width, height, wanted)


def _upright(xyxy: Float64Array, degrees: Float64Array) -> Float64Array:
    """Return the upright boxes around boxes that are rotated clockwise about their top left corners."""
    angle = np.radians(degrees)[:, None]
    width, height = (xyxy[:, 2:] - xyxy[:, :2]).T
    dx = np.stack([0 * width, width, width, 0 * width], axis=1)
    dy = np.stack([0 * height, 0 * height, height, height], axis=1)
    x = xyxy[:, :1] + dx * np.cos(angle) - dy * np.sin(angle)
    y = xyxy[:, 1:2] + dx * np.sin(angle) + dy * np.cos(angle)
    return np.stack([x.min(axis=1), y.min(axis=1), x.max(axis=1), y.max(axis=1)], axis=1)


def global_id(region: Mapping[str, Any]) -> int | None:
    """Return the number that a region's object has in all tasks of its project; ``None`` without one."""
    meta = region.get("meta")
    number = meta.get("global_id") if isinstance(meta, Mapping) else None
    return number if isinstance(number, int) and 0 < number <= MAX_GLOBAL_ID and number is not True else None


def visible_frames(region: Mapping[str, Any]) -> int:
    """Return the number of timeline frames on which a region is visible."""
    keys = RegionKeys.read(region)
    end = max([int(region["value"].get("framesCount") or 0), *keys.frames[-1:].tolist()]) + 1
    lasting = np.diff(keys.frames, append=end)
    return int(np.where(keys.enabled, lasting, np.minimum(lasting, 1)).sum())


def stated_frames(region: Mapping[str, Any]) -> int:
    """Return the length of the timeline that a region states; 0 without a usable one."""
    count = region["value"].get("framesCount")
    return int(count) if isinstance(count, int | float) and 0 < count <= MAX_TIMELINE else 0


def make_prediction(regions: Sequence[Region], model_version: str) -> dict[str, Any]:
    """Build a Label Studio prediction; its score is the mean of the regions', weighted by their visible frames."""
    weights = [visible_frames(region) for region in regions]
    total = sum(weights)
    score = sum(w * float(r["score"]) for w, r in zip(weights, regions, strict=True)) / total if total else 0.0
    return {"model_version": model_version, "score": round(score, 4), "result": list(regions)}


def rectangle_mask(box: Mapping[str, Any], width: int, height: int) -> Region:
    """Return a box as the mask that Label Studio's toolbar for interactive models takes, of which it uses the outline.

    Args:
        box: ``x``, ``y``, ``width`` and ``height`` in percent.
        width, height: of the mask in pixels.

    Returns:
        ``imageDataURL``, a PNG that is white inside the box, ``width`` and ``height``.
    """
    from PIL import Image, ImageDraw

    size, image = np.array([width, height] * 2), Image.new("1", (width, height))
    percent = np.array([box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]], np.float64)
    x1, y1, x2, y2 = np.clip(percent / 100 * size, 0, size).round().astype(int).tolist()
    ImageDraw.Draw(image).rectangle((x1, y1, max(x2, x1 + 1) - 1, max(y2, y1 + 1) - 1), fill=1)
    file = io.BytesIO()
    image.save(file, "png")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return {"imageDataURL": url, "width": width, "height": height}
