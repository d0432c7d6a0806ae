"""Write and read the layout of MOT17: ``<split>/<video>/{gt/gt.txt, img1/000001.jpg, seqinfo.ini}``.

A line of gt.txt is ``frame,track,left,top,width,height,confidence,class,visibility``: frames and tracks from 1, boxes
in pixels, confidence 1 unless ignored. With global ids, tracks have the same number in all sequences that show their
object, and no other one has it. ``gt/labels.txt`` has the class names, as CVAT writes them. ``seqinfo.ini`` has
two fields of our own, ``videoFile`` and ``stride``: frame n is decoded frame (n - 1) * stride.
"""

from __future__ import annotations

import configparser
import csv
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from ml_backend.core.errors import ConfigError
from ml_backend.core.files import atomic_text_writer, write_text
from ml_backend.datasets.formats.base import Counts, DatasetFormat, SelectedFrames
from ml_backend.datasets.importers import ImportedBoxes, ImportedVideo, finite, frame_number
from ml_backend.datasets.masks import CLASS_FACTOR, encode, instance_map
from ml_backend.datasets.sampling import SPLITS
from ml_backend.datasets.video_files import VideoFacts, parse_count

_MOT_NAMES = (
    "pedestrian", "person on vehicle", "car", "bicycle", "motorbike", "non motorized vehicle", "static person",
    "distractor", "occluder", "occluder on the ground", "occluder full", "reflection", "crowd",
)  # fmt: skip
#: The classes of MOT16, MOT17 and MOT20, by number.
MOT_CLASSES = dict(enumerate(_MOT_NAMES, start=1))


