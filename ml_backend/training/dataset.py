"""From a project's annotations to what a detector is trained on and measured with.

    source = Source.from_project(client, project_id, settings)
    data = build_dataset(source, folder, SplitStore(storage), project_id, FrameSelectionPlan())

The folder is kept between trainings: a task that has not changed is not read again, and what was interrupted goes on.
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
from ml_backend.datasets.annotation_reader import AnnotationReader
from ml_backend.datasets.dataset_export import DatasetOptions, DatasetResult, Progress, export_dataset, state_options
from ml_backend.datasets.export_state import ExportState, fingerprint, state_folder
from ml_backend.datasets.images import ImageFormat
from ml_backend.datasets.sampling import Sampling
from ml_backend.training.annotation_summary import (
    AnnotationSummary,
    NothingToTrain,
    assign_parts,
    describe_counts,
    task_video_key,
)
from ml_backend.training.frame_selection import FrameSelectionPlan, TrainingFrameSelector, count_boxes
from ml_backend.training.splits import SplitStore

__all__ = ["FrameSelectionPlan", "NothingToTrain", "TrainingDataset", "build_dataset"]

log = logging.getLogger(__name__)

_OPTIONS = DatasetOptions("yolo", Sampling(near_duplicates=False), ImageFormat("jpg", 95))
#: A fifth of the pictures of the best video, where no video has something to see in its own part for watching.
_WATCHED_SHARE = 5


@dataclass(frozen=True, slots=True)
class TrainingDataset:
    """What was made.

    Attributes:
        folder: ``data.yaml``, its lists, ``images`` and ``labels``, ``held_out.json``.
        data_yaml: for ultralytics; ``path`` is absolute.
        held_out: what is measured with: spans of videos, and the boxes on every frame of them.
        classes: labels of the config, in its order.
        trained_classes: those with boxes in the part that is trained on.
        digest: the same exactly if pictures, boxes, classes, weights and what is measured with are.
        held_out_digest: of what is measured with alone.
        annotations: by task the annotation that counts, of tasks whose video is there.
        fingerprints: by task a fingerprint of the regions, of all annotated tasks.
        pictures: by part, ``train`` and ``val``.
        boxes: that are trained on, by label.
        tracks: annotated objects with a label of the config.
        start_from: by label the detector's class that most of its regions had when they were predicted.
        notes: for people.
        unread: tasks whose video could not be fetched just now: its server does not answer.
    """

    folder: Path
    data_yaml: Path
    held_out: Path
    classes: tuple[str, ...]
    trained_classes: tuple[str, ...]
    digest: str
    held_out_digest: str
    annotations: dict[int, int]
    fingerprints: dict[int, str]
    pictures: dict[str, int]
    boxes: dict[str, int]
    tracks: int
    start_from: dict[str, str]
    notes: tuple[str, ...]
    unread: tuple[int, ...]


def build_dataset(
    source: AnnotationReader,
    folder: Path,
    splits: SplitStore,
    project_id: int,
    options: FrameSelectionPlan,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
    waits: Callable[[Collection[int]], bool] = lambda tasks: False,
) -> TrainingDataset:
    """Make or renew the dataset of a project.

    Args:
        source: the project's tasks, with one annotation each.
        folder: new, or of an earlier dataset of the project.
        progress: called with videos done and videos in all; for a single video with its pictures.
        should_stop: asked again and again, by several threads.
        waits: whether to give up, and try again later, where the videos of these tasks cannot be fetched just now;
            else they are left out.

    Raises:
        NothingToTrain: the annotations are not enough to train and to measure with; says what is missing.
        MediaUnavailable: so it is, and there are more of them on videos whose server does not answer; or ``waits``
            said so.
        ConfigError: there is no label config.
        LabelStudioError, StorageError: the tasks cannot be read, the disk is full. What is complete stays.
        Interrupted: ``should_stop`` said so; the next call goes on.
    """
    stop = should_stop or (lambda: False)
    if source.config is None:
        raise ConfigError("The labels to train are unknown.", "Give the project's label config.")
    classes = source.config.labels
    survey = AnnotationSummary.of(source, classes, options.pseudo_labels, stop)
    survey.check()

    def check_away() -> None:
        if (away := source.away) and waits({item.task_id for item in away}):
            raise MediaUnavailable(f"Annotated videos cannot be fetched just now: {away[0]}", "They are tried again.")

    try:
        parts = assign_parts(source, survey, splits, project_id, options.per_second, stop, check_away)
        picker = TrainingFrameSelector(
            classes, options, parts, lambda part: task_video_key(part, source.url), survey.videos, stop
        )
        export = DatasetOptions(_OPTIONS.format, _OPTIONS.sampling, _OPTIONS.image_format, classes)
        _clear_foreign(folder, state_options(export, picker))
        result = export_dataset(source, folder, export, progress=progress, picker=picker, should_stop=stop)
        check_away()
        return _Assembly(folder, classes, options, result).make(survey, source)
    except NothingToTrain as error:
        if source.away:
            raise MediaUnavailable(error.message, "See that the videos' server answers; it is tried again.") from error
        raise


def _clear_foreign(folder: Path, options: dict[str, Any]) -> None:
    """Another release may have written other pictures: begin anew."""
    if not state_folder(folder).is_dir():
        return
    try:
        ExportState(folder, options)
    except ConfigError as error:
        log.info("The dataset is made anew: %s", error.message)
        try:
            shutil.rmtree(folder)
        except OSError as failed:
            raise StorageError(f"{folder} cannot be removed: {failed.strerror}.", "Remove it yourself.") from failed


@dataclass(slots=True)
class _Video:
    """What an assembled dataset needs to know of a video of a task, but for its pictures and boxes.

    Attributes:
        digest: of what is trained on; empty where nothing is.
        seen: by part, pictures with objects.
        spans: without their boxes.
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
    """A piece of a held-out video: the ``number``-th of its video."""

    video: str
    number: int
    frames: int
    boxes: int
    labels: frozenset[str]
    digest: str
    uri: str

    @property
    def order(self) -> tuple[bool, int, str]:
        """Those with objects first, of each video one after the other; which video comes first is left to chance."""
        return not self.boxes, self.number, hashlib.sha256(self.uri.encode()).hexdigest()


