"""Write and read COCO detection datasets with the fields of COCO video.

``annotations/instances_{train,val,test}.json`` with ``images``, ``annotations`` and ``categories`` as COCO defines
them, and in addition: ``videos``, with ``stride`` (see :attr:`~ml_backend.datasets.sampling.Sampling.even_stride`); in
images ``video_id`` and ``frame_id`` (the decoded frame, from 0); in annotations ``video_id``, ``track_id`` (unique in
the dataset), ``source`` and, for predictions, ``confidence``; on request ``global_id``, of objects that have one.
``segmentation`` is the box; in ``coco-seg`` the mask, as compressed run lengths.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ml_backend.core.errors import ConfigError
from ml_backend.core.files import atomic_text_writer
from ml_backend.datasets.export_state import state_folder
from ml_backend.datasets.formats.base import Counts, DatasetFormat, SelectedFrames, remove_named
from ml_backend.datasets.importers import MAX_FRAME, ImportedBoxes, ImportedVideo, finite, frame_number, stated_stride
from ml_backend.datasets.sampling import SPLITS
from ml_backend.datasets.video_files import VideoFacts, parse_count


class Coco(DatasetFormat):
    """Writes each video's boxes as JSON lines, and merges them into a file for each split at the end."""

    with_masks = False

    def write_labels(self, selected: SelectedFrames) -> None:
        video = selected.video
        with atomic_text_writer(self._lines(selected.name)) as file:
            size = {"width": video.info.width, "height": video.info.height}
            head: dict[str, object] = {"name": video.name, **size, "fps": video.info.fps, "tracks": len(video.objects)}
            head["stride"] = self.sampling.even_stride
            file.write(json.dumps(head) + "\n")
            for frame, split in zip(selected.boxes(), selected.splits, strict=True):
                boxes: list[dict[str, Any]] = [
                    {
                        "class": self.class_ids[item.label],
                        "track": item.track_id,
                        "xyxy": [round(value, 3) for value in box],
                        "source": item.source,
                        "confidence": item.confidence,
                        **({"global": item.global_id} if selected.first_id is not None and item.global_id else {}),
                    }
                    for item, box in zip(frame.objects, frame.xyxy.tolist(), strict=True)
                ]
                if self.with_masks:
                    for box, mask in zip(boxes, frame.masks, strict=True):
                        box |= {"rle": mask.rle, "area": mask.area}
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
            # A file without images is valid, but an empty test split is probably not wanted.
            if split == "test" and not any(splits.get(split) for splits in counts.values()):
                path.unlink(missing_ok=True)
                continue
            categories = [
                {"id": class_id, "name": name, "supercategory": ""}
                for class_id, name in enumerate(self.classes, start=1)
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
        for video_id, (name, splits) in enumerate(counts.items(), start=1):
            if splits.get(split):
                head = next(_read_lines(self._lines(name)))
                # Exports that an earlier release began have no stride.
                facts: dict[str, Any] = {key: head[key] for key in ("width", "height", "fps", "stride") if key in head}
                yield {"id": video_id, "name": name, "file_name": head["name"], **facts}

    def _rows(self, counts: Counts, split: str) -> Iterator[tuple[int, int, dict[str, Any], Any]]:
        """Yield (image id, video id, line, head of the video) with the same ids on each pass.

        Track ids are unique across the dataset, and the same in all splits.
        """
        image_id = tracks = 0
        for video_id, name in enumerate(counts, start=1):
            lines = _read_lines(self._lines(name))
            head = next(lines)
            head |= {"video": name, "first_track": tracks}
            tracks += head["tracks"]
            for line in lines:
                if line["split"] == split:
                    image_id += 1
                    yield image_id, video_id, line, head

    def _images(self, counts: Counts, split: str) -> Iterator[dict[str, Any]]:
        for image_id, video_id, line, head in self._rows(counts, split):
            yield {
                "id": image_id,
                "file_name": self.image_name(head["video"], line["frame"]),
                "width": head["width"],
                "height": head["height"],
                "video_id": video_id,
                "frame_id": line["frame"],
                "time": line["time"],
            }

    def _annotations(self, counts: Counts, split: str) -> Iterator[dict[str, Any]]:
        annotation_id = 0
        for image_id, video_id, line, head in self._rows(counts, split):
            for box in line["boxes"]:
                annotation_id += 1
                x1, y1, x2, y2 = box["xyxy"]
                width, height = round(x2 - x1, 3), round(y2 - y1, 3)
                item: dict[str, Any] = {
                    "id": annotation_id,
                    "image_id": image_id,
                    "category_id": box["class"] + 1,
                    "bbox": [x1, y1, width, height],
                    "area": round(width * height, 3),
                    "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
                    "iscrowd": 0,
                    "video_id": video_id,
                    "track_id": head["first_track"] + box["track"],
                    "source": box["source"],
                }
                if "global" in box:
                    item["global_id"] = box["global"]
                if self.with_masks:
                    size = [head["height"], head["width"]]
                    item |= {"area": box["area"], "segmentation": {"size": size, "counts": box["rle"]}}
                if box["source"] == "auto" and box["confidence"] is not None:
                    item["confidence"] = round(box["confidence"], 4)
                yield item


class CocoSeg(Coco):
    """COCO with masks as compressed run lengths."""

    with_masks = True


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def read_coco(path: Path, first_frame: int | None = None) -> Iterator[ImportedVideo]:
    """Yield the videos of COCO files with ``track_id`` in annotations, and ``video_id`` and ``frame_id`` in images.

    Args:
        path: a JSON file, or a dataset with ``annotations/*.json``; videos that are in several files are merged.
        first_frame: ``frame_id`` of a video's first frame, 0 or 1.  [default: told from the numbers]

    Raises:
        ConfigError: there are no files, or the only one is not readable or lacks these fields.
    """
    files = sorted((path / "annotations").glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise ConfigError(f"{path} has no annotations/*.json.", "Give the file or the dataset's folder.")
    videos: dict[_VideoKey, _Video] = {}
    for file in files:
        try:
            for key, video in _read_file(file).items():
                videos.setdefault(key, _Video()).add(video)
        except (OSError, *_MALFORMED) as error:
            reason = f"{file} is not a COCO file with tracks: {error!r}."
            damaged = ConfigError(reason, "Export it with videos, frame_id and track_id.")
            if len(files) == 1:
                raise damaged from error
            yield ImportedVideo.unreadable(file.name, damaged)
    has_zero = any(0 in video.frames for video in videos.values())
    for key, video in sorted(videos.items()):
        if video.error:
            yield ImportedVideo.unreadable(key[0], ConfigError(video.error, "Correct the file."))
        elif video.frames:
            first = 0 if first_frame is None and (has_zero or video.stride != 0) else first_frame
            yield ImportedVideo(key[0], partial(_imported_boxes, video, path, first), video.facts)


#: A video's file name, name in the dataset, and id if these are ambiguous.
_VideoKey = tuple[str, str, str]
#: Raised by what is not as it should be.
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, OverflowError)


@dataclass(slots=True)
class _Video:
    """Contents of COCO files about one video.

    Attributes:
        error: why it cannot be read; empty if it can.
    """

    frames: list[int] = field(default_factory=list)
    rows: list[tuple[int, int, str]] = field(default_factory=list)
    boxes: list[list[float]] = field(default_factory=list)
    sizes: set[tuple[int, int]] = field(default_factory=set)
    stride: int | None = 0
    crowds: int = 0
    error: str = ""

    @property
    def facts(self) -> VideoFacts:
        size = next(iter(self.sizes)) if len(self.sizes) == 1 else None
        return VideoFacts(size, (max(self.frames) + 1, None))

    def add(self, other: _Video) -> None:
        """Add what another file states."""
        self.frames += other.frames
        self.rows += other.rows
        self.boxes += other.boxes
        self.sizes |= other.sizes
        self.stride = other.stride
        self.crowds += other.crowds
        self.error = self.error or other.error

    def add_size(self, item: Mapping[str, Any]) -> None:
        width, height = parse_count(item.get("width")), parse_count(item.get("height"))
        if width and height:
            self.sizes.add((width, height))

    def add_box(self, item: Mapping[str, Any], frame: int, names: Mapping[Any, str]) -> None:
        if item.get("iscrowd"):
            self.crowds += 1
            return
        x, y, width, height = finite(item["bbox"])
        track = item.get("track_id")
        self.rows.append((frame, -1 if track is None else int(track), names[item["category_id"]]))
        self.boxes.append([x, y, x + width, y + height])


def _read_file(path: Path) -> dict[_VideoKey, _Video]:
    """Return the videos of a file; a damaged image or annotation makes only its own video unreadable."""
    data = json.loads(path.read_text(encoding="utf-8"))
    names = {item["id"]: str(item["name"]) for item in data["categories"]}
    keys = _videos_by_id(data["videos"])
    videos = {key: _Video() for key in keys.values()}
    for item in data["videos"]:
        videos[keys[item["id"]]].stride = stated_stride(item)
        videos[keys[item["id"]]].add_size(item)
    images: dict[Any, tuple[_Video, int]] = {}
    for item in data["images"]:
        video = videos[keys[item["video_id"]]]
        images[item["id"]] = video, -1
        try:
            video.add_size(item)
            frame = frame_number(item["frame_id"])
        except _MALFORMED as error:
            video.error = f"{path}, image {item['id']}: {error!r}."
            continue
        images[item["id"]] = video, frame
        video.frames.append(frame)
    for item in data["annotations"]:
        video, frame = images[item["image_id"]]
        try:
            video.add_box(item, frame, names)
        except _MALFORMED as error:
            video.error = f"{path}, annotation {item.get('id', '')} of image {item['image_id']}: {error!r}."
    return videos


def _videos_by_id(videos: list[dict[str, Any]]) -> dict[Any, _VideoKey]:
    """Map the video ids of one file to keys that are valid across the files of a dataset."""
    pairs = {item["id"]: (str(item.get("file_name") or item["name"]), str(item.get("name", ""))) for item in videos}
    counts = Counter(pairs.values())
    return {video_id: (*pair, str(video_id) if counts[pair] > 1 else "") for video_id, pair in pairs.items()}


def _imported_boxes(
    video: _Video, source: Path, first_frame: int | None, _width: int, _height: int, frame_count: int = MAX_FRAME + 1
) -> ImportedBoxes:
    xyxy = np.array(video.boxes, np.float64).reshape(-1, 4)
    read = ImportedBoxes.from_rows(video.rows, xyxy, video.frames, video.stride, source)
    read = replace(read, left_out=+Counter({**read.left_out, "Crowds (iscrowd), left out": video.crowds}))
    return read.counted_from(first_frame, frame_count)
