"""Assign new videos to parts of the split, and select their candidate frames and held-out spans."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.core.errors import BackendError, Interrupted, MediaError
from ml_backend.core.files import file_sha256
from ml_backend.core.types import IntArray
from ml_backend.datasets.annotated_video import AnnotatedVideo, TaskVideo, VideoObject
from ml_backend.datasets.annotation_reader import AnnotationReader
from ml_backend.training.annotation_summary import AnnotationSummary, NothingToTrain, task_video_key
from ml_backend.training.splits import AssignedVideo, Split, SplitCandidate, SplitStore, assign_splits

log = logging.getLogger(__name__)

#: Fewest candidate frames of a short video, sampled more densely than usual; near-duplicates are dropped later.
MIN_CANDIDATES = 50
#: Seconds of one held-out span: long enough for tracks, short enough to have several.
SPAN_S = 5.0


def visible(video: AnnotatedVideo, objects: Sequence[VideoObject]) -> npt.NDArray[np.bool_]:
    """Return ``(n,)`` whether any of the objects is visible on each frame."""
    out = np.zeros(len(video.timeline.times), np.bool_)
    for item in objects:
        out[video.boxes(item)[0]] = True
    return out


def candidate_frames(video: AnnotatedVideo, objects: Sequence[VideoObject], per_second: float) -> IntArray:
    """Return ``(n,)`` indices of frames that may be trained on: keyframes, and ``per_second`` more."""
    frames = len(video.timeline.times)
    stride = min(max(1, round(video.info.fps / per_second)), max(1, frames // MIN_CANDIDATES))
    return np.union1d(video.keyframes(objects), np.arange(0, frames, stride)).astype(np.int64)


def spans_of(
    video: AnnotatedVideo, split: Split, seen: npt.NDArray[np.bool_], excluded: npt.NDArray[np.bool_], max_frames: int
) -> list[tuple[int, int]]:
    """Return the held-out spans of a video: first and last frame of a few seconds in each of its places.

    A span lies in the middle of its place, or, where nothing is visible there, around the nearest object. So the spans
    of a video do not depend on the other videos.

    Args:
        seen: ``(n,)`` whether any object of a known label is on each frame.
        excluded: ``(n,)`` whether any object of an unknown label is.
        max_frames: largest number of frames of a span.
    """
    times, out = video.timeline.times, []
    for first, last in split.places(times):
        span = _around((first + last) // 2, first, last, times, excluded, max_frames)
        if span is None or not seen[span[0] : span[1] + 1].any():
            there = first + np.flatnonzero((seen & ~excluded)[first : last + 1])
            if len(there):
                nearest = int(there[np.abs(there - (first + last) // 2).argmin()])
                span = _around(nearest, first, last, times, excluded, max_frames)
        if span:
            out.append(span)
    return out


def _around(
    middle: int, first: int, last: int, times: Any, excluded: npt.NDArray[np.bool_], max_frames: int
) -> tuple[int, int] | None:
    """Return the contiguous usable frames around one; ``None`` where that one is excluded itself."""
    if excluded[middle]:
        return None
    near = np.abs(times[first : last + 1] - times[middle]) < SPAN_S / 2
    usable = near & ~excluded[first : last + 1]
    usable[: max(0, middle - first - (max_frames - 1) // 2)] = False
    usable[middle - first + max_frames // 2 + 1 :] = False
    before = np.flatnonzero(~usable[: middle - first])
    after = np.flatnonzero(~usable[middle - first :])
    begin = first + (int(before[-1]) + 1 if len(before) else 0)
    end = middle + int(after[0]) - 1 if len(after) else last
    return begin, end


def assign_videos(
    reader: AnnotationReader,
    summary: AnnotationSummary,
    store: SplitStore,
    project_id: int,
    per_second: float,
    should_stop: Callable[[], bool],
    check_unavailable: Callable[[], None] = lambda: None,
) -> dict[str, Split]:
    """Return the part of each video of the project, by key, and decide on new videos.

    Videos that cannot be opened get no part; they are in ``reader.skipped``.

    Args:
        check_unavailable: called before a decision, which is final; may raise if an annotated video is unavailable.

    Raises:
        NothingToTrain: every possible split leaves nothing to evaluate; none is stored.
        Interrupted: ``should_stop`` returned true.
    """
    while True:
        splits = store.splits(project_id)
        new = set(summary.videos) - set(splits)
        if not new:
            return splits
        candidates, measuring = _scan_videos(reader, summary, splits, new, per_second, should_stop)
        check_unavailable()
        known = {
            key: AssignedVideo(split, summary.videos.get(key, frozenset()), key in measuring)
            for key, split in splits.items()
        }
        decided = assign_splits(list(candidates.values()), known)
        if not measuring:
            _check_evaluable(list(candidates.values()), decided)
        if store.add(project_id, decided):
            return splits | decided
        log.info("Project %d: another process has decided on parts of videos", project_id)


def _check_evaluable(people: Sequence[SplitCandidate], decided: Mapping[str, Split]) -> None:
    """Raise NothingToTrain instead of storing a first split, which is final, that leaves nothing to evaluate."""
    measured = any(
        split.part == "held_out" or (split.part == "blocks" and item.can_evaluate_itself)
        for item in people
        if (split := decided[item.video])
    )
    if not measured and any(item.labels for item in people):
        raise NothingToTrain(
            "There is nothing to evaluate on: the annotated objects are not visible long enough to train on one part "
            "of the video and to evaluate on another.",
            "Annotate objects at different times of the video, or annotate a second video with the same labels.",
        )


def _scan_videos(
    reader: AnnotationReader,
    summary: AnnotationSummary,
    splits: Mapping[str, Split],
    new: set[str],
    per_second: float,
    should_stop: Callable[[], bool],
) -> tuple[dict[str, SplitCandidate], set[str]]:
    """Open the new videos, and the held-out ones, which may be gone.

    Returns:
        The new videos by key, and the keys of those that are held out and have something to evaluate.
    """
    measured = {key for key, split in splits.items() if split.part != "train" and summary.videos.get(key)}
    candidates: dict[str, SplitCandidate] = {}
    measuring = set[str]()
    for task_video, key in _task_videos(reader, new | measured):
        if should_stop():
            raise Interrupted("Stopped while the videos were scanned.", "They are scanned again.")
        try:
            with task_video.open() as video:
                objects = [item for item in video.objects if item.label in summary.classes]
                excluded = visible(video, [item for item in video.objects if item.label not in summary.classes])
                if key in new:
                    item = candidates.setdefault(key, SplitCandidate(key, file_sha256(video.path)))
                    _add(item, video, objects, excluded, per_second)
                else:
                    seen = visible(video, objects)
                    spans = spans_of(video, splits[key], seen, excluded, len(seen))
                    if any(seen[first : last + 1].any() for first, last in spans):
                        measuring.add(key)
        except Interrupted:
            raise
        except BackendError as error:
            reader.skip(task_video, error)
    return candidates, measuring


def _add(
    item: SplitCandidate,
    video: AnnotatedVideo,
    objects: Sequence[VideoObject],
    excluded: npt.NDArray[np.bool_],
    per_second: float,
) -> None:
    shown: dict[str, npt.NDArray[np.bool_]] = {}
    for label in {item.label for item in objects}:
        shown[label] = visible(video, [item for item in objects if item.label == label]) & ~excluded
    item.add(video.timeline.times, shown, candidate_frames(video, objects, per_second))


def _task_videos(reader: AnnotationReader, wanted: set[str]) -> Iterator[tuple[TaskVideo, str]]:
    for task_video in reader.task_videos():
        try:
            key = task_video_key(task_video, reader.url)
        except MediaError:  # already skipped by the summary
            continue
        if key in wanted:
            yield task_video, key
