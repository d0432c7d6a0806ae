"""Datasets of pictures and labels: which videos, in what order, on how many threads; continued by video."""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ml_backend.core.errors import BackendError, ConfigError, Interrupted, MediaError, VideoError
from ml_backend.core.files import UniqueNames, file_sha256
from ml_backend.core.types import Frame
from ml_backend.datasets.annotated_video import AnnotatedVideo, TaskVideo, VideoObject
from ml_backend.datasets.annotation_reader import AnnotationReader
from ml_backend.datasets.export_state import ExportState, fingerprint
from ml_backend.datasets.formats.base import DatasetFormat, FrameSelector, SelectedFrames
from ml_backend.datasets.formats.coco import Coco
from ml_backend.datasets.formats.cvat import Cvat
from ml_backend.datasets.formats.mot import Mot
from ml_backend.datasets.formats.yolo import Yolo, YoloTrack
from ml_backend.datasets.images import CropSaver, ImageFormat, ImageSaver
from ml_backend.datasets.sampling import (
    VIDEOS_TO_SPLIT,
    NearDuplicates,
    Sampling,
    SplitBy,
    sampled_frames,
    split_frames,
    split_videos,
)
from ml_backend.datasets.selection import chosen_label
from ml_backend.label_studio.media import canonical_uri
from ml_backend.video.reader import read_at

log = logging.getLogger(__name__)

FORMATS: dict[str, type[DatasetFormat]] = {
    "yolo": Yolo,
    "yolo-track": YoloTrack,
    "coco": Coco,
    "mot": Mot,
    "cvat": Cvat,
}

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class DatasetOptions:
    """Everything that decides what is written.

    Attributes:
        format: a name of ``FORMATS``.
        classes: labels in the order of their class numbers; others are left out. Empty: all, in the config's order.
        crops: also write what is in each box, to ``crops/<label>/``: a dataset for a classifier.
        images: whether pictures are written where the format has them.
    """

    format: str = "yolo"
    sampling: Sampling = field(default_factory=Sampling)
    image_format: ImageFormat = field(default_factory=ImageFormat)
    classes: tuple[str, ...] = ()
    crops: bool = False
    images: bool = True


@dataclass(slots=True)
class DatasetResult:
    """What was written.

    Attributes:
        videos: complete, from this run or an earlier one; ``continued`` of them needed nothing.
        pictures: by part: train, val, test.
        boxes: by label.
        left_out: objects by label that is no class; those without label under the empty name.
        notes: for the user.
        names: of the complete videos, in the source's order.
        picked: what the picker noted of a video, by its name; read when asked for.
    """

    classes: tuple[str, ...] = ()
    videos: int = 0
    continued: int = 0
    pictures: Counter[str] = field(default_factory=Counter)
    boxes: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    picked: Callable[[str], dict[str, Any]] = lambda name: {}


