"""CVAT for video 1.1: an XML file a video with a ``track`` for each object; and reading it.

As CVAT itself writes it, a track has a ``box`` for each of its pictures: those with ``keyframe="1"`` are what CVAT
imports, the others are what lies between them. One with ``outside="1"`` ends a visible stretch. Frames count from 0 in
the video, also where only some of them are exported (``frame_filter``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from xml.sax.saxutils import XMLGenerator

import numpy as np
from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from ml_backend.errors import ConfigError
from ml_backend.export.back import ReadBoxes, ReadTrack, ReadVideo, finite, frame_number
from ml_backend.export.files import writing
from ml_backend.export.layout import Finished, Format, Picked
from ml_backend.export.video import VideoObject
from ml_backend.geometry import Float64Array
from ml_backend.keyframes import simplify
from ml_backend.types import IntArray

#: Between keyframes CVAT shows boxes that overlap ours so.
KEYFRAME_IOU = 0.99
#: What XML 1.0 cannot hold.
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Cvat(Format):
    """No pictures: CVAT has the video."""

    has_images = False
    whole_videos = True

    def _path(self, name: str) -> Path:
        return self.out / f"{name}.xml"

    def write_labels(self, picked: Picked) -> None:
        with writing(self._path(picked.name)) as file:
            xml = _Xml(file)
            xml.open("annotations")
            xml.text("version", "1.1")
            self._write_meta(xml, picked)
            for number, item in enumerate(picked.objects):
                self._write_track(xml, picked, number, item)
            xml.close("annotations")

    def _write_meta(self, xml: _Xml, picked: Picked) -> None:
        video = picked.video
        colours = {label.value: label.background for label in video.control.labels}
        xml.open("meta")
        xml.open("task")
        for tag, text in (
            ("id", str(video.task_id)),
            ("name", picked.name),
            ("size", str(len(picked.pictures))),
            ("mode", "interpolation"),
            ("overlap", "0"),
            ("bugtracker", ""),
            ("start_frame", "0"),
            ("stop_frame", str(video.info.frames - 1)),
            ("frame_filter", f"step={self.sampling.stride}" if self.sampling.stride > 1 else ""),
        ):
            xml.text(tag, text)
        xml.open("labels")
        for name in self.classes:
            xml.open("label")
            xml.text("name", name)
            colour = colours.get(name, "")
            if re.fullmatch("#[0-9A-Fa-f]{6}", colour):
                xml.text("color", colour.lower())
            xml.text("attributes", "")
            xml.close("label")
        xml.close("labels")
        xml.open("original_size")
        xml.text("width", str(video.info.width))
        xml.text("height", str(video.info.height))
        xml.close("original_size")
        xml.text("source", video.name)
        xml.close("task")
        xml.close("meta")

    def _write_track(self, xml: _Xml, picked: Picked, number: int, item: VideoObject) -> None:
        pictures, xyxy = picked.video.boxes(item)
        chosen = np.isin(pictures, picked.pictures)
        pictures, xyxy = pictures[chosen], xyxy[chosen]
        if not len(pictures):
            return
        stride = self.sampling.stride
        xml.open("track", id=str(number), label=item.label, source=item.source)
        for part in np.split(np.arange(len(pictures)), np.flatnonzero(np.diff(pictures) > stride) + 1):
            keys = set(simplify(pictures[part], xyxy[part], KEYFRAME_IOU, own_boxes=True)[0].tolist())
            for picture, box in zip(pictures[part].tolist(), xyxy[part].tolist(), strict=True):
                _write_box(xml, picture, box, outside=False, keyframe=picture in keys)
            after = picture + stride
            if after < picked.video.info.frames:
                _write_box(xml, after, box, outside=True, keyframe=True)
        xml.close("track")

    def remove(self, name: str, keep: frozenset[Path] = frozenset()) -> None:
        self._path(name).unlink(missing_ok=True)

    def finish(self, videos: Sequence[Finished]) -> list[str]:
        return []


def _write_box(xml: _Xml, picture: int, box: Sequence[float], *, outside: bool, keyframe: bool) -> None:
    place = {name: f"{value:.2f}" for name, value in zip(("xtl", "ytl", "xbr", "ybr"), box, strict=True)}
    flags = {"outside": str(int(outside)), "occluded": "0", "keyframe": str(int(keyframe))}
    xml.empty("box", frame=str(picture), **flags, **place, z_order="0")


class _Xml:
    """Indented XML, written as it comes."""

    def __init__(self, file: Any) -> None:
        self._out = XMLGenerator(file, "utf-8", short_empty_elements=True)
        self._out.startDocument()
        self._depth = 0

    def open(self, tag: str, **attributes: str) -> None:
        self._indent()
        self._out.startElement(tag, {name: _clean(value) for name, value in attributes.items()})  # type: ignore[arg-type]
        self._depth += 1

    def close(self, tag: str) -> None:
        self._depth -= 1
        self._indent()
        self._out.endElement(tag)
        if not self._depth:
            self._out.ignorableWhitespace("\n")

    def text(self, tag: str, text: str) -> None:
        self._indent()
        self._out.startElement(tag, {})  # type: ignore[arg-type]
        self._out.characters(_clean(text))
        self._out.endElement(tag)

    def empty(self, tag: str, **attributes: str) -> None:
        self._indent()
        self._out.startElement(tag, attributes)  # type: ignore[arg-type]
        self._out.endElement(tag)

    def _indent(self) -> None:
        self._out.ignorableWhitespace("\n" + "  " * self._depth if self._depth else "")


def _clean(text: str) -> str:
    return _NO_XML.sub("\ufffd", text)


def read_cvat(path: Path) -> Iterator[ReadVideo]:
    """The videos of CVAT XML files: a file, or all of a folder.

    Raises:
        ConfigError: there are none, or one is not CVAT's XML for video.
    """
    files = [path] if path.is_file() else sorted(path.rglob("*.xml"))
    if not files:
        raise ConfigError(f"{path} has no XML files.", "Export from CVAT as `CVAT for video 1.1`.")
    for file in files:
        yield ReadVideo(_source_name(file), partial(_read_boxes, file))


def _events(path: Path) -> Iterator[Any]:
    """Elements of a file as they end, with an XML bomb refused."""
    cure = "Export from CVAT as `CVAT for video 1.1`."
    try:
        with path.open("rb") as file:
            root = None
            for event, element in ElementTree.iterparse(file, events=("start", "end"), forbid_dtd=True):
                if root is None:
                    root = element
                    if element.tag != "annotations":
                        raise ConfigError(f"{path} is not CVAT's XML: its root is {element.tag}.", cure)
                if event == "end":
                    yield element
                    if element.tag in ("track", "image"):
                        root.clear()
    except (ElementTree.ParseError, DefusedXmlException, ValueError) as error:
        raise ConfigError(f"{path} is not CVAT's XML: {error}.", cure) from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.", "Check the path.") from error


def _source_name(path: Path) -> str:
    for element in _events(path):
        if element.tag == "source" and (element.text or "").strip():
            return str(element.text).strip()
        if element.tag == "meta":
            break
    return path.stem


def _read_boxes(path: Path, _width: int, _height: int) -> ReadBoxes:
    tracks: list[ReadTrack] = []
    step = 1
    number = 0
    for element in _events(path):
        if element.tag == "image":
            raise ConfigError(f"{path} is CVAT's XML for images.", "Export from CVAT as `CVAT for video 1.1`.")
        if element.tag == "frame_filter":
            step = _step(element.text or "") or step
        if element.tag != "track":
            continue
        number += 1
        name = element.attrib.get("id", number)
        try:
            frames, xyxy = _shown(element, step)
            tracks.append(ReadTrack(number, str(element.attrib["label"]), frames, xyxy))
        except (KeyError, ValueError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ConfigError(f"{path}, track {name}: {reason}.", "Correct the file.") from error
    return ReadBoxes(tuple(track for track in tracks if len(track.frames)))


def _step(text: str) -> int:
    match = re.search(r"step\s*=\s*([1-9]\d*)", text)
    return int(match.group(1)) if match else 0


def _shown(track: Any, step: int) -> tuple[IntArray, Float64Array]:
    """Every picture on which a track is drawn, interpolated between the boxes that the file has."""
    keys: dict[int, tuple[list[float], bool]] = {}
    for box in track.iter("box"):
        at = frame_number(box.attrib["frame"])
        if at in keys:
            raise ValueError(f"it has two boxes on frame {at}")
        try:
            corners = finite(box.attrib[name] for name in ("xtl", "ytl", "xbr", "ybr"))
        except ValueError as error:
            raise ValueError(f"frame {at}: {error}") from error
        keys[at] = corners, box.attrib.get("outside") == "1"
    found = sorted(keys.items())
    frames: list[IntArray] = [np.zeros(0, np.int64)]
    boxes: list[Float64Array] = [np.zeros((0, 4))]
    for (at, (corners, outside)), following in zip(found, [*found[1:], None], strict=True):
        if outside:
            continue
        # In a file that has keyframes only, what follows is reached step by step; a box that ends the stretch is not
        # moved to. After the last box CVAT holds it to the end of the video; other writers mean that it is gone.
        if following is None:
            end, target = at + 1, corners
        elif following[1][1]:
            end, target = max(following[0] - step, at) + 1, corners
        else:
            end, target = following[0], following[1][0]
        between = np.arange(at, end)
        share = ((between - at) / max(end - at, 1))[:, None]
        frames.append(between)
        boxes.append(np.asarray(corners) * (1 - share) + np.asarray(target) * share)
    return np.concatenate(frames), np.concatenate(boxes)
