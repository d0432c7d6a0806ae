"""Repairs of Label Studio's regions: as plain JSON, and carried out on results.

Only the regions concerned change, and of these only what the repair changes: their other keyframes stay.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ml_backend.core.boxes import iou_broadcast, iou_pairs
from ml_backend.core.errors import ConfigError, Conflict
from ml_backend.core.keyframes import interpolate, simplify
from ml_backend.core.types import UNLABELLED, BoolArray, Float64Array, IntArray, Track
from ml_backend.label_studio.label_config import VideoControl
from ml_backend.label_studio.regions import (
    MALFORMED,
    Region,
    RegionKeys,
    global_id,
    make_region,
    region_boxes,
    stated_frames,
)
from ml_backend.review.repair_json import RepairJson, digest
from ml_backend.review.repairs import (
    Add,
    Delete,
    Join,
    Relabel,
    Repair,
    SetBoxes,
    SplitAt,
    SwapFrom,
    Trim,
    apply_repair,
)
from ml_backend.review.video import ReviewVideo

#: IoU within which new keyframes follow the boxes of a repair.
MIN_IOU = 0.98
#: Decimals of a box in percent; a thousandth of a pixel of a 4K video.
DECIMALS = 4
#: Shares of frames that two regions have in common, and mean IoU there, from which they are the same track.
SAME_FRAMES, SAME_IOU = 0.8, 0.8
#: Evenly spaced frames, mean IoU on those that two regions have in common, and number of these: below that IoU they are
#: not compared on every frame.
SAMPLES, MAY_BE_IOU, MIN_SAMPLES = 64, 0.5, 4


@dataclass(frozen=True, slots=True)
class RegionChange:
    """What a repair changes in a result.

    Attributes:
        result: all regions and other results afterwards.
        before: regions that were replaced.
        after: regions that replaced them; fewer, more or none.
    """

    result: list[Region]
    before: list[Region]
    after: list[Region]


def repair_to_json(
    repair: Repair, region_ids: Mapping[int, str], video: ReviewVideo, control: VideoControl
) -> RepairJson:
    """Describe a repair of tracks, whose frames and boxes are those of ``review.reading``, as one of regions.

    Args:
        region_ids: by track id.
        video: that was reviewed.
        control: names of an added region.
    """
    to_percent = 100 / np.array([video.width, video.height] * 2)
    match repair:
        case SplitAt(track, frame):
            return {"do": "split", "region": region_ids[track], "frame": int(frame) + 1}
        case Join(track, later, fill):
            return {"do": "join", "region": region_ids[track], "other": region_ids[later], "fill": bool(fill)}
        case SwapFrom(track, other, frame, blend):
            ids = {"region": region_ids[track], "other": region_ids[other]}
            return {"do": "swap", **ids, "frame": int(frame) + 1, "blend": int(blend)}
        case Relabel(track, label):
            return {"do": "relabel", "region": region_ids[track], "label": label}
        case Trim(track, first, last):
            return {"do": "end", "region": region_ids[track], "first": first + 1, "last": last + 1}
        case Delete(track):
            return {"do": "delete", "region": region_ids[track]}
        case SetBoxes(track, first, last, frames, xyxy):
            sequence = keyframe_sequence(frames, xyxy * to_percent, frames[:0], last + 1, 1.0)
            return {"do": "boxes", "region": region_ids[track], "first": first + 1, "last": last + 1} | {
                "sequence": sequence
            }
        case Add(track):
            label = track.label or UNLABELLED
            sequence = keyframe_sequence(
                track.frames, track.xyxy * to_percent, track.frames[:0], video.frames, video.fps
            )
            value = {"framesCount": video.frames, "duration": video.frames / video.fps, "sequence": sequence}
            region = make_region(value, control, track.track_id, label, track.score, track.top_class)
            return {"do": "add", "added": region, "label": label, "first": sequence[0]["frame"]}


def repair_result(result: Sequence[Region], repair: RepairJson, note: str = "") -> RegionChange:
    """Carry out a repair.

    Args:
        note: who, when and what, which Label Studio shows with the regions.

    Raises:
        Conflict: a region does not exist any more, the repair changes nothing in it, or an added one exists.
        ConfigError: a region is malformed, or rotated.
    """
    if repair["do"] == "add":
        if _has_track(result, repair["added"]):
            raise Conflict("Somebody has added the track already.", "Choose another moment.")
        after = [_noted(repair["added"], note) if note else repair["added"]]
        return RegionChange([*result, *after], [], after)
    ids = [repair["region"], *filter(None, [repair.get("other")])]
    by_id = {str(region.get("id")): region for region in result if region.get("type") == "videorectangle"}
    if missing := [name for name in ids if name not in by_id]:
        raise Conflict(f"The region {missing[0]} does not exist any more.", "Choose another moment.")
    before = [by_id[name] for name in ids]
    try:
        after = [_noted(region, note) if note else region for region in _repaired(before, repair)]
    except MALFORMED as error:
        if isinstance(error, ValueError) and str(error).startswith("expected"):
            raise Conflict("The repair changes nothing there.", "Choose another frame, or another repair.") from error
        raise ConfigError(f"The region {ids[0]} is malformed: {error!r}.", "Repair it in Label Studio.") from error
    return RegionChange(_replaced(result, before, after), before, after)


class SameTracks:
    """Finds the regions that show the same tracks as others; each region is read once, however many are sought."""

    def __init__(self) -> None:
        self._outlines: dict[tuple[int, int], tuple[Any, _Outline | None]] = {}

    def find(self, region: Region, regions: Sequence[Region]) -> Region | None:
        """Return the first of some regions with the keyframes of another one, or else with its boxes."""
        exact = next((item for item in regions if is_same_track(item, region, exact=True)), None)
        return exact or next((item for item in self._alike(region, regions) if is_same_track(item, region)), None)

    def _alike(self, region: Region, regions: Sequence[Region]) -> Iterator[Region]:
        """Yield those that may have the boxes of a region, by a few frames."""
        by_count: dict[int, list[int]] = defaultdict(list)
        for index, item in enumerate(regions):
            if item.get("to_name") == region.get("to_name"):
                by_count[max(stated_frames(region), stated_frames(item))].append(index)
        found: list[int] = []
        for count, indices in by_count.items():
            own = self._outline(region, count)
            known = [(i, outline) for i in indices if (outline := self._outline(regions[i], count))]
            if own is None or not known:
                continue
            first, last, frames = np.array([outline.life for _, outline in known]).T
            overlap = np.minimum(last, own.life[1]) - np.maximum(first, own.life[0]) + 1
            both = np.stack([outline.visible for _, outline in known]) & own.visible
            iou = iou_broadcast(np.stack([outline.xyxy for _, outline in known]), own.xyxy)
            common = both.sum(axis=1)
            differ = (common >= MIN_SAMPLES) & ((iou * both).sum(axis=1) < MAY_BE_IOU * common)
            may_be = ~differ & (overlap >= SAME_FRAMES * np.maximum(frames, own.life[2]))
            found += [known[i][0] for i in np.flatnonzero(may_be)]
        return (regions[index] for index in sorted(found))

    def _outline(self, region: Region, count: int) -> _Outline | None:
        """Return how a region moves on a timeline of ``count`` frames; ``None`` if it is malformed."""
        value = region["value"]  # kept, so that its address stays its own
        if (id(value), count) not in self._outlines:
            try:
                outline = _Outline.read(region, count)
            except MALFORMED:
                outline = None
            self._outlines[id(value), count] = value, outline
        return self._outlines[id(value), count][1]


@dataclass(frozen=True, slots=True)
class _Outline:
    """A region at a few frames.

    Attributes:
        life: first and last frame on which it is visible, and number of such frames.
        xyxy: ``(n, 4)``, in percent.
        visible: ``(n,)``.
    """

    life: tuple[int, int, int]
    xyxy: Float64Array
    visible: BoolArray

    @classmethod
    def read(cls, region: Region, count: int) -> _Outline:
        keys = RegionKeys.read(region)
        starts = np.clip(keys.frames, 1, count + 1)
        lasting = np.diff(starts, append=count + 1)
        shown = np.where(keys.enabled, lasting, np.minimum(lasting, 1))
        ends = (starts + shown - 1)[shown > 0]
        life = int(starts[0]) if len(starts) else 1, int(ends.max(initial=0)), int(shown.sum())
        return cls(life, *keys.boxes(100, 100, np.linspace(1, count, SAMPLES).astype(np.int64)))


def replay(
    result: Sequence[Region], before: Sequence[Region], after: Sequence[Region], same: SameTracks | None = None
) -> RegionChange | None:
    """Replace the regions that show the same tracks as ``before`` by ``after``, as a repair did.

    Labels and global ids that differ from those of ``before`` are newer, and kept. Where the repair only wrote to
    ``meta``, so is everything else.

    Args:
        same: of several replays.

    Returns:
        ``None`` if a track is not there, or the added one is there already.
    """
    if not before and _has_track(result, after[0]):
        return None
    same = same or SameTracks()
    found: list[Region] = []
    for region in before:
        others = [item for item in result if item.get("type") == "videorectangle" and item not in found]
        track = same.find(region, others)
        if track is None:
            return None
        found.append(track)
    newer = {
        tuple(_labels(old)): _labels(new)
        for old, new in zip(before, found, strict=True)
        if _labels(new) != _labels(old)
    }
    if [region["value"] for region in before] == [region["value"] for region in after]:
        replaced = [_with_meta(new, old, now) for new, old, now in zip(found, before, after, strict=True)]
    else:
        replaced = [
            {**region, "value": {**region["value"], "labels": newer.get(tuple(_labels(region)), _labels(region))}}
            for region in after
        ]
        for number, (old, new) in enumerate(zip(before[: len(after)], found, strict=False)):
            if global_id(new) != global_id(old):
                replaced[number] = _identified(replaced[number], global_id(new))
    return RegionChange(_replaced(result, found, replaced), found, replaced)


def reapply(result: Sequence[Region], decisions: Sequence[Mapping[str, Any]]) -> list[Region]:
    """Return a new prediction's result with the repairs of an earlier one, as far as it finds the same tracks.

    Args:
        decisions: with ``before`` and ``after``, in order.
    """
    out, same = list(result), SameTracks()
    for item in decisions:
        change = replay(out, item["before"], item["after"], same)
        out = change.result if change else out
    return out


def take_back(result: Sequence[Region], decisions: Sequence[Mapping[str, Any]]) -> list[Region]:
    """Return a prediction's result without repairs, as the model made it."""
    return reapply(result, [{"before": item["after"], "after": item["before"]} for item in reversed(decisions)])


