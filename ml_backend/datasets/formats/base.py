"""What a dataset format is: where pictures lie, and how the labels of a video and of the whole are written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ml_backend.core.errors import ConfigError
from ml_backend.core.types import IntArray
from ml_backend.datasets.annotated_video import AnnotatedVideo, TaskVideo, VideoObject
from ml_backend.datasets.images import ImageFormat
from ml_backend.datasets.sampling import Sampling


@dataclass(frozen=True, slots=True)
class SelectedFrames:
    """What of a video is exported.

    Attributes:
        name: of its files; unique in the dataset.
        video: the video.
        objects: those whose label is a class of the dataset.
        pictures: ``(n,)`` ascending decoded indices.
        splits: ``n`` names of the parts that they belong to.
    """

    name: str
    video: AnnotatedVideo
    objects: tuple[VideoObject, ...]
    pictures: IntArray
    splits: Sequence[str]


#: How many pictures of each video, by its name, each part has.
Counts = Mapping[str, Mapping[str, int]]


class FrameSelector(Protocol):
    """Chooses pictures and their parts in place of the sampling options. Called from several threads."""

    def name(self, part: TaskVideo) -> str:
        """What a video's files are called. The same whatever other videos there are, or they are written again."""

    def made_from(self, video: AnnotatedVideo) -> dict[str, Any]:
        """What the choice depends on, beyond the file and its objects that have a class; as JSON gives it back."""

    def pick(self, video: AnnotatedVideo, objects: tuple[VideoObject, ...]) -> tuple[IntArray, Sequence[str]]:
        """Pictures ``(n,)``, ascending, and their ``n`` parts."""

    def notes(self, picked: SelectedFrames) -> dict[str, Any]:
        """JSON to be kept of a video once its pictures are written; a continued run gets it back as it was."""


class DatasetFormat(ABC):
    """Writes one dataset. Nothing is kept in memory between videos; methods are called from several threads.

    Args:
        out: folder of the dataset.
        classes: label names in the order of their numbers.

    Raises:
        ConfigError: naming an option that the format cannot express.
    """

    #: Whether pictures belong to it.
    has_images = True
    #: Whether a video must lie in one part as a whole.
    whole_videos = False
    #: Whether it is made for training, so that two people's labels of one picture contradict each other.
    one_truth = False

    def __init__(self, out: Path, classes: Sequence[str], image_format: ImageFormat, sampling: Sampling) -> None:
        self.out, self.classes = out, tuple(classes)
        self.image_format, self.sampling = image_format, sampling
        self.class_ids = {name: number for number, name in enumerate(self.classes)}
        if self.whole_videos:
            if sampling.keyframes or sampling.negatives is not None or not sampling.near_duplicates:
                raise ConfigError(
                    "This format has sequences of evenly spaced pictures: none of them can be left out.",
                    "Use --stride only.",
                )
            if sampling.split not in ("auto", "video"):
                raise ConfigError(
                    f"This format has whole videos: they cannot be split by {sampling.split}.",
                    "Use --split video, or leave it out: then all are in train.",
                )

    def image_folder(self, name: str, split: str) -> Path:
        """Where pictures of a video in one part lie."""
        return self.out / "images" / split

    def image_name(self, name: str, picture: int) -> str:
        """File name of a picture: ``<video>_<0-based decoded frame>``."""
        return f"{name}_{picture:06d}.{self.image_format.suffix}"

    def image_path(self, name: str, split: str, picture: int) -> Path:
        return self.image_folder(name, split) / self.image_name(name, picture)

    @abstractmethod
    def write_labels(self, picked: SelectedFrames) -> None:
        """Write everything that is known of one video, but for the pictures."""

    @abstractmethod
    def remove(self, name: str, keep: frozenset[Path] = frozenset()) -> None:
        """Remove a video's pictures and labels from an earlier export, except the pictures to ``keep``."""

    def finish(self, counts: Counts) -> list[str]:
        """Write what needs all videos, from this run or earlier ones. Returns notes for the user."""
        return []


def remove_named(folder: Path, name: str, keep: frozenset[Path] = frozenset()) -> None:
    """Remove files called ``<name>_<digits>.<suffix>`` in a folder."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        stem, _, digits = path.stem.rpartition("_")
        if stem == name and digits.isdigit() and path not in keep:
            path.unlink(missing_ok=True)
