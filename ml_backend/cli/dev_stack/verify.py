"""Whether a task's prediction agrees with what is known to move in its video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ml_backend.core.boxes import iou_pairs
from ml_backend.core.types import Track
from ml_backend.label_studio.regions import region_boxes
from ml_backend.video.sample import SampleTruth

#: Boxes of moving cut-outs are not pixel-exact, and the motion detector's are coarser; a wrong frame offset of a few
#: frames or a wrong scale still falls below this.
MIN_IOU = 0.5
#: Frames on which less of an object is to be seen, because it enters or is covered, do not count.
MIN_VISIBLE = 0.4
#: Share of an object's other frames on which a region must overlap it so.
MIN_COVERAGE = 0.6
#: Share of the objects that must be found. The fallback may merge objects that pass each other.
MIN_FOUND = {"yolo": 1.0, "motion": 0.6}
#: More regions than this for each object would be flicker. The fallback also sees shadows and breaks objects up.
MAX_REGIONS_PER_OBJECT = {"yolo": 2.0, "motion": 3.0}


@dataclass(frozen=True, slots=True)
class Match:
    """An object of the truth, the label of the region that follows it best, and how well it is followed.

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
    """Outcome of a comparison; ``problems`` is empty when the prediction is right."""

    model_version: str
    regions: int
    matches: tuple[Match, ...]
    problems: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """For programs."""
        found = [match.iou for match in self.matches if match.coverage >= MIN_COVERAGE]
        return {
            "ok": not self.problems,
            "model_version": self.model_version,
            "objects": len(self.matches),
            "found": len(found),
            "regions": self.regions,
            "mean_iou": round(float(np.mean(found)) if found else 0.0, 3),
            "problems": list(self.problems),
        }

    def __str__(self) -> str:
        """For people."""
        rows = [
            f"  {match.truth}: region {match.label or '-'}, covered {match.coverage:.0%}, IoU {match.iou:.2f}"
            for match in self.matches
        ]
        verdict = "The prediction is wrong:" if self.problems else "The prediction is right."
        head = f"{self.regions} regions by {self.model_version}"
        return "\n".join([head, *rows, verdict, *(f"  {problem}" for problem in self.problems)])


def check_prediction(task: Mapping[str, Any], truth: SampleTruth) -> Report:
    """Compare a task, as Label Studio's API returns it, with what is known of its video."""
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
    matches = tuple(_match(track, regions, truth, whole=detector == "yolo") for track in truth.tracks)
    lost = [match for match in matches if match.coverage < MIN_COVERAGE]
    if len(matches) - len(lost) < MIN_FOUND[detector] * len(matches):
        problems.append(f"not found: {', '.join(match.truth for match in lost)}")
    if len(regions) > MAX_REGIONS_PER_OBJECT[detector] * len(truth.tracks):
        problems.append(f"{len(regions)} regions for {len(truth.tracks)} objects")
    if detector == "yolo":  # the motion detector does not know what it sees
        problems += [
            f"{match.truth} is labelled {match.label or 'nothing'}"
            for match in matches
            if match not in lost and match.label != match.truth
        ]
    return Report(version, len(regions), matches, tuple(problems))


def follow(region: Mapping[str, Any], truth: SampleTruth) -> str | None:
    """The object of the truth that a region follows on most of its frames; ``None``: none of them."""
    best: tuple[float, str | None] = (0.0, None)
    for track in truth.tracks:
        _, boxes, visible = region_boxes(region, truth.width, truth.height, track.frames + 1)
        hits = int((iou_pairs(boxes[visible], track.xyxy[visible]) >= MIN_IOU).sum())
        best = max(best, (hits / max(int(visible.sum()), 1), track.label or track.top_class), key=lambda item: item[0])
    return best[1] if best[0] >= MIN_COVERAGE / 2 else None


def _match(track: Track, regions: Sequence[Mapping[str, Any]], truth: SampleTruth, *, whole: bool) -> Match:
    """How well one region (``whole``), or all of them together, follow an object."""
    name = track.label or track.top_class
    shown = track.conf >= MIN_VISIBLE
    frames, xyxy = track.frames[shown], track.xyxy[shown]
    overlaps = np.zeros((len(regions), len(frames)))
    for row, region in zip(overlaps, regions, strict=True):
        # The task's fps is the video's, so Label Studio's frame f shows the decoded frame f - 1.
        _, boxes, visible = region_boxes(region, truth.width, truth.height, frames + 1)
        row[:] = np.where(visible, iou_pairs(boxes, xyxy), 0.0)
    if not overlaps.size:
        return Match(name, "", 0.0, 0.0)
    best = int((overlaps >= MIN_IOU).mean(axis=1).argmax())
    overlap = overlaps[best] if whole else overlaps.max(axis=0)
    hit = overlap >= MIN_IOU
    labels = regions[best]["value"].get("labels") or [""]
    return Match(name, str(labels[0]), float(hit.mean()), float(overlap[hit].mean()) if hit.any() else 0.0)
