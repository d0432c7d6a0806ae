"""What a person draws in Label Studio's editor, without HTTP: boxes to follow, and the events of its toolbar.

Two forms of the protocol are spoken. The editor of Label Studio 1.23 posts the selected regions when a label's key is
pressed, and takes them back with more keyframes. Newer ones have a toolbar for interactive models: it asks for
``capabilities``, turns a box into a mask, and follows it by ``track`` and ``track_progress``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

from ml_backend.core.errors import BackendError, PredictionFailed, QueueUnavailable, RequestError
from ml_backend.jobs.project_models import ProjectModelStore
from ml_backend.jobs.queue import JobQueue
from ml_backend.jobs.task_plan import PlannedVideo
from ml_backend.label_studio.label_config import DEFAULT_FRAME_RATE
from ml_backend.server.prediction_service import PredictionService
from ml_backend.server.slow_clients import DRAWINGS

log = logging.getLogger(__name__)

#: Seconds to wait for drawn boxes. Label Studio waits 100, but a person does not.
FOLLOW_TIMEOUT_S = 30.0
#: Seconds for which a request for progress waits; the editor asks again at once.
PROGRESS_S = 4.0
#: Seconds for which a followed box is kept for the next press, where the first one could not wait for it.
LATE_S = 600.0
#: Drawn boxes in one request.
MAX_DRAWN = 100
#: Size of the mask of a box, where the video's is not known: the editor scales it.
MASK_SIZE = (1920, 1080)
#: What the editor's toolbar offers: a box as prompt, which can be followed.
CAPABILITIES = {
    "prompts": ["box"],
    "targets": [{"tag": "VideoRectangle", "output": "bbox", "features": ["track"]}],
}

Task = Mapping[str, Any]
Context = Mapping[str, Any]


class DrawingService:
    """Answer the editor's requests about drawn boxes. Thread-safe.

    Args:
        predictions: of which task plans and versions are used.
    """

    def __init__(self, queue: JobQueue, projects: ProjectModelStore, predictions: PredictionService) -> None:
        self._queue, self._projects, self._predictions = queue, projects, predictions
        self._following = threading.BoundedSemaphore(DRAWINGS)
        self._events: dict[str, Callable[[int, str, Task, Context], list[dict[str, Any]]]] = {
            "capabilities": self._capabilities,
            "prewarm": self._prewarm,
            "track": self._track,
            "track_progress": self._track_progress,
            "track_cancel": self._track_cancel,
            "release": lambda *_: [],
        }

    def answer(self, project_id: int, label_config: str, task: Task, context: Context) -> list[dict[str, Any]]:
        """Return the prediction that answers what the editor sends as ``params.context``.

        Raises:
            RequestError: the event is unknown, there is no region to follow, or the task has no id.
        """
        event = context.get("event")
        if event is None:
            result = self._mask_of_prompt(context) or self._follow(project_id, label_config, task, context)
        elif isinstance(event, str) and event in self._events:
            result = self._events[event](project_id, label_config, task, context)
        else:
            raise RequestError(f"The event {str(event)[:80]!r} is unknown.", f"Known are {', '.join(self._events)}.")
        return [{"result": result, "model_version": self._predictions.version(project_id), "score": 0.0}]

    def warm(self, project_id: int, label_config: str, task: Task) -> None:
        """Prepare for drawn boxes in a task that somebody has opened."""
        try:
            plan = self._predictions.plan(task, project_id, label_config, self._projects.models(project_id))
            for video in plan.videos:
                self._queue.request_warm(project_id, plan.task_id, video.uri)
        except BackendError as error:  # drawing reports it
            log.debug("Task %s was not warmed: %s", task.get("id"), error)

    # -- the selected regions

    def _follow(self, project_id: int, label_config: str, task: Task, context: Context) -> list[dict[str, Any]]:
        """Return the regions that a person has drawn, followed through their video.

        Where that fails or takes too long, the regions are returned as they are, so that no work is lost, and the
        reason is logged. What is found after that is the answer to the next press with the same boxes.
        """
        regions = _drawn_regions(context)
        answers = [dict(region) for region in regions]
        try:
            plan = self._predictions.plan(task, project_id, label_config, self._projects.models(project_id))
            for video in plan.videos:
                of_video = [region for region in regions if region.get("to_name") == video.control.to_name]
                if not of_video:
                    continue
                found = self._ask([project_id, plan.task_id, _source(video), of_video])
                sequences = {region["id"]: region["value"]["sequence"] for region in found}
                for item in answers:
                    if item["id"] in sequences:
                        item["value"] = {**item["value"], "sequence": sequences[item["id"]]}
        except RequestError:
            raise
        except BackendError as error:
            log.warning("Task %s: a drawn box was not followed: %s", task.get("id"), error)
        return answers

    def _ask(self, arguments: list[Any]) -> list[dict[str, Any]]:
        """Return the followed regions.

        Raises:
            QueueUnavailable: they are not followed yet, or there is no worker.
            PredictionFailed: none of them can be followed.
        """
        *where, regions = arguments
        # A second press comes without the label, and later with it.
        boxes = [[region["id"], region["value"].get("sequence")] for region in regions]
        digest = hashlib.sha256(json.dumps([*where, boxes], sort_keys=True).encode()).hexdigest()[:32]
        job_id = self._queue.start_interactive("follow_regions", arguments, "draw", LATE_S, f"draw-{digest}")
        ended, found = self._wait(job_id, FOLLOW_TIMEOUT_S)
        if not ended:
            raise QueueUnavailable("Its turn has not come, since others wait, too.", "Press the label's key again.")
        self._queue.take_result(job_id)
        return found or []

    def _wait(self, job_id: str, timeout_s: float) -> tuple[bool, Any]:
        """Wait for a job; return whether it has ended, and its result.

        Where ``DRAWINGS`` others wait, it is not waited for: the next press, or request for progress, gets the result.
        """
        waits = self._following.acquire(blocking=False)
        try:
            return self._queue.wait_for_result(job_id, timeout_s if waits else 0.0)
        finally:
            if waits:
                self._following.release()

    # -- the toolbar

    def _capabilities(self, project_id: int, *_: Any) -> list[dict[str, Any]]:
        version = self._predictions.version(project_id)
        return [{"value": {**CAPABILITIES, "model_info": {"name": "label-studio-video", "version": version}}}]

    def _mask_of_prompt(self, context: Context) -> list[dict[str, Any]]:
        """Return the mask of a box prompt, which is the box itself; empty if the context has none."""
        result = context.get("result")
        prompts = [item for item in (result if isinstance(result, list) else ()) if isinstance(item, dict)]
        if not prompts or prompts[0].get("type") != "rectanglelabels":
            return []
        from ml_backend.label_studio.regions import rectangle_mask  # imports NumPy, which other requests do not need

        return [{"value": rectangle_mask(_prompt_box(prompts[0]), *MASK_SIZE)}]

    def _prewarm(self, project_id: int, label_config: str, task: Task, _: Context) -> list[dict[str, Any]]:
        self.warm(project_id, label_config, task)
        return []

    def _track(self, project_id: int, label_config: str, task: Task, context: Context) -> list[dict[str, Any]]:
        """Start to follow a box; return the session by which the editor asks for its masks."""
        result = context.get("result")
        if not isinstance(result, list) or not result or not isinstance(result[0], dict):
            raise RequestError("The request has no box to follow.", "Draw a box.")
        prompt = {
            "box": _prompt_box(result[0]),
            "frame": _whole(context.get("frame"), "frame"),
            "direction": context.get("direction", "forward"),
            "max_frames": _whole(context.get("max_frames"), "max_frames"),
        }
        if prompt["direction"] not in ("forward", "backward", "both"):
            raise RequestError("'direction' must be forward, backward or both.", "See the editor's protocol.")
        plan = self._predictions.plan(task, project_id, label_config, self._projects.models(project_id))
        arguments = [project_id, plan.task_id, _source(plan.videos[0]), prompt]
        session = self._queue.start_interactive("track_box", arguments, "draw", LATE_S)
        return [{"value": {"session_id": session}}]

    def _track_progress(self, project_id: int, _: str, task: Task, context: Context) -> list[dict[str, Any]]:
        """Wait a little for a session's masks, which arrive all at once."""
        value: dict[str, Any] = {"frames": [], "produced": 0, "done": False}
        try:
            session = self._session(project_id, task, context)
            ended, frames = self._wait(session, PROGRESS_S)
        except (PredictionFailed, QueueUnavailable) as error:
            return [{"value": {**value, "error": str(error), "done": True}}]
        if ended:
            value = {"frames": frames, "produced": len(frames), "total": len(frames), "done": True}
        return [{"value": value}]

    def _track_cancel(self, project_id: int, _: str, task: Task, context: Context) -> list[dict[str, Any]]:
        """Forget a session; one that has begun takes seconds at most."""
        try:
            self._queue.take_back_waiting(self._session(project_id, task, context))
        except (PredictionFailed, QueueUnavailable) as error:
            log.info("Task %s: nothing to cancel: %s", task.get("id"), error)
        return []

    def _session(self, project_id: int, task: Task, context: Context) -> str:
        """Return the id of a session, which must be of this task.

        Raises:
            PredictionFailed: there is no such session.
        """
        session = context.get("session_id")
        if isinstance(session, str) and self._queue.is_job_of(session, "track_box", [project_id, task.get("id")]):
            return session
        raise PredictionFailed("The drawn box is no longer followed.", "Draw it again.")


