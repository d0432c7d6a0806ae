"""Write and read YOLO datasets: ``images/{train,val,test}``, ``labels/{train,val,test}`` and ``data.yaml``.

A label file has a line ``class x y width height`` for each box: centre and size as fractions of the image. Without
boxes it is empty. ``yolo-seg`` has polygons instead: ``class x y x y ...``. ``yolo-track`` appends the track id to each
line, as ultralytics writes it in track mode; its ``data.yaml`` has a field of our own, ``stride`` (see
:attr:`~ml_backend.datasets.sampling.Sampling.even_stride`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ml_backend.core.errors import ConfigError
from ml_backend.core.files import make_folder, storage_error, write_text
from ml_backend.datasets.annotated_video import FrameBoxes
from ml_backend.datasets.formats.base import Counts, DatasetFormat, SelectedFrames, remove_named
from ml_backend.datasets.importers import MAX_FRAME, ImportedBoxes, ImportedVideo, finite, stated_stride
from ml_backend.datasets.masks import decode, polygon
from ml_backend.datasets.sampling import SPLITS
from ml_backend.datasets.video_files import VideoFacts


class Yolo(DatasetFormat):
    """The format that ultralytics trains on."""

    with_ids = False
    single_annotator = True

    def write_labels(self, selected: SelectedFrames) -> None:
        info = selected.video.info
        for split in set(selected.splits):
            make_folder(self.out / "labels" / split)
        for frame, split in zip(selected.boxes(), selected.splits, strict=True):
            path = self.out / "labels" / split / f"{selected.name}_{frame.index:06d}.txt"
            try:
                # Not atomic: an interrupted export writes the video's labels again.
                path.write_text(self._lines(frame, info.width, info.height), encoding="ascii", newline="\n")
            except OSError as error:
                raise storage_error(path, error) from error

    def _lines(self, frame: FrameBoxes, width: int, height: int) -> str:
        size = np.array([width, height])
        centre = (frame.xyxy[:, :2] + frame.xyxy[:, 2:]) / 2 / size
        extent = (frame.xyxy[:, 2:] - frame.xyxy[:, :2]) / size
        lines = []
        for item, (x, y), (w, h) in zip(frame.objects, centre.tolist(), extent.tolist(), strict=True):
            track_id = f" {item.track_id}" if self.with_ids else ""
            lines.append(f"{self.class_ids[item.label]} {x:.6f} {y:.6f} {w:.6f} {h:.6f}{track_id}\n")
        return "".join(lines)

    def remove(self, name: str, keep: frozenset[Path] = frozenset()) -> None:
        for split in SPLITS:
            remove_named(self.out / "images" / split, name, keep)
            remove_named(self.out / "labels" / split, name)

    def finish(self, counts: Counts) -> list[str]:
        total = {split: sum(splits.get(split, 0) for splits in counts.values()) for split in SPLITS}
        notes = []
        folders = {split: f"images/{split}" for split in SPLITS if total[split] or split != "test"}
        for split, other in (("train", "val"), ("val", "train")):
            make_folder(self.out / "images" / split)
            make_folder(self.out / "labels" / split)
            if not total[split] and total[other]:
                folders[split] = folders[other]
                notes.append(f"No image is in {split}: data.yaml names those of {other} instead.")
        # Without `path`, ultralytics resolves folders relative to this file: the dataset can be moved.
        data: dict[str, Any] = {**folders, "nc": len(self.classes), "names": dict(enumerate(self.classes))}
        if self.with_ids:
            data["stride"] = self.sampling.even_stride
        readable = all(map(str.isprintable, self.classes))  # else PyYAML takes some characters for line ends
        write_text(self.out / "data.yaml", yaml.safe_dump(data, sort_keys=False, allow_unicode=readable))
        return notes


class YoloTrack(Yolo):
    """YOLO with a track id at the end of each line, which ultralytics cannot train on."""

    with_ids = True
    single_annotator = False


class YoloSeg(Yolo):
    """Polygons, which ultralytics trains segmentation on."""

    def _lines(self, frame: FrameBoxes, width: int, height: int) -> str:
        lines = []
        for item, mask in zip(frame.objects, frame.masks, strict=True):
            points = polygon(decode(mask.rle, width, height)) / (width, height)
            values = " ".join(f"{value:.6f}" for value in points.ravel().tolist())
            lines.append(f"{self.class_ids[item.label]} {values}\n")
        return "".join(lines)


def read_yolo(folder: Path, first_frame: int | None = None) -> Iterator[ImportedVideo]:
    """Yield the videos of a YOLO dataset with track ids.

    Args:
        folder: with ``data.yaml`` and ``labels``; label files are called ``<video>_<frame>.txt``.
        first_frame: number of a video's first frame, 0 or 1.  [default: told from the numbers]

    Raises:
        ConfigError: there is no such dataset.
    """
    names, stride = _read_head(folder / "data.yaml")
    files: dict[str, list[tuple[int, Path]]] = {}
    wrong: dict[str, Path] = {}
    padded = False
    for path in (folder / "labels").rglob("*.txt"):
        video, _, digits = path.stem.rpartition("_")
        if video and digits.isdecimal():
            if int(digits) > MAX_FRAME:
                wrong[video] = path
                continue
            files.setdefault(video, []).append((int(digits), path))
            padded |= digits.startswith("0")
    for video, path in wrong.items():
        files.pop(video, None)
        error = ConfigError(f"{path}: that is not a frame number.", "Correct the name.")
        yield ImportedVideo.unreadable(video, error)
    if not files and not wrong:
        raise ConfigError(f"{folder} has no labels/**/<video>_<frame>.txt.", "Give the folder with data.yaml.")
    if first_frame is None and (stride != 0 or any(min(each)[0] == 0 for each in files.values())):
        first_frame = 0
    # ultralytics counts from 1, without padding; earlier exports of ours, which have no stride, from 0, padded.
    assumed = 0 if padded else 1
    for video, label_files in sorted(files.items()):
        facts = VideoFacts(frames=(max(label_files)[0] + 1, None))
        read = partial(_read_boxes, sorted(label_files), names, stride, first_frame, assumed)
        yield ImportedVideo(video, read, facts)


def _read_head(path: Path) -> tuple[dict[int, str], int | None]:
    """Return the class names and the stride of :meth:`ImportedBoxes.from_rows`."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        names = data["names"]
        pairs = names.items() if isinstance(names, dict) else enumerate(names)
        return {int(class_id): str(name) for class_id, name in pairs}, stated_stride(data)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.", "Give the folder with data.yaml.") from error
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} has no class names: {error}.", "List them under `names`.") from error


