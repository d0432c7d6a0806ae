"""Masks of objects in datasets: run lengths as COCO encodes them, polygons, maps of instances, and a file of them.

Masks of a video are made while its frames are decoded, and written to a file, from which the labels are written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import cv2
import numpy as np
import supervision as sv

from ml_backend.core.types import BoolArray, Image, IntArray
from ml_backend.datasets.annotated_video import FrameBoxes, ObjectMask
from ml_backend.inference.segmenter import Segmenter, box_mask

#: In MOTS, the number of an object is that of its class times this, plus that of its track.
CLASS_FACTOR = 1000


def encode(mask: BoolArray) -> str:
    """Return a mask ``(height, width)`` as the compressed run lengths of COCO."""
    return str(sv.mask_to_rle(mask, compressed=True))


def decode(rle: str, width: int, height: int) -> BoolArray:
    """Return the mask ``(height, width)`` of compressed run lengths."""
    mask: BoolArray = sv.rle_to_mask(rle, (width, height))
    return mask


def polygon(mask: BoolArray) -> IntArray:
    """Return one polygon ``(n, 2)`` around a mask, through the centres of its outermost pixels; at least four points.

    Parts are joined by lines of no width, holes are filled.
    """
    from ml_backend.detectors.setup import setup_ultralytics

    parts, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    joined = np.asarray(parts[0], np.int64).reshape(-1, 2)
    if len(parts) > 1:
        setup_ultralytics()
        from ultralytics.data.converter import merge_multi_segment

        joined = np.concatenate(merge_multi_segment([part.reshape(-1).tolist() for part in parts]))
    # Of a part that is a pixel or a line wide, fewer points would be read as a box.
    return joined if len(joined) > 3 else np.resize(joined, (4, 2))


def instance_map(frame: FrameBoxes, width: int, height: int) -> IntArray:
    """Return the number of the object, from 1, that each pixel ``(height, width)`` shows; 0: none.

    Of overlapping masks the smaller one counts: it is in front, or part of the other.
    """
    out = np.zeros((height, width), np.int64)
    for row in sorted(range(len(frame.masks)), key=lambda row: -frame.masks[row].area):
        out[decode(frame.masks[row].rle, width, height)] = row + 1
    return out


@dataclass(slots=True)
class MaskMaker:
    """Makes the masks of a video's frames.

    Attributes:
        tight: whether boxes become those of their masks.
        boxes: number of objects and frames where the model found nothing, and the box is the mask.
    """

    segmenter: Segmenter
    tight: bool
    boxes: int = 0

    def __call__(self, image: Image, frame: FrameBoxes) -> FrameBoxes:
        """Return a frame's boxes with masks; ``image`` is ``(height, width, 3)`` BGR."""
        made, tight = [], frame.xyxy.copy()
        for row, mask in enumerate(self.segmenter.segment(image, frame.xyxy)):
            columns = np.flatnonzero(mask.any(axis=0))
            if len(columns):
                rows = np.flatnonzero(mask.any(axis=1))
                tight[row] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
            else:
                mask, self.boxes = box_mask(image.shape, frame.xyxy[row]), self.boxes + 1
            made.append(ObjectMask(encode(mask), int(mask.sum())))
        return replace(frame, masks=tuple(made), xyxy=tight if self.tight else frame.xyxy)


def write_masks(file: IO[str], frame: FrameBoxes) -> None:
    """Append a frame to a file of masks."""
    masks = [(mask.rle, mask.area) for mask in frame.masks]
    file.write(json.dumps([frame.index, frame.xyxy.tolist(), masks]) + "\n")


def read_masks(path: Path, frames: Iterator[FrameBoxes]) -> Iterator[FrameBoxes]:
    """Yield frames, all of which are in a file of masks, in its order, with their masks and the boxes of the file."""
    with path.open(encoding="ascii") as file:
        for frame in frames:
            index, xyxy, masks = json.loads(next(file))
            if index != frame.index:
                raise ValueError(f"expected frame {frame.index} in {path}, got {index}")
            boxes = np.array(xyxy, np.float64).reshape(-1, 4)
            yield replace(frame, xyxy=boxes, masks=tuple(ObjectMask(*mask) for mask in masks))
