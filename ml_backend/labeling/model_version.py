"""Model version strings, which change exactly when predictions would."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import ml_backend
from ml_backend.core.settings import Settings
from ml_backend.detectors.weights import ResolvedDetector
from ml_backend.embeddings.hub import ResolvedModel

#: Settings that change predicted boxes, and so the version.
_BOX_SETTINGS = (
    "imgsz",
    "conf",
    "stride",
    "tracker",
    "min_track_s",
    "keyframe_iou",
)
#: Former settings at their defaults, so that versions of the previous release stay valid.
_FORMER_SETTINGS = {"max_gap_s": 2.0, "smooth_s": 0.1, "views": 4}
#: Settings in the version as they are, and models, in the version by content.
_CHOICES = ("mode", "detector", "embedder")
_MODELS = ("yolo_weights", "dinov2_model", "clip_model", "open_vocabulary_model")
#: Settings of the search by text.
_TEXT_SETTINGS = ("open_vocabulary_fps", "open_vocabulary_conf")
#: Registry part of the version if the detector is that of the settings.
BASE = "base"
#: Suffix of the version of a partial prediction, while the video is still processed.
PARTIAL = ".partial"
#: Increment when the code makes other boxes from the same input.
PIPELINE = 3
#: The same for the search by text.
TEXT_SEARCH = 1


def version_settings(settings: Settings) -> dict[str, Any]:
    """Return the settings that all processes must share to make the same versions, as readable JSON.

    Models are reduced to their file name, as folders may differ between hosts.
    """
    models = {name: Path(getattr(settings, name)).name for name in _MODELS}
    choices = {name: getattr(settings, name) for name in _CHOICES}
    choices |= {name: getattr(settings, name) for name in _TEXT_SETTINGS}
    return {**_digested(settings), **choices, **models, "release": ml_backend.__version__}


def _digested(settings: Settings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in _BOX_SETTINGS} | _FORMER_SETTINGS | {"pipeline": PIPELINE}


def text_search_part(settings: Settings, model: ResolvedModel | None, prompts: str = "") -> str:
    """Return the part of the version that stands for a search by text: ``~owlv2-1b2c3d4e``; empty without one.

    Args:
        prompts: digest of the label config's prompts.
    """
    if model is None:
        return ""
    facts = [TEXT_SEARCH, model.model_id, prompts, *(getattr(settings, name) for name in _TEXT_SETTINGS)]
    return f"~{_plain(model.name)}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:8]}"


def base_version(settings: Settings, detector: ResolvedDetector, text_search: str = "") -> str:
    """Return the part of the version that determines the tracks: ``yolo11n-3f2a91c0.tracktrack-9c1e``.

    Args:
        text_search: see :func:`text_search_part`.
    """
    weights = f"-{detector.sha256[:8]}" if detector.sha256 else ""
    digest = hashlib.sha256(json.dumps(_digested(settings), sort_keys=True).encode()).hexdigest()[:4]
    return f"{_plain(detector.name)}{weights}{text_search}.{settings.tracker}-{digest}"


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "_", name)


def model_version(
    settings: Settings,
    detector: ResolvedDetector,
    mode: str | None = None,
    registry: str = BASE,
    text_search: str = "",
) -> str:
    """Return a version such as ``yolo11n-3f2a91c0.tracktrack-9c1e.yolo_dinov2-1b2c3d4e.base``.

    Its parts: detector and first digits of its weights' SHA-256, with what is searched for by text; tracker and digest
    of the settings; mode and digest of the pattern bank (see :func:`ml_backend.labeling.modes.mode_part`); registry
    version.
    """
    return f"{base_version(settings, detector, text_search)}.{mode or settings.mode}.{registry}"


def same_kind(version: str, other: str) -> bool:
    """Return whether two versions differ only in exemplars, retrained weights, or what is found by text."""
    a, b = version.split("."), other.split(".")
    if version == other or len(a) != 4 or len(b) != 4:
        return False
    retrained = a[3] != BASE or b[3] != BASE
    same_detector = a[0].split("~")[0] == b[0].split("~")[0] or retrained
    return same_detector and a[1] == b[1] and a[2].split("-")[0] == b[2].split("-")[0]


def is_partial(version: str) -> bool:
    """Return whether a prediction covers only the processed part of its video."""
    return version.endswith(PARTIAL)


def is_outdated(version: str, other: str) -> bool:
    """Return whether a prediction of ``version`` replaces one of ``other``: a partial one or one of the same kind."""
    return is_partial(other) or same_kind(version, other)
