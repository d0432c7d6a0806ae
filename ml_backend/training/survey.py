"""What is annotated in a project, read before any picture is: labels, lineage, and the parts of new videos."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.errors import BackendError, ConfigError, Interrupted, MediaError
from ml_backend.export.select import region_labels
from ml_backend.export.source import Source
from ml_backend.export.state import fingerprint
from ml_backend.export.video import AnnotatedVideo, Part, VideoObject
from ml_backend.files import file_sha256
from ml_backend.label_studio.media import canonical_uri
from ml_backend.patterns.store import video_key
from ml_backend.training.splits import Candidate, Known, Split, SplitStore, decide, reserved
from ml_backend.types import IntArray

log = logging.getLogger(__name__)

#: A short video gives at least so many pictures, nearer to each other than usual; those alike are dropped later.
AT_LEAST = 50
#: Seconds of video that are measured in one piece: long enough for tracks, short enough for several.
SPAN_S = 5.0


class NothingToTrain(ConfigError):
    """The annotations are not enough to train and to measure with."""


@dataclass(slots=True)
class Survey:
    """What the tasks say, without their videos.

    Attributes:
        classes: labels of the config.
        videos: by key, the known labels that people have annotated on each video, from all tasks on it.
        predicted: keys of videos on which nobody has annotated anything, but for which there are predictions.
        annotations, fingerprints: by task, the annotation that counts and a fingerprint of its regions.
        objects: annotated objects by label; without label under the empty name.
    """

    classes: tuple[str, ...]
    videos: dict[str, frozenset[str]] = field(default_factory=dict)
    predicted: set[str] = field(default_factory=set)
    annotations: dict[int, int] = field(default_factory=dict)
    fingerprints: dict[int, str] = field(default_factory=dict)
    objects: Counter[str] = field(default_factory=Counter)
    _detected: dict[str, Counter[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, source: Source, classes: tuple[str, ...], pseudo: bool, should_stop: Callable[[], bool]) -> Survey:
        """One pass over the tasks.

        Args:
            pseudo: whether predictions count.

        Raises:
            LabelStudioError: they cannot be read.
            Interrupted: ``should_stop`` said so.
        """
        found = cls(classes)
        for part in source.parts():
            if should_stop():
                raise Interrupted("Stopped while the annotations were read.", "They are read again.")
            try:
                key = key_of(part, source.url)
            except MediaError as error:
                source.skip(part, error)
                continue
            if part.submission.is_prediction:
                found.predicted.update([key] if pseudo else [])
            else:
                found._add(part, key)
        found.predicted -= set(found.videos)
        return found

    def _add(self, part: Part, key: str) -> None:
        labels = set(self.videos.get(key, ()))
        for region in part.regions:
            label = _label(region, self.classes)
            self.objects[label] += 1
            if label in self.classes:
                labels.add(label)
                self._note_detected(part, region, label)
        self.videos[key] = frozenset(labels)
        submission = part.submission
        regions = [region for region in submission.result if region.get("type") == "videorectangle"]
        self.fingerprints[part.task_id] = fingerprint(regions)
        if submission.annotation_id is not None:
            self.annotations[part.task_id] = submission.annotation_id

    def _note_detected(self, part: Part, region: Mapping[str, Any], label: str) -> None:
        # What a person has changed may have lost what the prediction said of the same region.
        for item in (region, part.submission.predicted.get(str(region.get("id", "")), {})):
            meta = item.get("meta")
            name = meta.get("original_class") if isinstance(meta, Mapping) else None
            if name:
                self._detected.setdefault(label, Counter())[str(name)] += 1
                return

    @property
    def start_from(self) -> dict[str, str]:
        """By label, the detector's class that most of its regions had when they were predicted."""
        found = {label: self._detected[label] for label in self.classes if label in self._detected}
        return {label: max(sorted(counts), key=counts.__getitem__) for label, counts in found.items()}

    @property
    def unknown(self) -> dict[str, int]:
        """Objects by label that the config does not have."""
        return {label: count for label, count in sorted(self.objects.items()) if label not in self.classes}

    def check(self) -> None:
        """Raise NothingToTrain where the annotations alone tell that there is nothing to learn."""
        if not self.videos:
            raise NothingToTrain(
                "Nobody has annotated anything in this project yet.", "Draw and label objects, and submit the task."
            )
        if not self.objects:
            raise NothingToTrain(
                "All annotated tasks are empty: there are no objects to learn from.",
                "Draw and label objects in some of them, and submit.",
            )
        if not any(self.videos.values()):
            raise NothingToTrain(
                f"None of the annotated objects has a label of the label config: {described(self.unknown)}.",
                "Give them labels of the config, or rename its labels back to what they were.",
            )


