"""What has been annotated, in numbers: by label, and by who submitted it."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from ml_backend.core.files import atomic_text_writer
from ml_backend.datasets.annotated_video import AnnotatedVideo
from ml_backend.datasets.annotation_reader import AnnotationReader

#: Box sizes are counted in steps of a pixel up to here (8K video is 7680 wide); larger ones count as this.
_MAX_SIZE = 8192

Counts = npt.NDArray[np.int64]


@dataclass(slots=True)
class AnnotationCounts:
    """Numbers of one label, or of all labels of one person.

    Attributes:
        tracks: regions that are visible at all.
        boxes: pictures on which each of them is visible, summed.
        frames: pictures on which at least one is.
        seconds: how long each is on screen, summed.
        manual: tracks that a person drew or changed; the others are predictions, also accepted ones.
        videos: videos with at least one.
        sizes: ``(8193,)`` boxes by the side of a square of the same area, in whole pixels.
    """

    tracks: int = 0
    boxes: int = 0
    frames: int = 0
    seconds: float = 0.0
    manual: int = 0
    videos: int = 0
    sizes: Counts = field(default_factory=lambda: np.zeros(_MAX_SIZE + 1, np.int64), repr=False)

    def size(self, quantile: float) -> int:
        """A quantile of the box sizes in pixels; 0 where there are no boxes."""
        total = int(self.sizes.sum())
        return int(np.searchsorted(np.cumsum(self.sizes), max(quantile * total, 1))) if total else 0

    def add(self, other: AnnotationCounts) -> None:
        """Count what another has counted too, of other videos."""
        for name in ("tracks", "boxes", "frames", "seconds", "manual", "videos"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.sizes += other.sizes


@dataclass(slots=True)
class AnnotationStatistics:
    """Tallies by label and by annotator; ``videos`` and ``video_seconds`` are of everything that was looked at."""

    labels: dict[str, AnnotationCounts] = field(default_factory=dict)
    annotators: dict[str, AnnotationCounts] = field(default_factory=dict)
    videos: int = 0
    video_seconds: float = 0.0

    def rows(self) -> list[dict[str, Any]]:
        """One row for each label and each annotator, most boxes first."""
        groups = (("label", self.labels), ("annotator", self.annotators))
        total = sum(tally.boxes for tally in self.labels.values())
        return [
            {
                "kind": kind,
                "name": name,
                "tracks": tally.tracks,
                "boxes": tally.boxes,
                "share": round(tally.boxes / max(total, 1), 4),
                "frames": tally.frames,
                "seconds": round(tally.seconds, 3),
                "manual_tracks": tally.manual,
                "videos": tally.videos,
                "size_min": tally.size(0.0),
                "size_median": tally.size(0.5),
                "size_max": tally.size(1.0),
            }
            for kind, group in groups
            for name, tally in sorted(group.items(), key=lambda item: (-item[1].boxes, item[0]))
        ]


def collect_statistics(
    source: AnnotationReader, progress: Callable[[int, int], None] | None = None
) -> AnnotationStatistics:
    """Count everything in a source. Memory does not grow with the number of boxes.

    Args:
        progress: called with videos done and videos in all.
    """
    total = sum(1 for _ in source.parts()) if progress else 0
    found = AnnotationStatistics()
    if source.config:
        # Labels that nobody has used are worth knowing too.
        found.labels.update({label: AnnotationCounts() for label in source.config.labels})
    for done, video in enumerate(source.videos(), start=1):
        found.videos += 1
        found.video_seconds += video.info.duration
        for label in dict.fromkeys(item.label for item in video.objects):
            found.labels.setdefault(label, AnnotationCounts()).add(_tally(video, label))
        found.annotators.setdefault(video.part.submission.annotator, AnnotationCounts()).add(_tally(video))
        if progress:
            progress(done, total)
    return found


def _tally(video: AnnotatedVideo, label: str | None = None) -> AnnotationCounts:
    """Numbers of the objects with a label, or of all objects of a video."""
    objects = [item for item in video.objects if label in (None, item.label)]
    tally, shown = AnnotationCounts(videos=int(bool(objects))), np.zeros(video.info.frames, bool)
    times = video.timeline.times
    end = max(float(times[0]) + video.info.duration, float(times[-1]))
    lasting = np.diff(times, append=end)  # how long each picture is on screen
    for item in objects:
        pictures, xyxy = video.boxes(item)
        if not len(pictures):
            continue
        sides = np.sqrt((xyxy[:, 2] - xyxy[:, 0]) * (xyxy[:, 3] - xyxy[:, 1]))
        steps = np.minimum(np.rint(sides), _MAX_SIZE).astype(np.int64)
        tally.sizes += np.bincount(steps, minlength=_MAX_SIZE + 1)
        tally.tracks += 1
        tally.boxes += len(pictures)
        tally.seconds += float(lasting[pictures].sum())
        tally.manual += item.source == "manual"
        shown[pictures] = True
    tally.frames = int(shown.sum())
    return tally


def as_table(statistics: AnnotationStatistics) -> Table:
    """For a terminal."""
    table = Table(title=f"{statistics.videos} videos, {statistics.video_seconds:.1f} s")
    table.add_column("")
    table.add_column("", overflow="fold")
    for heading in ("tracks", "by hand", "boxes", "share", "frames", "seconds", "videos", "size in px"):
        table.add_column(heading, justify="right")
    kind = ""
    for row in statistics.rows():
        if row["kind"] != kind and kind:
            table.add_section()
        table.add_row(
            "" if row["kind"] == kind else row["kind"],
            row["name"] or "(none)",
            str(row["tracks"]),
            str(row["manual_tracks"]),
            str(row["boxes"]),
            f"{row['share']:.1%}",
            str(row["frames"]),
            f"{row['seconds']:.1f}",
            str(row["videos"]),
            f"{row['size_min']} / {row['size_median']} / {row['size_max']}",
        )
        kind = row["kind"]
    table.caption = "size: smallest, median and largest side of a square of the box's area"
    return table


def write_csv(statistics: AnnotationStatistics, path: Path) -> None:
    """The same as comma-separated values.

    Raises:
        StorageError: it cannot be written.
    """
    rows: Sequence[dict[str, Any]] = statistics.rows()
    with atomic_text_writer(path) as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else ["kind", "name"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