def shown_at_once(a: Region, b: Region) -> bool:
    """Return whether a video shows two regions on a common frame, so that they are two objects."""
    if a.get("to_name") != b.get("to_name"):
        return False
    frames = np.arange(1, max(stated_frames(item) for item in (a, b)) + 1)
    try:
        visible = [region_boxes(item, 100, 100, frames)[2] for item in (a, b)]
    except MALFORMED:
        return False
    return bool((visible[0] & visible[1]).any())


def _has_track(result: Sequence[Region], track: Region) -> bool:
    return any(is_same_track(item, track) for item in result if item.get("type") == "videorectangle")


def is_same_track(a: Region, b: Region, *, exact: bool = False) -> bool:
    """Return whether two regions of a video have the same boxes, or with ``exact`` the same keyframes."""
    if a.get("to_name") != b.get("to_name"):
        return False
    if exact:
        return bool(a["value"]["sequence"] == b["value"]["sequence"])
    try:
        count = max(stated_frames(item) for item in (a, b))
        _, boxes, visible = region_boxes(a, 100, 100, np.arange(1, count + 1))
        _, other_boxes, other_visible = region_boxes(b, 100, 100, np.arange(1, count + 1))
    except MALFORMED:
        return False
    both = visible & other_visible
    if both.sum() < SAME_FRAMES * max((visible | other_visible).sum(), 1):
        return False
    return bool(iou_pairs(boxes[both], other_boxes[both]).mean() >= SAME_IOU)


