"""A task's tracks as people see them in a timeline: where each is visible, and its box at a frame."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ml_backend.core.boxes import box_area
from ml_backend.datasets.selection import chosen_label, valid_score
from ml_backend.label_studio.regions import MALFORMED, RegionKeys, global_id
from ml_backend.label_studio.timeline import MAX_TIMELINE
from ml_backend.review.region_repairs import region_digest
from ml_backend.tracking.box_motion import runs

log = logging.getLogger(__name__)

#: Frames between keyframes that are looked at for one video: some seconds of work.
MAX_COMPUTED = 20_000_000


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
        global_id: of its object in all tasks; ``None`` without one.
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
    global_id: int | None

    def box(self, frame: int) -> tuple[float, float, float, float] | None:
        """Return x, y, width and height in percent at a 1-based frame; ``None`` where it is not visible."""
        xyxy, visible = self.keys.boxes(100, 100, np.array([frame]))
        if not visible[0]:
            return None
        x1, y1, x2, y2 = xyxy[0].tolist()
        return x1, y1, x2 - x1, y2 - y1


def track_rows(
    regions: Iterable[Mapping[str, Any]],
    labels: Sequence[str],
    frames_count: int,
    number: Callable[[Mapping[str, Any]], int | None] = global_id,
) -> list[TrackRow]:
    """Return the tracks of a video's regions, by their first frame; those that cannot be read are left out.

    Args:
        labels: of the project.
        frames_count: of the timeline.
        number: returns a region's global id.
    """
    found: list[TrackRow] = []
    computed = 0
    for region in regions:
        try:
            keys = RegionKeys.read(region)
            last = max(frames_count, *keys.frames[-1:].tolist(), 1)
            if last > MAX_TIMELINE:
                raise ValueError(f"it has a keyframe at frame {last}")
            begin, end = (max(1, int(keys.frames[0])), int(keys.frames[-1])) if len(keys.frames) else (1, 0)
            computed += end + 1 - begin
            if computed > MAX_COMPUTED:
                raise ValueError("the regions before it have too many frames between their keyframes")
            xyxy, visible = keys.boxes(1, 1, np.arange(begin, min(end + 1, last) + 1))
            digest = region_digest(dict(region))
        except MALFORMED as error:
            log.warning("The region %s cannot be read: %r", region.get("id"), error)
            continue
        name, score = str(region.get("id", "")), valid_score(region.get("score"))
        label, spans = chosen_label(region, labels), [(begin + first, begin + final) for first, final in runs(visible)]
        stays = last - end - 1 if spans and spans[-1][1] == end + 1 else 0  # as it is at its last keyframe
        if stays:
            spans[-1] = spans[-1][0], last
        areas = box_area(xyxy[visible])
        shown = len(areas) + stays
        area = float(areas.sum() + stays * areas[-1:].sum()) / max(shown, 1)
        found.append(TrackRow(0, name, label, score, spans, shown, area, digest, keys, number(region)))
    found.sort(key=lambda row: row.spans[0] if row.spans else (0, 0))
    return [replace(row, number=place) for place, row in enumerate(found, start=1)]
