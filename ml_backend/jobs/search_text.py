"""Job that shows what the text detector finds for a phrase on a few frames, before it becomes a label's prompt."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import nlargest
from itertools import islice
from typing import Any

import cv2
import numpy as np

from ml_backend.core.boxes import scaled_size, xyxy_to_percent
from ml_backend.core.errors import ConfigError, MediaError, VideoError
from ml_backend.core.types import Detections, Frame, Image
from ml_backend.embeddings.hub import resolve_text_detector
from ml_backend.inference.text_detector import BATCH, TextDetector, use_text_detector
from ml_backend.jobs.api_queue import data_url, text_search_name
from ml_backend.jobs.job_context import JobContext, api_job
from ml_backend.label_studio.label_config import split_prompts
from ml_backend.video.probe import probe
from ml_backend.video.reader import read_at

#: Tasks that are searched unless others are chosen.
TASKS = 4
#: Boxes that are shown of a frame, the surest ones.
MAX_BOXES = 30
#: Lowest score that is shown, as a share of the lowest that predictions use: it tells what another setting would find.
SHOWN_SHARE = 0.5
#: Width in pixels of the pictures, and their JPEG quality.
WIDTH, QUALITY = 480, 80
#: Seconds for which the pictures, up to two megabytes of a phrase, stay in Redis.
KEEP_S = 3600


@api_job
def search_text(context: JobContext, project_id: int, phrase: str, tasks: list[int], frames: int) -> dict[str, Any]:
    """Search evenly spaced frames of tasks' videos for a phrase; publish pictures and boxes, the surest first.

    Args:
        phrase: descriptions, separated by ``|``.
        tasks: ids; none means the newest tasks of the project.
        frames: of all videos together.
    """
    report = context.step("searching")
    settings, container = context.settings, context.container
    resolved = resolve_text_detector(settings, download=True)
    if isinstance(resolved, str):
        raise ConfigError(resolved)
    chosen = tasks or nlargest(TASKS, (state.id for state in container.client.list_task_states(project_id)))
    chosen = chosen[:frames]  # at least one frame of each
    rows: list[dict[str, Any]] = []
    skipped: list[str] = []
    descriptions, conf = split_prompts(phrase), settings.open_vocabulary_conf
    with use_text_detector(resolved, settings) as detector:
        for number, task in enumerate(chosen):
            report(number, len(chosen))
            try:
                rows += _search_task(context, detector, project_id, task, descriptions, _share(frames, chosen, number))
            except (VideoError, MediaError, ConfigError) as error:
                if len(chosen) == 1:
                    raise
                skipped.append(f"Task {task}: {error}")
    rows.sort(key=lambda row: -max((box["score"] for box in row["boxes"]), default=0.0))
    facts = {"frames": rows, "conf": conf, "model": resolved.name, "skipped": skipped}
    container.queue.publish(text_search_name(project_id, phrase, tasks, frames), facts, keep_s=KEEP_S)
    return {"frames": len(rows), "found": sum(box["score"] >= conf for row in rows for box in row["boxes"])}


def _share(frames: int, tasks: Sequence[int], number: int) -> int:
    """Return how many of the frames are of the task with a number, counted from 0."""
    return frames * (number + 1) // len(tasks) - frames * number // len(tasks)


def _search_task(
    context: JobContext, detector: TextDetector, project_id: int, task: int, descriptions: Sequence[str], count: int
) -> list[dict[str, Any]]:
    conf = SHOWN_SHARE * context.settings.open_vocabulary_conf
    rows: list[dict[str, Any]] = []
    with context.video(project_id, task) as (path, _):
        info = probe(path)
        frames = read_at(path, info, np.unique(((np.arange(count) + 0.5) * info.frames / count).astype(np.int64)))
        while batch := list(islice(frames, BATCH)):
            context.check()
            found = detector.detect([frame.image for frame in batch], [descriptions], conf)
            rows += [_row(task, frame, boxes) for frame, boxes in zip(batch, found, strict=True)]
    return rows


def _row(task: int, frame: Frame, found: Detections) -> dict[str, Any]:
    height, width = frame.image.shape[:2]
    percent = xyxy_to_percent(found.xyxy[:MAX_BOXES], width, height).round(2).tolist()
    boxes = [
        {"x": x, "y": y, "width": w, "height": h, "score": round(float(score), 3)}
        for (x, y, w, h), score in zip(percent, found.conf[:MAX_BOXES], strict=True)
    ]
    size = scaled_size(width, height, min(1.0, WIDTH / width))
    facts = {"task": task, "frame": frame.index, "time": round(frame.time, 3), "width": size[0], "height": size[1]}
    return {**facts, "boxes": boxes, "picture": data_url(_jpeg(frame.image, size))}


def _jpeg(image: Image, size: tuple[int, int]) -> bytes:
    shown = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return bytes(cv2.imencode(".jpg", shown, (cv2.IMWRITE_JPEG_QUALITY, QUALITY))[1])
