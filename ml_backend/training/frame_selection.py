"""Which pictures of an annotated video are trained on, and what of it is kept to measure with."""

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
from ml_backend.training.annotation_summary import candidate_pictures, spans_of, visible
from ml_backend.training.splits import TRAIN, VAL, Split
from ml_backend.video.reader import read_at

#: Changes with what is picked from the same annotations: older choices are then made again.
_RULES = 1
#: Most pictures of one video in a task, evenly thinned: more of one scene teach little and take long.
_MAX_PICTURES = 300
#: Most pictures without any object, as a share of those with objects: they only teach what is background.
_NEGATIVES = 0.2
#: Score from which a prediction counts as sure; pictures that show anything less sure are left out.
_SURE = 0.7
#: Pictures of a task that has been annotated as empty.
_EMPTY_PICTURES = 20
#: Pictures a second of a measured span on which boxes are compared; a short one has some all the same.
_MEASURED_PER_SECOND, _MEASURED_AT_LEAST = 5.0, 10
_USES = {TRAIN: "train", VAL: "val"}


@dataclass(frozen=True, slots=True)
class FrameSelectionPlan:
    """What is made of annotations.

    Attributes:
        per_second: pictures a second, besides those with keyframes.
        held_out_frames: most frames to measure with.
        hard: by task the regions that people had to correct: pictures that show them are trained on twice as often.
        pseudo_labels: whether sure predictions of tasks that nobody has annotated are trained on. The source has to
            give them (``predictions="missing"``).
    """

    per_second: float = 2.0
    held_out_frames: int = 900
    hard: Mapping[int, Collection[str]] = field(default_factory=dict)
    pseudo_labels: bool = False