class Mot(DatasetFormat):
    """One sequence for each video; frames are numbered without gaps, as trackers expect."""

    whole_videos = True
    unique_ids = True

    def image_folder(self, name: str, split: str) -> Path:
        return self.out / split / name / "img1"

    def image_name(self, name: str, frame: int) -> str:
        return f"{self._mot_frame(frame):06d}.{self.image_format.suffix}"

    def _mot_frame(self, frame: int) -> int:
        return frame // self.sampling.stride + 1

    def write_labels(self, selected: SelectedFrames) -> None:
        video, stride = selected.video, self.sampling.stride
        split = selected.splits[0] if selected.splits else "train"
        folder = self.out / split / selected.name
        with atomic_text_writer(folder / "gt" / "gt.txt") as file:
            file.writelines(self._lines(selected))
        write_text(folder / "gt" / "labels.txt", "".join(f"{_one_line(name)}\n" for name in self.classes))
        info = {
            "name": selected.name,
            "imDir": "img1",
            "frameRate": f"{video.info.fps / stride:.6g}",
            "seqLength": str(-(-video.info.frames // stride)),
            "imWidth": str(video.info.width),
            "imHeight": str(video.info.height),
            "imExt": f".{self.image_format.suffix}",
            "videoFile": _one_line(video.name),
            "stride": str(stride),
        }
        lines = "".join(f"{key}={value}\n" for key, value in info.items())
        write_text(folder / "seqinfo.ini", f"[Sequence]\n{lines}")

    def _lines(self, selected: SelectedFrames) -> Iterator[str]:
        ids = selected.object_ids()
        for frame in selected.boxes():
            number = self._mot_frame(frame.index)
            for item, (x1, y1, x2, y2) in zip(frame.objects, frame.xyxy.tolist(), strict=True):
                size = f"{x1:.3f},{y1:.3f},{x2 - x1:.3f},{y2 - y1:.3f}"
                yield f"{number},{ids[item.track_id]},{size},1,{self.class_ids[item.label] + 1},1\n"

    def remove(self, name: str, keep: frozenset[Path] = frozenset()) -> None:
        for split in SPLITS:
            folder = self.out / split / name
            for path in folder.glob("img1/*") if folder.is_dir() else ():
                if path not in keep:
                    path.unlink()
            if folder.is_dir() and not any(folder.glob("img1/*")):
                shutil.rmtree(folder)

    def finish(self, counts: Counts) -> list[str]:
        for split in SPLITS:
            names = [name for name, splits in counts.items() if split in splits]
            if names or split == "train":
                # TrackEval's list of sequences, with a header.
                with atomic_text_writer(self.out / "seqmaps" / f"{split}.txt") as file:
                    csv.writer(file, lineterminator="\n").writerows([[name] for name in ("name", *names)])
            else:
                (self.out / "seqmaps" / f"{split}.txt").unlink(missing_ok=True)
        return []


class Mots(Mot):
    """The layout of MOTSChallenge: as MOT, with lines ``frame object class height width rle`` in gt.txt.

    The object's number is that of its class times 1000, plus its track's. Masks of a frame do not overlap.
    """

    def _lines(self, selected: SelectedFrames) -> Iterator[str]:
        width, height = selected.video.info.width, selected.video.info.height
        tracks = max((item.track_id for item in selected.objects), default=0)
        factor = max(CLASS_FACTOR, 10 ** len(str(tracks)))
        for frame in selected.boxes():
            shown = instance_map(frame, width, height)
            for row, item in enumerate(frame.objects, start=1):
                if (mask := shown == row).any():
                    class_id = self.class_ids[item.label] + 1
                    numbers = f"{self._mot_frame(frame.index)} {class_id * factor + item.track_id} {class_id}"
                    yield f"{numbers} {height} {width} {encode(mask)}\n"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def read_mot(path: Path, default_label: str = "object") -> Iterator[ImportedVideo]:
    """Yield the sequences of a MOT dataset.

    Args:
        path: a dataset, a sequence, or a single gt.txt or text file of tracks (named after its sequence or video).
        default_label: of boxes without class.

    Raises:
        ConfigError: there are no sequences.
    """
    files = [path] if path.is_file() else sorted(path.rglob("gt/gt.txt"))
    if not files:
        raise ConfigError(f"{path} has no gt/gt.txt.", "Give a dataset, a sequence, or a text file of tracks.")
    for file in files:
        sequence = file.parent.parent if file.parent.name == "gt" else file.with_suffix("")
        try:
            info = _sequence_info(sequence / "seqinfo.ini")
        except ConfigError as error:
            yield ImportedVideo.unreadable(sequence.name, error)
            continue
        name = info.get("videofile") or info.get("name") or sequence.name
        stride = int(info.get("stride", "1"))
        yield ImportedVideo(name, partial(_read_boxes, file, stride, default_label), _facts(info, stride))


def _facts(info: dict[str, str], stride: int) -> VideoFacts:
    # configparser lowers the case of option names.
    width, height, length = (parse_count(info.get(name)) for name in ("imwidth", "imheight", "seqlength"))
    frames = ((length - 1) * stride + 1, length * stride) if length else None
    return VideoFacts((width, height) if width and height else None, frames)


def _sequence_info(path: Path) -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read(path, encoding="utf-8")
        info = dict(parser["Sequence"]) if "Sequence" in parser else {}
        if int(info.get("stride", "1")) < 1:
            raise ValueError("stride")
    except (configparser.Error, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.", "Correct the file.") from error
    return info


def _class_names(path: Path) -> dict[int, str]:
    if not path.is_file():
        return MOT_CLASSES
    try:
        names = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.", "Correct the file.") from error
    return {class_id: name for class_id, name in enumerate(names, start=1) if name.strip()}


def _read_boxes(path: Path, stride: int, default_label: str, *_video: int) -> ImportedBoxes:
    names = _class_names(path.parent / "labels.txt")
    boxes: dict[tuple[int, int, str], list[float]] = {}
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                fields = line.replace(",", " ").split()
                if not fields:
                    continue
                try:
                    row, box = _read_line(fields, stride, names, default_label)
                    if row[1] < 0:  # no track: any number of boxes
                        row = (row[0], -number, row[2])
                    if row in boxes and box:
                        raise ValueError(f"track {row[1]} has a second box on frame {fields[0]}")
                except (ValueError, OverflowError) as error:
                    raise ConfigError(f"{path}, line {number}: {error}.", "Correct the file.") from error
                if box:
                    boxes[row] = box
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.", "Correct the file.") from error
    last = max((row[0] for row in boxes), default=0)
    xyxy = np.array(list(boxes.values()), np.float64).reshape(-1, 4)
    return ImportedBoxes.from_rows(list(boxes), xyxy, range(0, last + 1, stride), stride, path)


def _read_line(
    fields: list[str], stride: int, names: dict[int, str], default_label: str
) -> tuple[tuple[int, int, str], list[float] | None]:
    """Return (decoded frame, track, label) and ``xyxy`` in pixels; no ``xyxy`` for ignored ground truth."""
    if len(fields) < 6:
        raise ValueError(f"{len(fields)} fields instead of six to ten")
    number, track = frame_number(fields[0]), int(float(fields[1]))
    if number == 0:
        raise ValueError("frame 0; MOT counts from 1")
    frame = frame_number((number - 1) * stride)
    left, top, width, height = finite(fields[2:6])
    # Tracker results have ten fields: -1 here, and a position in space at the end.
    class_id = int(float(fields[7])) if 8 <= len(fields) <= 9 else -1
    label = names.get(class_id, f"class {class_id}") if class_id > 0 else default_label
    ignored = len(fields) > 6 and float(fields[6]) == 0
    return (frame, track, label), None if ignored else [left, top, left + width, top + height]
