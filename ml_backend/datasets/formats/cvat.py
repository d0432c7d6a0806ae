"""CVAT for video 1.1: an XML file a video with a ``track`` for each object; and reading it.

As CVAT itself writes it, a track has a ``box`` for each of its pictures: those with ``keyframe="1"`` are what CVAT
imports, the others are what lies between them. One with ``outside="1"`` ends a visible stretch. Frames count from 0 in
the video, also where only some of them are exported (``frame_filter``).
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

from ml_backend.core.boxes import Float64Array
from ml_backend.core.errors import ConfigError
from ml_backend.core.files import atomic_text_writer
from ml_backend.core.keyframes import simplify
from ml_backend.core.types import IntArray
from ml_backend.datasets.annotated_video import AnnotatedVideo, VideoObject
from ml_backend.datasets.formats.base import DatasetFormat, SelectedFrames
from ml_backend.datasets.importers import MAX_FRAME, ImportedBoxes, ImportedTrack, ImportedVideo, finite, frame_number
from ml_backend.datasets.video_files import VideoFacts, whole

#: Between keyframes CVAT shows boxes that overlap ours so.
KEYFRAME_IOU = 0.99
#: What is read of a track, and what is no shape.
_READ = {"box", "attribute"}
_HULLS = "Rotated boxes of CVAT became upright ones around them, in tracks"
#: What XML 1.0 cannot hold.
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Cvat(DatasetFormat):
    """No pictures: CVAT has the video."""

    has_images = False
    whole_videos = True

    def _path(self, name: str) -> Path:
        return self.out / f"{name}.xml"

    def write_labels(self, picked: SelectedFrames) -> None:
        with atomic_text_writer(self._path(picked.name)) as file:
            file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n')
            tracks = (self._track(picked, number, item) for number, item in enumerate(picked.objects))
            for element in chain([self._meta(picked)], tracks):
                if len(element):
                    indent(element, level=1)
                    file.write(f"  {tostring(element, encoding='unicode')}\n")
            file.write("</annotations>\n")

    def _meta(self, picked: SelectedFrames) -> Element:
        video, stride = picked.video, self.sampling.stride
        labels = [
            ("label", [("name", name), *([("color", colour)] if colour else []), ("attributes", "")])
            for name, colour in ((name, _colour(video, name)) for name in self.classes)
        ]
        task = [
            ("id", str(video.task_id)),
            ("name", picked.name),
            ("size", str(len(picked.pictures))),
            ("mode", "interpolation"),
            ("overlap", "0"),
            ("bugtracker", ""),
            ("start_frame", "0"),
            ("stop_frame", str(video.info.frames - 1)),
            ("frame_filter", f"step={stride}" if stride > 1 else ""),
            ("labels", labels),
            ("original_size", [("width", str(video.info.width)), ("height", str(video.info.height))]),
            ("source", video.name),
        ]
        return _element("meta", [("task", task)])

    def _track(self, picked: SelectedFrames, number: int, item: VideoObject) -> Element:
        track = Element("track", id=str(number), label=_clean(item.label), source=item.source)
        pictures, xyxy = picked.video.boxes(item)
        chosen = np.isin(pictures, picked.pictures)
        pictures, xyxy = pictures[chosen], xyxy[chosen]
        stride = self.sampling.stride
        for part in np.split(np.arange(len(pictures)), np.flatnonzero(np.diff(pictures) > stride) + 1):
            if not len(part):
                continue
            keys = set(simplify(pictures[part], xyxy[part], KEYFRAME_IOU, own_boxes=True)[0].tolist())
            for picture, box in zip(pictures[part].tolist(), xyxy[part].tolist(), strict=True):
                _add_box(track, picture, box, outside=False, keyframe=picture in keys)
            after = picture + stride
            if after < picked.video.info.frames:
                _add_box(track, after, box, outside=True, keyframe=True)
        return track

    def remove(self, name: str, keep: frozenset[Path] = frozenset()) -> None:
        self._path(name).unlink(missing_ok=True)


def _add_box(track: Element, picture: int, box: Sequence[float], *, outside: bool, keyframe: bool) -> None:
    place = {name: f"{value:.2f}" for name, value in zip(("xtl", "ytl", "xbr", "ybr"), box, strict=True)}
    flags = {"outside": str(int(outside)), "occluded": "0", "keyframe": str(int(keyframe))}
    SubElement(track, "box", {"frame": str(picture), **flags, **place, "z_order": "0"})


def _element(tag: str, content: Any) -> Element:
    """An element of text, or of ``(tag, content)`` pairs."""
    made = Element(tag)
    if isinstance(content, str):
        made.text = _clean(content)
    else:
        made.extend(_element(*each) for each in content)
    return made


def _colour(video: AnnotatedVideo, label: str) -> str:
    found = next((each.background for each in video.part.control.labels if each.value == label), "")
    return found.lower() if re.fullmatch("#[0-9A-Fa-f]{6}", found) else ""


def _clean(text: str) -> str:
    return _NO_XML.sub("\ufffd", text)


def read_cvat(path: Path) -> Iterator[ImportedVideo]:
    """The videos of CVAT XML files: a file, or all of a folder.

    Raises:
        ConfigError: there are none, or one is not CVAT's XML for video.
    """
    files = [path] if path.is_file() else sorted(path.rglob("*.xml"))
    if not files:
        raise ConfigError(f"{path} has no XML files.", "Export from CVAT as `CVAT for video 1.1`.")
    for file in files:
        tasks, source = _head(file)
        if not tasks:
            yield ImportedVideo(source or file.stem, partial(_read_boxes, file, "", 1))
        for task in tasks:
            alone = len(tasks) == 1
            # Of a single task some versions write it beside the task; CVAT names tasks of a project after their videos.
            name = _text(task, "source") or (source if alone else _text(task, "name"))
            size = whole(_text(task, "original_size/width")), whole(_text(task, "original_size/height"))
            stop = _text(task, "stop_frame")
            # A task may end before its video.
            frames = (int(stop) + 1, None) if stop.isdecimal() and int(stop) <= MAX_FRAME else None
            known = VideoFacts(size if all(size) else None, frames)
            # Of a whole project each track says whose it is.
            which = "" if alone else _text(task, "id")
            found = re.search(r"step\s*=\s*([1-9]\d*)", _text(task, "frame_filter"))
            step = int(found[1]) if found else 1
            yield ImportedVideo(name or file.stem, partial(_read_boxes, file, which, step), known)


def _head(path: Path) -> tuple[list[Any], str]:
    """The elements of a file's tasks, and the source that is named beside them."""
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
    """Elements of a file as they end, with an XML bomb refused."""
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
    path: Path, task: str, step: int, _width: int, _height: int, pictures: int = MAX_FRAME + 1
) -> ImportedBoxes:
    """The tracks of a file, or of one of its tasks.

    Args:
        task: id of the only task whose tracks are wanted; empty: all are.
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
        if task and element.attrib.get("task_id", task) != task:
            continue
        name = element.attrib.get("id", number)
        try:
            if task and "task_id" not in element.attrib:
                raise KeyError("task_id")
            left_out.update(f"Left out, CVAT tracks with {kind}" for kind in {e.tag for e in element} - _READ)
            frames, xyxy, rotated = _shown(element, step, pictures)
            left_out[_HULLS] += rotated
            tracks.append(ImportedTrack(number, str(element.attrib["label"]), frames, xyxy))
        except (KeyError, ValueError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ConfigError(f"{path}, track {name}: {reason}.", "Correct the file.") from error
    return ImportedBoxes(tuple(track for track in tracks if len(track.frames)), left_out=+left_out)


def _shown(track: Any, step: int, pictures: int) -> tuple[IntArray, Float64Array, bool]:
    """Every picture of the video on which a track is drawn, interpolated between the boxes that the file has.

    Returns:
        Frames ``(n,)``, upright boxes around what is drawn ``(n, 4)``, and whether any was not upright itself.
    """
    keys: dict[int, tuple[list[float], bool]] = {}
    for box in track.iterfind("box"):
        at = frame_number(box.attrib["frame"])
        if at in keys:
            raise ValueError(f"it has two boxes on frame {at}")
        try:
            place = finite([*(box.attrib[name] for name in ("xtl", "ytl", "xbr", "ybr")), box.get("rotation", 0)])
        except ValueError as error:
            raise ValueError(f"frame {at}: {error}") from error
        keys[at] = place, box.attrib.get("outside") == "1"
    found = sorted(keys.items())
    frames: list[IntArray] = [np.zeros(0, np.int64)]
    boxes: list[Float64Array] = [np.zeros((0, 5))]
    for (at, (start, outside)), following in zip(found, [*found[1:], None][: len(found)], strict=True):
        if outside:
            continue
        # In a file that has keyframes only, what follows is reached step by step; a box that ends the stretch is not
        # moved to. After the last box CVAT holds it to the end of the video; other writers mean that it is gone.
        if following is None:
            end, target = at + 1, start
        elif following[1][1]:
            end, target = max(following[0] - step, at) + 1, start
        else:
            end, target = following[0], following[1][0]
        # A damaged number is not filled in beyond the video.
        between = np.arange(at, min(end, pictures))
        share = ((between - at) / max(end - at, 1))[:, None]
        way = np.subtract(target, start)
        way[4] = (way[4] + 180) % 360 - 180  # CVAT turns the shorter way
        frames.append(between)
        boxes.append(np.asarray(start) + way * share)
    places = np.concatenate(boxes)
    return np.concatenate(frames), _upright(places), bool((places[:, 4] % 180).any())


def _upright(places: Float64Array) -> Float64Array:
    """Boxes ``(n, 4)`` around boxes that are turned about their centres: ``(n, 5)``, the angle in degrees."""
    turned = np.deg2rad(places[:, 4:])
    centre, half = (places[:, :2] + places[:, 2:4]) / 2, (places[:, 2:4] - places[:, :2]) / 2
    reach = np.abs(np.cos(turned)) * half + np.abs(np.sin(turned)) * half[:, ::-1]
    return np.where(turned % np.pi == 0, places[:, :4], np.concatenate([centre - reach, centre + reach], axis=1))
