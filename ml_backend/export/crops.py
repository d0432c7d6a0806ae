"""What is in each box, for classifiers: ``crops/<part>/<label>/<video>_<frame>_<track>.jpg``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ml_backend.export.images import ImageSaver, crop
from ml_backend.export.video import FrameBoxes
from ml_backend.files import UniqueNames
from ml_backend.types import Image


class Crops:
    """The crops of a dataset.

    Args:
        out: folder of the dataset.
        classes: label names in the order of their numbers. Those that a file system would take for one get folders
            of their own: the second ends in its number.
        suffix: of the files, without a dot.
    """

    def __init__(self, out: Path, classes: Sequence[str], suffix: str) -> None:
        self._folder, self._suffix = out / "crops", suffix
        names = UniqueNames()
        self._folder_of = {label: names.take(label, number) for number, label in enumerate(classes)}

    def save(self, saver: ImageSaver, name: str, split: str, frame: FrameBoxes, image: Image) -> None:
        """Write what is in the boxes of a picture ``(height, width, 3)``."""
        for item, box in zip(frame.objects, frame.xyxy, strict=True):
            file = f"{name}_{frame.index:06d}_{item.track}.{self._suffix}"
            saver.save(self._folder / split / self._folder_of[item.label] / file, crop(image, box))

    def remove(self, name: str) -> None:
        """Remove a video's crops."""
        for folder in self._folder.glob("*/*"):
            for path in folder.glob("*"):
                stem, _, track = path.stem.rpartition("_")
                video, _, picture = stem.rpartition("_")
                if video == name and picture.isdigit() and track.isdigit():
                    path.unlink(missing_ok=True)
