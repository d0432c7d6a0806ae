"""``annotations.json``: a JSON array with a row for each box; ``docs/annotations.schema.json`` is its schema.

    {"frame": "2.133", "label": "fallen_person", "bbox": [x, y, width, height],
     "confidence": 0.85, "source": "auto", "original_class": "person"}

``frame`` is the frame's time in seconds with three decimals, ``bbox`` whole pixels of the displayed video. On request
rows also have ``frame_number`` (the decoded frame, from 0, as in datasets) and ``track_id`` (from 1 in each video).
Also on request, rows of objects that have one have a ``global_id``, the same in all videos.
``confidence`` and ``original_class`` are present only if ``source`` is ``"auto"``, and ``confidence`` only if the
prediction has a score. Rows are ordered by video, time and track.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ml_backend.core.errors import BackendError, ConfigError
from ml_backend.core.files import atomic_text_writer
from ml_backend.core.types import IntArray, Progress
from ml_backend.datasets.annotated_video import AnnotatedVideo, VideoObject
from ml_backend.datasets.annotation_reader import AnnotationReader

Row = dict[str, Any]

#: Frames to export: all, each track's keyframes, or a number per second.
Sample = Literal["all", "keyframes"] | float


@dataclass(slots=True)
class WrittenAnnotations:
    """Counts of :func:`export_annotations`: videos, rows, and objects left out because they have no label."""

    videos: int = 0
    rows: int = 0
    unlabelled: int = 0


def parse_sample(text: str) -> Sample:
    """Parse ``all``, ``keyframes`` or a number of frames per second.

    Raises:
        ConfigError: the text is none of these.
    """
    if text in ("all", "keyframes"):
        return text  # type: ignore[return-value]
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise ConfigError(f"{text!r} is not a sampling.", "Use all, keyframes, or a number of frames per second.")
    return rate


def frames_at_rate(times: npt.NDArray[np.float64], rate: float) -> IntArray:
    """Return the frames ``(n,)`` that are the first at or after each multiple of ``1 / rate`` seconds.

    Args:
        times: ``(frames,)`` ascending seconds.
    """
    # A microsecond of tolerance for rounded times, such as 0.333333 s.
    step = np.floor((times + 1e-6) * rate).astype(np.int64)
    return np.flatnonzero(np.diff(step, prepend=step[0] - 1) > 0).astype(np.int64)


def annotation_rows(
    video: AnnotatedVideo, sample: Sample = "all", with_ids: bool = False, global_ids: bool = False
) -> Iterator[Row]:
    """Yield the rows of one video; see :func:`export_annotations`."""
    labelled = [item for item in video.objects if item.label]
    keyframes: dict[int, set[int]] = {}
    wanted: IntArray
    if sample == "all":
        wanted = np.arange(video.info.frames)
    elif sample == "keyframes":
        keyframes = {item.track_id: set(video.keyframes([item]).tolist()) for item in labelled}
        wanted = video.keyframes(labelled)
    else:
        wanted = frames_at_rate(video.timeline.times, float(sample))
    for frame in video.frames(wanted, labelled):
        for item, box in zip(frame.objects, frame.xyxy, strict=True):
            if sample == "keyframes" and frame.index not in keyframes[item.track_id]:
                continue
            ids = {"frame_number": frame.index, "track_id": item.track_id} if with_ids else {}
            if global_ids and item.global_id:
                ids["global_id"] = item.global_id
            yield _row(item, frame.time, whole_pixels(box, video.info.width, video.info.height)) | ids


def whole_pixels(xyxy: npt.ArrayLike, width: int, height: int) -> list[int]:
    """Round a box to whole pixels x, y, width, height inside the frame, at least one pixel in size."""
    x1, y1, x2, y2 = np.floor(np.asarray(xyxy, np.float64) + 0.5).astype(int).tolist()
    x, y = min(max(x1, 0), width - 1), min(max(y1, 0), height - 1)
    return [x, y, max(min(x2, width) - x, 1), max(min(y2, height) - y, 1)]


def _row(item: VideoObject, time: float, bbox: list[int]) -> Row:
    row: Row = {"frame": f"{time:.3f}", "label": item.label, "bbox": bbox}
    if item.source == "auto" and item.confidence is not None:
        row["confidence"] = round(item.confidence, 4)
    row["source"] = item.source
    if item.source == "auto":
        row["original_class"] = item.original_class
    return row


def export_annotations(
    reader: AnnotationReader,
    out: Path,
    *,
    sample: Sample = "all",
    with_video: bool = False,
    with_ids: bool = False,
    global_ids: bool = False,
    progress: Progress | None = None,
) -> WrittenAnnotations:
    """Write the annotations of every task to one file, atomically replacing an existing one.

    If the reader reads all annotators, rows of annotations have an ``annotator``.

    Args:
        with_video: add the video's name to each row, as ``video``.
        with_ids: add ``frame_number`` and ``track_id`` to each row.
        global_ids: add ``global_id`` to rows of objects that have one.
        progress: called with videos done and in total.

    Raises:
        StorageError: the disk is full, or ``out`` cannot be written.
        LabelStudioUnavailable: Label Studio does not answer.
    """
    total = sum(1 for _ in reader.task_videos())
    written = WrittenAnnotations()
    with atomic_text_writer(out) as file:
        file.write("[")
        for done, task_video in enumerate(reader.task_videos(), start=1):
            try:
                extra = {"video": task_video.name} if with_video else {}
                if reader.all_annotators and not task_video.submission.is_prediction:
                    extra["annotator"] = task_video.submission.annotator
                with task_video.open() as video:
                    for row in annotation_rows(video, sample, with_ids, global_ids):
                        row |= extra
                        file.write((",\n" if written.rows else "\n") + json.dumps(row, ensure_ascii=False))
                        written.rows += 1
                    written.unlabelled += sum(not item.label for item in video.objects)
                written.videos += 1
            except BackendError as error:
                reader.skip(task_video, error)
            if progress:
                progress(done, total)
        file.write("\n]\n" if written.rows else "]\n")
    return written