def region_digest(region: Region) -> str:
    """Return a digest of what a repair depends on: keyframes and labels, 16 hex digits."""
    return digest(region.get("to_name"), region["value"].get("sequence"), _labels(region))


def _noted(region: Region, note: str) -> Region:
    meta = region.get("meta") or {}
    text = meta.get("text")
    earlier = text if isinstance(text, list) else [text]  # a list, once somebody has edited it in Label Studio
    lines = "; ".join(str(line) for line in (note, *earlier) if line)
    return {**region, "meta": {**meta, "repaired": note, "text": lines}}


def _with_meta(region: Region, before: Region, after: Region) -> Region:
    """Return a region with what a repair has changed in the ``meta`` of another one."""
    meta, old, new = (item.get("meta") or {} for item in (region, before, after))
    if global_id(region) not in (None, global_id(before)):  # newer, and so is what is said of it
        return dict(region)
    kept = {name: value for name, value in meta.items() if name in new or name not in old}
    return {**region, "meta": kept | {name: value for name, value in new.items() if old.get(name) != value}}


def _identified(region: Region, number: int | None) -> Region:
    meta = {name: value for name, value in (region.get("meta") or {}).items() if name != "global_id"}
    return {**region, "meta": meta | ({"global_id": number} if number else {})}


def _labels(region: Region) -> list[str]:
    return list(region["value"].get("labels") or [])


def _replaced(result: Sequence[Region], before: Sequence[Region], after: Sequence[Region]) -> list[Region]:
    """Return a result with ``after`` at the place of the first of ``before``, at the end without these."""
    out: list[Region] = []
    waiting = [*after]
    for region in result:
        if any(region is old for old in before):
            out += waiting
            waiting = []
        else:
            out.append(region)
    return out + waiting


