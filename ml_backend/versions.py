"""The version string: it names what made a prediction, and changes exactly when predictions would."""

from __future__ import annotations

import hashlib
import json
import re

from ml_backend.models.weights import ResolvedDetector
from ml_backend.settings import Settings

#: Settings that change which boxes come out, so that other values are another version.
_SHAPING = (
    "imgsz",
    "conf",
    "tracker",
    "min_track_s",
    "max_gap_s",
    "smooth_s",
    "keyframe_iou",
)
#: Raised when the code itself makes other boxes from the same input.
PIPELINE = 1


def settings_digest(settings: Settings) -> str:
    """Four hex digits over the settings that shape predictions."""
    values = {name: getattr(settings, name) for name in _SHAPING} | {"pipeline": PIPELINE}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:4]


def model_version(settings: Settings, detector: ResolvedDetector, registry: str = "base") -> str:
    """For example ``yolo11n-3f2a91c0.tracktrack-9c1e.yolo.base``.

    Detector and the first digits of its weights' SHA-256, tracker and a digest of the settings, mode, registry version.
    """
    name = re.sub(r"[^A-Za-z0-9_]+", "_", detector.name)
    weights = f"-{detector.sha256[:8]}" if detector.sha256 else ""
    return f"{name}{weights}.{settings.tracker}-{settings_digest(settings)}.{settings.mode}.{registry}"
