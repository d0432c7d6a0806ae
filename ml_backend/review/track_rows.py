"""A task's tracks as people see them in a timeline: where each is visible, and its box at a frame."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ml_backend.core.types import Float64Array
from ml_backend.datasets.selection import chosen_label, valid_score
from ml_backend.label_studio.regions import MALFORMED, RegionKeys
from ml_backend.label_studio.timeline import MAX_TIMELINE
from ml_backend.review.region_repairs import region_digest
from ml_backend.tracking.box_motion import runs

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrackRow:
    """One track of a video.

    Attributes:
        number: from 1, in order of appearance.
        region: Label Studio's id.
        label: empty without one.
        score: 0 to 1; ``None``: drawn by a person, or unknown.
        spans: first and last frames between which it is visible, 1-based.
        frames: number of frames on which it is visible.
        area: mean share of the picture that its box covers.
        digest: changes when a repair would find another track.
        keys: its keyframes.
    """

    number: int
    region: str
    label: str
    score: float | None
    spans: Sequence[tuple[int, int]]
    frames: int
    area: float
    digest: str
    keys: RegionKeys

    def box(self, frame: int) -> tuple[float, float, float, float] | None:
        """Return x, y, width and height in percent at a 1-based frame; ``None`` where it is not visible."""
        xyxy, visible = self.keys.boxes(100, 100, np.array([frame]))
        if not visible[0]:
            return None
        x1, y1, x2, y2 = xyxy[0].tolist()
        return x1, y1, x2 - x1, y2 - y1


def track_rows(regions: Iterable[Mapping[str, Any]], labels: Sequence[str], frames_count: int) -> list[TrackRow]:
    """Return the tracks of a video's regions, by their first frame; those that cannot be read are left out.

    Args:
        labels: of the project.
        frames_count: of the timeline.
    """
    found: list[TrackRow] = []
    for region in regions:
        try:
            keys = RegionKeys.read(region)
            last = max(frames_count, *keys.frames[-1:].tolist(), 1)
            if last > MAX_TIMELINE:
                raise ValueError(f"it has a keyframe at frame {last}")
            xyxy, visible = keys.boxes(1, 1, np.arange(1, last + 1))
            digest = region_digest(dict(region))
        except MALFORMED as error:
            log.warning("The region %s cannot be read: %r", region.get("id"), error)
            continue
        name, score = str(region.get("id", "")), valid_score(region.get("score"))
        label, spans = chosen_label(region, labels), [(begin + 1, end + 1) for begin, end in runs(visible)]
        found.append(TrackRow(0, name, label, score, spans, int(visible.sum()), _area(xyxy[visible]), digest, keys))
    found.sort(key=lambda row: row.spans[0] if row.spans else (0, 0))
    return [replace(row, number=number) for number, row in enumerate(found, start=1)]


def _area(xyxy: Float64Array) -> float:
    sides = np.clip(xyxy[:, 2:] - xyxy[:, :2], 0, None)
    return float((sides[:, 0] * sides[:, 1]).mean()) if len(xyxy) else 0.0
