"""Write instance masks as PNG files, as KITTI MOTS and MOTSChallenge have them.

``<split>/images/<video>_<frame>.jpg`` and ``<split>/instances/<video>_<frame>.png``, 16 bits: a pixel is the number of
its class, from 1, times 1000, plus the track's; 0: no object. ``<split>/instances/labels.txt`` has the class names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ml_backend.core.errors import ConfigError
from ml_backend.core.files import write_bytes, write_text
from ml_backend.datasets.annotated_video import VideoObject
from ml_backend.datasets.formats.base import Counts, DatasetFormat, SelectedFrames, remove_named
from ml_backend.datasets.images import ImageFormat
from ml_backend.datasets.masks import CLASS_FACTOR, instance_map
from ml_backend.datasets.sampling import SPLITS

#: Classes that fit into 16 bits.
_MAX_CLASSES = (1 << 16) // CLASS_FACTOR - 1


class MaskPng(DatasetFormat):
    """One picture of masks for each frame; masks of a frame do not overlap."""

    def image_folder(self, name: str, split: str) -> Path:
        return self.out / split / "images"

    def check(self, objects: Sequence[VideoObject]) -> None:
        tracks = max((item.track_id for item in objects), default=0)
        if len(self.classes) > _MAX_CLASSES or tracks >= CLASS_FACTOR:
            raise ConfigError(
                f"{len(self.classes)} classes or {tracks} tracks do not fit into pictures of 16 bits.",
                f"Choose {_MAX_CLASSES} classes at most with --classes, or use the format mots or coco-seg.",
            )

    def write_labels(self, selected: SelectedFrames) -> None:
        info, png = selected.video.info, ImageFormat("png")
        for frame, split in zip(selected.boxes(), selected.splits, strict=True):
            ids = [(self.class_ids[item.label] + 1) * CLASS_FACTOR + item.track_id for item in frame.objects]
            pixels = np.array([0, *ids], np.uint16)[instance_map(frame, info.width, info.height)]
            path = self.out / split / "instances" / f"{selected.name}_{frame.index:06d}.png"
            write_bytes(path, png.encode(pixels))

    def remove(self, name: str, keep: frozenset[Path] = frozenset()) -> None:
        for split in SPLITS:
            for folder in ("images", "instances"):
                remove_named(self.out / split / folder, name, keep)

    def finish(self, counts: Counts) -> list[str]:
        names = "".join(f"{' '.join(name.split())}\n" for name in self.classes)
        for split in SPLITS:
            if any(splits.get(split) for splits in counts.values()):
                write_text(self.out / split / "instances" / "labels.txt", names)
        return []
