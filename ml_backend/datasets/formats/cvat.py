"""Write and read CVAT for video 1.1: an XML file for each video with a ``track`` for each object.

As CVAT itself writes it, a track has a ``box`` for each of its frames: CVAT imports those with ``keyframe="1"`` and
interpolates between them. A box with ``outside="1"`` ends a visible span. CVAT shows stored pixels as if they were
square, and counts those. Frames count from 0 in the video, even if
only some of them are exported (``frame_filter``).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, SubElement, indent, tostring

import numpy as np
from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from ml_backend.core.errors import ConfigError
from ml_backend.core.files import atomic_text_writer
from ml_backend.core.keyframes import simplify
from ml_backend.core.types import Float64Array, IntArray
from ml_backend.datasets.annotated_video import AnnotatedVideo, VideoObject
from ml_backend.datasets.formats.base import DatasetFormat, SelectedFrames
from ml_backend.datasets.importers import MAX_FRAME, ImportedBoxes, ImportedTrack, ImportedVideo, finite, frame_number
from ml_backend.datasets.video_files import VideoFacts, parse_count
from ml_backend.video.probe import stored_size

#: Minimum IoU of CVAT's interpolation with our boxes.
KEYFRAME_IOU = 0.99
#: Child elements of a track that are read, or are not shapes.
_READ_TAGS = {"box", "attribute"}
_ROTATED = "Rotated boxes of CVAT became upright ones around them, in tracks"
#: Characters that XML 1.0 cannot hold.
_INVALID_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Cvat(DatasetFormat):
    """Writes no images: CVAT has the video."""

    has_images = False
    whole_videos = True

    def _path(self, name: str) -> Path:
        return self.out / f"{name}.xml"

    def write_labels(self, selected: SelectedFrames) -> None:
        with atomic_text_writer(self._path(selected.name)) as file:
            file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n')
            tracks = (self._track(selected, number, item) for number, item in enumerate(selected.objects))
            for element in chain([self._meta(selected)], tracks):
                if len(element):
                    indent(element, level=1)
                    file.write(f"  {tostring(element, encoding='unicode')}\n")
            file.write("</annotations>\n")

    def _meta(self, selected: SelectedFrames) -> Element:
        video, stride = selected.video, self.sampling.stride
        width, height = stored_size(video.path)
        labels = [
            ("label", [("name", name), *([("color", colour)] if colour else []), ("attributes", "")])
            for name, colour in ((name, _colour(video, name)) for name in self.classes)
        ]
        task = [
            ("id", str(video.task_id)),
            ("name", selected.name),
            ("size", str(len(selected.frames))),
            ("mode", "interpolation"),
            ("overlap", "0"),
            ("bugtracker", ""),
            ("start_frame", "0"),
            ("stop_frame", str(video.info.frames - 1)),
            ("frame_filter", f"step={stride}" if stride > 1 else ""),
            ("labels", labels),
            ("original_size", [("width", str(width)), ("height", str(height))]),
            ("source", video.name),
        ]
        return _element("meta", [("task", task)])

    def _track(self, selected: SelectedFrames, number: int, item: VideoObject) -> Element:
        track = Element("track", id=str(number), label=_clean(item.label), source=item.source)
        frames, xyxy = selected.video.boxes(item)
        exported = np.isin(frames, selected.frames)
        info = selected.video.info
        scale = np.divide(stored_size(selected.video.path), (info.width, info.height))
        frames, xyxy = frames[exported], xyxy[exported] * np.tile(scale, 2)
        stride = self.sampling.stride
        for span in np.split(np.arange(len(frames)), np.flatnonzero(np.diff(frames) > stride) + 1):
            if not len(span):
                continue
            keyframes = set(simplify(frames[span], xyxy[span], KEYFRAME_IOU, own_boxes=True)[0].tolist())
            for frame, box in zip(frames[span].tolist(), xyxy[span].tolist(), strict=True):
                _add_box(track, frame, box, outside=False, keyframe=frame in keyframes)
            after = frame + stride
            if after < selected.video.info.frames:
                _add_box(track, after, box, outside=True, keyframe=True)
        return track

    def remove(self, name: str, keep: frozenset[Path] = frozenset()) -> None:
        self._path(name).unlink(missing_ok=True)


def _add_box(track: Element, frame: int, box: Sequence[float], *, outside: bool, keyframe: bool) -> None:
    corners = {name: f"{value:.2f}" for name, value in zip(("xtl", "ytl", "xbr", "ybr"), box, strict=True)}
    flags = {"outside": str(int(outside)), "occluded": "0", "keyframe": str(int(keyframe))}
    SubElement(track, "box", {"frame": str(frame), **flags, **corners, "z_order": "0"})


def _element(tag: str, content: Any) -> Element:
    """Build an element from text or from ``(tag, content)`` pairs."""
    element = Element(tag)
    if isinstance(content, str):
        element.text = _clean(content)
    else:
        element.extend(_element(*child) for child in content)
    return element


def _colour(video: AnnotatedVideo, label: str) -> str:
    specs = video.task_video.control.labels
    colour = next((spec.background for spec in specs if spec.value == label), "")
    return colour.lower() if re.fullmatch("#[0-9A-Fa-f]{6}", colour) else ""


def _clean(text: str) -> str:
    return _INVALID_XML.sub("\ufffd", text)


def read_cvat(path: Path) -> Iterator[ImportedVideo]:
    """Yield the videos of a CVAT XML file, or of all XML files of a folder.

    Raises:
        ConfigError: there are no files, or the only one is not CVAT's XML for video.
    """
    files = [path] if path.is_file() else sorted(path.rglob("*.xml"))
    if not files:
        raise ConfigError(f"{path} has no XML files.", "Export from CVAT as `CVAT for video 1.1`.")
    for file in files:
        try:
            tasks, source = _head(file)
        except ConfigError as error:
            if len(files) == 1:
                raise
            yield ImportedVideo.unreadable(file.name, error)
            continue
        if not tasks:
            yield ImportedVideo(source or file.stem, partial(_read_boxes, file, "", 1))
        for task in tasks:
            single = len(tasks) == 1
            # Some versions write the source beside a single task; tasks of a project are named after their videos.
            name = _text(task, "source") or (source if single else _text(task, "name"))
            size = parse_count(_text(task, "original_size/width")), parse_count(_text(task, "original_size/height"))
            stop = _text(task, "stop_frame")
            # A task may end before its video.
            frames = (int(stop) + 1, None) if stop.isdecimal() and int(stop) <= MAX_FRAME else None
            facts = VideoFacts(size if all(size) else None, frames)
            # In the file of a project each track has a task id.
            task_id = "" if single else _text(task, "id")
            match = re.search(r"step\s*=\s*([1-9]\d*)", _text(task, "frame_filter"))
            step = int(match[1]) if match else 1
            yield ImportedVideo(name or file.stem, partial(_read_boxes, file, task_id, step), facts)


def _head(path: Path) -> tuple[list[Any], str]:
    """Return the task elements of a file, and the source that is named beside them."""
    tasks: list[Any] = []
    source = ""
    for element in _events(path):
        if element.tag in ("task", "job"):
            tasks.append(element)
        elif element.tag == "source":
            source = (element.text or "").strip()
        elif element.tag in ("meta", "track", "image"):
            break
    return tasks, source


def _text(element: Any, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _events(path: Path) -> Iterator[Any]:
    """Yield the elements of a file as they end; refuse DTDs, and with them XML bombs."""
    hint = "Export from CVAT as `CVAT for video 1.1`."
    try:
        with path.open("rb") as file:
            root = None
            for event, element in ElementTree.iterparse(file, events=("start", "end"), forbid_dtd=True):
                if root is None:
                    root = element
                    if element.tag != "annotations":
                        raise ConfigError(f"{path} is not CVAT's XML: its root is {element.tag}.", hint)
                if event == "end":
                    yield element
                    if element.tag in ("track", "image"):
                        root.clear()
    except (ElementTree.ParseError, DefusedXmlException, ValueError) as error:
        raise ConfigError(f"{path} is not CVAT's XML: {error}.", hint) from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.", "Check the path.") from error


def _read_boxes(
    path: Path, task_id: str, step: int, _width: int, _height: int, frame_count: int = MAX_FRAME + 1
) -> ImportedBoxes:
    """Read the tracks of a file, or of one of its tasks.

    Args:
        task_id: of the task; empty for all.
    """
    tracks: list[ImportedTrack] = []
    left_out: Counter[str] = Counter()
    number = 0
    for element in _events(path):
        if element.tag == "image":
            raise ConfigError(f"{path} is CVAT's XML for images.", "Export from CVAT as `CVAT for video 1.1`.")
        if element.tag != "track":
            continue
        number += 1
        if task_id and element.attrib.get("task_id", task_id) != task_id:
            continue
        name = element.attrib.get("id", number)
        try:
            if task_id and "task_id" not in element.attrib:
                raise KeyError("task_id")
            left_out.update(f"Left out, CVAT tracks with {kind}" for kind in {e.tag for e in element} - _READ_TAGS)
            frames, xyxy, rotated = _interpolate_track(element, step, frame_count)
            left_out[_ROTATED] += rotated
            tracks.append(ImportedTrack(number, str(element.attrib["label"]), frames, xyxy))
        except (KeyError, ValueError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ConfigError(f"{path}, track {name}: {reason}.", "Correct the file.") from error
    return ImportedBoxes(tuple(track for track in tracks if len(track.frames)), left_out=+left_out)


def _interpolate_track(track: Any, step: int, frame_count: int) -> tuple[IntArray, Float64Array, bool]:
    """Interpolate between the boxes of a track, on every frame on which CVAT shows it.

    Returns:
        Frames ``(n,)``, upright boxes ``(n, 4)`` around the possibly rotated ones, and whether any was rotated.
    """
    boxes_by_frame: dict[int, tuple[list[float], bool]] = {}
    for box in track.iterfind("box"):
        frame = frame_number(box.attrib["frame"])
        if frame in boxes_by_frame:
            raise ValueError(f"it has two boxes on frame {frame}")
        try:
            values = finite([*(box.attrib[name] for name in ("xtl", "ytl", "xbr", "ybr")), box.get("rotation", 0)])
        except ValueError as error:
            raise ValueError(f"frame {frame}: {error}") from error
        boxes_by_frame[frame] = values, box.attrib.get("outside") == "1"
    pairs = sorted(boxes_by_frame.items())
    frames: list[IntArray] = [np.zeros(0, np.int64)]
    boxes: list[Float64Array] = [np.zeros((0, 5))]
    for (frame, (start, outside)), following in zip(pairs, [*pairs[1:], None][: len(pairs)], strict=True):
        if outside:
            continue
        # Interpolate towards the next box, but not towards one that ends the visible span. CVAT itself shows the last
        # box to the end of the video; other writers mean that the object is gone.
        if following is None:
            end, target = frame + 1, start
        elif following[1][1]:
            end, target = max(following[0] - step, frame) + 1, start
        else:
            end, target = following[0], following[1][0]
        # A damaged frame number beyond the video must not allocate memory. The box itself is kept, to be counted.
        between = np.arange(frame, min(end, max(frame_count, frame + 1)))
        ratio = ((between - frame) / max(end - frame, 1))[:, None]
        delta = np.subtract(target, start)
        delta[4] = (delta[4] + 180) % 360 - 180  # CVAT rotates the shorter way
        frames.append(between)
        boxes.append(np.asarray(start) + delta * ratio)
    rotated = np.concatenate(boxes)
    return np.concatenate(frames), _upright(rotated), bool((rotated[:, 4] % 180).any())


def _upright(rotated: Float64Array) -> Float64Array:
    """Return the upright boxes ``(n, 4)`` around boxes ``(n, 5)`` that are rotated by degrees about their centres."""
    angle = np.deg2rad(rotated[:, 4:])
    centre, half = (rotated[:, :2] + rotated[:, 2:4]) / 2, (rotated[:, 2:4] - rotated[:, :2]) / 2
    extent = np.abs(np.cos(angle)) * half + np.abs(np.sin(angle)) * half[:, ::-1]
    return np.where(angle % np.pi == 0, rotated[:, :4], np.concatenate([centre - extent, centre + extent], axis=1))
