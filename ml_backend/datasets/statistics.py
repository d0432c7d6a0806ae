"""Count annotations by label and by annotator, and predictions by label and by model version."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from ml_backend.core.files import atomic_text_writer
from ml_backend.core.types import Progress
from ml_backend.datasets.annotated_video import AnnotatedVideo
from ml_backend.datasets.annotation_reader import AnnotationReader

#: Box sizes are counted in steps of a pixel and clamped to this (8K video is 7680 wide).
_MAX_SIZE = 8192

Counts = npt.NDArray[np.int64]


@dataclass(slots=True)
class AnnotationCounts:
    """Counts of one label, or of all labels of one annotator or model version.

    Attributes:
        tracks: regions that are visible on at least one frame.
        boxes: visible boxes of all tracks.
        frames: frames with at least one box.
        seconds: time on screen, summed over tracks.
        manual: tracks that a person drew or changed; the others are predictions, including accepted ones.
        videos: videos with at least one track.
        sizes: ``(8193,)`` histogram of boxes by the side of a square of the same area, in whole pixels.
    """

    tracks: int = 0
    boxes: int = 0
    frames: int = 0
    seconds: float = 0.0
    manual: int = 0
    videos: int = 0
    sizes: Counts = field(default_factory=lambda: np.zeros(_MAX_SIZE + 1, np.int64), repr=False)

    def size(self, quantile: float) -> int:
        """Return a quantile of the box sizes in pixels; 0 without boxes."""
        total = int(self.sizes.sum())
        return int(np.searchsorted(np.cumsum(self.sizes), max(quantile * total, 1))) if total else 0

    def add(self, other: AnnotationCounts) -> None:
        """Add the counts of other videos."""
        for name in ("tracks", "boxes", "frames", "seconds", "manual", "videos"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.sizes += other.sizes


@dataclass(slots=True)
class AnnotationStatistics:
    """Counts by label, by annotator, and of predictions by model version.

    ``videos`` and ``video_seconds`` include videos without annotations.
    """

    labels: dict[str, AnnotationCounts] = field(default_factory=dict)
    annotators: dict[str, AnnotationCounts] = field(default_factory=dict)
    models: dict[str, AnnotationCounts] = field(default_factory=dict)
    videos: int = 0
    video_seconds: float = 0.0

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each label, annotator and model version, most boxes first."""
        groups = (("label", self.labels), ("annotator", self.annotators), ("model", self.models))
        total = sum(counts.boxes for counts in self.labels.values())
        return [
            {
                "kind": kind,
                "name": name,
                "tracks": counts.tracks,
                "boxes": counts.boxes,
                "share": round(counts.boxes / max(total, 1), 4),
                "frames": counts.frames,
                "seconds": round(counts.seconds, 3),
                "manual_tracks": counts.manual,
                "videos": counts.videos,
                "size_min": counts.size(0.0),
                "size_median": counts.size(0.5),
                "size_max": counts.size(1.0),
            }
            for kind, group in groups
            for name, counts in sorted(group.items(), key=lambda item: (-item[1].boxes, item[0]))
        ]


def collect_statistics(reader: AnnotationReader, progress: Progress | None = None) -> AnnotationStatistics:
    """Count all annotations and predictions of a reader. Memory does not grow with the number of boxes.

    Args:
        progress: called with videos done and in total.
    """
    total = sum(1 for _ in reader.task_videos()) if progress else 0
    statistics = AnnotationStatistics()
    if reader.config:
        # Include unused labels.
        statistics.labels.update({label: AnnotationCounts() for label in reader.config.labels})
    for done, video in enumerate(reader.videos(), start=1):
        statistics.videos += 1
        statistics.video_seconds += video.info.duration
        for label in dict.fromkeys(item.label for item in video.objects):
            statistics.labels.setdefault(label, AnnotationCounts()).add(_count(video, label))
        submission = video.task_video.submission
        authors = statistics.models if submission.is_prediction else statistics.annotators
        authors.setdefault(submission.author, AnnotationCounts()).add(_count(video))
        if progress:
            progress(done, total)
    return statistics


def _count(video: AnnotatedVideo, label: str | None = None) -> AnnotationCounts:
    """Count the objects of a video, or those with a label."""
    objects = [item for item in video.objects if label in (None, item.label)]
    counts, visible = AnnotationCounts(videos=int(bool(objects))), np.zeros(video.info.frames, bool)
    times = video.timeline.times
    end = max(float(times[0]) + video.info.duration, float(times[-1]))
    durations = np.diff(times, append=end)
    for item in objects:
        frames, xyxy = video.boxes(item)
        if not len(frames):
            continue
        sides = np.sqrt((xyxy[:, 2] - xyxy[:, 0]) * (xyxy[:, 3] - xyxy[:, 1]))
        sizes = np.minimum(np.rint(sides), _MAX_SIZE).astype(np.int64)
        counts.sizes += np.bincount(sizes, minlength=_MAX_SIZE + 1)
        counts.tracks += 1
        counts.boxes += len(frames)
        counts.seconds += float(durations[frames].sum())
        counts.manual += item.source == "manual"
        visible[frames] = True
    counts.frames = int(visible.sum())
    return counts


def as_table(statistics: AnnotationStatistics) -> Table:
    """Format statistics as a table for the terminal."""
    table = Table(title=f"{statistics.videos} video{'s' * (statistics.videos != 1)}, {statistics.video_seconds:.1f} s")
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
    """Write :meth:`AnnotationStatistics.rows` to a CSV file.

    Raises:
        StorageError: the file cannot be written.
    """
    rows: Sequence[dict[str, Any]] = statistics.rows()
    with atomic_text_writer(path) as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else ["kind", "name"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
