"""Select the frames of an annotated video to train on, and its held-out spans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.core.errors import Interrupted, MediaError, VideoError
from ml_backend.core.files import file_sha256
from ml_backend.core.types import IntArray
from ml_backend.datasets.annotated_video import AnnotatedVideo, TaskVideo, VideoObject
from ml_backend.datasets.export_state import fingerprint
from ml_backend.datasets.formats.base import SelectedFrames
from ml_backend.training.split_assignment import candidate_frames, spans_of, visible
from ml_backend.training.splits import TRAIN, VAL, Split
from ml_backend.video.reader import read_at

#: Version of the selection rules; selections made with another one are repeated.
_RULES = 1
#: Most frames of one video in a task, evenly thinned: more of one scene add little and take long.
_MAX_FRAMES = 300
#: Most frames without objects, as a share of those with objects: they only teach background.
_NEGATIVE_SHARE = 0.2
#: Frames of a task that was annotated as empty.
_EMPTY_FRAMES = 20
#: Frames a second of a held-out span on which boxes are evaluated, and their least number.
_EVALUATED_PER_SECOND, _MIN_EVALUATED = 5.0, 10
_USES = {TRAIN: "train", VAL: "val"}


@dataclass(frozen=True, slots=True)
class FrameSelectionPlan:
    """Options of the frame selection.

    Attributes:
        per_second: frames a second, besides keyframes.
        held_out_frames: most frames to evaluate on.
        hard: regions that people had to correct, by task; frames that show them are trained on twice as often.
    """

    per_second: float = 2.0
    held_out_frames: int = 900
    hard: Mapping[int, Collection[str]] = field(default_factory=dict)


class TrainingFrameSelector:
    """Select frames to train on and spans to evaluate on; a ``FrameSelector``.

    Args:
        classes: labels in the order of their class ids.
        splits: by video key.
        key_of: returns a video's key.
        annotated: labels that people have annotated on each video, over all tasks, by video key.
    """

    def __init__(
        self,
        classes: Sequence[str],
        plan: FrameSelectionPlan,
        splits: Mapping[str, Split],
        key_of: Callable[[TaskVideo], str],
        annotated: Mapping[str, frozenset[str]],
        should_stop: Callable[[], bool],
    ) -> None:
        self._class_ids = {label: number for number, label in enumerate(classes)}
        self._plan, self._splits, self._key_of, self._annotated = plan, splits, key_of, annotated
        self._should_stop = should_stop

    def name(self, task_video: TaskVideo) -> str:
        # Plain ASCII: trainers list images in text files.
        return f"task-{task_video.task_id}"

    def inputs(self, video: AnnotatedVideo) -> dict[str, Any]:
        plan, split = self._plan, self._split(video.task_video)
        others = [dict(item.region) for item in video.objects if item.label not in self._class_ids]
        return {
            "rules": _RULES,
            "split": [split.part, split.phase] if split else None,
            "plan": [plan.per_second, _MAX_FRAMES, _NEGATIVE_SHARE],
            "span": plan.held_out_frames if split and split.part != "train" else 0,
            "hard": sorted(self._hard(video)),
            "others": fingerprint(others) if others else "",
        }

    def select(self, video: AnnotatedVideo, objects: tuple[VideoObject, ...]) -> tuple[IntArray, Sequence[str]]:
        split, plan = self._split(video.task_video), self._plan
        no_frames: tuple[IntArray, Sequence[str]] = np.zeros(0, np.int64), []
        if split is None or split.part == "held_out":
            return no_frames
        uses = split.uses(video.timeline.times)
        usable = np.isin(uses, list(_USES)) & ~self._excluded(video)
        candidates = candidate_frames(video, objects, plan.per_second)
        candidates = candidates[usable[candidates]]
        has_objects = visible(video, objects)[candidates]
        positive, negative = candidates[has_objects], candidates[~has_objects]
        limit = max(1, round(_NEGATIVE_SHARE * min(len(positive), _MAX_FRAMES)))
        if not video.task_video.regions:
            limit = _EMPTY_FRAMES
        negative = _thin(negative, min(limit, _MAX_FRAMES - 1))
        frames = np.union1d(_thin(positive, _MAX_FRAMES - len(negative)), negative).astype(np.int64)
        return frames, [_USES[use] for use in uses[frames].tolist()]

    def notes(self, selected: SelectedFrames) -> dict[str, Any]:
        """Return what the dataset is assembled from.

        ``pictures``: ``[frame, split, hard, [class id of each box, ...]]`` of each frame; ``spans``: held-out spans;
        ``digest``: of all frames and their boxes; ``objects``: number of annotated ones with a known label.
        """
        video, images, rows = selected.video, [], []
        hard = self._hard(video)
        sha256 = file_sha256(video.path)
        for frame, use in zip(video.frames(selected.frames, selected.objects), selected.splits, strict=True):
            class_ids = [self._class_ids[item.label] for item in frame.objects]
            images.append([frame.index, use, any(item.region_id in hard for item in frame.objects), class_ids])
            rows.append(frame.xyxy.round(2).tolist())
        return {
            "task": video.task_id,
            "objects": len(selected.objects),
            "pictures": images,
            "digest": fingerprint([sha256, images, rows]),
            "spans": self._spans(selected, sha256),
            "uri": video.task_video.uri,
        }

    def _split(self, task_video: TaskVideo) -> Split | None:
        """Return the split of a video; ``None`` if the video is not used."""
        try:
            key = self._key_of(task_video)
        except MediaError:
            return None
        if not task_video.regions and self._annotated.get(key):
            return None  # another task has annotated objects on the same video
        return self._splits.get(key)

    def _hard(self, video: AnnotatedVideo) -> set[str]:
        hard = self._plan.hard.get(video.task_id, ())
        return {item.region_id for item in video.objects if item.region_id in hard}

    def _excluded(self, video: AnnotatedVideo) -> npt.NDArray[np.bool_]:
        """Return ``(n,)`` whether a frame shows something that must be learned neither as object nor as background."""
        return visible(video, [item for item in video.objects if item.label not in self._class_ids])

    # -- held-out spans

    def _spans(self, picked: SelectedFrames, sha256: str) -> list[dict[str, Any]]:
        video, split = picked.video, self._split(picked.video.task_video)
        if split is None or split.part == "train":
            return []
        seen, excluded = visible(video, picked.objects), self._excluded(video)
        # At high frame rates one span must not take all held-out frames.
        candidates = spans_of(video, split, seen, excluded, max(1, self._plan.held_out_frames // 2))
        tracks: dict[int, int] = {}
        spans = []
        for first, last in self._decodable(video, candidates):
            frames = np.arange(first, last + 1)
            rows: list[list[float]] = []
            labels: set[str] = set()
            for frame in video.frames(frames, picked.objects):
                for item, box in zip(frame.objects, frame.xyxy.round(2).tolist(), strict=True):
                    # Renumbered, so that objects elsewhere in the video change nothing here.
                    track_id = tracks.setdefault(item.track_id, len(tracks) + 1)
                    rows.append([frame.index, track_id, self._class_ids[item.label], *box])
                    labels.add(item.label)
            step = max(1, round(video.info.fps / _EVALUATED_PER_SECOND))
            step = min(step, max(1, len(frames) // _MIN_EVALUATED))
            span = {"span": [first, last], "pictures": frames[::step].tolist(), "boxes": rows}
            spans.append(span | {"labels": sorted(labels), "digest": fingerprint([sha256, span])})
        return spans

    def _decodable(self, video: AnnotatedVideo, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return the longest run of decodable frames of each span."""
        decodable: set[int] = set()
        indices = [index for first, last in spans for index in range(first, last + 1)]
        try:
            for frame in read_at(video.path, video.info, indices):
                decodable.add(frame.index)
                if self._should_stop():
                    raise Interrupted(f"Stopped at frame {frame.index} of {video.name}.", "Run it again to continue.")
        except VideoError:
            if decodable:
                raise
        longest_runs = []
        for first, last in spans:
            present = [index for index in range(first, last + 1) if index in decodable]
            runs = [[i for _, i in run] for _, run in groupby(enumerate(present), key=lambda pair: pair[1] - pair[0])]
            if runs:
                longest = max(runs, key=len)
                longest_runs.append((longest[0], longest[-1]))
        return longest_runs


def _thin(frames: IntArray, limit: int) -> IntArray:
    """Return at most ``limit`` frames, evenly spread."""
    if len(frames) <= limit:
        return frames
    thinned: IntArray = frames[((np.arange(limit) + 0.5) * len(frames) / max(limit, 1)).astype(np.int64)]
    return thinned


def count_boxes(images: Sequence[Sequence[Any]], classes: Sequence[str]) -> Counter[str]:
    """Count boxes by label on images of :meth:`TrainingFrameSelector.notes`."""
    return Counter(classes[class_id] for *_, class_ids in images for class_id in class_ids)
