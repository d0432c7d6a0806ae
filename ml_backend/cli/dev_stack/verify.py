"""Compare a task's prediction with the ground truth of the sample video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ml_backend.core.boxes import iou_pairs
from ml_backend.core.types import Track
from ml_backend.label_studio.regions import region_boxes
from ml_backend.video.sample import SampleTruth

#: Low enough for inexact boxes, above all of the motion detector; an offset of a few frames or a wrong scale fails.
MIN_IOU = 0.5
#: Frames on which less of an object is visible, because it enters or is occluded, are ignored.
MIN_VISIBLE = 0.4
#: Share of an object's other frames on which a region must have this IoU.
MIN_COVERAGE = 0.6
#: Minimum recall. The motion detector may merge objects that pass each other.
MIN_FOUND = {"yolo": 1.0, "motion": 0.6}
#: More regions per object count as fragmentation. The motion detector also sees shadows and splits objects.
MAX_REGIONS_PER_OBJECT = {"yolo": 2.0, "motion": 3.0}


@dataclass(frozen=True, slots=True)
class Match:
    """A ground-truth object, the label of its best region, and how well that region matches.

    Attributes:
        coverage: share of the object's frames with IoU of at least MIN_IOU.
        iou: mean IoU over those frames.
    """

    truth: str
    label: str
    coverage: float
    iou: float


@dataclass(frozen=True, slots=True)
class Report:
    """Result of a comparison; ``problems`` is empty if the prediction is right."""

    model_version: str
    regions: int
    matches: tuple[Match, ...]
    problems: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """Return the report as JSON data."""
        matched_ious = [match.iou for match in self.matches if match.coverage >= MIN_COVERAGE]
        return {
            "ok": not self.problems,
            "model_version": self.model_version,
            "objects": len(self.matches),
            "found": len(matched_ious),
            "regions": self.regions,
            "mean_iou": round(float(np.mean(matched_ious)) if matched_ious else 0.0, 3),
            "problems": list(self.problems),
        }

    def __str__(self) -> str:
        rows = [
            f"  {match.truth}: region {match.label or '-'}, covered {match.coverage:.0%}, IoU {match.iou:.2f}"
            for match in self.matches
        ]
        verdict = "The prediction is wrong:" if self.problems else "The prediction is right."
        head = f"{self.regions} regions by {self.model_version}"
        return "\n".join([head, *rows, verdict, *(f"  {problem}" for problem in self.problems)])


def check_prediction(task: Mapping[str, Any], truth: SampleTruth) -> Report:
    """Compare a task, as Label Studio's API returns it, with the ground truth of its video."""
    problems: list[str] = []
    data = task["data"]
    if abs(float(data.get("fps") or 0.0) - truth.fps) > 0.01:
        problems.append(f"the task's fps is {data.get('fps')!r}, the video's {truth.fps:g}: boxes would drift")
    predictions = task.get("predictions") or []
    if not predictions:
        return Report("", 0, (), (*problems, "the task has no prediction"))
    prediction = predictions[-1]
    version = str(prediction.get("model_version") or "")
    detector = "motion" if "motion" in version else "yolo"
    regions = [item for item in prediction["result"] if item["type"] == "videorectangle"]
    if wrong := {region["value"]["framesCount"] for region in regions} - {truth.frames}:
        problems.append(f"framesCount is {min(wrong)}, the video has {truth.frames} frames")
    matches = tuple(_match(track, regions, truth, single=detector == "yolo") for track in truth.tracks)
    missed = [match for match in matches if match.coverage < MIN_COVERAGE]
    if len(matches) - len(missed) < MIN_FOUND[detector] * len(matches):
        problems.append(f"not found: {', '.join(match.truth for match in missed)}")
    if len(regions) > MAX_REGIONS_PER_OBJECT[detector] * len(truth.tracks):
        problems.append(f"{len(regions)} regions for {len(truth.tracks)} objects")
    if detector == "yolo":  # the motion detector has no classes
        problems += [
            f"{match.truth} is labelled {match.label or 'nothing'}"
            for match in matches
            if match not in missed and match.label != match.truth
        ]
    return Report(version, len(regions), matches, tuple(problems))


def matching_object(region: Mapping[str, Any], truth: SampleTruth) -> str | None:
    """Return the ground-truth object that a region overlaps on most frames, or ``None``."""
    best: tuple[float, str | None] = (0.0, None)
    for track in truth.tracks:
        _, boxes, visible = region_boxes(region, truth.width, truth.height, track.frames + 1)
        hits = int((iou_pairs(boxes[visible], track.xyxy[visible]) >= MIN_IOU).sum())
        best = max(best, (hits / max(int(visible.sum()), 1), track.label or track.top_class), key=lambda item: item[0])
    return best[1] if best[0] >= MIN_COVERAGE / 2 else None


def _match(track: Track, regions: Sequence[Mapping[str, Any]], truth: SampleTruth, *, single: bool) -> Match:
    """Match an object with its best region (``single``), or with all regions together."""
    name = track.label or track.top_class
    visible_frames = track.conf >= MIN_VISIBLE
    frames, xyxy = track.frames[visible_frames], track.xyxy[visible_frames]
    ious = np.zeros((len(regions), len(frames)))
    for row, region in zip(ious, regions, strict=True):
        # The task's fps is the video's, so Label Studio's frame f shows the decoded frame f - 1.
        _, boxes, visible = region_boxes(region, truth.width, truth.height, frames + 1)
        row[:] = np.where(visible, iou_pairs(boxes, xyxy), 0.0)
    if not ious.size:
        return Match(name, "", 0.0, 0.0)
    best = int((ious >= MIN_IOU).mean(axis=1).argmax())
    iou = ious[best] if single else ious.max(axis=0)
    covered = iou >= MIN_IOU
    labels = regions[best]["value"].get("labels") or [""]
    return Match(name, str(labels[0]), float(covered.mean()), float(iou[covered].mean()) if covered.any() else 0.0)
