"""The promotion gate: compare a candidate with the incumbent on the same held-out frames."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Largest drop of each metric that is still within noise.
NOISE = {"map50_95": 0.002, "map50": 0.01, "hota": 0.01, "idf1": 0.01}
#: Track metrics depend on the few frames where tracks cross or begin: added tolerance, over sqrt(measured frames).
TRACK_NOISE = {"hota": 0.3, "idf1": 0.3}
#: Largest drop of one label's AP50. Labels with fewer boxes, counted over all measured frames, are not checked.
LABEL_LOSS = 0.05
LABEL_BOXES = 20
_NAMES = {"map50_95": "mAP50-95", "map50": "mAP50", "hota": "HOTA", "idf1": "IDF1"}


@dataclass(frozen=True, slots=True)
class GateDecision:
    """The gate's decision.

    Attributes:
        reason: explanation for people, with the metrics that led to it.
    """

    promote: bool
    reason: str


def decide_promotion(candidate: Mapping[str, Any], incumbent: Mapping[str, Any]) -> GateDecision:
    """Decide whether the candidate may replace the incumbent.

    The candidate passes if no metric has dropped beyond its tolerance: mAP50-95 and mAP50 over all labels, AP50 of each
    label with at least ``LABEL_BOXES`` boxes, and HOTA and IDF1 where there are ground-truth tracks.

    Args:
        candidate, incumbent: metrics as :func:`ml_backend.training.evaluate.evaluate` returns them.
    """
    if _value(candidate, "map50_95") is None:
        return GateDecision(False, "Nothing in the held-out part could be measured.")
    if not _value(candidate, "map50"):
        return GateDecision(False, "The candidate finds nothing in the held-out part.")
    worse = []
    for name, noise in NOISE.items():
        new, old = _value(candidate, name), _value(incumbent, name)
        noise += TRACK_NOISE.get(name, 0.0) / math.sqrt(max(_value(candidate, "frames") or 0.0, 1.0))
        if new is not None and old is not None and new < old - noise:
            worse.append(f"{_NAMES[name]} {old:.3f} -> {new:.3f} (may fall by {noise:.3f})")
    for label, facts in sorted((incumbent.get("labels") or {}).items()):
        new_facts = (candidate.get("labels") or {}).get(label) or {}
        old_ap, new_ap = _value(facts, "ap50"), _value(new_facts, "ap50")
        if old_ap is None or (facts.get("boxes") or 0) < LABEL_BOXES:
            continue
        if (new_ap or 0.0) < old_ap - LABEL_LOSS:
            worse.append(f"AP50 of {label} {old_ap:.3f} -> {new_ap or 0.0:.3f} (may fall by {LABEL_LOSS:.3f})")
    if worse:
        return GateDecision(False, f"Worse than the present model: {', '.join(worse)}.")
    return GateDecision(True, f"Not worse than the present model: {_figures(candidate, incumbent)}.")


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
