"""Extend a region that a person has drawn or corrected to the whole life of its object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ml_backend.core.boxes import clip_xyxy
from ml_backend.core.errors import RequestError
from ml_backend.core.types import Float64Array, Track, VideoInfo
from ml_backend.inference.follow import FollowedObject, Follower
from ml_backend.label_studio.regions import MALFORMED, region_boxes, track_to_value
from ml_backend.label_studio.timeline import Timeline

Keyframe = Mapping[str, Any]

_GEOMETRY = ("x", "y", "width", "height", "rotation")
#: Percent of the image by which a keyframe may differ and still be the same: Label Studio rounds nothing, but JSON may.
_SAME = 1e-3
#: Smallest side of a box in pixels: there is nothing to follow in less.
MIN_SIDE = 4.0
#: Most keyframes of a region that are read: a request is not trusted.
MAX_KEYFRAMES = 100_000


@dataclass(frozen=True, slots=True)
class Answer:
    """A region's keyframes as they were answered, by which the person's keyframes are told from ours next time.

    Attributes:
        sequence: all keyframes, in order.
        human: 1-based frames of those that are the person's.
        ended: whether the object was followed to its begin and to its end.
    """

    sequence: tuple[Keyframe, ...]
    human: frozenset[int]
    ended: tuple[bool, bool]

    def to_json(self) -> dict[str, Any]:
        return {"sequence": list(self.sequence), "human": sorted(self.human), "ended": list(self.ended)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Answer:
        return cls(
            tuple(value["sequence"]), frozenset(value["human"]), (bool(value["ended"][0]), bool(value["ended"][1]))
        )


def keyframe_numbers(region: Mapping[str, Any]) -> list[int]:
    """Return the 1-based frames of a region's keyframes; none if it cannot be read."""
    try:
        return [int(key["frame"]) for key in region["value"]["sequence"]]
    except MALFORMED:
        return []