def _read_boxes(
    files: Sequence[tuple[int, Path]],
    names: dict[int, str],
    stride: int | None,
    first_frame: int | None,
    assumed: int,
    width: int,
    height: int,
    frame_count: int = MAX_FRAME + 1,
) -> ImportedBoxes:
    rows: list[tuple[int, int, str]] = []
    boxes: list[list[float]] = []
    for frame, path in files:
        try:
            for number, line in enumerate(path.read_text(encoding="ascii").splitlines(), start=1):
                fields = line.split()
                if not fields:
                    continue
                if len(fields) not in (5, 6, 7):
                    raise ConfigError(
                        f"{path}, line {number}, has {len(fields)} fields instead of six: class, box and track.",
                        "Correct the file.",
                    )
                class_id = int(fields[0])
                rows.append((frame, _track_number(fields), names.get(class_id, f"class {class_id}")))
                boxes.append(finite(fields[1:5]))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read: {error}.", "Correct the file.") from error
    xywh = np.array(boxes, np.float64).reshape(-1, 4)
    xyxy = np.concatenate([xywh[:, :2] - xywh[:, 2:] / 2, xywh[:, :2] + xywh[:, 2:] / 2], axis=1)
    samples = [frame for frame, _ in files]
    xyxy *= [width, height, width, height]
    read = ImportedBoxes.from_rows(rows, xyxy, samples, stride, files[0][1].parent)
    return read.counted_from(first_frame, frame_count, assumed)


def _track_number(fields: Sequence[str]) -> int:
    """Return the track of a line of class, box, confidence and track; -1 if it has none, as where a tracker lost all.

    A sixth and last field is the track or the confidence.
    """
    if len(fields) == 5 or (len(fields) == 6 and not finite(fields[5:])[0].is_integer()):
        return -1
    return int(fields[-1])
