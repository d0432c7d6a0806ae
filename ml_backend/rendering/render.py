"""Annotated video to look at: the pictures with what was drawn or found on them, the sound as it was."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import supervision as sv
from PIL import Image as Pictures

from ml_backend.core.errors import ConfigError
from ml_backend.core.files import check_output
from ml_backend.core.types import Image, IntArray, VideoInfo
from ml_backend.datasets.annotated_video import FrameBoxes, VideoObject
from ml_backend.rendering.draw import WHITE, BoxStyle, FramePainter, Scale, label_colours
from ml_backend.rendering.layers import Layer
from ml_backend.rendering.text import Fonts
from ml_backend.video.audio import AudioTrack
from ml_backend.video.container import check_file
from ml_backend.video.probe import Scan, scan
from ml_backend.video.reader import read_frames
from ml_backend.video.writer import VideoWriter

Progress = Callable[[int, int], None]

#: Of all panes together, px: hardware decoders of H.264 take 4096.
_MAX_WIDTH = 3840
#: Around the panes, and of the strip with their titles.
_GROUND, _STRIP = (24, 24, 28), (38, 38, 44)
#: Units a second of the times of pictures at uneven intervals, as MPEG counts.
_TICKS = 90_000
#: Pictures after which memory is tidied up, which takes about as long as drawing one.
_TIDY = 100


@dataclass(frozen=True, slots=True)
class RenderOptions:
    """How a video is rendered.

    Attributes:
        look: what is drawn.
        colours: CSS colours by label; other labels get colours that follow from their names.
        start, end: seconds of the video between which it is rendered; by default all.
        height: of the pictures, px; the video's own when ``None``, which a larger one never exceeds.
        sound: whether the sound is kept.
        font: a font file that is to be preferred.
        crf: of the encoder; see :class:`~ml_backend.video.writer.VideoWriter`.
    """

    look: BoxStyle = field(default_factory=BoxStyle)
    colours: Mapping[str, str] = field(default_factory=dict)
    start: float | None = None
    end: float | None = None
    height: int | None = None
    sound: bool = True
    font: Path | None = None
    crf: int = 20


def check_out(out: Path, video: Path, force: bool) -> None:
    """Refuse an output that could not or should not be written, before any work is done.

    Raises:
        ConfigError: not an MP4, the video itself, or there already and ``force`` not given.
        VideoError: the video is no file that can be read.
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
) -> dict[str, Any]:
    """Write a video with boxes, one picture in memory at a time.

    Each picture of the source becomes one of the output, at the same moment, upright and in square pixels; several
    layers are shown side by side. The output appears under its name only when it is complete.

    Args:
        out: target, ending in ``.mp4``; one that is there is replaced.
        layers: one or more, of this video.
        progress: called with pictures done and in all.

    Returns:
        Summary: frames, seconds, fps, width, height, tracks and labels (of each layer), note.

    Raises:
        VideoError: the video cannot be used.
        ConfigError: the stretch of time or the font is none.
        StorageError: the disk is full, or the folder cannot be written.
    """
    options = options or RenderOptions()
    facts = scan(video)
    first, last = _stretch(facts, options)
    fonts = Fonts(options.font)
    size = fitting_size(facts.info.width, facts.info.height, len(layers), options.height)
    picture, panes = _side_by_side(size, [layer.title for layer in layers], fonts)
    labels = _labels(layers, options.colours)
    colours = label_colours(labels, options.colours)
    painters = [_Boxes(layer, labels, colours, size, facts.info, options.look, fonts, first, last) for layer in layers]
    base, stamps = _stamps(facts, first, last)
    total = last + 1 - first
    rate = Fraction(facts.info.fps).limit_denominator(1001)
    sound = _sound(facts, first, options) if options.sound and facts.info.has_audio else None
    started, done = time.perf_counter(), 0
    how: dict[str, Any] = {"crf": options.crf, "time_base": base, "audio": sound}
    with VideoWriter(out, picture.shape[1], picture.shape[0], rate, **how) as writer:
        for frame in read_frames(video, facts.info, start=first, size=size):
            number = frame.index - first
            if frame.index > last:
                break
            for pane, painter in zip(panes, painters, strict=True):
                pane[:] = frame.image
                painter.paint(pane, frame.index)
            writer.write(picture, int(stamps[number]))
            done += 1
            if number % _TIDY == _TIDY - 1:
                _tidy_memory()
            if progress is not None:
                progress(number + 1, total)
    seconds = time.perf_counter() - started
    return {
        "frames": done,
        "seconds": round(seconds, 3),
        "fps": round(done / seconds, 2) if seconds else 0.0,
        "width": picture.shape[1],
        "height": picture.shape[0],
        "tracks": [len(boxes.objects) for boxes in painters],
        "labels": [dict(Counter(item.label for item in boxes.objects)) for boxes in painters],
        "note": " ".join(filter(None, [*(layer.note for layer in layers), fonts.note()])),
    }


def _tidy_memory() -> None:
    """Have glibc give back what it holds free between small things that stay.

    By itself it keeps it, and finds no room in it for whole pictures: a long video's process grew by a megabyte every
    six pictures. Other systems' allocators have no such habit.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)


def fitting_size(width: int, height: int, panes: int, wanted_height: int | None = None) -> tuple[int, int]:
    """Size of a video's picture in one of several panes: its own, unless less is wanted or all would be too wide."""
    share = min(1.0, _MAX_WIDTH / (panes * width), (wanted_height or height) / height)
    if share == 1.0:
        return width, height
    # Even sizes need no padding in the middle of a picture that is made of several.
    return max(2, round(width * share / 2) * 2), max(2, round(height * share / 2) * 2)