def _repaired(before: Sequence[Region], repair: RepairJson) -> list[Region]:
    region = before[0]
    match repair["do"]:
        case "relabel":
            labels = [repair["label"]] if repair["label"] else []
            if _labels(region) == labels:
                raise ValueError("expected another label")
            return [_changed(region, {**region["value"], "labels": labels})]
        case "delete":
            return []
        case "identify":
            if global_id(region) == repair["global_id"]:
                raise ValueError("expected another global id")
            return [_identified(region, repair["global_id"])]
    tracks = [_track(item, number) for number, item in enumerate(before)]
    keyframes = np.unique(np.concatenate([RegionKeys.read(item).frames for item in before]))
    repaired = apply_repair(tracks, _from_json(repair, region))
    out = []
    for track in repaired:
        source = before[track.track_id] if track.track_id < len(before) else region
        value = source["value"]
        count, seconds = stated_frames(source), float(value.get("duration") or 0)
        rate = count / seconds if seconds else 1.0
        last = max(count, int(track.frames[-1]) + 1)
        sequence = keyframe_sequence(track.frames, track.xyxy.astype(np.float64), keyframes, last, rate)
        new = _changed(source, {**value, "sequence": sequence, "labels": [track.label] if track.label else []})
        if track.track_id >= len(before):  # another object, which may be another one everywhere
            new = {**_identified(new, None), "id": digest(region.get("id"), repair)[:10]}
        out.append(new)
    return out


def _changed(region: Region, value: Mapping[str, Any]) -> Region:
    out = {**region, "value": {**value}}
    if out.get("origin") == "prediction":  # else it would count as accepted untouched
        out["origin"] = "prediction-changed"
    return out


def _track(region: Region, number: int) -> Track:
    """Return a region as a track of boxes in percent; frame 0 is Label Studio's frame 1."""
    keys = RegionKeys.read(region)
    if keys.rotation is not None:
        raise ConfigError(f"The region {region.get('id')} is rotated.", "Repair it in Label Studio.")
    first, last = (int(keys.frames[0]), int(keys.frames[-1])) if len(keys.frames) else (1, 0)
    frames = np.arange(max(first, 1), max(last, stated_frames(region)) + 1)
    xyxy, visible = keys.boxes(100, 100, frames)
    labels = _labels(region)
    return Track(
        number,
        frames[visible] - 1,
        xyxy[visible].astype(np.float32),
        np.ones(int(visible.sum()), np.float32),
        label=labels[0] if labels else None,
    )


def _from_json(repair: RepairJson, region: Region) -> Repair:
    """Return the repair of tracks 0 and 1 that a repair of regions is."""
    match repair["do"]:
        case "split":
            return SplitAt(0, repair["frame"] - 1)
        case "join":
            return Join(0, 1, repair.get("fill", True))
        case "swap":
            return SwapFrom(0, 1, repair["frame"] - 1, repair.get("blend", 0))
        case "end":
            return Trim(0, repair["first"] - 1, repair["last"] - 1)
        case "boxes":
            first, last = repair["first"], repair["last"]
            value = {**region["value"], "sequence": repair["sequence"], "framesCount": last}
            new = _track({"value": value}, 0)
            inside: Any = (new.frames >= first - 1) & (new.frames <= last - 1)
            return SetBoxes(0, first - 1, last - 1, new.frames[inside], new.xyxy[inside])
    raise ConfigError(f"There is no repair {repair['do']!r}.")


def keyframe_sequence(
    frames: IntArray, percent: Any, keyframes: IntArray, frames_count: int, rate: float, min_iou: float = MIN_IOU
) -> list[dict[str, Any]]:
    """Return the keyframes of boxes ``(n, 4)`` in percent on 0-based ``frames``.

    Args:
        keyframes: 1-based frames that are kept as keyframes.
        frames_count: of the timeline: a region that ends there need not be ended.
        rate: frames per second of the timeline.
        min_iou: of the boxes between keyframes with the given ones.
    """
    sequence: list[dict[str, Any]] = []
    shown = frames + 1
    for rows in np.split(np.arange(len(shown)), np.flatnonzero(np.diff(shown) > 1) + 1):
        span, boxes = shown[rows], percent[rows]
        keys = np.union1d(span[[0, -1]], np.intersect1d(keyframes, span))
        if (iou_pairs(interpolate(keys, boxes[keys - span[0]], span), boxes) < min_iou).any():
            keys = np.union1d(keys, simplify(span, boxes, min_iou)[0])
        for frame, box in zip(keys.tolist(), boxes[keys - span[0]], strict=True):
            x1, y1, x2, y2 = np.round(box, DECIMALS + 2).tolist()
            size = {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}
            sequence.append(
                {
                    "frame": frame,
                    "enabled": frame != int(span[-1]) or frame >= frames_count,
                    **{name: round(value, DECIMALS) for name, value in size.items()},
                    "rotation": 0,
                    "time": round(frame / rate, 6),
                }
            )
    return sequence
