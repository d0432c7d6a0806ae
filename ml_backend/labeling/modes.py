"""Resolve the models of a mode and its part of the model version. Loads neither models nor NumPy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ml_backend.core.errors import ConfigError
from ml_backend.core.settings import Mode, Settings
from ml_backend.embeddings.hub import ResolvedModel, resolve_clip, resolve_embedder, resolve_text_detector

#: Increment when the same embeddings and exemplars lead to other labels.
RECIPE = 3


@dataclass(frozen=True, slots=True)
class ClassifierModels:
    """The available models of a mode.

    Attributes:
        text_detector: finds the objects of labels that the detector does not know.
        notes: messages about missing or replaced models and how to provide them.
    """

    mode: Mode
    embedder: ResolvedModel | None = None
    clip: ResolvedModel | None = None
    notes: tuple[str, ...] = ()
    text_detector: ResolvedModel | None = None

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the models whose exemplars are stored."""
        return tuple(model.model_id for model in (self.embedder, self.clip) if model)


def classifier_models(settings: Settings, mode: Mode, *, download: bool = False) -> ClassifierModels:
    """Resolve a mode's models. Without ``download`` this takes milliseconds.

    Raises:
        WeightsError: a configured folder does not exist.
    """
    embedder: ResolvedModel | None = None
    clip: ResolvedModel | None = None
    notes: list[str] = []
    if mode in ("yolo_dinov2", "universal", "open_vocabulary"):
        embedder = resolve_embedder(settings, download=download)
        notes += [embedder.note] if embedder.note else []
    if mode in ("yolo_clip", "universal"):
        resolved = resolve_clip(settings, download=download)
        if isinstance(resolved, str):
            notes.append(resolved)
        else:
            clip = resolved
    text_detector: ResolvedModel | None = None
    if "open_vocabulary" in (mode, settings.detector):
        resolved = resolve_text_detector(settings, download=download)
        if isinstance(resolved, str):
            notes.append(resolved)
        else:
            text_detector = resolved
    return ClassifierModels(mode, embedder, clip, tuple(notes), text_detector)


def mode_part(models: ClassifierModels, digests: Mapping[str, str | None], prompts: str = "") -> str:
    """Return a mode's part of the model version, which changes exactly when labels would.

    Args:
        digests: digest of the project's pattern bank by model id; empty or ``None`` if nothing is learned.
        prompts: digest of CLIP's prompts.
    """
    inputs: list[Any] = []
    if models.embedder and digests.get(models.embedder.model_id):
        inputs.append([models.embedder.model_id, digests[models.embedder.model_id]])
    if models.clip:
        inputs.append([models.clip.model_id, digests.get(models.clip.model_id) or "", prompts])
    if not inputs:
        return models.mode  # labels are the detector's
    text = json.dumps([RECIPE, models.mode, inputs])
    return f"{models.mode}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def require_embedder(models: ClassifierModels) -> ResolvedModel:
    """Return the model that embeds a project's patterns.

    Raises:
        ConfigError: the mode uses none.
    """
    if models.embedder is None:
        raise ConfigError(
            f"Mode {models.mode} learns no patterns.", "Switch to yolo_dinov2, universal or open_vocabulary."
        )
    return models.embedder
