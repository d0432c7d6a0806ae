"""Export datasets of images and labels: videos are processed in parallel; an interrupted export resumes."""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import numpy as np

from ml_backend.core.errors import BackendError, ConfigError, Interrupted, MediaError, VideoError, WeightsError
from ml_backend.core.files import UniqueNames, atomic_text_writer, file_sha256
from ml_backend.core.types import Frame, Progress
from ml_backend.datasets.annotated_video import AnnotatedVideo, TaskVideo, VideoObject
from ml_backend.datasets.annotation_reader import AnnotationReader
from ml_backend.datasets.export_state import ExportState, fingerprint, state_folder
from ml_backend.datasets.formats import GLOBAL_ID_FORMATS, MASK_FORMATS
from ml_backend.datasets.formats.base import DatasetFormat, FrameSelector, SelectedFrames
from ml_backend.datasets.formats.coco import Coco, CocoSeg
from ml_backend.datasets.formats.cvat import Cvat
from ml_backend.datasets.formats.mask_png import MaskPng
from ml_backend.datasets.formats.mot import Mot, Mots
from ml_backend.datasets.formats.yolo import Yolo, YoloSeg, YoloTrack
from ml_backend.datasets.images import CropSaver, ImageFormat, ImageSaver
from ml_backend.datasets.masks import MaskMaker, write_masks
from ml_backend.datasets.sampling import (
    MIN_VIDEOS_TO_SPLIT,
    NearDuplicates,
    Sampling,
    SplitBy,
    sampled_frames,
    split_frames,
    split_videos,
)
from ml_backend.datasets.selection import chosen_label
from ml_backend.inference.segmenter import Segmenter
from ml_backend.label_studio.media import canonical_uri
from ml_backend.video.reader import read_at

log = logging.getLogger(__name__)

FORMATS: dict[str, type[DatasetFormat]] = {
    "yolo": Yolo,
    "yolo-track": YoloTrack,
    "coco": Coco,
    "mot": Mot,
    "cvat": Cvat,
    "yolo-seg": YoloSeg,
    "coco-seg": CocoSeg,
    "mots": Mots,
    "mask-png": MaskPng,
}


@dataclass(frozen=True, slots=True)
class DatasetOptions:
    """Everything that determines what is written.

    Attributes:
        format: a key of ``FORMATS``.
        classes: labels in the order of class ids; others are left out. Empty: all, in the config's order.
        crops: also write the crop of each box to ``crops/<split>/<label>/``, as a dataset for a classifier.
        images: whether images are written, if the format has them.
        tight_boxes: whether boxes become those of the objects' masks.
        global_ids: whether objects have the numbers that they have in all tasks.
    """

    format: str = "yolo"
    sampling: Sampling = field(default_factory=Sampling)
    image_format: ImageFormat = field(default_factory=ImageFormat)
    classes: tuple[str, ...] = ()
    crops: bool = False
    images: bool = True
    tight_boxes: bool = False
    global_ids: bool = False

    @property
    def needs_masks(self) -> bool:
        """Whether masks are made, by a segmenter."""
        return self.tight_boxes or self.format in MASK_FORMATS


@dataclass(slots=True)
class DatasetResult:
    """Summary of an export.

    Attributes:
        videos: complete videos, from this run or an earlier one; ``continued`` of them were up to date.
        images: number of images by split.
        boxes: number of boxes by label.
        left_out: number of objects by label that is not a class; empty for objects without label.
        notes: for the user.
        names: of the complete videos, in the reader's order.
        selection_notes: reads a video's :meth:`FrameSelector.notes` by its name.
    """

    classes: tuple[str, ...] = ()
    videos: int = 0
    continued: int = 0
    images: Counter[str] = field(default_factory=Counter)
    boxes: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    selection_notes: Callable[[str], dict[str, Any]] = lambda name: {}


