"""Plan the prediction of a task, and compute the keys under which its results are stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ml_backend.core.errors import MediaError
from ml_backend.label_studio.label_config import LabelConfig, VideoControl, label_prompts, parse_label_config
from ml_backend.label_studio.media import canonical_uri

if TYPE_CHECKING:
    from ml_backend.jobs.container import Container
    from ml_backend.jobs.project_models import ProjectModels
    from ml_backend.label_studio.client import Task


@dataclass(frozen=True, slots=True)
class PlannedVideo:
    """One video of a task and the control that receives its regions.

    Attributes:
        frame_rate: of Label Studio's timeline; ``None``: the task lacks the field that the config refers to and may
            still be given one (it has no annotations yet), so the video must be probed first.
    """

    control: VideoControl
    uri: str
    frame_rate: float | None


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """All videos of one task under one model version."""

    project_id: int
    task_id: int
    videos: tuple[PlannedVideo, ...]
    version: str

    @property
    def needs_probe(self) -> bool:
        return any(video.frame_rate is None for video in self.videos)

    @property
    def key(self) -> str:
        """Equal for equal videos, controls, frame rates and versions within a project; 40 hex digits."""
        facts = {
            "project": self.project_id,
            "version": self.version,
            "parts": [[video.uri, video.frame_rate, *_control_facts(video.control)] for video in self.videos],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:40]


def _control_facts(control: VideoControl) -> list[Any]:
    """Return what predictions depend on; a label's colour, for example, is not part of it."""
    labels = [[label.value, *label.predicted_values, *label_prompts(label)] for label in control.labels]
    return [control.from_name, control.to_name, labels]


def tracks_key(project_id: int, uri: str, frame_rate: float, base: str) -> str:
    """Return the key of a video's tracks under one detector, tracker and timeline; 40 hex digits.

    Args:
        base: see :func:`ml_backend.labeling.model_version.base_version`.
    """
    facts = [project_id, uri, frame_rate, base]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:40]


@lru_cache(maxsize=64)
def cached_label_config(xml: str) -> LabelConfig:
    """Parse a label config, once: Label Studio sends the same one with every request."""
    return parse_label_config(xml)


def plan_task(
    project_id: int,
    task_id: int,
    data: Mapping[str, Any],
    label_config: str,
    version: str,
    *,
    annotated: bool,
    label_studio_url: str,
) -> TaskPlan:
    """Return the videos of a task that need predictions.

    Args:
        annotated: tasks with annotations are never written to, so a missing frame rate stays Label Studio's default.

    Raises:
        ConfigError: the label config cannot hold video tracks.
        MediaError: the task has none of the fields that the config's Video tags name.
    """
    config = cached_label_config(label_config)
    videos = []
    for control in config.video_controls:
        uri = control.media_uri(data)
        if uri is None:
            continue
        field = control.rate_field
        needs_probe = field is not None and not annotated and data.get(field) in (None, "")
        rate = None if needs_probe else control.frame_rate_for(data)
        videos.append(PlannedVideo(control, canonical_uri(uri, label_studio_url), rate))
    if not videos:
        fields = ", ".join(sorted({control.value_key for control in config.video_controls}))
        raise MediaError(
            f"Task {task_id} has no video: its data lacks the field {fields!r}.",
            "Import tasks with that field, or change the Video tag's value.",
        )
    return TaskPlan(project_id, task_id, tuple(videos), version)


def plan_for(container: Container, task: Task, label_config: str, models: ProjectModels | None = None) -> TaskPlan:
    """Return the plan for a task, by default with the project's current models."""
    if models is None:
        container.projects.remember_labels(task.project_id, cached_label_config(label_config))
        models = container.projects.models(task.project_id)
    return plan_task(
        task.project_id,
        task.id,
        task.data,
        label_config,
        models.version,
        annotated=task.annotations > 0,
        label_studio_url=container.settings.label_studio_url,
    )
