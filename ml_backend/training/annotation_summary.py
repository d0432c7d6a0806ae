"""Summarise a project's annotations before any frame is decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ml_backend.core.errors import ConfigError, Interrupted, MediaError
from ml_backend.datasets.annotated_video import TaskVideo
from ml_backend.datasets.annotation_reader import AnnotationReader
from ml_backend.datasets.selection import region_labels
from ml_backend.label_studio.media import canonical_uri
from ml_backend.labeling.few_shot.pattern_store import video_key


class NothingToTrain(ConfigError):
    """The annotations are not enough for training and evaluation."""


@dataclass(slots=True)
class AnnotationSummary:
    """Summary of a project's annotated tasks.

    Attributes:
        classes: labels of the config.
        videos: by video key, the labels of the config that people have annotated on it, over all its tasks.
        annotations: by task, the id of the annotation that counts.
        objects: number of annotated objects by label; those without a label under the empty string.
    """

    classes: tuple[str, ...]
    videos: dict[str, frozenset[str]] = field(default_factory=dict)
    annotations: dict[int, int] = field(default_factory=dict)
    objects: Counter[str] = field(default_factory=Counter)
    _detected: dict[str, Counter[str]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, reader: AnnotationReader, classes: tuple[str, ...], should_stop: Callable[[], bool]
    ) -> AnnotationSummary:
        """Read all tasks once.

        Raises:
            LabelStudioError: the tasks cannot be read.
            Interrupted: ``should_stop`` returned true.
        """
        found = cls(classes)
        for task_video in reader.task_videos():
            if should_stop():
                raise Interrupted("Stopped while the annotations were read.", "They are read again.")
            try:
                found._add(task_video, task_video_key(task_video, reader.url))
            except MediaError as error:
                reader.skip(task_video, error)
        return found

    def _add(self, task_video: TaskVideo, key: str) -> None:
        labels = set(self.videos.get(key, ()))
        for region in task_video.regions:
            label = _label(region, self.classes)
            self.objects[label] += 1
            if label in self.classes:
                labels.add(label)
                self._note_detected(task_video, region, label)
        self.videos[key] = frozenset(labels)
        if task_video.submission.annotation_id is not None:
            self.annotations[task_video.task_id] = task_video.submission.annotation_id

    def _note_detected(self, task_video: TaskVideo, region: Mapping[str, Any], label: str) -> None:
        # A region that a person has changed may have lost its meta; then the prediction's own region has it.
        for item in (region, task_video.submission.predicted.get(str(region.get("id", "")), {})):
            meta = item.get("meta")
            name = meta.get("original_class") if isinstance(meta, Mapping) else None
            if name:
                self._detected.setdefault(label, Counter())[str(name)] += 1
                return

    @property
    def start_from(self) -> dict[str, str]:
        """By label, the detector class that most of its regions had when they were predicted."""
        found = {label: self._detected[label] for label in self.classes if label in self._detected}
        return {label: max(sorted(counts), key=counts.__getitem__) for label, counts in found.items()}

    @property
    def unknown(self) -> dict[str, int]:
        """Number of objects by label, for labels that the config does not have."""
        return {label: count for label, count in sorted(self.objects.items()) if label not in self.classes}

    def check(self) -> None:
        """Raise NothingToTrain where the annotations alone show that there is nothing to learn."""
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
                f"None of the annotated objects has a label of the label config: {describe_counts(self.unknown)}.",
                "Give them labels of the config, or rename its labels back to what they were.",
            )


def describe_counts(counts: Mapping[str, int]) -> str:
    """Return counts by label as text."""
    return ", ".join(f'{count} × "{label}"' if label else f"{count} × without label" for label, count in counts.items())


def task_video_key(task_video: TaskVideo, label_studio_url: str) -> str:
    """Return the key of a video, which all tasks on it share.

    Raises:
        MediaError: its URI is invalid.
    """
    return video_key(canonical_uri(task_video.uri, label_studio_url))


def _label(region: Mapping[str, Any], classes: Sequence[str]) -> str:
    given = region_labels(region)
    return next((label for label in given if label in classes), given[0] if given else "")
