"""Render short clips that compare the tracks of several models side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import supervision as sv

from ml_backend.core.types import Float64Array, Image, Track, VideoInfo
from ml_backend.rendering.draw import BoxStyle, FramePainter, label_colours
from ml_backend.rendering.render import fitting_size, side_by_side
from ml_backend.rendering.text import Fonts
from ml_backend.video.reader import read_frames
from ml_backend.video.writer import VideoWriter

#: Height of a pane, px, and quality of the encoder: enough to see what a box is around.
HEIGHT, CRF = 360, 28


@dataclass(frozen=True, slots=True)
class ClipPane:
    """What one pane of a clip shows.

    Attributes:
        title: above the pane.
        tracks: with labels and scores.
        marked: the tracks that the clip is about, drawn solid; the others are dashed.
    """

    title: str
    tracks: Sequence[Track]
    marked: Sequence[Track] = ()


def render_clip(
    video: Path,
    info: VideoInfo,
    out: Path,
    panes: Sequence[ClipPane],
    first: int,
    last: int,
    *,
    numbers: bool = False,
) -> None:
    """Write a clip of a video with the tracks of each pane.

    Args:
        out: target, ending in ``.mp4``.
        first, last: decoded frames.
        numbers: whether track ids are shown, not certainties.

    Raises:
        VideoError: the video cannot be decoded.
        StorageError: the disk is full, or the folder cannot be written.
    """
    fonts = Fonts()
    size = fitting_size(info.width, info.height, len(panes), HEIGHT)
    canvas, images = side_by_side(size, [pane.title for pane in panes], fonts)
    labels = sorted({str(track.label) for pane in panes for track in pane.tracks})
    colours = label_colours(labels)
    scale = np.array([size[0] / info.width, size[1] / info.height] * 2)
    style = BoxStyle(numbers=numbers, confidence=not numbers)
    painters = [FramePainter(labels, colours, size, info.fps, style, fonts) for _ in panes]
    with VideoWriter(out, canvas.shape[1], canvas.shape[0], info.fps, crf=CRF) as writer:
        for frame in read_frames(video, info, start=first, size=size):
            if frame.index > last:
                break
            for pane, image, painter in zip(panes, images, painters, strict=True):
                _paint(pane, image, painter, frame.image, frame.index, labels, scale)
            writer.write(canvas)


def _paint(
    pane: ClipPane,
    target: Image,
    painter: FramePainter,
    image: Image,
    index: int,
    labels: Sequence[str],
    scale: Float64Array,
) -> None:
    target[:] = image
    visible = [(track, row) for track in pane.tracks for row in np.flatnonzero(track.frames == index).tolist()]
    painter.paint(
        target,
        sv.Detections(
            xyxy=np.array([track.xyxy[row] for track, row in visible], np.float64).reshape(-1, 4) * scale,
            class_id=np.array([labels.index(str(track.label)) for track, _ in visible], np.int64),
            tracker_id=np.array([track.track_id for track, _ in visible], np.int64),
            confidence=np.array([track.score for track, _ in visible], np.float64),
            data={"manual": np.array([any(track is item for item in pane.marked) for track, _ in visible], bool)},
        ),
    )
