"""Whether a task's prediction agrees with what is known to move in its video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ml_backend.geometry import iou_pairs
from ml_backend.label_studio.regions import region_boxes
from ml_backend.types import Track

#: Boxes of moving cut-outs are not pixel-exact, and the motion detector's are coarser; a wrong frame offset of a few
#: frames or a wrong scale still falls below this.
MIN_IOU = 0.5
#: Share of an object's frames on which its best region must overlap it so.
MIN_COVERAGE = 0.6
#: Share of the objects that must be found. The fallback may merge objects that pass each other.
MIN_FOUND = {"yolo": 1.0, "motion": 0.6}
#: More regions than this for each object would be flicker.
MAX_REGIONS_PER_OBJECT = 2.0


@dataclass(frozen=True, slots=True)
class Match:
    """One object of the truth and the region that follows it best.

    Attributes:
        coverage: share of the object's frames with IoU of at least MIN_IOU.
        iou: mean IoU over the frames on which both are visible.
    """

    truth: str
    label: str
    coverage: float
    iou: float


@dataclass(frozen=True, slots=True)
class Report:
    """Outcome of a comparison; ``problems`` is empty when the prediction is right."""

    detector: str
    model_version: str
    regions: int
    matches: tuple[Match, ...]
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.problems

    def summary(self) -> dict[str, Any]:
        """For programs."""
        found = [match for match in self.matches if match.coverage >= MIN_COVERAGE]
        mean_iou = float(np.mean([match.iou for match in found])) if found else 0.0
        return {
            "model_version": self.model_version,
            "objects": len(self.matches),
            "found": len(found),
            "regions": self.regions,
            "mean_iou": round(mean_iou, 3),
            "problems": list(self.problems),
        }

    def lines(self) -> list[str]:
        """For people."""
        rows = [
            f"  {match.truth}: region {match.label or '-'}, covered {match.coverage:.0%}, IoU {match.iou:.2f}"
            for match in self.matches
        ]
        verdict = "The prediction is right." if self.ok else "The prediction is wrong:"
        return [f"{self.regions} regions by {self.model_version}", *rows, verdict, *(f"  {p}" for p in self.problems)]


def check_prediction(
    task: Mapping[str, Any], truth: Sequence[Track], *, width: int, height: int, fps: float, frames: int
) -> Report:
    """Compare a task, as Label Studio's API returns it, with the objects that are in its video.

    Args:
        truth: labelled tracks in decoded frames of a constant-rate video.
        width, height, fps, frames: of that video.
    """
    problems: list[str] = []
    data = task["data"]
    if abs(float(data.get("fps") or 0.0) - fps) > 0.01:
        problems.append(f"the task's fps is {data.get('fps')!r}, the video's {fps:g}: boxes would drift")
    predictions = task.get("predictions") or []
    if not predictions:
        return Report("", "", 0, (), (*problems, "the task has no prediction"))
    prediction = predictions[-1]
    version = str(prediction.get("model_version") or "")
    detector = "motion" if "motion" in version else "yolo"
    regions = [item for item in prediction["result"] if item["type"] == "videorectangle"]
    for region in regions:
        if region["value"]["framesCount"] != frames:
            problems.append(f"framesCount is {region['value']['framesCount']}, the video has {frames} frames")
            break
    matches = tuple(_best_match(track, regions, width, height) for track in truth)
    lost = [match for match in matches if match.coverage < MIN_COVERAGE]
    if len(matches) - len(lost) < MIN_FOUND[detector] * len(matches):
        problems.append(f"not found: {', '.join(match.truth for match in lost)}")
    if len(regions) > MAX_REGIONS_PER_OBJECT * len(truth):
        problems.append(f"{len(regions)} regions for {len(truth)} objects")
    if detector == "yolo":  # the motion detector does not know what it sees
        problems += [
            f"{match.truth} is labelled {match.label or 'nothing'}"
            for match in matches
            if match not in lost and match.label != match.truth
        ]
    return Report(detector, version, len(regions), matches, tuple(problems))


def _best_match(track: Track, regions: Sequence[Mapping[str, Any]], width: int, height: int) -> Match:
    truth = track.label or track.top_class
    best = Match(truth, "", 0.0, 0.0)
    for region in regions:
        # The task's fps is the video's, so Label Studio's frame f shows the decoded frame f - 1.
        _, xyxy, visible = region_boxes(region, width, height, track.frames + 1)
        overlap = iou_pairs(xyxy.astype(np.float32), track.xyxy) * visible
        coverage = float(np.mean(overlap >= MIN_IOU)) if len(track) else 0.0
        if coverage > best.coverage:
            labels = region["value"].get("labels") or [""]
            best = Match(truth, str(labels[0]), coverage, float(overlap[visible].mean()))
    return best
