"""Replay images: frames of a project's videos that nobody has annotated, on which a training keeps what it knew."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ml_backend.core.errors import Interrupted, MediaError, StorageError, VideoError
from ml_backend.core.files import file_sha256
from ml_backend.datasets.annotated_video import TaskVideo
from ml_backend.datasets.annotation_reader import AnnotationReader
from ml_backend.datasets.export_state import fingerprint
from ml_backend.training.annotation_summary import task_video_key
from ml_backend.video.probe import probe
from ml_backend.video.stills import write_stills

log = logging.getLogger(__name__)

#: Most images, some 10 MB, and most videos that they are taken from.
MAX_IMAGES, MAX_VIDEOS = 64, 16


@dataclass(frozen=True, slots=True)
class Replay:
    """The replay images of a training.

    Attributes:
        images: files, in a fixed order.
        notes: messages for people: which videos could not be read.
    """

    images: tuple[Path, ...]
    notes: tuple[str, ...]


def sample_replay(
    reader: AnnotationReader,
    folder: Path,
    annotated: Collection[str],
    imgsz: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> Replay:
    """Write frames of unannotated videos, spread over their time; each call with the same videos returns the same.

    Images of an earlier call are used again without opening their video, and removed where they are no longer wanted.

    Args:
        reader: the project's tasks, with one annotation each.
        folder: only for replay images; created if missing.
        annotated: SHA-256 of annotated video files, of which copies are left out: people say what they show.
        imgsz: longest side of the images, pixels.

    Raises:
        LabelStudioError, StorageError: the tasks cannot be read, or the disk cannot be written.
        Interrupted: ``should_stop`` returned true.
    """
    videos = _choose(reader, should_stop)
    count = MAX_IMAGES // max(1, len(videos))
    folders: list[Path] = []
    notes: list[str] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for key, video in videos.items():
            target = folder / fingerprint([key, repr(video.facts), count, imgsz])[:32]
            if not target.is_dir():
                try:
                    _write(video, target, count, imgsz, annotated, should_stop)
                except (MediaError, VideoError) as error:
                    log.info("Task %d is not replayed", video.task_id, exc_info=error)
                    notes.append(f"Not replayed: task {video.task_id} ({video.name}): {error}")
            folders.append(target)
        for other in set(folder.iterdir()) - set(folders):
            shutil.rmtree(other, ignore_errors=True)
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error.strerror}.", "Check space and permissions.") from error
    return Replay(tuple(image for each in folders for image in sorted(each.glob("*.jpg"))), tuple(notes))


def _choose(reader: AnnotationReader, should_stop: Callable[[], bool]) -> dict[str, TaskVideo]:
    """Return videos by key, in pseudo-random order, which hardly changes when others are added."""

    def keyed(video: TaskVideo) -> str:
        if should_stop():
            raise Interrupted("Stopped while the tasks were read.", "They are read again.")
        try:
            return task_video_key(video, reader.url)
        except MediaError:
            return ""

    annotated = {keyed(video) for video in reader.task_videos()} | {""}
    found: dict[str, TaskVideo] = {}
    for video in reader.unannotated_videos():
        if (key := keyed(video)) not in annotated:
            found.setdefault(key, video)
    order = sorted(found, key=lambda key: hashlib.sha256(key.encode()).digest())
    return {key: found[key] for key in order[:MAX_VIDEOS]}


def _write(
    video: TaskVideo, target: Path, count: int, imgsz: int, annotated: Collection[str], should_stop: Callable[[], bool]
) -> None:
    with video.local_file() as path:
        if file_sha256(path) in annotated:
            return
        info = probe(path)
        indices = np.unique(((np.arange(count) + 0.5) * info.frames / count).astype(np.int64))
        write_stills(path, info, indices, imgsz, target, should_stop)