def export_dataset(
    source: AnnotationReader,
    out: Path,
    options: DatasetOptions,
    *,
    progress: Progress | None = None,
    picker: FrameSelector | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> DatasetResult:
    """Write a dataset. Run again after an interruption it goes on, and afterwards it only does what has changed.

    A video that has disappeared since it was exported stays in the dataset as long as its annotations stay as they
    were; it is listed in ``source.skipped``, too.

    Args:
        out: folder; new, empty, or of an earlier run with the same options.
        progress: called with videos done and videos in all; for a single video with its pictures.
        picker: chooses pictures and parts; ``None``: as ``options.sampling`` says. With one the classes may differ
            from those of an earlier run.
        should_stop: asked for each video and each picture, by several threads.

    Raises:
        ConfigError: nothing to export, options that do not fit the format, or ``out`` holds something else; or
            every annotator's boxes in a format for training.
        StorageError: the disk is full. What is complete stays.
        LabelStudioUnavailable: Label Studio is gone.
        Interrupted: ``should_stop`` said so.
    """
    format_class = FORMATS[options.format]
    if source.all_annotators and format_class.one_truth:
        several = ", ".join(name for name, each in FORMATS.items() if not each.one_truth)
        raise ConfigError(
            f"Labels of several people for the same pictures contradict each other: {options.format} is for training.",
            f"To compare people, use one of {several}; else leave out --all-annotators.",
        )
    plan, found = plan_videos(source, options.sampling, format_class.whole_videos, picker)
    if not plan:
        raise ConfigError(
            "Nothing has been annotated." if not source.skipped else "No task has a video.",
            "Annotate something, or use predictions (--predictions missing).",
        )
    classes = tuple(dict.fromkeys(options.classes)) or found
    target = format_class(out, classes, options.image_format, options.sampling)
    state = ExportState(out, state_options(options, picker))
    result = DatasetResult(classes)
    crops = CropSaver(out, classes, options.image_format.suffix)
    run = _Run(
        target,
        state,
        options,
        crops,
        os.cpu_count() or 1,
        len(plan),
        picker,
        progress or (lambda done, total: None),
        should_stop or (lambda: False),
    )
    for name in set(state.names()) - {planned.name for planned in plan}:
        log.info("%s is not part of the export any more", name)
        run.remove(name)
    counts: dict[str, dict[str, int]] = {}
    for name, outcome in run.all(source, plan):
        counts[name] = outcome["counts"]
        result.videos += 1
        result.continued += outcome["continued"]
        result.pictures.update(outcome["counts"])
        result.boxes.update(outcome["boxes"])
        result.left_out.update(outcome["left_out"])
    # In the plan's order, not in that in which threads came to an end: numbers stay the same.
    result.names = [planned.name for planned in plan if planned.name in counts]
    result.notes = target.finish({name: counts[name] for name in result.names})
    result.picked = lambda name: dict((state.read(name) or {})["outcome"]["picked"])
    return result


def state_options(options: DatasetOptions, picker: FrameSelector | None = None) -> dict[str, Any]:
    """What must not change when an export is continued."""
    return asdict(options) | ({"classes": "of each video"} if picker else {})


@dataclass(frozen=True, slots=True)
class PlannedVideo:
    """One video of one task (and person) in a dataset.

    Attributes:
        name: of its files; unique in the dataset.
        split: the part that it belongs to as a whole; ``None``: its pictures are split.
        by: how they are split.
        same_as: name of the first that has the same video; chance is drawn for that one.
        shared: whether there are others with the same video. A picture lies in the same part for all of them.
    """

    name: str
    split: str | None
    by: SplitBy
    same_as: str
    shared: bool

    @property
    def rule(self) -> Any:
        """All of this that decides where pictures go, as JSON."""
        return self.split or [self.by, self.same_as, self.shared]


def plan_videos(
    source: AnnotationReader, sampling: Sampling, whole_videos: bool, picker: FrameSelector | None = None
) -> tuple[list[PlannedVideo], tuple[str, ...]]:
    """All videos in the source's order, and all labels: those of the config, then others as they appear.

    Args:
        whole_videos: whether the format has no other parts than whole videos.
        picker: says for each picture to which part it belongs.
    """
    names, labels = UniqueNames(), dict[str, None]()
    if source.config:
        labels.update(dict.fromkeys(source.config.labels))
    taken: list[str] = []
    firsts: dict[str, str] = {}
    same_as: list[str] = []
    for part in source.parts():
        name = picker.name(part) if picker else source.file_stem(part)
        taken.append(names.take(name, part.task_id))
        same_as.append(firsts.setdefault(_video_key(part, source.url) or f"only {taken[-1]}", taken[-1]))
        labels.update(dict.fromkeys(part.labels))
    videos = list(firsts.values())
    by = sampling.split
    if by == "auto":
        by = "video" if len(videos) >= VIDEOS_TO_SPLIT else "time"
    splits: Sequence[str | None] = [None] * len(videos)
    if not picker and whole_videos and sampling.split != "video":
        splits = ["train"] * len(videos)
    elif not picker and by == "video":
        splits = split_videos(len(videos), sampling)
    split_of = dict(zip(videos, splits, strict=True))
    tasks = Counter(same_as)
    plan = [
        PlannedVideo(name, split_of[first], by, first, tasks[first] > 1)
        for name, first in zip(taken, same_as, strict=True)
    ]
    return plan, tuple(labels)


def _video_key(part: TaskVideo, label_studio_url: str) -> str:
    """The same for the same video in several tasks; empty where nothing is known."""
    try:
        return canonical_uri(part.uri, label_studio_url)
    except MediaError:
        return part.uri


@dataclass(frozen=True, slots=True)
class _Run:
    """The work on all videos; ``videos`` of them, ``workers`` at once, and as many threads that encode."""

    target: DatasetFormat
    state: ExportState
    options: DatasetOptions
    crops: CropSaver
    workers: int
    videos: int
    picker: FrameSelector | None
    progress: Progress
    should_stop: Callable[[], bool]
    stop: threading.Event = field(default_factory=threading.Event)

    def all(self, source: AnnotationReader, plan: Sequence[PlannedVideo]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each video's name and outcome, as they are done. Parts are read only as fast as they are worked on."""
        max_concurrency = min(self.workers, self.videos)
        with ThreadPoolExecutor(max_concurrency) as videos, ThreadPoolExecutor(self.workers) as encoders:
            running: dict[Future[dict[str, Any]], tuple[PlannedVideo, TaskVideo]] = {}
            try:
                done = 0
                pairs = zip(plan, source.parts(), strict=True)
                while True:
                    for pair in islice(pairs, max_concurrency + 1 - len(running)):
                        running[videos.submit(self._video, *pair, encoders)] = pair
                    if not running:
                        break
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        planned, part = running.pop(future)
                        done += 1
                        try:
                            yield planned.name, future.result()
                        except Interrupted:
                            raise
                        except BackendError as error:
                            kept = self._kept(planned, part)
                            source.skip(part, error, "What was exported of it before is kept." if kept else "")
                            if kept:
                                yield planned.name, kept
                            else:
                                self._discard(planned.name)
                        if self.videos > 1:
                            self.progress(done, self.videos)
            except BaseException:
                self.stop.set()
                for future in running:
                    future.cancel()
                raise

    def _video(self, planned: PlannedVideo, part: TaskVideo, encoders: ThreadPoolExecutor) -> dict[str, Any]:
        self._check_stop(planned.name)
        with part.open() as video:
            objects = tuple(item for item in video.objects if item.label in self.target.class_ids)
            made_from = {
                # Whether a file is still the same: pictures of another must not be taken for its. Not the file's time:
                # the cache of downloaded media sets it whenever a file is used.
                "file": [video.name, file_sha256(video.path), video.info.frames, video.info.width, video.info.height],
                "regions": fingerprint([[dict(item.region), item.source, item.confidence] for item in objects]),
                "frame_rate": video.timeline.frame_rate,
                "classes": list(self.target.classes),
                "split": None if self.picker else planned.rule,
                **({"picker": self.picker.made_from(video)} if self.picker else {}),
            }
            record = {"made_from": made_from, "part": _part_fingerprint(part)}
            before = self.state.read(planned.name)
            if before and "outcome" in before and before["made_from"] == made_from:
                if before["part"] != record["part"]:
                    self.state.write(planned.name, before | record)
                return {**before["outcome"], "continued": True}
            picked = self._pick(planned, video, objects)
            if before is not None:
                # Decoding takes the time: pictures of the same file that are still wanted stay.
                same_file = before.get("made_from", {}).get("file") == made_from["file"]
                self.target.remove(planned.name, self._paths(picked) if same_file else frozenset())
                self.crops.remove(planned.name)
            self.state.write(planned.name, record)
            picked = self._save_pictures(picked, encoders)
            self.target.write_labels(picked)
            others = [item.label for item in video.objects if item.label not in self.target.class_ids]
            outcome = {
                "counts": dict(Counter(picked.splits)),
                "boxes": dict(_count_boxes(picked)),
                "left_out": dict(Counter(others)),
                **({"picked": self.picker.notes(picked)} if self.picker else {}),
            }
            self.state.write(planned.name, record | {"outcome": outcome})
            return outcome | {"continued": False}

    def _check_stop(self, where: str) -> None:
        if self.stop.is_set() or self.should_stop():
            raise Interrupted(f"Stopped at {where}.", "Run it again to go on.")

    def _pick(self, planned: PlannedVideo, video: AnnotatedVideo, objects: tuple[VideoObject, ...]) -> SelectedFrames:
        if self.picker:
            return SelectedFrames(planned.name, video, objects, *self.picker.pick(video, objects))
        pictures = sampled_frames(video, objects, planned.name, self.options.sampling)
        if planned.split is not None:
            return SelectedFrames(planned.name, video, objects, pictures, [planned.split] * len(pictures))
        frames = video.info.frames if planned.shared else None
        splits = split_frames(pictures, planned.same_as, planned.by, self.options.sampling, frames)
        return SelectedFrames(planned.name, video, objects, pictures, splits)

    def _paths(self, picked: SelectedFrames) -> frozenset[Path]:
        pairs = zip(picked.splits, picked.pictures.tolist(), strict=True)
        return frozenset(self.target.image_path(picked.name, split, picture) for split, picture in pairs)

    def _save_pictures(self, picked: SelectedFrames, encoders: ThreadPoolExecutor) -> SelectedFrames:
        """Write the pictures that are not there yet. Returns those that can be decoded and are no near duplicates."""
        options, target, video = self.options, self.target, picked.video
        write = target.has_images and options.images
        duplicates = None if options.sampling.near_duplicates else NearDuplicates()
        look_at_all = bool(duplicates or options.crops)
        if not (write or look_at_all) or not len(picked.pictures):
            return picked
        split_of = dict(zip(picked.pictures.tolist(), picked.splits, strict=True))
        # An interrupted run left whole pictures only: they are files that appear when they are complete.
        there = {n for n, split in split_of.items() if write and target.image_path(picked.name, split, n).exists()}
        wanted = [picture for picture in split_of if look_at_all or picture not in there]
        boxes = video.frames(wanted, picked.objects) if look_at_all else iter(())
        kept = set() if look_at_all else set(there)
        with ImageSaver(options.image_format, encoders, self.workers) as saver:
            for frame in _decoded(video, wanted, bool(there)):
                self._check_stop(f"picture {frame.index} of {video.name}")
                if self.videos == 1:
                    self.progress(frame.index + 1, video.info.frames)
                split = split_of[frame.index]
                path = target.image_path(picked.name, split, frame.index)
                if look_at_all:
                    shown = next(found for found in boxes if found.index == frame.index)
                    if duplicates and duplicates(frame.image, shown):
                        path.unlink(missing_ok=True)
                        continue
                    if options.crops:
                        self.crops.save(saver, picked.name, split, shown, frame.image)
                kept.add(frame.index)
                if write and frame.index not in there:
                    saver.save(path, frame.image)
        if self.videos == 1:
            self.progress(video.info.frames, video.info.frames)
        left = {picture: split for picture, split in split_of.items() if picture in kept}
        return SelectedFrames(picked.name, video, picked.objects, np.array(list(left), np.int64), list(left.values()))

    def _kept(self, planned: PlannedVideo, part: TaskVideo) -> dict[str, Any] | None:
        """The outcome of a video that was exported and has disappeared, if all but the file is as it was."""
        before = self.state.read(planned.name)
        if self.picker or not before or "outcome" not in before or before["part"] != _part_fingerprint(part):
            return None
        made_from, classes = before["made_from"], list(self.target.classes)
        # Further classes change no numbers.
        if made_from["split"] != planned.rule or classes[: len(made_from["classes"])] != made_from["classes"]:
            return None
        return {**before["outcome"], "continued": True}

    def _discard(self, name: str) -> None:
        """Pictures without labels would teach that nothing is on them, those with old labels what is known better."""
        before = self.state.read(name)
        # Who picks lists the pictures: others may stay, should the video come back.
        if before is not None and not (self.picker and "outcome" in before):
            self.remove(name)

    def remove(self, name: str) -> None:
        """Take a video out of the dataset: its pictures, labels and crops."""
        self.target.remove(name)
        self.crops.remove(name)
        self.state.remove(name)


def _count_boxes(picked: SelectedFrames) -> Counter[str]:
    counts: Counter[str] = Counter()
    for item in picked.objects:
        counts[item.label] += int(np.isin(picked.video.boxes(item)[0], picked.pictures, assume_unique=True).sum())
    return counts


def _decoded(video: AnnotatedVideo, wanted: Sequence[int], others: bool) -> Iterator[Frame]:
    """The wanted pictures, without those that cannot be decoded; with ``others`` that may be all of them."""
    if not wanted:
        return
    try:
        yield from read_at(video.path, video.info, wanted)
    except VideoError as error:
        if not others:
            raise
        log.warning("%s", error)


def _part_fingerprint(part: TaskVideo) -> str:
    """The same as long as a task says the same of a video; what it says of another one does not matter."""
    regions, labels = part.regions, {label.value for label in part.control.labels}
    predicted = part.submission.predicted
    return fingerprint(
        {
            "name": part.name,
            "rate": part.frame_rate,
            "labels": [chosen_label(region, labels) for region in regions],
            "regions": [dict(region) for region in regions],
            # Scores of accepted regions may be there.
            "predicted": [dict(predicted.get(str(region.get("id")), {})) for region in regions],
            "by": [part.submission.annotator, part.submission.is_prediction, part.submission.score],
        }
    )