def described(counts: Mapping[str, int]) -> str:
    """Objects by label in words."""
    return ", ".join(f'{count} × "{label}"' if label else f"{count} × without label" for label, count in counts.items())


def key_of(part: Part, label_studio_url: str) -> str:
    """A video's key, which all tasks on it share.

    Raises:
        MediaError: its address is none.
    """
    return video_key(canonical_uri(part.uri, label_studio_url))


def _label(region: Mapping[str, Any], classes: Sequence[str]) -> str:
    given = region_labels(region)
    return next((label for label in given if label in classes), given[0] if given else "")


def visible(video: AnnotatedVideo, objects: Sequence[VideoObject]) -> npt.NDArray[np.bool_]:
    """``(n,)`` whether any of the objects is on each picture."""
    out = np.zeros(len(video.timeline.times), np.bool_)
    for item in objects:
        out[video.boxes(item)[0]] = True
    return out


def candidate_pictures(video: AnnotatedVideo, objects: Sequence[VideoObject], per_second: float) -> IntArray:
    """``(n,)`` pictures that may be trained on: where people have put keyframes, and some each second."""
    frames = len(video.timeline.times)
    stride = min(max(1, round(video.info.fps / per_second)), max(1, frames // AT_LEAST))
    return np.union1d(video.keyframes(objects), np.arange(0, frames, stride)).astype(np.int64)


def spans_of(
    video: AnnotatedVideo, split: Split, seen: npt.NDArray[np.bool_], spoilt: npt.NDArray[np.bool_], most: int
) -> list[tuple[int, int]]:
    """Where a video is measured: first and last picture of a few seconds in each of its places.

    They lie in the middle of the place, or, where nothing is seen there, around what is nearest to it. So a video
    has the same spans whatever other videos there are.

    Args:
        seen: ``(n,)`` whether there is anything to find on each picture.
        spoilt: ``(n,)`` whether there is something of which nobody knows what it is.
        most: pictures in a span.
    """
    times, out = video.timeline.times, []
    for first, last in split.places(times):
        span = _around((first + last) // 2, first, last, times, spoilt, most)
        if span is None or not seen[span[0] : span[1] + 1].any():
            there = first + np.flatnonzero((seen & ~spoilt)[first : last + 1])
            if len(there):
                nearest = int(there[np.abs(there - (first + last) // 2).argmin()])
                span = _around(nearest, first, last, times, spoilt, most)
        if span:
            out.append(span)
    return out


def _around(
    middle: int, first: int, last: int, times: Any, spoilt: npt.NDArray[np.bool_], most: int
) -> tuple[int, int] | None:
    """The pictures around one, without a break; ``None`` where that one is spoilt itself."""
    if spoilt[middle]:
        return None
    near = np.abs(times[first : last + 1] - times[middle]) < SPAN_S / 2
    usable = near & ~spoilt[first : last + 1]
    usable[: max(0, middle - first - (most - 1) // 2)] = False
    usable[middle - first + most // 2 + 1 :] = False
    before = np.flatnonzero(~usable[: middle - first])
    after = np.flatnonzero(~usable[middle - first :])
    begin = first + (int(before[-1]) + 1 if len(before) else 0)
    end = middle + int(after[0]) - 1 if len(after) else last
    return begin, end


@dataclass(slots=True)
class _Looks:
    """What the videos show, as far as it is needed to decide on their parts."""

    candidates: dict[str, Candidate] = field(default_factory=dict)
    measuring: set[str] = field(default_factory=set)


def assign_parts(
    source: Source,
    survey: Survey,
    store: SplitStore,
    project_id: int,
    per_second: float,
    should_stop: Callable[[], bool],
    check_away: Callable[[], None] = lambda: None,
) -> dict[str, Split]:
    """The part of each video of the project, by key; decides on those that are new.

    Videos that cannot be opened get none; they are in ``source.skipped``.

    Args:
        check_away: asked before anything is decided, which stays so: it may raise where a video is away that counts.

    Raises:
        NothingToTrain: no decision leaves anything to measure with; none is kept.
        Interrupted: ``should_stop`` said so.
    """
    while True:
        splits = store.splits(project_id)
        new = (set(survey.videos) | survey.predicted) - set(splits)
        if not new:
            return splits
        looks = _look(source, survey, splits, new, per_second, should_stop)
        check_away()
        known = {
            key: Known(split, survey.videos.get(key, frozenset()), key in looks.measuring)
            for key, split in splits.items()
        }
        people = [item for key, item in looks.candidates.items() if key in survey.videos]
        decided = decide(people, known)
        _check_measure(people, decided, looks)
        for key in sorted(set(looks.candidates) - set(decided)):
            content = looks.candidates[key].content
            same = next((s for s in (splits | decided).values() if s.content == content), None)
            decided[key] = same or Split(reserved(key).part, 0, content)
        if store.add(project_id, decided):
            return splits | decided
        log.info("Project %d: another process has decided on parts of videos", project_id)


def _check_measure(people: Sequence[Candidate], decided: Mapping[str, Split], looks: _Looks) -> None:
    """A first decision that gives nothing to measure would stand for ever: better to wait for more annotations."""
    measured = bool(looks.measuring) or any(
        split.part == "held_out" or (split.part == "blocks" and item.measures_itself)
        for item in people
        if (split := decided[item.video])
    )
    if not measured and any(item.labels for item in people):
        raise NothingToTrain(
            "There is nothing to measure with: the annotated objects are not visible long enough to train on one part "
            "of the video and to measure on another.",
            "Annotate objects at different times of the video, or annotate a second video with the same labels.",
        )


def _look(
    source: Source,
    survey: Survey,
    splits: Mapping[str, Split],
    new: set[str],
    per_second: float,
    should_stop: Callable[[], bool],
) -> _Looks:
    """Open the videos that are new, and those that are measured with: they may be gone."""
    measured = set[str]()
    if new & set(survey.videos):
        measured = {key for key, split in splits.items() if split.part != "train" and survey.videos.get(key)}
    looks = _Looks()
    for part, key in _parts(source, new | measured):
        if should_stop():
            raise Interrupted("Stopped while the videos were looked at.", "They are looked at again.")
        try:
            with part.open() as video:
                objects = [item for item in video.objects if item.label in survey.classes]
                spoilt = visible(video, [item for item in video.objects if item.label not in survey.classes])
                if key in new:
                    item = looks.candidates.setdefault(key, Candidate(key, file_sha256(video.path)))
                    if not part.submission.is_prediction:
                        _add(item, video, objects, spoilt, per_second)
                elif not part.submission.is_prediction:
                    seen = visible(video, objects)
                    spans = spans_of(video, splits[key], seen, spoilt, len(seen))
                    if any(seen[first : last + 1].any() for first, last in spans):
                        looks.measuring.add(key)
        except Interrupted:
            raise
        except BackendError as error:
            source.skip(part, error)
    return looks


def _add(
    item: Candidate,
    video: AnnotatedVideo,
    objects: Sequence[VideoObject],
    spoilt: npt.NDArray[np.bool_],
    per_second: float,
) -> None:
    shown: dict[str, npt.NDArray[np.bool_]] = {}
    for label in {item.label for item in objects}:
        shown[label] = visible(video, [item for item in objects if item.label == label]) & ~spoilt
    item.add(video.timeline.times, shown, candidate_pictures(video, objects, per_second))


def _parts(source: Source, wanted: set[str]) -> Iterator[tuple[Part, str]]:
    for part in source.parts():
        try:
            key = key_of(part, source.url)
        except MediaError:  # noted by the survey
            continue
        if key in wanted:
            yield part, key