def _side_by_side(size: tuple[int, int], titles: Sequence[str], fonts: Fonts) -> tuple[Image, list[Image]]:
    """A BGR picture with panes beside each other, and the panes as views of it, to be drawn on.

    One alone is the whole picture; several stand under their titles. ``size`` is that of each pane.
    """
    (width, height), count, font = size, len(titles), Scale.of(*size).font
    strip, gap = (round(font * 2.2), max(2, round(font / 3))) if count > 1 else (0, 0)
    ground = Pictures.new("RGB", (count * (width + gap) - gap, height + strip), _GROUND)
    lefts = [number * (width + gap) for number in range(count)]
    if strip:
        for left, title in zip(lefts, titles, strict=True):
            head, mask, pad = Pictures.new("RGB", (width, strip), _STRIP), fonts.mask(title, font), round(font * 0.7)
            # Of a title that is too long the beginning tells most.
            mask = mask.crop((0, 0, min(mask.width, max(width - 2 * pad, 1)), mask.height))
            head.paste(WHITE, (pad, (strip - mask.height) // 2), mask)
            ground.paste(head, (left, 0))
    picture = np.ascontiguousarray(np.asarray(ground)[..., ::-1])
    return picture, [picture[strip:, left : left + width] for left in lefts]


class _Boxes:
    """The boxes of one layer, picture by picture."""

    def __init__(
        self,
        layer: Layer,
        labels: Sequence[str],
        colours: Mapping[str, tuple[int, int, int]],
        size: tuple[int, int],
        info: VideoInfo,
        look: BoxStyle,
        fonts: Fonts,
        first: int,
        last: int,
    ) -> None:
        # The legend names what may be seen between start and end, not the rest of the video's labels.
        self.objects = tuple(item for item in layer.video.objects if item.last >= first and item.first <= last)
        present = {item.label for item in self.objects}
        shown = [label for label in labels if label in present]
        self._index = {label: n for n, label in enumerate(shown)}
        self._scale = np.array([size[0] / info.width, size[1] / info.height] * 2)
        kinds = sorted({item.source == "manual" for item in self.objects}, reverse=True)
        self._painter = FramePainter(shown, colours, size, info.fps, look, fonts, kinds)
        self._boxes: Iterator[FrameBoxes] = layer.video.frames(np.arange(first, last + 1), self.objects)

    def paint(self, image: Any, index: int) -> None:
        """Draw what is to be seen on a picture. To be asked in increasing order."""
        for boxes in self._boxes:
            if boxes.index == index:
                self._painter.paint(image, self._detections(boxes.objects, boxes.xyxy))
                return

    def _detections(self, objects: Sequence[VideoObject], xyxy: Any) -> sv.Detections:
        return sv.Detections(
            xyxy=xyxy * self._scale,
            class_id=np.array([self._index[item.label] for item in objects], np.int64),
            tracker_id=np.array([item.track for item in objects], np.int64),
            confidence=np.array([np.nan if item.confidence is None else item.confidence for item in objects], float),
            data={"manual": np.array([item.source == "manual" for item in objects], bool)},
        )


def _labels(layers: Sequence[Layer], wanted: Mapping[str, str]) -> list[str]:
    """Labels of all layers: in the order of those that have a colour of their own, then by name."""
    present = {item.label for layer in layers for item in layer.video.objects}
    known = [label for label in wanted if label in present]
    return [*known, *sorted(present - set(known), key=lambda label: (label.casefold(), label))]


def _stretch(facts: Scan, options: RenderOptions) -> tuple[int, int]:
    """Indices of the first and the last picture that are rendered."""
    end_s = float(facts.times[0]) + facts.info.duration
    start = 0.0 if options.start is None else options.start
    end = end_s if options.end is None else options.end
    if not 0 <= start < end_s:
        raise ConfigError(f"The video has no second {start:g}: it ends at {end_s:.3f}.", "Choose another --start.")
    if not end > start:
        raise ConfigError(f"The end, second {end:g}, is not after the start, {start:g}.", "Choose another --end.")
    # Microseconds are what players tell apart: a time that was copied from one must find its picture.
    first = max(0, int(np.searchsorted(facts.times, start + 1e-6, side="right")) - 1)
    last = max(first, int(np.searchsorted(facts.times, end - 1e-6, side="left")) - 1)
    return first, last


def _stamps(facts: Scan, first: int, last: int) -> tuple[Fraction | None, IntArray]:
    """Unit (``None``: one picture) and ``(n,)`` times of the pictures in it, from 0, strictly increasing."""
    count = np.arange(last + 1 - first)
    if not facts.info.variable_frame_rate:
        return None, count
    exact = np.rint((facts.times[first : last + 1] - facts.times[first]) * _TICKS).astype(np.int64)
    # Pictures that share a time follow each other by one unit.
    out: IntArray = np.maximum.accumulate(exact - count) + count
    return Fraction(1, _TICKS), out


def _sound(facts: Scan, first: int, options: RenderOptions) -> AudioTrack:
    # The browser's clock is not the file's where a stream begins before 0.
    origin = 0.0 if facts.pts is None else float(facts.pts[0] * facts.time_base) - float(facts.times[0])
    end = None if options.end is None else options.end + origin
    return AudioTrack(facts.info.path, float(facts.times[first]) + origin, end)
