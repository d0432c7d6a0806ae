"""Render a video with boxes of one or more layers, keeping its sound."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import supervision as sv
from PIL import Image as PILImage

from ml_backend.core.errors import ConfigError
from ml_backend.core.files import check_output
from ml_backend.core.types import Image, IntArray, Progress, VideoInfo
from ml_backend.datasets.annotated_video import FrameBoxes, VideoObject
from ml_backend.inference.segmenter import Segmenter
from ml_backend.rendering.draw import WHITE, BoxStyle, FramePainter, Scale, label_colours
from ml_backend.rendering.layers import Layer
from ml_backend.rendering.text import Fonts
from ml_backend.video.audio import AudioTrack
from ml_backend.video.container import check_file
from ml_backend.video.probe import Scan, scan
from ml_backend.video.reader import read_frames
from ml_backend.video.writer import VideoWriter

#: Total width of all panes, px; hardware decoders of H.264 accept 4096.
_MAX_WIDTH = 3840
#: Colours around the panes and of the strip with their titles.
_BACKGROUND, _STRIP = (24, 24, 28), (38, 38, 44)
#: MPEG time units per second, for variable frame rates.
_TICKS = 90_000
#: Frames between calls of malloc_trim, which takes about as long as drawing a frame.
_TRIM_INTERVAL = 100


@dataclass(frozen=True, slots=True)
class RenderOptions:
    """How a video is rendered.

    Attributes:
        style: how boxes are drawn.
        colours: CSS colours by label; other labels get colours derived from their names.
        start, end: range to render in seconds; by default all.
        height: of the frames, px, at most the video's own, which is the default.
        sound: whether the sound is kept.
        font: preferred font file.
        crf: of the encoder; see :class:`~ml_backend.video.writer.VideoWriter`.
    """

    style: BoxStyle = field(default_factory=BoxStyle)
    colours: Mapping[str, str] = field(default_factory=dict)
    start: float | None = None
    end: float | None = None
    height: int | None = None
    sound: bool = True
    font: Path | None = None
    crf: int = 20


def check_out(out: Path, video: Path, force: bool) -> None:
    """Check the output path before any work is done.

    Raises:
        ConfigError: ``out`` is not an MP4, is the video itself, or exists and ``force`` is not set.
        VideoError: the video is not a readable file.
    """
    source = check_file(video)
    if out.exists() and out.samefile(source):
        raise ConfigError(f"{out} is the video itself.", "Choose another --out.")
    check_output(out, (".mp4",), force)


def render(
    video: str | os.PathLike[str],
    out: Path,
    layers: Sequence[Layer],
    options: RenderOptions | None = None,
    progress: Progress | None = None,
    segmenter: Segmenter | None = None,
) -> dict[str, Any]:
    """Write a video with boxes, with one frame in memory at a time.

    Each frame of the source becomes one frame of the output at the same time, upright and in square pixels; several
    layers are shown side by side. The output is written atomically.

    Args:
        out: target, ending in ``.mp4``; an existing file is replaced.
        layers: one or more, of this video.
        progress: called with frames done and in total.
        segmenter: makes masks, which are drawn too.

    Returns:
        Summary: frames, seconds, fps, width, height, tracks and labels (of each layer), note.

    Raises:
        VideoError: the video cannot be decoded.
        ConfigError: the time range or the font is not valid.
        WeightsError: the segmenter failed.
        StorageError: the disk is full, or the folder cannot be written.
    """
    options = options or RenderOptions()
    scanned = scan(video)
    first, last = _frame_range(scanned, options)
    fonts = Fonts(options.font)
    size = fitting_size(scanned.info.width, scanned.info.height, len(layers), options.height)
    canvas, panes = side_by_side(size, [layer.title for layer in layers], fonts)
    labels = _labels(layers, options.colours)
    colours = label_colours(labels, options.colours)
    painters = [
        _LayerPainter(layer, labels, colours, size, scanned.info, options.style, fonts, first, last, segmenter)
        for layer in layers
    ]
    time_base, timestamps = _timestamps(scanned, first, last)
    total = last + 1 - first
    rate = Fraction(scanned.info.fps).limit_denominator(1001)
    sound = _audio_track(scanned, first, options) if options.sound and scanned.info.has_audio else None
    started, done = time.perf_counter(), 0
    with VideoWriter(
        out, canvas.shape[1], canvas.shape[0], rate, crf=options.crf, time_base=time_base, audio=sound
    ) as writer:
        for frame in read_frames(video, scanned.info, start=first, size=size):
            number = frame.index - first
            if frame.index > last:
                break
            for pane, painter in zip(panes, painters, strict=True):
                pane[:] = frame.image
                painter.paint(pane, frame.index)
            writer.write(canvas, int(timestamps[number]))
            done += 1
            if number % _TRIM_INTERVAL == _TRIM_INTERVAL - 1:
                _trim_memory()
            if progress is not None:
                progress(number + 1, total)
    seconds = time.perf_counter() - started
    return {
        "frames": done,
        "seconds": round(seconds, 3),
        "fps": round(done / seconds, 2) if seconds else 0.0,
        "width": canvas.shape[1],
        "height": canvas.shape[0],
        "tracks": [len(painter.objects) for painter in painters],
        "labels": [dict(Counter(item.label for item in painter.objects)) for painter in painters],
        "note": " ".join(note for note in [*(layer.note for layer in layers), fonts.note()] if note),
    }


def _trim_memory() -> None:
    """Return free memory from glibc to the system.

    Fragmentation would make the process grow by a megabyte every six frames. Other allocators do not need this.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)