class Redraw:
    """Follow a region's object from the person's keyframes.

    Args:
        follower: of the video.
        info, timeline: of the video.
        min_iou: of the keyframe simplification.
        span_s: seconds for which it is followed at most beyond the person's keyframes, each way.
    """

    def __init__(self, follower: Follower, info: VideoInfo, timeline: Timeline, min_iou: float, span_s: float) -> None:
        self._follower, self._info, self._timeline, self._min_iou = follower, info, timeline, min_iou
        self._span = max(1, round(span_s * info.fps))

    def extend(self, region: Mapping[str, Any], before: Answer | None) -> Answer:
        """Return a region's keyframes after following its object.

        The person's keyframes stay as they are. Without an earlier answer all keyframes are the person's, and the
        object is followed between them and beyond both ends. After one, only the stretches around keyframes that the
        person has moved or added since are followed again; if there are none, it goes on where it stopped.

        Args:
            region: a ``videorectangle`` of the editor.
            before: what was answered for it last.

        Raises:
            RequestError: the region is malformed, or a box is outside the image or of no area.
        """
        keys = self._read(region)
        earlier = {int(key["frame"]): key for key in before.sequence} if before else {}
        if before and not (earlier.keys() - before.human) & keys.keys() and earlier.keys() - before.human:
            before, earlier = None, {}  # the editor never got the answer, or the person has undone it
        human = {
            frame for frame, key in keys.items() if not (frame in earlier and _same(key, earlier[frame]))
        }  # moved or added since
        changed = set(human)
        if before:
            human |= {frame for frame in before.human if frame in keys}
        if not human:  # the person has removed all of them
            changed = human = {min(keys)}
        anchors = sorted(human)
        out = dict(keys)
        ended = list(before.ended) if before else [True, True]
        for first, last in pairwise(anchors):
            if (not before or {first, last} & changed) and keys[first]["enabled"]:
                self._replace(out, human, first, last, self._between(keys[first], keys[last]))
        if not before or anchors[0] in changed:
            ended[0] = self._beyond(out, human, keys[anchors[0]], -1)
        elif not before.ended[0]:
            ended[0] = self._beyond(out, human, keys[min(keys)], -1)
        if not keys[anchors[-1]]["enabled"]:
            ended[1] = True  # the person says where it ends
        elif not before or anchors[-1] in changed:
            ended[1] = self._beyond(out, human, keys[anchors[-1]], 1)
        elif not before.ended[1]:
            ended[1] = self._beyond(out, human, keys[max(keys)], 1)
        return Answer(tuple(out[frame] for frame in sorted(out)), frozenset(human), (ended[0], ended[1]))

    # -- reading

    def _read(self, region: Mapping[str, Any]) -> dict[int, Keyframe]:
        try:
            sequence = region["value"]["sequence"]
            if not sequence or len(sequence) > MAX_KEYFRAMES:
                raise ValueError("no keyframes, or too many")
            keys: dict[int, Keyframe] = {
                int(key["frame"]): {
                    **key,
                    "frame": int(key["frame"]),
                    "enabled": bool(key.get("enabled")),
                    "rotation": float(key.get("rotation") or 0.0),
                    **{name: float(key[name]) for name in _GEOMETRY[:4]},
                }
                for key in sequence
            }
        except MALFORMED as error:
            raise RequestError("The region cannot be read.", "Delete it, and draw it again.") from error
        frames = np.array(sorted(keys))
        if frames[0] < 1 or frames[-1] > self._timeline.frames_count:
            raise RequestError(
                f"The region has keyframes from {frames[0]} to {frames[-1]}, but the video's frames are 1 to "
                f"{self._timeline.frames_count}.",
                "Correct the task's frame rate, or draw the region again.",
            )
        for key in keys.values():
            finite = np.isfinite([key[name] for name in _GEOMETRY]).all()
            if not finite or not (self._box(key)[2:] - self._box(key)[:2] >= MIN_SIDE).all():
                raise RequestError("A box of the region is outside the picture or too small.", "Draw it again.")
        return keys

    def _box(self, key: Keyframe) -> Float64Array:
        """Return a keyframe's box ``(4,)`` in pixels, inside the image; the upright box around a rotated one."""
        width, height, frame = self._info.width, self._info.height, key["frame"]
        _, xyxy, _ = region_boxes({"value": {"sequence": [{**key, "enabled": True}]}}, width, height, [frame])
        box: Float64Array = clip_xyxy(xyxy, width, height)[0]
        return box

    def _index(self, frame: int) -> int:
        return int(self._timeline.decoded_index([frame])[0])

    # -- following

    def _between(self, first: Keyframe, last: Keyframe) -> FollowedObject:
        start, end = self._index(first["frame"]), self._index(last["frame"])
        return self._follower.between(start, self._box(first), end, self._box(last))

    def _beyond(self, out: dict[int, Keyframe], human: set[int], key: Keyframe, step: int) -> bool:
        """Follow from a keyframe to one end of the object's life; return whether that was reached."""
        frame, index = key["frame"], self._index(key["frame"])
        limit = int(np.clip(index + step * self._span, 0, self._info.frames - 1))
        found = self._follower.follow(index, self._box(key), *((limit, index) if step < 0 else (index, limit)))
        if step < 0:
            self._replace(out, human | {frame}, 1, frame, found)
        else:  # a last keyframe of ours hides the object after it, which is no longer so
            self._replace(out, human, frame, self._timeline.frames_count, found)
        side = 0 if step < 0 else 1
        span_used_up = found.reached[side] == limit and limit not in (0, self._info.frames - 1)
        return found.ended[side] and not span_used_up

    def _replace(self, out: dict[int, Keyframe], fixed: set[int], first: int, last: int, found: FollowedObject) -> None:
        """Replace the keyframes from ``first`` to ``last``, but for the ``fixed`` ones, by a followed object's."""
        for frame in [frame for frame in out if first <= frame <= last and frame not in fixed]:
            del out[frame]
        frames = np.array(sorted(found.boxes), np.int64)
        boxes = np.stack([found.boxes[index] for index in frames.tolist()])
        track = Track(0, frames, boxes.astype(np.float32), np.ones(len(frames), np.float32))
        value = track_to_value(track, self._timeline, self._info, self._min_iou)
        for key in value["sequence"] if value else ():
            if first <= key["frame"] <= last and key["frame"] not in fixed:
                out[key["frame"]] = key
        # The person's keyframe would show the object until the next one, where it is hidden right after.
        after = first + 1
        if first in out and out[first]["enabled"] and after < last and self._index(after) not in found.boxes:
            out[after] = {**out[first], "frame": after, "enabled": False}


def _same(a: Keyframe, b: Keyframe) -> bool:
    return bool(a.get("enabled")) == bool(b.get("enabled")) and all(
        abs(float(a.get(name) or 0.0) - float(b.get(name) or 0.0)) <= _SAME for name in _GEOMETRY
    )