class TrainingFrameSelector:
    """Select frames to train on, apart from those that are measured on; a ``FrameSelector``.

    Args:
        classes: labels in the order of their numbers.
        splits: by video key.
        key_of: gives a part's video key.
        annotated: by video key, what people have annotated on it, in all tasks.
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

    def name(self, part: TaskVideo) -> str:
        # Plain ASCII: trainers list pictures in text files.
        return f"task-{part.task_id}"

    def inputs(self, video: AnnotatedVideo) -> dict[str, Any]:
        plan, split = self._plan, self._split(video.task_video)
        others = [dict(item.region) for item in video.objects if item.label not in self._class_ids]
        return {
            "rules": _RULES,
            "split": [split.part, split.phase] if split else None,
            "plan": [plan.per_second, _MAX_PICTURES, _NEGATIVES],
            "span": plan.held_out_frames if split and split.part != "train" else 0,
            "pseudo": _SURE if video.task_video.submission.is_prediction else None,
            "hard": sorted(self._hard(video)),
            "others": fingerprint(others) if others else "",
        }

    def select(self, video: AnnotatedVideo, objects: tuple[VideoObject, ...]) -> tuple[IntArray, Sequence[str]]:
        split, plan = self._split(video.task_video), self._plan
        nothing: tuple[IntArray, Sequence[str]] = np.zeros(0, np.int64), []
        if split is None or split.part == "held_out":
            return nothing
        pseudo = video.task_video.submission.is_prediction
        uses = split.uses(video.timeline.times)
        wanted = (uses == TRAIN) if pseudo else np.isin(uses, list(_USES))
        wanted &= ~self._spoilt(video)
        at = candidate_pictures(video, objects, plan.per_second)
        at = at[wanted[at]]
        there = visible(video, objects)[at]
        positive, negative = at[there], at[~there]
        most = max(1, round(_NEGATIVES * min(len(positive), _MAX_PICTURES)))
        if not video.task_video.regions:
            most = _EMPTY_PICTURES
        if pseudo:
            most = 0  # what a model has overlooked is no background
        negative = _thinned(negative, min(most, _MAX_PICTURES - 1))
        pictures = np.union1d(_thinned(positive, _MAX_PICTURES - len(negative)), negative).astype(np.int64)
        return pictures, [_USES[use] for use in uses[pictures].tolist()]

    def notes(self, picked: SelectedFrames) -> dict[str, Any]:
        """What the dataset is put together from.

        ``pictures``: ``[frame, part, hard, [class of each box, ...]]`` of each; ``spans``: what is measured;
        ``digest``: of all pictures with their boxes; ``objects``: annotated ones with a known label.
        """
        video, pictures, rows = picked.video, [], []
        hard = self._hard(video)
        sha256 = file_sha256(video.path)
        for frame, use in zip(video.frames(picked.frames, picked.objects), picked.splits, strict=True):
            numbers = [self._class_ids[item.label] for item in frame.objects]
            pictures.append([frame.index, use, any(item.region_id in hard for item in frame.objects), numbers])
            rows.append(frame.xyxy.round(2).tolist())
        pseudo = video.task_video.submission.is_prediction
        return {
            "task": video.task_id,
            "objects": 0 if pseudo else len(picked.objects),
            "pictures": pictures,
            "digest": fingerprint([sha256, pictures, rows]),
            "spans": [] if pseudo else self._spans(picked, sha256),
            "uri": video.task_video.uri,
        }

    def _split(self, part: TaskVideo) -> Split | None:
        """``None`` where nothing of a part is used."""
        try:
            key = self._key_of(part)
        except MediaError:
            return None
        labels = self._annotated.get(key)
        if part.submission.is_prediction:
            if labels is not None or not self._plan.pseudo_labels:
                return None
        elif not part.regions and labels:
            return None  # another task on the video says that it is not empty
        return self._splits.get(key)

    def _hard(self, video: AnnotatedVideo) -> set[str]:
        wanted = self._plan.hard.get(video.task_id, ())
        return {item.region_id for item in video.objects if item.region_id in wanted}

    def _spoilt(self, video: AnnotatedVideo) -> npt.NDArray[np.bool_]:
        """Pictures that show something that must be taught neither as an object nor as background."""
        pseudo = video.task_video.submission.is_prediction
        unsure = [
            item
            for item in video.objects
            if item.label not in self._class_ids or (pseudo and not (item.confidence or 0.0) >= _SURE)
        ]
        return visible(video, unsure)

    # -- what is measured

    def _spans(self, picked: SelectedFrames, sha256: str) -> list[dict[str, Any]]:
        video, split = picked.video, self._split(picked.video.task_video)
        if split is None or split.part == "train":
            return []
        seen, spoilt = visible(video, picked.objects), self._spoilt(video)
        # Where many frames make a second, one span must not be more than is measured in all.
        found = spans_of(video, split, seen, spoilt, max(1, self._plan.held_out_frames // 2))
        tracks: dict[int, int] = {}
        spans = []
        for first, last in self._decodable(video, found):
            at = np.arange(first, last + 1)
            rows: list[list[float]] = []
            labels: set[str] = set()
            for frame in video.frames(at, picked.objects):
                for item, box in zip(frame.objects, frame.xyxy.round(2).tolist(), strict=True):
                    # Numbered anew, so that objects elsewhere in the video change nothing here.
                    track = tracks.setdefault(item.track_id, len(tracks) + 1)
                    rows.append([frame.index, track, self._class_ids[item.label], *box])
                    labels.add(item.label)
            step = max(1, round(video.info.fps / _MEASURED_PER_SECOND))
            step = min(step, max(1, len(at) // _MEASURED_AT_LEAST))
            span = {"span": [first, last], "pictures": at[::step].tolist(), "boxes": rows}
            spans.append(span | {"labels": sorted(labels), "digest": fingerprint([sha256, span])})
        return spans

    def _decodable(self, video: AnnotatedVideo, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Of each span the longest run of pictures that can be decoded."""
        there: set[int] = set()
        wanted = [index for first, last in spans for index in range(first, last + 1)]
        try:
            for frame in read_at(video.path, video.info, wanted):
                there.add(frame.index)
                if self._should_stop():
                    raise Interrupted(f"Stopped at picture {frame.index} of {video.name}.", "Run it again to go on.")
        except VideoError:
            if there:
                raise
        out = []
        for first, last in spans:
            at = [index for index in range(first, last + 1) if index in there]
            runs = [[i for _, i in run] for _, run in groupby(enumerate(at), key=lambda pair: pair[1] - pair[0])]
            if runs:
                longest = max(runs, key=len)
                out.append((longest[0], longest[-1]))
        return out


def _thinned(at: IntArray, most: int) -> IntArray:
    """At most so many, evenly spread."""
    if len(at) <= most:
        return at
    out: IntArray = at[((np.arange(most) + 0.5) * len(at) / max(most, 1)).astype(np.int64)]
    return out


def count_boxes(pictures: Sequence[Sequence[Any]], classes: Sequence[str]) -> Counter[str]:
    """Boxes by label on pictures as :meth:`TrainingFrameSelector.notes` describes them."""
    return Counter(classes[number] for *_, numbers in pictures for number in numbers)