@dataclass(slots=True)
class _Assembly:
    """Puts together what the videos gave; in memory are the pictures of one video at a time."""

    folder: Path
    classes: tuple[str, ...]
    plan: FrameSelectionPlan
    result: DatasetResult
    videos: list[_Video] = field(default_factory=list)

    def make(self, survey: AnnotationSummary, source: AnnotationReader) -> TrainingDataset:
        notes = [f"Left out: {item}" for item in sorted(source.skipped, key=lambda item: item.task_id)]
        self.videos = [self._video(name) for name in self.result.names]
        if not self.videos:
            raise NothingToTrain(
                f"None of the annotated videos can be read. {notes[0] if notes else ''}".rstrip(),
                "See that Label Studio still has the videos.",
            )
        spans = self._chosen_spans()
        measured = frozenset[str]().union(*(span.labels for span in spans))
        pictures, boxes, watched = self._write_lists()
        trained_classes = tuple(label for label in self.classes if boxes[label])
        self._check(trained_classes, measured, notes)
        held_out_digest = fingerprint([self.classes, sorted(span.digest for span in spans)])
        self._write_held_out(spans)
        # A cache of labels that were changed within the resolution of the file system's clock would be believed.
        for cache in (self.folder / "labels").glob("*.cache*"):
            cache.unlink(missing_ok=True)
        names = dict(enumerate(self.classes))
        places = {"path": str(self.folder.absolute()), "train": "train.txt", "val": "val.txt"}
        text = yaml.safe_dump(places | {"names": names}, allow_unicode=True, sort_keys=False)
        write_text(self.folder / "data.yaml", text)
        used = {video.task for video in self.videos}
        digests = [
            self.classes,
            sorted(filter(None, (video.digest for video in self.videos))),
            watched,
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
            annotations={task: number for task, number in survey.annotations.items() if task in used},
            fingerprints=survey.fingerprints,
            pictures=pictures,
            boxes={label: boxes[label] for label in trained_classes},
            tracks=sum(video.objects for video in self.videos),
            start_from=survey.start_from,
            notes=(*notes, *self._notes(survey, trained_classes, measured)),
            unread=tuple(sorted({item.task_id for item in source.away})),
        )

    def _video(self, name: str) -> _Video:
        known = self.result.picked(name)
        seen = Counter(part for _, part, _, numbers in known["pictures"] if numbers)
        spans = [{**span, "boxes": len(span["boxes"])} for span in known["spans"]]
        digest = known["digest"] if known["pictures"] else ""
        return _Video(name, known["task"], known["objects"], known["uri"], digest, dict(seen), spans)

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
        self, survey: AnnotationSummary, trained_classes: Sequence[str], measured: frozenset[str]
    ) -> Iterator[str]:
        if unknown := survey.unknown:
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
            elif label not in trained_classes and not survey.objects[label]:
                yield f'Nobody has annotated "{label}": it is not learned.'

    # -- what is trained on

    def _write_lists(self) -> tuple[dict[str, int], Counter[str], list[Any]]:
        """Write ``train.txt`` and ``val.txt``. Returns the pictures by part, the boxes that are trained on by label,
        and the pictures that had to change from the one part to the other."""
        lender = None
        if not any(video.seen.get("val") for video in self.videos):
            lender = max(self.videos, key=lambda video: (video.seen.get("train", 0), video.digest))
        counts, boxes, lent = Counter[str](), Counter[str](), []
        with atomic_text_writer(self.folder / "train.txt") as train, atomic_text_writer(self.folder / "val.txt") as val:
            files = {"train": train, "val": val}
            for video in self.videos:
                pictures = self.result.picked(video.name)["pictures"]
                trained = [picture for picture in pictures if picture[1] == "train"]
                watched = [picture for picture in pictures if picture[1] == "val"]
                places = {frame: part for frame, part, *_ in pictures}
                if video is lender and trained:
                    lent = self._lend(trained)
                    watched += lent
                    rest = [picture for picture in trained if picture not in lent]
                    # What is rare is rather watched where it is learned than not learned.
                    if set(count_boxes(rest, self.classes)) == set(count_boxes(trained, self.classes)):
                        trained = rest
                for part, chosen in (("train", trained), ("val", watched)):
                    for frame, _, hard, _ in chosen:
                        line = f"./images/{places[frame]}/{video.name}_{frame:06d}.{_OPTIONS.image_format.suffix}\n"
                        files[part].write(line * (2 if hard and part == "train" else 1))
                    counts[part] += len(chosen)
                boxes.update(count_boxes(trained, self.classes))
        return {part: counts[part] for part in files}, boxes, [frame for frame, *_ in lent]

    def _lend(self, trained: Sequence[Sequence[Any]]) -> list[Sequence[Any]]:
        """The last pictures with objects, or, without any, the last picture."""
        seen = [picture for picture in trained if picture[3]] or list(trained)
        return seen[-max(1, len(seen) // _WATCHED_SHARE) :]

    # -- what is measured

    def _chosen_spans(self) -> list[_Span]:
        """Spans of all videos, as many as may be measured: first such that show new labels, then in their order."""
        found = [
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
        found.sort(key=lambda span: span.order)
        chosen: list[_Span] = []
        room, labels = self.plan.held_out_frames, set[str]()
        for only_new in (True, False):
            for span in found:
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
            known = self.result.picked(video.name)
            chosen = [span for number, span in enumerate(known["spans"]) if number in numbers]
            found = {
                "name": video.name,
                "uri": known["uri"],
                "task_id": known["task"],
                "spans": [span["span"] for span in chosen],
                "pictures": [frame for span in chosen for frame in span["pictures"]],
                "boxes": [row for span in chosen for row in span["boxes"]],
            }
            videos.append(found)
        body = {"classes": self.classes, "videos": videos}
        write_text(self.folder / "held_out.json", json.dumps(body, ensure_ascii=False))
