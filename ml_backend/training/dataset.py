"""Build a project's training and held-out data from its annotations.

    reader = AnnotationReader.from_project(client, project_id, settings)
    data = build_dataset(reader, folder, SplitStore(storage), project_id, FrameSelectionPlan())

The folder is kept between trainings: unchanged tasks are not read again, and an interrupted build resumes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ml_backend.core.errors import ConfigError, MediaUnavailable, StorageError
from ml_backend.core.files import atomic_text_writer, write_text
from ml_backend.core.types import Progress
from ml_backend.datasets.annotation_reader import AnnotationReader
from ml_backend.datasets.export_state import ExportState, fingerprint, state_folder
from ml_backend.datasets.exporter import DatasetOptions, DatasetResult, export_dataset, state_options
from ml_backend.datasets.images import ImageFormat
from ml_backend.datasets.sampling import Sampling
from ml_backend.training.annotation_summary import (
    AnnotationSummary,
    NothingToTrain,
    describe_counts,
    task_video_key,
)
from ml_backend.training.frame_selection import FrameSelectionPlan, TrainingFrameSelector, count_boxes
from ml_backend.training.split_assignment import assign_videos
from ml_backend.training.splits import SplitStore

__all__ = ["FrameSelectionPlan", "NothingToTrain", "TrainingDataset", "build_dataset"]

log = logging.getLogger(__name__)

_OPTIONS = DatasetOptions("yolo", Sampling(near_duplicates=False), ImageFormat("jpg", 95))
#: One in this many training images of the best video validates if no video has validation images with objects.
_VALIDATION_DIVISOR = 5


@dataclass(frozen=True, slots=True)
class TrainingDataset:
    """The built dataset.

    Attributes:
        folder: ``data.yaml``, its lists, ``images`` and ``labels``, ``held_out.json``.
        data_yaml: for ultralytics; ``path`` is absolute.
        held_out: JSON of the held-out spans of videos, with the boxes on every frame of them.
        classes: labels of the config, in its order.
        trained_classes: labels with boxes in the training images.
        digest: of images, boxes, classes, weights and held-out data.
        held_out_digest: of the held-out data alone.
        annotations: id of the annotation that counts, by task, of tasks whose video is available.
        images: number of images by split, ``train`` and ``val``.
        boxes: number of training boxes by label.
        tracks: number of annotated objects with a label of the config.
        start_from: detector class that most regions of a label had when they were predicted, by label.
        notes: messages for people.
        unread: tasks whose video could not be fetched because its server does not answer.
    """

    folder: Path
    data_yaml: Path
    held_out: Path
    classes: tuple[str, ...]
    trained_classes: tuple[str, ...]
    digest: str
    held_out_digest: str
    annotations: dict[int, int]
    images: dict[str, int]
    boxes: dict[str, int]
    tracks: int
    start_from: dict[str, str]
    notes: tuple[str, ...]
    unread: tuple[int, ...]


def build_dataset(
    reader: AnnotationReader,
    folder: Path,
    splits: SplitStore,
    project_id: int,
    options: FrameSelectionPlan,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
    should_wait: Callable[[Collection[int]], bool] = lambda tasks: False,
) -> TrainingDataset:
    """Build or update the dataset of a project.

    Args:
        reader: the project's tasks, with one annotation each.
        folder: new, or with an earlier dataset of the project.
        progress: called with videos done and total; for a single video, with its frames.
        should_stop: polled by several threads.
        should_wait: tells whether to raise if the videos of these tasks are unavailable; else they are left out.

    Raises:
        NothingToTrain: the annotations are not enough for training and evaluation; says what is missing.
        MediaUnavailable: likewise, but some videos are unavailable; or ``should_wait`` returned true.
        ConfigError: there is no label config.
        LabelStudioError, StorageError: the tasks cannot be read, or the disk is full. Finished videos are kept.
        Interrupted: ``should_stop`` returned true; the next call resumes.
    """
    stop = should_stop or (lambda: False)
    if reader.config is None:
        raise ConfigError("The labels to train are unknown.", "Give the project's label config.")
    classes = reader.config.labels
    summary = AnnotationSummary.of(reader, classes, stop)
    summary.check()

    def check_unavailable() -> None:
        if (unavailable := reader.unavailable) and should_wait({item.task_id for item in unavailable}):
            raise MediaUnavailable(f"Annotated videos are unavailable: {unavailable[0]}", "Wait: they are tried again.")

    try:
        assigned = assign_videos(reader, summary, splits, project_id, options.per_second, stop, check_unavailable)
        frame_selector = TrainingFrameSelector(
            classes, options, assigned, lambda video: task_video_key(video, reader.url), summary.videos, stop
        )
        export = DatasetOptions(_OPTIONS.format, _OPTIONS.sampling, _OPTIONS.image_format, classes)
        _clear_foreign(folder, state_options(export, frame_selector))
        result = export_dataset(
            reader, folder, export, progress=progress, frame_selector=frame_selector, should_stop=stop
        )
        check_unavailable()
        return _Assembly(folder, classes, options, result).make(summary, reader)
    except NothingToTrain as error:
        if reader.unavailable:
            raise MediaUnavailable(
                error.message, "Make sure that the server of the videos answers; the training is retried."
            ) from error
        raise


def _clear_foreign(folder: Path, options: dict[str, Any]) -> None:
    """Remove a dataset that another release has written with other options."""
    if not state_folder(folder).is_dir():
        return
    try:
        ExportState(folder, options)
    except ConfigError as error:
        log.info("The dataset is built from scratch: %s", error.message)
        try:
            shutil.rmtree(folder)
        except OSError as failed:
            raise StorageError(f"{folder} cannot be removed: {failed.strerror}.", "Remove it by hand.") from failed


@dataclass(slots=True)
class _Video:
    """Facts about a task's video, without its images and boxes.

    Attributes:
        digest: of its training data; empty if there is none.
        seen: number of images with objects, by split.
        spans: held-out spans, with the number of boxes instead of the boxes.
    """

    name: str
    task: int
    objects: int
    uri: str
    digest: str
    seen: dict[str, int]
    spans: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Span:
    """The ``number``-th held-out span of a video."""

    video: str
    number: int
    frames: int
    boxes: int
    labels: frozenset[str]
    digest: str
    uri: str

    @property
    def order(self) -> tuple[bool, int, str]:
        """Sort key: spans with objects first, taking turns between videos in pseudo-random order."""
        return not self.boxes, self.number, hashlib.sha256(self.uri.encode()).hexdigest()


@dataclass(slots=True)
class _Assembly:
    """Assembles the dataset from its videos, with the images of one video in memory at a time."""

    folder: Path
    classes: tuple[str, ...]
    plan: FrameSelectionPlan
    result: DatasetResult
    videos: list[_Video] = field(default_factory=list)

    def make(self, summary: AnnotationSummary, reader: AnnotationReader) -> TrainingDataset:
        notes = [f"Left out: {item}" for item in sorted(reader.skipped, key=lambda item: item.task_id)]
        self.videos = [self._video(name) for name in self.result.names]
        if not self.videos:
            raise NothingToTrain(
                f"None of the annotated videos can be read. {notes[0] if notes else ''}".rstrip(),
                "See that Label Studio still has the videos.",
            )
        spans = self._select_spans()
        measured = frozenset[str]().union(*(span.labels for span in spans))
        images, boxes, borrowed = self._write_lists()
        trained_classes = tuple(label for label in self.classes if boxes[label])
        self._check(trained_classes, measured, notes)
        held_out_digest = fingerprint([self.classes, sorted(span.digest for span in spans)])
        self._write_held_out(spans)
        # ultralytics would trust a cache of labels that changed within the resolution of the file system's clock.
        for cache in (self.folder / "labels").glob("*.cache*"):
            cache.unlink(missing_ok=True)
        names = dict(enumerate(self.classes))
        paths = {"path": str(self.folder.absolute()), "train": "train.txt", "val": "val.txt"}
        text = yaml.safe_dump(paths | {"names": names}, allow_unicode=True, sort_keys=False)
        write_text(self.folder / "data.yaml", text)
        used = {video.task for video in self.videos}
        digests = [
            self.classes,
            sorted(filter(None, (video.digest for video in self.videos))),
            borrowed,
            held_out_digest,
        ]
        return TrainingDataset(
            folder=self.folder,
            data_yaml=self.folder / "data.yaml",
            held_out=self.folder / "held_out.json",
            classes=self.classes,
            trained_classes=trained_classes,
            digest=fingerprint(digests),
            held_out_digest=held_out_digest,
            annotations={task: number for task, number in summary.annotations.items() if task in used},
            images=images,
            boxes={label: boxes[label] for label in trained_classes},
            tracks=sum(video.objects for video in self.videos),
            start_from=summary.start_from,
            notes=(*notes, *self._notes(summary, trained_classes, measured)),
            unread=tuple(sorted({item.task_id for item in reader.unavailable})),
        )

    def _video(self, name: str) -> _Video:
        notes = self.result.selection_notes(name)
        seen = Counter(split for _, split, _, class_ids in notes["pictures"] if class_ids)
        spans = [{**span, "boxes": len(span["boxes"])} for span in notes["spans"]]
        digest = notes["digest"] if notes["pictures"] else ""
        return _Video(name, notes["task"], notes["objects"], notes["uri"], digest, dict(seen), spans)

    def _check(self, trained_classes: Sequence[str], measured: frozenset[str], notes: Sequence[str]) -> None:
        left_out = f" {notes[0]}" if notes else ""
        if not trained_classes:
            raise NothingToTrain(
                f"None of the annotated objects is in the part of the videos that is trained on.{left_out}",
                "Annotate another video, or objects at other times of this one.",
            )
        if not measured:
            raise NothingToTrain(
                "There is nothing to evaluate on: no annotated object is in the held-out part of the videos."
                f"{left_out}",
                "Annotate objects at other times of the video, or annotate another video with the same labels.",
            )

    def _notes(
        self, summary: AnnotationSummary, trained_classes: Sequence[str], measured: frozenset[str]
    ) -> Iterator[str]:
        if unknown := summary.unknown:
            yield (
                f"Objects without a label of the label config: {describe_counts(unknown)}. Frames that show them are "
                "left out. Give them labels of the config, or rename its labels back."
            )
        for label in self.classes:
            if label in trained_classes and label not in measured:
                yield (
                    f'Nothing of "{label}" is in the held-out part, so it is not evaluated. Annotate it in more videos.'
                )
            elif label in measured and label not in trained_classes:
                yield (f'"{label}" is only in held-out videos, so it is not trained. Annotate it in more videos.')
            elif label not in trained_classes and not summary.objects[label]:
                yield f'Nobody has annotated "{label}": it is not learned.'

    # -- training and validation

    def _write_lists(self) -> tuple[dict[str, int], Counter[str], list[Any]]:
        """Write ``train.txt`` and ``val.txt``. Return the images by split, the training boxes by label, and the frames
        borrowed from training for validation."""
        lending_video = None
        if not any(video.seen.get("val") for video in self.videos):
            lending_video = max(self.videos, key=lambda video: (video.seen.get("train", 0), video.digest))
        counts, boxes, borrowed = Counter[str](), Counter[str](), []
        with atomic_text_writer(self.folder / "train.txt") as train, atomic_text_writer(self.folder / "val.txt") as val:
            files = {"train": train, "val": val}
            for video in self.videos:
                images = self.result.selection_notes(video.name)["pictures"]
                trained = [image for image in images if image[1] == "train"]
                validation = [image for image in images if image[1] == "val"]
                splits = {frame: split for frame, split, *_ in images}
                if video is lending_video and trained:
                    borrowed = self._borrow_validation(trained)
                    validation += borrowed
                    rest = [image for image in trained if image not in borrowed]
                    # Rather validate on training images than lose a label from training.
                    if set(count_boxes(rest, self.classes)) == set(count_boxes(trained, self.classes)):
                        trained = rest
                for split, chosen in (("train", trained), ("val", validation)):
                    for frame, _, hard, _ in chosen:
                        line = f"./images/{splits[frame]}/{video.name}_{frame:06d}.{_OPTIONS.image_format.suffix}\n"
                        files[split].write(line * (2 if hard and split == "train" else 1))
                    counts[split] += len(chosen)
                boxes.update(count_boxes(trained, self.classes))
        return {split: counts[split] for split in files}, boxes, [frame for frame, *_ in borrowed]

    def _borrow_validation(self, trained: Sequence[Sequence[Any]]) -> list[Sequence[Any]]:
        """Return the last images with objects, or, if there are none, the last image."""
        seen = [image for image in trained if image[3]] or list(trained)
        return seen[-max(1, len(seen) // _VALIDATION_DIVISOR) :]

    # -- held-out data

    def _select_spans(self) -> list[_Span]:
        """Return spans up to ``held_out_frames``: first those that add labels, then the others in order."""
        spans = [
            _Span(
                video.name,
                number,
                span["span"][1] - span["span"][0] + 1,
                span["boxes"],
                frozenset(span["labels"]),
                span["digest"],
                video.uri,
            )
            for video in self.videos
            for number, span in enumerate(video.spans)
        ]
        spans.sort(key=lambda span: span.order)
        chosen: list[_Span] = []
        room, labels = self.plan.held_out_frames, set[str]()
        for only_new in (True, False):
            for span in spans:
                if span in chosen or span.frames > room or (only_new and span.labels <= labels):
                    continue
                chosen.append(span)
                room -= span.frames
                labels |= span.labels
        return chosen

    def _write_held_out(self, spans: Sequence[_Span]) -> None:
        videos = []
        for video in self.videos:
            numbers = {span.number for span in spans if span.video == video.name}
            if not numbers:
                continue
            notes = self.result.selection_notes(video.name)
            chosen = [span for number, span in enumerate(notes["spans"]) if number in numbers]
            held_out = {
                "name": video.name,
                "uri": notes["uri"],
                "task_id": notes["task"],
                "spans": [span["span"] for span in chosen],
                "pictures": [frame for span in chosen for frame in span["pictures"]],
                "boxes": [row for span in chosen for row in span["boxes"]],
            }
            videos.append(held_out)
        body = {"classes": self.classes, "videos": videos}
        write_text(self.folder / "held_out.json", json.dumps(body, ensure_ascii=False))
