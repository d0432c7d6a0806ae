"""COCO detection datasets with the fields of COCO video; and reading them.

``annotations/instances_{train,val,test}.json`` with ``images``, ``annotations`` and ``categories`` as COCO defines
them. Beyond that ``videos``; in images ``video_id`` and ``frame_id`` (the decoded frame, from 0); in annotations
``video_id``, ``track_id`` (unique in the dataset), ``source`` and, of predictions, ``confidence``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ml_backend.core.errors import ConfigError
from ml_backend.core.files import atomic_text_writer
from ml_backend.datasets.export_state import state_folder
from ml_backend.datasets.formats.base import Counts, DatasetFormat, SelectedFrames, remove_named
from ml_backend.datasets.importers import ImportedBoxes, ImportedVideo, finite, frame_number
from ml_backend.datasets.sampling import SPLITS
from ml_backend.datasets.video_files import VideoFacts, whole


class Coco(DatasetFormat):
    """Each video's boxes are kept as lines of JSON; the files of the parts are put together from them at the end."""

    def write_labels(self, picked: SelectedFrames) -> None:
        video = picked.video
        with atomic_text_writer(self._lines(picked.name)) as file:
            size = {"width": video.info.width, "height": video.info.height}
            head = {"name": video.name, **size, "fps": video.info.fps, "tracks": len(video.objects)}
            file.write(json.dumps(head) + "\n")
            for frame, split in zip(video.frames(picked.pictures, picked.objects), picked.splits, strict=True):
                boxes = [
                    {
                        "class": self.class_ids[item.label],
                        "track": item.track,
                        "xyxy": [round(value, 3) for value in box],
                        "source": item.source,
                        "confidence": item.confidence,
                    }
                    for item, box in zip(frame.objects, frame.xyxy.tolist(), strict=True)
                ]
                row = {"split": split, "frame": frame.index, "time": round(frame.time, 6), "boxes": boxes}
                file.write(json.dumps(row) + "\n")

    def _lines(self, name: str) -> Path:
        return state_folder(self.out) / f"{name}.coco.jsonl"

    def remove(self, name: str, keep: frozenset[Path] = frozenset()) -> None:
        for split in SPLITS:
            remove_named(self.out / "images" / split, name, keep)
        self._lines(name).unlink(missing_ok=True)

    def finish(self, counts: Counts) -> list[str]:
        for split in SPLITS:
            path = self.out / "annotations" / f"instances_{split}.json"
            # An empty list of images is a valid file; only test is left out where nobody wants one.
            if split == "test" and not any(parts.get(split) for parts in counts.values()):
                path.unlink(missing_ok=True)
                continue
            categories = [
                {"id": number, "name": name, "supercategory": ""} for number, name in enumerate(self.classes, start=1)
            ]
            with atomic_text_writer(path) as file:
                file.write('{"info": {"description": "Annotated video"}, "licenses": [],\n"categories": ')
                file.write(json.dumps(categories, ensure_ascii=False))
                for key, items in (
                    ("videos", self._videos(counts, split)),
                    ("images", self._images(counts, split)),
                    ("annotations", self._annotations(counts, split)),
                ):
                    file.write(f',\n"{key}": [')
                    for number, item in enumerate(items):
                        file.write((",\n" if number else "\n") + json.dumps(item, ensure_ascii=False))
                    file.write("]")
                file.write("}\n")
        return []

    def _videos(self, counts: Counts, split: str) -> Iterator[dict[str, Any]]:
        for number, (name, parts) in enumerate(counts.items(), start=1):
            if parts.get(split):
                head = next(_read_lines(self._lines(name)))
                size = {"width": head["width"], "height": head["height"], "fps": head["fps"]}
                yield {"id": number, "name": name, "file_name": head["name"], **size}

    def _rows(self, counts: Counts, split: str) -> Iterator[tuple[int, int, dict[str, Any], Any]]:
        """(image id, video id, line, head of the video): the same numbers on each pass.

        Tracks are numbered through the dataset, so that one that lies in two parts has one number in both.
        """
        image = tracks = 0
        for number, name in enumerate(counts, start=1):
            lines = _read_lines(self._lines(name))
            head = next(lines)
            head |= {"video": name, "first_track": tracks}
            tracks += head["tracks"]
            for line in lines:
                if line["split"] == split:
                    image += 1
                    yield image, number, line, head

    def _images(self, counts: Counts, split: str) -> Iterator[dict[str, Any]]:
        for image, number, line, head in self._rows(counts, split):
            yield {
                "id": image,
                "file_name": self.image_name(head["video"], line["frame"]),
                "width": head["width"],
                "height": head["height"],
                "video_id": number,
                "frame_id": line["frame"],
                "time": line["time"],
            }

    def _annotations(self, counts: Counts, split: str) -> Iterator[dict[str, Any]]:
        annotation = 0
        for image, number, line, head in self._rows(counts, split):
            for box in line["boxes"]:
                annotation += 1
                x1, y1, x2, y2 = box["xyxy"]
                width, height = round(x2 - x1, 3), round(y2 - y1, 3)
                item: dict[str, Any] = {
                    "id": annotation,
                    "image_id": image,
                    "category_id": box["class"] + 1,
                    "bbox": [x1, y1, width, height],
                    "area": round(width * height, 3),
                    "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
                    "iscrowd": 0,
                    "video_id": number,
                    "track_id": head["first_track"] + box["track"],
                    "source": box["source"],
                }
                if box["source"] == "auto" and box["confidence"] is not None:
                    item["confidence"] = round(box["confidence"], 4)
                yield item


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def read_coco(path: Path) -> Iterator[ImportedVideo]:
    """The videos of COCO files whose annotations have ``track_id`` and whose images have ``video_id``, ``frame_id``.

    Args:
        path: a JSON file, or a dataset with ``annotations/*.json``; a video that is in several is put together.

    Raises:
        ConfigError: not readable, or without these fields.
    """
    files = sorted((path / "annotations").glob("*.json")) if path.is_dir() else [path]
    found: dict[_Key, tuple[list[int], list[tuple[int, int, str]], list[list[float]]]] = {}
    sizes: dict[_Key, set[tuple[int, int]]] = {}
    for file in files:
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            names = {item["id"]: str(item["name"]) for item in data["categories"]}
            videos = _videos_by_id(data["videos"])
            images = {i["id"]: (videos[i["video_id"]], frame_number(i["frame_id"])) for i in data["images"]}
            for each in (*data["videos"], *data["images"]):
                size = whole(each.get("width")), whole(each.get("height"))
                if all(size):
                    sizes.setdefault(videos[each.get("video_id", each["id"])], set()).add(size)
            for key, frame in images.values():
                found.setdefault(key, ([], [], []))[0].append(frame)
            for item in data["annotations"]:
                key, frame = images[item["image_id"]]
                x, y, width, height = finite(item["bbox"])
                found[key][1].append((frame, int(item["track_id"]), names[item["category_id"]]))
                found[key][2].append([x, y, x + width, y + height])
        except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise ConfigError(
                f"{file} is no COCO file with tracks: {error!r}.", "Export it with videos, frame_id and track_id."
            ) from error
    if not files:
        raise ConfigError(f"{path} has no annotations/*.json.", "Give the file or the dataset's folder.")
    for key, (frames, rows, boxes) in sorted(found.items()):
        stated = sizes.get(key, set())
        known = VideoFacts(next(iter(stated)) if len(stated) == 1 else None, (max(frames) + 1, None))
        yield ImportedVideo(key[0], partial(_boxes, rows, boxes, frames), known)


#: Of a video: the name of its file, the dataset's name for it, and its id where neither tells it apart.
_Key = tuple[str, str, str]


def _videos_by_id(videos: list[dict[str, Any]]) -> dict[Any, _Key]:
    """Ids count for one file only: in the next part of a dataset they may mean other videos."""
    pairs = {item["id"]: (str(item.get("file_name") or item["name"]), str(item.get("name", ""))) for item in videos}
    counts = Counter(pairs.values())
    return {number: (*pair, str(number) if counts[pair] > 1 else "") for number, pair in pairs.items()}


def _boxes(
    rows: list[tuple[int, int, str]], boxes: list[list[float]], frames: list[int], *_video: int
) -> ImportedBoxes:
    return ImportedBoxes.make(rows, np.array(boxes, np.float64).reshape(-1, 4), frames)
