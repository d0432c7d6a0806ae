"""Whether a candidate may replace the incumbent: both were measured on the same held-out part."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: By so much a measure may fall: less cannot be told from chance.
NOISE = {"map50_95": 0.002, "map50": 0.01, "hota": 0.01, "idf1": 0.01}
#: Measures of tracks hang on a few crossings and beginnings: over the root of the frames measured, so much more.
TRACK_NOISE = {"hota": 0.3, "idf1": 0.3}
#: A label may lose so much of its AP50, where it has enough boxes for that to mean anything.
LABEL_LOSS = 0.05
LABEL_BOXES = 20
_NAMES = {"map50_95": "mAP50-95", "map50": "mAP50", "hota": "HOTA", "idf1": "IDF1"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's decision.

    Attributes:
        reason: for people, with the figures that led to it.
    """

    promote: bool
    reason: str


def decide(candidate: Mapping[str, Any], incumbent: Mapping[str, Any]) -> Verdict:
    """Compare two models' measures, as :mod:`ml_backend.training.evaluate` gives them.

    The candidate passes if no measure has fallen by more than chance explains: mAP50-95 and mAP50 of all labels, AP50
    of each label with at least ``LABEL_BOXES`` boxes, and HOTA and IDF1 of the tracks where there are true ones.
    """
    if _value(candidate, "map50_95") is None:
        return Verdict(False, "Nothing in the held-out part could be measured.")
    if not _value(candidate, "map50"):
        return Verdict(False, "The candidate finds nothing in the held-out part.")
    worse = []
    for name, noise in NOISE.items():
        new, old = _value(candidate, name), _value(incumbent, name)
        noise += TRACK_NOISE.get(name, 0.0) / math.sqrt(max(_value(candidate, "frames") or 0.0, 1.0))
        if new is not None and old is not None and new < old - noise:
            worse.append(f"{_NAMES[name]} {old:.3f} -> {new:.3f}")
    for label, facts in sorted((incumbent.get("labels") or {}).items()):
        new_facts = (candidate.get("labels") or {}).get(label) or {}
        old_ap, new_ap = _value(facts, "ap50"), _value(new_facts, "ap50")
        if old_ap is None or (facts.get("boxes") or 0) < LABEL_BOXES:
            continue
        if (new_ap or 0.0) < old_ap - LABEL_LOSS:
            worse.append(f"AP50 of {label} {old_ap:.3f} -> {new_ap or 0.0:.3f}")
    if worse:
        return Verdict(False, f"Worse than the present model: {', '.join(worse)}.")
    return Verdict(True, f"Not worse than the present model: {_figures(candidate, incumbent)}.")


def _figures(candidate: Mapping[str, Any], incumbent: Mapping[str, Any]) -> str:
    parts = []
    for name, title in _NAMES.items():
        new, old = _value(candidate, name), _value(incumbent, name)
        if new is not None:
            parts.append(f"{title} {'-' if old is None else f'{old:.3f}'} -> {new:.3f}")
    return ", ".join(parts)


def _value(facts: Mapping[str, Any], name: str) -> float | None:
    value = facts.get(name)
    return float(value) if isinstance(value, (int, float)) else None