def export_dataset(
    reader: AnnotationReader,
    out: Path,
    options: DatasetOptions,
    *,
    progress: Progress | None = None,
    frame_selector: FrameSelector | None = None,
    segmenter: Segmenter | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> DatasetResult:
    """Write a dataset. Running it again resumes an interrupted export, or updates what has changed.

    A video that is no longer available stays in the dataset while its annotations are unchanged; it is also listed in
    ``reader.skipped``.

    Args:
        out: folder; new, empty, or of an earlier run with the same options.
        progress: called with videos done and in total; for a single video, with frames.
        frame_selector: selects frames and their splits instead of ``options.sampling``. With one, the classes may
            differ from those of an earlier run.
        segmenter: makes masks, for options that need them.
        should_stop: polled for each video and each frame, from several threads.

    Raises:
        ConfigError: nothing to export, options that do not fit the format or need a segmenter, ``out`` holds other
            files, or ``all_annotators`` with a format for training.
        WeightsError: the segmenter failed. Complete videos are kept.
        StorageError: the disk is full. Complete videos are kept.
        LabelStudioUnavailable: Label Studio does not answer.
        Interrupted: ``should_stop`` returned true.
    """
    format_class = FORMATS[options.format]
    if reader.all_annotators and format_class.single_annotator:
        others = ", ".join(name for name, each in FORMATS.items() if not each.single_annotator)
        raise ConfigError(
            f"The format {options.format} is for training, where labels of several annotators contradict each other.",
            f"To compare annotators, use one of {others}; else leave out --all-annotators.",
        )
    if options.tight_boxes and not format_class.has_images:
        raise ConfigError(f"The format {options.format} has boxes as they were drawn.", "Leave out --tight-boxes.")
    if options.global_ids and options.format not in GLOBAL_ID_FORMATS:
        raise ConfigError(
            f"The format {options.format} has no global ids.",
            f"Use one of {', '.join(GLOBAL_ID_FORMATS)}, or leave out --global-ids.",
        )
    if options.needs_masks and segmenter is None:
        raise ConfigError("This export needs masks, and there is no model that makes them.", "Set SEGMENTER.")
    unique_ids = options.global_ids and format_class.unique_ids
    plan, labels = plan_videos(reader, options.sampling, format_class.whole_videos, frame_selector, unique_ids)
    if not plan:
        raise ConfigError(
            "Nothing has been annotated." if not reader.skipped else "No task has a video.",
            "Annotate something, or include predictions (`missing`: of tasks without annotations).",
        )
    classes = tuple(dict.fromkeys(options.classes)) or labels
    dataset = format_class(out, classes, options.image_format, options.sampling)
    state = ExportState(out, state_options(options, frame_selector))
    result = DatasetResult(classes)
    crops = CropSaver(out, classes, options.image_format.suffix)
    run = _ExportRun(
        dataset,
        state,
        options,
        crops,
        os.cpu_count() or 1,
        len(plan),
        frame_selector,
        segmenter if options.needs_masks else None,
        progress or (lambda done, total: None),
        should_stop or (lambda: False),
    )
    for name in set(state.names()) - {planned.name for planned in plan}:
        log.info("%s is no longer part of the export", name)
        run.remove(name)
    counts: dict[str, dict[str, int]] = {}
    without_mask = 0
    for name, outcome in run.export_all(reader, plan):
        counts[name] = outcome["counts"]
        without_mask += outcome.get("without_mask", 0)
        result.videos += 1
        result.continued += outcome["continued"]
        result.images.update(outcome["counts"])
        result.boxes.update(outcome["boxes"])
        result.left_out.update(outcome["left_out"])
    # In the plan's order, not in the order in which threads finish, so that ids are reproducible.
    result.names = [planned.name for planned in plan if planned.name in counts]
    result.notes = dataset.finish({name: counts[name] for name in result.names})
    if segmenter and without_mask:
        result.notes.append(
            f"{segmenter.name} found nothing in {without_mask} of {result.boxes.total()} boxes: the box is the mask."
        )
    result.selection_notes = lambda name: dict((state.read(name) or {})["outcome"]["picked"])
    return result


def state_options(options: DatasetOptions, frame_selector: FrameSelector | None = None) -> dict[str, Any]:
    """Return the options that must not change when an export is resumed."""
    content = asdict(options) | ({"classes": "of each video"} if frame_selector else {})
    if not options.tight_boxes:
        del content["tight_boxes"]  # exports of earlier releases do not have it
    if not options.global_ids:
        del content["global_ids"]
    return content


@dataclass(frozen=True, slots=True)
class DatasetVideo:
    """One video of one task (and annotator) in a dataset.

    Attributes:
        name: of its files; unique in the dataset.
        split: of the whole video; ``None`` if its frames are split.
        by: how frames are split.
        same_as: name of the first entry with the same video, which seeds random choices.
        shared: whether other entries have the same video. A frame has the same split in all of them.
        first_id: objects without a global id get the numbers after it, which no other entry uses; 0 where the format
            needs no such numbers.
    """

    name: str
    split: str | None
    by: SplitBy
    same_as: str
    shared: bool
    first_id: int

    @property
    def rule(self) -> Any:
        """The fields that determine the split of each frame, as JSON."""
        return self.split or [self.by, self.same_as, self.shared]


def plan_videos(
    reader: AnnotationReader,
    sampling: Sampling,
    whole_videos: bool,
    frame_selector: FrameSelector | None = None,
    unique_ids: bool = False,
) -> tuple[list[DatasetVideo], tuple[str, ...]]:
    """Return all videos in the reader's order, and all labels: those of the config, then others as they appear.

    Args:
        whole_videos: whether the format cannot split a video.
        frame_selector: assigns a split to each frame.
        unique_ids: whether objects without a global id are numbered after all global ids.
    """
    names, labels = UniqueNames(), dict[str, None]()
    if reader.config:
        labels.update(dict.fromkeys(reader.config.labels))
    taken: list[str] = []
    first_names: dict[str, str] = {}
    same_as: list[str] = []
    sizes: list[int] = []
    largest = 0
    for task_video in reader.task_videos():
        name = frame_selector.name(task_video) if frame_selector else reader.file_stem(task_video)
        taken.append(names.take(name, task_video.task_id))
        key = _video_key(task_video, reader.url) or f"only {taken[-1]}"
        same_as.append(first_names.setdefault(key, taken[-1]))
        labels.update(dict.fromkeys(task_video.labels))
        regions = task_video.regions if unique_ids else ()
        sizes.append(len(regions))
        largest = max([largest, *(task_video.submission.global_id(region) or 0 for region in regions)])
    videos = list(first_names.values())
    by = sampling.split
    if by == "auto":
        by = "video" if len(videos) >= MIN_VIDEOS_TO_SPLIT else "time"
    splits: Sequence[str | None] = [None] * len(videos)
    if not frame_selector and whole_videos and sampling.split != "video":
        splits = ["train"] * len(videos)
    elif not frame_selector and by == "video":
        splits = split_videos(len(videos), sampling)
    split_of = dict(zip(videos, splits, strict=True))
    counts = Counter(same_as)
    plan = [
        DatasetVideo(name, split_of[first], by, first, counts[first] > 1, largest + before)
        for name, first, before in zip(taken, same_as, accumulate(sizes, initial=0), strict=False)
    ]
    return plan, tuple(labels)


def _video_key(task_video: TaskVideo, label_studio_url: str) -> str:
    """Return a key that is equal for the same video in several tasks; empty if there is no address."""
    try:
        return canonical_uri(task_video.uri, label_studio_url)
    except MediaError:
        return task_video.uri


@dataclass(frozen=True, slots=True)
class _ExportRun:
    """Exports ``videos`` videos, ``workers`` at a time, with as many encoder threads."""

    dataset: DatasetFormat
    state: ExportState
    options: DatasetOptions
    crops: CropSaver
    workers: int
    videos: int
    frame_selector: FrameSelector | None
    segmenter: Segmenter | None
    progress: Progress
    should_stop: Callable[[], bool]
    stop: threading.Event = field(default_factory=threading.Event)

    def export_all(
        self, reader: AnnotationReader, plan: Sequence[DatasetVideo]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the name and outcome of each video as it completes; tasks are read only as fast as needed."""
        max_concurrency = min(self.workers, self.videos)
        with ThreadPoolExecutor(max_concurrency) as videos, ThreadPoolExecutor(self.workers) as encoders:
            running: dict[Future[dict[str, Any]], tuple[DatasetVideo, TaskVideo]] = {}
            try:
                done = 0
                pairs = zip(plan, reader.task_videos(), strict=True)
                while True:
                    for pair in islice(pairs, max_concurrency + 1 - len(running)):
                        running[videos.submit(self._export_video, *pair, encoders)] = pair
                    if not running:
                        break
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        planned, task_video = running.pop(future)
                        done += 1
                        try:
                            yield planned.name, future.result()
                        except (Interrupted, WeightsError):  # the segmenter would fail on all videos
                            raise
                        except BackendError as error:
                            previous = self._previous_outcome(planned, task_video)
                            reader.skip(task_video, error, "Its earlier export is kept." if previous else "")
                            if previous:
                                yield planned.name, previous
                            else:
                                self._discard(planned.name)
                        if self.videos > 1:
                            self.progress(done, self.videos)
            except BaseException:
                self.stop.set()
                for future in running:
                    future.cancel()
                raise

    def _export_video(
        self, planned: DatasetVideo, task_video: TaskVideo, encoders: ThreadPoolExecutor
    ) -> dict[str, Any]:
        self._check_stop(planned.name)
        with task_video.open() as video:
            objects = tuple(item for item in video.objects if item.label in self.dataset.class_ids)
            self.dataset.check(objects)
            inputs: dict[str, Any] = {
                # By content: the media cache touches a file whenever it is used.
                "file": [video.name, file_sha256(video.path), video.info.frames, video.info.width, video.info.height],
                "regions": fingerprint([[dict(item.region), item.source, item.confidence] for item in objects]),
                "frame_rate": video.timeline.frame_rate,
                "classes": list(self.dataset.classes),
                "split": None if self.frame_selector else planned.rule,
                **({"picker": self.frame_selector.inputs(video)} if self.frame_selector else {}),
                **({"segmenter": self.segmenter.model_id} if self.segmenter else {}),
            }
            if self.options.global_ids:
                inputs |= {"first_id": planned.first_id, "global_ids": [item.global_id for item in objects]}
            record = {"made_from": inputs, "part": _task_video_fingerprint(task_video)}
            previous = self.state.read(planned.name)
            if previous and "outcome" in previous and previous["made_from"] == inputs:
                if previous["part"] != record["part"]:
                    self.state.write(planned.name, previous | record)
                return {**previous["outcome"], "continued": True}
            selected = self._select(planned, video, objects)
            if self.options.global_ids:
                selected = replace(selected, first_id=planned.first_id)
            if previous is not None:
                # Decoding dominates, so images of the same file that are still selected are kept.
                same_file = previous.get("made_from", {}).get("file") == inputs["file"]
                self.dataset.remove(planned.name, self._image_paths(selected) if same_file else frozenset())
                self.crops.remove(planned.name)
            self.state.write(planned.name, record)
            make_masks = MaskMaker(self.segmenter, self.options.tight_boxes) if self.segmenter else None
            selected = self._save_images(selected, encoders, make_masks)
            try:
                self.dataset.write_labels(selected)
            finally:
                if selected.masks:
                    selected.masks.unlink()
            left_out = [item.label for item in video.objects if item.label not in self.dataset.class_ids]
            outcome = {
                "counts": dict(Counter(selected.splits)),
                "boxes": dict(_count_boxes(selected)),
                "left_out": dict(Counter(left_out)),
                **({"picked": self.frame_selector.notes(selected)} if self.frame_selector else {}),
                **({"without_mask": make_masks.boxes} if make_masks else {}),
            }
            self.state.write(planned.name, record | {"outcome": outcome})
            return outcome | {"continued": False}

    def _check_stop(self, where: str) -> None:
        if self.stop.is_set() or self.should_stop():
            raise Interrupted(f"Stopped at {where}.", "Run it again to resume.")

    def _select(self, planned: DatasetVideo, video: AnnotatedVideo, objects: tuple[VideoObject, ...]) -> SelectedFrames:
        if self.frame_selector:
            return SelectedFrames(planned.name, video, objects, *self.frame_selector.select(video, objects))
        frames = sampled_frames(video, objects, planned.name, self.options.sampling)
        if planned.split is not None:
            return SelectedFrames(planned.name, video, objects, frames, [planned.split] * len(frames))
        frame_count = video.info.frames if planned.shared else None
        splits = split_frames(frames, planned.same_as, planned.by, self.options.sampling, frame_count)
        return SelectedFrames(planned.name, video, objects, frames, splits)

    def _image_paths(self, selected: SelectedFrames) -> frozenset[Path]:
        pairs = zip(selected.splits, selected.frames.tolist(), strict=True)
        return frozenset(self.dataset.image_path(selected.name, split, frame) for split, frame in pairs)

    def _save_images(
        self, selected: SelectedFrames, encoders: ThreadPoolExecutor, make_masks: MaskMaker | None
    ) -> SelectedFrames:
        """Write missing images, and masks; return the frames without undecodable ones and near duplicates."""
        options, dataset, video = self.options, self.dataset, selected.video
        write = dataset.has_images and options.images
        is_duplicate = None if options.sampling.near_duplicates else NearDuplicates()
        decode_all = bool(is_duplicate or options.crops or make_masks)
        if not (write or decode_all) or not len(selected.frames):
            return selected
        split_of = dict(zip(selected.frames.tolist(), selected.splits, strict=True))
        # Images are written atomically: what an interrupted run left is complete.
        existing = {
            n for n, split in split_of.items() if write and dataset.image_path(selected.name, split, n).exists()
        }
        wanted = [index for index in split_of if decode_all or index not in existing]
        frame_boxes = video.frames(wanted, selected.objects) if decode_all else iter(())
        kept = set() if decode_all else set(existing)
        masks = state_folder(dataset.out) / f"{selected.name}.masks.jsonl" if make_masks else None
        with (
            ImageSaver(options.image_format, encoders, self.workers) as saver,
            atomic_text_writer(masks) if masks else nullcontext() as masks_file,
        ):
            for frame in _decode(video, wanted, bool(existing)):
                self._check_stop(f"frame {frame.index} of {video.name}")
                if self.videos == 1:
                    self.progress(frame.index + 1, video.info.frames)
                split = split_of[frame.index]
                path = dataset.image_path(selected.name, split, frame.index)
                if decode_all:
                    boxes = next(boxes for boxes in frame_boxes if boxes.index == frame.index)
                    if is_duplicate and is_duplicate(frame.image, boxes):
                        path.unlink(missing_ok=True)
                        continue
                    if make_masks and masks_file:
                        boxes = make_masks(frame.image, boxes)
                        write_masks(masks_file, boxes)
                    if options.crops:
                        self.crops.save(saver, selected.name, split, boxes, frame.image)
                kept.add(frame.index)
                if write and frame.index not in existing:
                    saver.save(path, frame.image)
        if self.videos == 1:
            self.progress(video.info.frames, video.info.frames)
        splits = {index: split for index, split in split_of.items() if index in kept}
        frames = np.array(list(splits), np.int64)
        return replace(selected, frames=frames, splits=list(splits.values()), masks=masks)

    def _previous_outcome(self, planned: DatasetVideo, task_video: TaskVideo) -> dict[str, Any] | None:
        """Return the outcome of an exported video that is no longer available, if all but the file is unchanged."""
        previous = self.state.read(planned.name)
        if self.frame_selector or not previous or "outcome" not in previous:
            return None
        if previous["part"] != _task_video_fingerprint(task_video):
            return None
        inputs, classes = previous["made_from"], list(self.dataset.classes)
        if inputs.get("first_id", planned.first_id) != planned.first_id:
            return None
        # Appended classes change no class ids.
        if inputs["split"] != planned.rule or classes[: len(inputs["classes"])] != inputs["classes"]:
            return None
        return {**previous["outcome"], "continued": True}

    def _discard(self, name: str) -> None:
        """Remove a video whose labels are missing or outdated, which would harm training."""
        previous = self.state.read(name)
        # A frame selector's caller lists the images to use: others may stay, in case the video comes back.
        if previous is not None and not (self.frame_selector and "outcome" in previous):
            self.remove(name)

    def remove(self, name: str) -> None:
        """Remove a video's images, labels, crops and state."""
        self.dataset.remove(name)
        self.crops.remove(name)
        self.state.remove(name)


def _count_boxes(selected: SelectedFrames) -> Counter[str]:
    counts: Counter[str] = Counter()
    for item in selected.objects:
        counts[item.label] += int(np.isin(selected.video.boxes(item)[0], selected.frames, assume_unique=True).sum())
    return counts


def _decode(video: AnnotatedVideo, wanted: Sequence[int], allow_none: bool) -> Iterator[Frame]:
    """Yield the wanted frames that can be decoded; with ``allow_none`` that may be none of them."""
    if not wanted:
        return
    try:
        yield from read_at(video.path, video.info, wanted)
    except VideoError as error:
        if not allow_none:
            raise
        log.warning("%s", error)


def _task_video_fingerprint(task_video: TaskVideo) -> str:
    """Return a digest of what a task states about one of its videos."""
    regions, labels = task_video.regions, {label.value for label in task_video.control.labels}
    submission = task_video.submission
    return fingerprint(
        {
            "name": task_video.name,
            "rate": task_video.frame_rate,
            "labels": [chosen_label(region, labels) for region in regions],
            "regions": [dict(region) for region in regions],
            # May hold the scores of accepted regions.
            "predicted": [dict(submission.predicted.get(str(region.get("id")), {})) for region in regions],
            "by": [submission.author, submission.is_prediction, submission.score],
        }
    )
