"""Which models a mode looks with, as far as they are here, and what they are called. Loads none, nor NumPy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ml_backend.core.errors import ConfigError
from ml_backend.core.settings import Mode, Settings
from ml_backend.embeddings.hub import ResolvedModel, resolve_clip, resolve_embedder

#: Raised when the same looks and exemplars lead to other labels.
RECIPE = 2


@dataclass(frozen=True, slots=True)
class ClassifierModels:
    """The models that a mode looks with, as far as they are here.

    Attributes:
        notes: what is missing or replaced, and how to provide it; for people.
    """

    mode: Mode
    embedder: ResolvedModel | None = None
    clip: ResolvedModel | None = None
    notes: tuple[str, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the models for which exemplars are kept."""
        return tuple(model.model_id for model in (self.embedder, self.clip) if model)


def classifier_models(settings: Settings, mode: Mode, *, download: bool = False) -> ClassifierModels:
    """Resolve a mode's models. Without ``download`` this takes milliseconds.

    Raises:
        WeightsError: a configured folder does not exist.
    """
    embedder: ResolvedModel | None = None
    clip: ResolvedModel | None = None
    notes: list[str] = []
    if mode in ("yolo_dinov2", "universal"):
        embedder = resolve_embedder(settings, download=download)
        notes += [embedder.note] if embedder.note else []
    if mode in ("yolo_clip", "universal"):
        found = resolve_clip(settings, download=download)
        if isinstance(found, str):
            notes.append(found)
        else:
            clip = found
    return ClassifierModels(mode, embedder, clip, tuple(notes))


def mode_part(models: ClassifierModels, digests: Mapping[str, str | None], prompts: str = "") -> str:
    """A mode's part of the model version: changes exactly when labels would.

    Args:
        digests: digest of the project's bank by model id; empty or ``None`` where there is nothing learned.
        prompts: digest of what CLIP is asked.
    """
    facts: list[Any] = []
    if models.embedder and digests.get(models.embedder.model_id):
        facts.append([models.embedder.model_id, digests[models.embedder.model_id]])
    if models.clip:
        facts.append([models.clip.model_id, digests.get(models.clip.model_id) or "", prompts])
    if not facts:
        return models.mode  # labels are the detector's
    text = json.dumps([RECIPE, models.mode, facts])
    return f"{models.mode}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def require_embedder(models: ClassifierModels) -> ResolvedModel:
    """The model whose patterns a project has.

    Raises:
        ConfigError: the mode has none.
    """
    if models.embedder is None:
        raise ConfigError(f"Mode {models.mode} learns no patterns.", "Switch to yolo_dinov2 or universal.")
    return models.embedder
