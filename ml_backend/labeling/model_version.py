"""The version string: it names what made a prediction, and changes exactly when predictions would."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import ml_backend
from ml_backend.core.settings import Settings
from ml_backend.detectors.weights import ResolvedDetector

#: Settings that change which boxes come out, so that other values are another version.
_SHAPING = (
    "imgsz",
    "conf",
    "stride",
    "tracker",
    "min_track_s",
    "keyframe_iou",
)
#: What were settings of the release before, at their defaults: its predictions are still this release's.
_FORMER = {"max_gap_s": 2.0, "smooth_s": 0.1, "views": 4}
#: Settings that are part of a version by themselves, and models, by what is in them.
_CHOICES = ("mode", "detector", "embedder")
_MODELS = ("yolo_weights", "dinov2_model", "clip_model")
#: Registry part of versions whose detector is that of the settings.
BASE = "base"
#: Ends the version of a prediction of a video that is still being worked at.
PARTIAL = ".partial"
#: Raised when the code itself makes other boxes from the same input.
PIPELINE = 3


def shaping(settings: Settings) -> dict[str, Any]:
    """What two processes have to agree about so that they make the same versions; plain JSON, for people to read.

    Of models the name alone: one file may lie in another folder on each host.
    """
    models = {name: Path(getattr(settings, name)).name for name in _MODELS}
    choices = {name: getattr(settings, name) for name in _CHOICES}
    return {**_digested(settings), **choices, **models, "release": ml_backend.__version__}


def _digested(settings: Settings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in _SHAPING} | _FORMER | {"pipeline": PIPELINE}


def base_version(settings: Settings, detector: ResolvedDetector) -> str:
    """What made the tracks, whatever gave them their labels: ``yolo11n-3f2a91c0.tracktrack-9c1e``."""
    name = re.sub(r"[^A-Za-z0-9_]+", "_", detector.name)
    weights = f"-{detector.sha256[:8]}" if detector.sha256 else ""
    digest = hashlib.sha256(json.dumps(_digested(settings), sort_keys=True).encode()).hexdigest()[:4]
    return f"{name}{weights}.{settings.tracker}-{digest}"


def model_version(settings: Settings, detector: ResolvedDetector, mode: str | None = None, registry: str = BASE) -> str:
    """For example ``yolo11n-3f2a91c0.tracktrack-9c1e.yolo_dinov2-1b2c3d4e.base``.

    Detector and the first digits of its weights' SHA-256, tracker and a digest of the settings, mode and a digest of
    what was learned (see :func:`ml_backend.labeling.modes.mode_part`), registry version.
    """
    return f"{base_version(settings, detector)}.{mode or settings.mode}.{registry}"


def same_kind(version: str, other: str) -> bool:
    """Whether ``other`` differs from ``version`` only in what was learned: labels, or retrained weights."""
    mine, others = version.split("."), other.split(".")
    if version == other or len(mine) != 4 or len(others) != 4:
        return False
    retrained = mine[3] != BASE or others[3] != BASE
    same_detector = mine[0] == others[0] or retrained
    return same_detector and mine[1] == others[1] and mine[2].split("-")[0] == others[2].split("-")[0]


def is_partial(version: str) -> bool:
    """Whether a prediction shows only what was found when a part of its video had been seen."""
    return version.endswith(PARTIAL)


def is_outdated(version: str, other: str) -> bool:
    """Whether a prediction of ``version`` takes the place of one of ``other``: of one kind, or of a part of a video."""
    return is_partial(other) or same_kind(version, other)