def fitting_size(width: int, height: int, panes: int, wanted_height: int | None = None) -> tuple[int, int]:
    """Return the size of a pane: the video's own, unless a smaller height is wanted or all panes would be too wide."""
    scale = min(1.0, _MAX_WIDTH / (panes * width), (wanted_height or height) / height)
    if scale == 1.0:
        return width, height
    # Even sizes, so that the encoder needs no padding.
    return max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2)


def side_by_side(size: tuple[int, int], titles: Sequence[str], fonts: Fonts) -> tuple[Image, list[Image]]:
    """Return a BGR canvas, and its panes as views to draw on.

    A single pane is the whole canvas; several have titles above them. ``size`` is that of each pane.
    """
    (width, height), count, font = size, len(titles), Scale.of(*size).font
    strip, gap = (round(font * 2.2), max(2, round(font / 3))) if count > 1 else (0, 0)
    background = PILImage.new("RGB", (count * (width + gap) - gap, height + strip), _BACKGROUND)
    lefts = [number * (width + gap) for number in range(count)]
    if strip:
        for left, title in zip(lefts, titles, strict=True):
            head, mask, pad = PILImage.new("RGB", (width, strip), _STRIP), fonts.mask(title, font), round(font * 0.7)
            # A long title is cut at the end.
            mask = mask.crop((0, 0, min(mask.width, max(width - 2 * pad, 1)), mask.height))
            head.paste(WHITE, (pad, (strip - mask.height) // 2), mask)
            background.paste(head, (left, 0))
    canvas = np.ascontiguousarray(np.asarray(background)[..., ::-1])
    return canvas, [canvas[strip:, left : left + width] for left in lefts]


class _LayerPainter:
    """Draws the boxes of one layer, frame by frame."""

    def __init__(
        self,
        layer: Layer,
        labels: Sequence[str],
        colours: Mapping[str, tuple[int, int, int]],
        size: tuple[int, int],
        info: VideoInfo,
        style: BoxStyle,
        fonts: Fonts,
        first: int,
        last: int,
        segmenter: Segmenter | None,
    ) -> None:
        self._segmenter = segmenter
        # The legend lists only labels that are visible between first and last.
        self.objects = tuple(item for item in layer.video.objects if item.last >= first and item.first <= last)
        present = {item.label for item in self.objects}
        visible = [label for label in labels if label in present]
        self._class_ids = {label: class_id for class_id, label in enumerate(visible)}
        self._scale = np.array([size[0] / info.width, size[1] / info.height] * 2)
        kinds = sorted({item.source == "manual" for item in self.objects}, reverse=True)
        self._painter = FramePainter(visible, colours, size, info.fps, style, fonts, kinds)
        self._boxes: Iterator[FrameBoxes] = layer.video.frames(np.arange(first, last + 1), self.objects)

    def paint(self, image: Any, index: int) -> None:
        """Draw the boxes of a frame; call in increasing order."""
        for boxes in self._boxes:
            if boxes.index == index:
                detections = self._detections(boxes.objects, boxes.xyxy)
                if self._segmenter:
                    detections.mask = self._segmenter.segment(image, boxes.xyxy * self._scale)
                self._painter.paint(image, detections)
                return

    def _detections(self, objects: Sequence[VideoObject], xyxy: Any) -> sv.Detections:
        return sv.Detections(
            xyxy=xyxy * self._scale,
            class_id=np.array([self._class_ids[item.label] for item in objects], np.int64),
            tracker_id=np.array([item.track_id for item in objects], np.int64),
            confidence=np.array([np.nan if item.confidence is None else item.confidence for item in objects], float),
            data={"manual": np.array([item.source == "manual" for item in objects], bool)},
        )


def _labels(layers: Sequence[Layer], wanted: Mapping[str, str]) -> list[str]:
    """Return the labels of all layers: those with a wanted colour in its order, then the others by name."""
    present = {item.label for layer in layers for item in layer.video.objects}
    coloured = [label for label in wanted if label in present]
    return [*coloured, *sorted(present - set(coloured), key=lambda label: (label.casefold(), label))]


def _frame_range(scanned: Scan, options: RenderOptions) -> tuple[int, int]:
    """Return the indices of the first and the last frame to render."""
    end_s = float(scanned.times[0]) + scanned.info.duration
    start = 0.0 if options.start is None else options.start
    end = end_s if options.end is None else options.end
    if not 0 <= start < end_s:
        raise ConfigError(
            f"The start at {start:g} s is not within the video, which ends at {end_s:.3f} s.", "Choose another --start."
        )
    if not end > start:
        raise ConfigError(f"The end at {end:g} s is not after the start at {start:g} s.", "Choose another --end.")
    # A microsecond of tolerance, so that a time copied from a player finds its frame.
    first = max(0, int(np.searchsorted(scanned.times, start + 1e-6, side="right")) - 1)
    last = max(first, int(np.searchsorted(scanned.times, end - 1e-6, side="left")) - 1)
    return first, last


def _timestamps(scanned: Scan, first: int, last: int) -> tuple[Fraction | None, IntArray]:
    """Return the time base (``None``: frames) and strictly increasing timestamps ``(n,)`` from 0."""
    count = np.arange(last + 1 - first)
    if not scanned.info.variable_frame_rate:
        return None, count
    exact = np.rint((scanned.times[first : last + 1] - scanned.times[first]) * _TICKS).astype(np.int64)
    # Frames with equal times follow each other by one unit.
    out: IntArray = np.maximum.accumulate(exact - count) + count
    return Fraction(1, _TICKS), out


def _audio_track(scanned: Scan, first: int, options: RenderOptions) -> AudioTrack:
    # A stream that begins before 0 shifts the browser's clock against the file's.
    origin = 0.0 if scanned.pts is None else float(scanned.pts[0] * scanned.time_base) - float(scanned.times[0])
    end = None if options.end is None else options.end + origin
    return AudioTrack(scanned.info.path, float(scanned.times[first]) + origin, end)
