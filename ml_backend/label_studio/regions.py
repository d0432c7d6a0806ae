"""Tracks to Label Studio's ``videorectangle`` results, and back to boxes as its player shows them."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.core.boxes import Float64Array, clip_xyxy, iou_pairs, percent_to_xyxy, xyxy_to_percent
from ml_backend.core.keyframes import interpolate, simplify
from ml_backend.core.types import BoolArray, IntArray, Track, VideoInfo
from ml_backend.label_studio.label_config import VideoControl
from ml_backend.label_studio.timeline import Timeline

Region = dict[str, Any]

#: Length of the ids that Label Studio makes itself.
_ID_CHARS = 10


def _region_id(content: Any) -> str:
    """The same content gets the same id: predicting again makes no new regions for what did not change."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return base64.b32encode(hashlib.sha256(text.encode()).digest()).decode().lower()[:_ID_CHARS]


def _keyframes(frames: IntArray, percent_xyxy: Float64Array, min_iou: float) -> tuple[IntArray, Float64Array]:
    """Keyframes in x, y, width, height percent, rounded so that the bound holds for what is written."""
    # A hundredth of the slack pays for the rounding, which keeps the numbers short.
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
    """What a ``videorectangle`` says of a track, but for its labels.

    On each frame of Label Studio's timeline it shows the track's box on the picture that is on screen then, with
    IoU >= ``min_iou``, and is hidden wherever the track has none.

    Args:
        track: frames are decoded indices, boxes pixels of the displayed video.
        timeline: of this video, with the frame rate that applies to the task.
        video: gives the displayed size.
        min_iou: bound of the keyframe simplification.

    Returns:
        ``{"framesCount", "duration", "sequence"}``, or ``None`` where the track is on none of Label Studio's frames.
    """
    count = timeline.frames_count
    sequence: list[dict[str, Any]] = []
    for frames, xyxy in timeline.resample(track.frames, track.xyxy):
        percent = xyxy_to_percent(clip_xyxy(xyxy, video.width, video.height), video.width, video.height)
        corners = np.concatenate([percent[:, :2], percent[:, :2] + percent[:, 2:]], axis=1)
        visible = np.flatnonzero((percent[:, 2:] > 0).all(axis=1))
        if not len(visible):
            continue
        for part in np.split(visible, np.flatnonzero(np.diff(visible) > 1) + 1):
            keys, boxes = _keyframes(frames[part], np.clip(corners[part], 0.0, 100.0), min_iou)
            for frame, box in zip(keys.tolist(), boxes.tolist(), strict=True):
                # Hidden after the part's last frame, on which it is still drawn; at the video's end there is no after.
                ends = frame == keys[-1] and frame < count
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
                        # One frame late, as Label Studio itself writes it; it reads `frame` only.
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
    why: Mapping[str, Any] | None = None,
) -> Region:
    """A ``videorectangle`` result.

    Args:
        value: what :func:`track_to_value` made.
        control: gives the names.
        label: of the project, or ``UNLABELLED``.
        score: 0..1.
        original_class: the detector's class.
        why: more for the region's ``meta``: how it came to its label. The id does not depend on it.
    """
    region: Region = {
        "from_name": control.from_name,
        "to_name": control.to_name,
        "type": "videorectangle",
        "value": {**value, "labels": [label] if label else []},
        "score": round(float(score), 4),
        "meta": {"original_class": original_class},
    }
    identified = {"id": _region_id([track_id, region]), **region}
    if why:
        identified["meta"] = {**region["meta"], **why}
    return identified


def track_to_region(
    track: Track, timeline: Timeline, control: VideoControl, video: VideoInfo, min_iou: float = 0.9
) -> Region | None:
    """One labelled track as a ``videorectangle`` result; see :func:`track_to_value`.

    Returns:
        The result, or ``None`` where the track has no label or is on none of Label Studio's frames.
    """
    if track.label is None or (value := track_to_value(track, timeline, video, min_iou)) is None:
        return None
    return make_region(value, control, track.track_id, track.label, track.score, track.top_class)