def _source(video: PlannedVideo) -> dict[str, Any]:
    return {"uri": video.uri, "frame_rate": DEFAULT_FRAME_RATE if video.frame_rate is None else video.frame_rate}


def _prompt_box(prompt: Mapping[str, Any]) -> dict[str, float]:
    """Return the box of a prompt in percent.

    Raises:
        RequestError: it is no box, has no area, or is outside the image.
    """
    value = prompt.get("value")
    try:
        box = {name: float(value[name]) for name in ("x", "y", "width", "height")}  # type: ignore[index]
    except (KeyError, TypeError, ValueError) as error:
        raise RequestError("The prompt is no box.", "Draw a box; points are not supported.") from error
    inside = all(math.isfinite(number) for number in box.values()) and box["width"] > 0 and box["height"] > 0
    if (
        not inside
        or box["x"] >= 100
        or box["y"] >= 100
        or box["x"] + box["width"] <= 0
        or box["y"] + box["height"] <= 0
    ):
        raise RequestError("The box is outside the picture or has no area.", "Draw it again.")
    return box


def _whole(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise RequestError(f"{name!r} must be a number of frames.", "See the editor's protocol.")
    return int(value)


def _drawn_regions(context: Context) -> list[dict[str, Any]]:
    """Return the video tracks of an editor's request."""
    result = context.get("result")
    regions = [
        item
        for item in (result if isinstance(result, list) else ())
        if isinstance(item, dict)
        and item.get("type") == "videorectangle"
        and isinstance(item.get("value"), dict)
        and isinstance(item.get("id"), str)
    ]
    if not regions:
        raise RequestError(
            "The request has no box to follow.", 'Use smart="true" on VideoRectangle only, and select one of its boxes.'
        )
    if len(regions) > MAX_DRAWN:
        raise RequestError(f"{len(regions)} boxes are too many at once.", f"Select at most {MAX_DRAWN}.")
    return regions
