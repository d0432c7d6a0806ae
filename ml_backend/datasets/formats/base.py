"""Base class of dataset formats: where images are stored and how labels are written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ml_backend.core.errors import ConfigError
from ml_backend.core.types import IntArray
from ml_backend.datasets.annotated_video import AnnotatedVideo, FrameBoxes, TaskVideo, VideoObject
from ml_backend.datasets.images import ImageFormat
from ml_backend.datasets.masks import read_masks
from ml_backend.datasets.sampling import Sampling


@dataclass(frozen=True, slots=True)
class SelectedFrames:
    """The frames and objects of a video that are exported.

    Attributes:
        name: of its files; unique in the dataset.
        video: the video.
        objects: those whose label is a class of the dataset.
        frames: ``(n,)`` ascending decoded indices.
        splits: ``n`` split names.
        masks: file with the masks of these frames, if they are made.
        first_id: of a dataset with global ids, before the numbers of objects without one; ``None``: of another.
    """

    name: str
    video: AnnotatedVideo
    objects: tuple[VideoObject, ...]
    frames: IntArray
    splits: Sequence[str]
    masks: Path | None = None
    first_id: int | None = None

    def boxes(self) -> Iterator[FrameBoxes]:
        """Yield the boxes of each frame in order, including frames without boxes."""
        frames = self.video.frames(self.frames, self.objects)
        return frames if self.masks is None else read_masks(self.masks, frames)

    def object_ids(self) -> dict[int, int]:
        """Return the number of each object, by track id: global ids if they are asked for.

        Of two objects that are visible at once, and have one global id, only the first keeps it.
        """
        if self.first_id is None:
            return {item.track_id: item.track_id for item in self.objects}
        found: dict[int, int] = {}
        frames: dict[int, IntArray] = {}
        for item in self.objects:
            number = item.global_id or self.first_id + item.track_id
            if item.global_id:
                own = self.video.boxes(item)[0]
                taken = frames.get(number, own[:0])
                if len(np.intersect1d(taken, own, assume_unique=True)):
                    number = self.first_id + item.track_id
                else:
                    frames[number] = np.concatenate([taken, own])
            found[item.track_id] = number
        return found


#: Number of frames by video name and split.
Counts = Mapping[str, Mapping[str, int]]


class FrameSelector(Protocol):
    """Selects frames and their splits in place of the sampling options. Called from several threads."""

    def name(self, task_video: TaskVideo) -> str:
        """Return the name of a video's files. It must not depend on other videos, or files are written again."""

    def inputs(self, video: AnnotatedVideo) -> dict[str, Any]:
        """Return, as JSON, what the selection depends on besides the file and its objects that have a class."""

    def select(self, video: AnnotatedVideo, objects: tuple[VideoObject, ...]) -> tuple[IntArray, Sequence[str]]:
        """Return ascending decoded frames ``(n,)`` and their ``n`` splits."""

    def notes(self, selected: SelectedFrames) -> dict[str, Any]:
        """Return JSON to store with a video; a resumed run returns it unchanged."""


class DatasetFormat(ABC):
    """Writes one dataset. Keeps nothing in memory between videos; methods are called from several threads.

    Args:
        out: folder of the dataset.
        classes: label names in the order of class ids.

    Raises:
        ConfigError: an option that the format cannot express.
    """

    #: Whether the format has images.
    has_images = True
    #: Whether a video cannot be split.
    whole_videos = False
    #: Whether, with global ids, objects without one get numbers that no other object of the dataset has.
    unique_ids = False
    #: Whether the format is for training: labels of several annotators would contradict each other.
    single_annotator = False

    def __init__(self, out: Path, classes: Sequence[str], image_format: ImageFormat, sampling: Sampling) -> None:
        self.out, self.classes = out, tuple(classes)
        self.image_format, self.sampling = image_format, sampling
        self.class_ids = {name: class_id for class_id, name in enumerate(self.classes)}
        if self.whole_videos:
            if sampling.keyframes or sampling.negatives is not None or not sampling.near_duplicates:
                raise ConfigError(
                    "This format has sequences of evenly spaced frames: none of them can be left out.",
                    "Use --stride only.",
                )
            if sampling.split not in ("auto", "video"):
                raise ConfigError(
                    f"This format has whole videos: they cannot be split by {sampling.split}.",
                    "Use --split video, or leave it out to put all videos into train.",
                )

    def image_folder(self, name: str, split: str) -> Path:
        """Return the folder of a video's images of one split."""
        return self.out / "images" / split

    def image_name(self, name: str, frame: int) -> str:
        """Return the file name of a frame: ``<video>_<0-based decoded frame>``."""
        return f"{name}_{frame:06d}.{self.image_format.suffix}"

    def image_path(self, name: str, split: str, frame: int) -> Path:
        return self.image_folder(name, split) / self.image_name(name, frame)

    def check(self, objects: Sequence[VideoObject]) -> None:  # noqa: B027 -- most formats hold any
        """Raise ConfigError if the format cannot hold a video's objects."""

    @abstractmethod
    def write_labels(self, selected: SelectedFrames) -> None:
        """Write everything of one video except its images."""

    @abstractmethod
    def remove(self, name: str, keep: frozenset[Path] = frozenset()) -> None:
        """Remove a video's images and labels of an earlier export, except the images in ``keep``."""

    def finish(self, counts: Counts) -> list[str]:
        """Write the files that cover all videos, of this run and earlier ones; return notes for the user."""
        return []


def remove_named(folder: Path, name: str, keep: frozenset[Path] = frozenset()) -> None:
    """Remove files called ``<name>_<digits>.<suffix>`` in a folder."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        stem, _, digits = path.stem.rpartition("_")
        if stem == name and digits.isdigit() and path not in keep:
            path.unlink(missing_ok=True)