@dataclass(frozen=True, slots=True, eq=False)
class RegionKeys:
    """A region's keyframes as arrays: who asks for its boxes piece by piece need not read its JSON each time.

    Attributes:
        frames: ``(m,)`` ascending, 1-based.
        enabled: ``(m,)``.
        percent: ``(m, 4)`` x, y, width, height.
        rotation: ``(m,)`` degrees, each the short way round from the one before; ``None`` where nothing is turned.
    """

    frames: IntArray
    enabled: BoolArray
    percent: Float64Array
    rotation: Float64Array | None

    @classmethod
    def read(cls, region: Mapping[str, Any]) -> RegionKeys:
        """The keyframes of a ``videorectangle`` result.

        Raises:
            KeyError, TypeError, ValueError, OverflowError: it is damaged.
        """
        sequence = sorted(region["value"].get("sequence") or [], key=lambda key: int(key["frame"]))
        names = ("x", "y", "width", "height")
        rotation = np.array([float(key.get("rotation") or 0.0) for key in sequence])
        return cls(
            np.array([int(key["frame"]) for key in sequence], dtype=np.int64),
            np.array([bool(key.get("enabled", True)) for key in sequence], dtype=np.bool_),
            np.array([[float(key[name]) for name in names] for key in sequence]).reshape(-1, 4),
            np.unwrap(rotation, period=360.0) if rotation.any() else None,
        )

    def boxes(self, width: float, height: float, at: IntArray) -> tuple[Float64Array, BoolArray]:
        """``(n, 4)`` pixels and ``(n,)`` whether visible, on 1-based frames ``(n,)``; see :func:`region_boxes`."""
        if not len(self.frames):
            return np.zeros((len(at), 4)), np.zeros(len(at), bool)
        previous = np.searchsorted(self.frames, at, side="right") - 1
        visible: BoolArray = (previous >= 0) & (self.enabled[previous] | (self.frames[previous] == at))
        xyxy = percent_to_xyxy(interpolate(self.frames, self.percent, at), width, height)
        if self.rotation is not None:
            # Between keyframes the player turns the short way round.
            xyxy = _upright(xyxy, np.interp(at, self.frames, self.rotation))
        xyxy[~visible] = 0.0
        return xyxy, visible


def region_boxes(
    region: Mapping[str, Any], width: float, height: float, frames: npt.ArrayLike | None = None
) -> tuple[IntArray, Float64Array, BoolArray]:
    """The boxes of a ``videorectangle`` result as Label Studio's player shows them.

    Args:
        region: a result of a prediction or an annotation.
        width, height: displayed size of the video in pixels.
        frames: ``(n,)`` 1-based frames of Label Studio's timeline; all of them if ``None``.

    Returns:
        ``(frames (n,) int64, xyxy (n, 4) float64 pixels, visible (n,) bool)``; boxes of invisible frames are 0. Of
        a rotated box it is the upright box around it.
    """
    keys = RegionKeys.read(region)
    last = max([int(region["value"].get("framesCount") or 0), *keys.frames[-1:].tolist()])
    at = np.arange(1, last + 1, dtype=np.int64) if frames is None else np.asarray(frames, dtype=np.int64)
    return at, *keys.boxes(width, height, at)


def _upright(xyxy: Float64Array, degrees: Float64Array) -> Float64Array:
    """Upright boxes around boxes that are turned clockwise about their top left corners."""
    angle = np.radians(degrees)[:, None]
    width, height = (xyxy[:, 2:] - xyxy[:, :2]).T
    across = np.stack([0 * width, width, width, 0 * width], axis=1)
    down = np.stack([0 * height, 0 * height, height, height], axis=1)
    x = xyxy[:, :1] + across * np.cos(angle) - down * np.sin(angle)
    y = xyxy[:, 1:2] + across * np.sin(angle) + down * np.cos(angle)
    return np.stack([x.min(axis=1), y.min(axis=1), x.max(axis=1), y.max(axis=1)], axis=1)


def visible_frames(region: Mapping[str, Any]) -> int:
    """Number of Label Studio frames on which a region is drawn, found without going through them."""
    keys = RegionKeys.read(region)
    end = max([int(region["value"].get("framesCount") or 0), *keys.frames[-1:].tolist()]) + 1
    return int(np.where(keys.enabled, np.diff(keys.frames, append=end), 1).sum())


def make_prediction(regions: Sequence[Region], model_version: str) -> dict[str, Any]:
    """A Label Studio prediction; its score is the mean of the regions', each weighted by the frames it is on."""
    weights = [visible_frames(region) for region in regions]
    total = sum(weights)
    score = sum(w * float(r["score"]) for w, r in zip(weights, regions, strict=True)) / total if total else 0.0
    return {"model_version": model_version, "score": round(score, 4), "result": list(regions)}
