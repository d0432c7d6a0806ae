"""The promotion gate: compare a candidate with the incumbent on the same held-out frames, and on other videos.

On held-out frames people have said what is right, so no metric may fall by more than noise. On the project's other
videos nobody has: there the candidate must keep the incumbent's sure tracks, see
:mod:`ml_backend.training.comparison`. What the figures cannot decide is proposed to a person.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

#: Largest drop of each metric that is still within noise.
NOISE = {"map50_95": 0.002, "map50": 0.01, "hota": 0.01, "idf1": 0.01}
#: Track metrics depend on the few frames where tracks cross or begin: added tolerance, over sqrt(measured frames).
TRACK_NOISE = {"hota": 0.3, "idf1": 0.3}
#: Largest drop of one label's AP50. Labels with fewer boxes, counted over all measured frames, are not checked.
LABEL_LOSS = 0.05
LABEL_BOXES = 20
#: Share of the sure tracks that any training loses or relabels by chance, and how sure the gate is that more were.
CHANCE, CERTAINTY = 0.03, 0.95
#: With fewer sure tracks a single loss is more than 5 %, yet no proof: a person decides.
FEW_SURE = 20
#: Held-out annotations are thin below these numbers of videos and tracks: one scene says little about others.
THIN_VIDEOS, THIN_TRACKS = 2, 10
#: Tracks that a reason names.
NAMED = 3
_NAMES = {"map50_95": "mAP50-95", "map50": "mAP50", "hota": "HOTA", "idf1": "IDF1"}

Outcome = Literal["promoted", "proposed", "refused"]


@dataclass(frozen=True, slots=True)
class GateDecision:
    """The gate's decision.

    Attributes:
        reason: explanation for people, with the metrics that led to it.
    """

    outcome: Outcome
    reason: str


def decide_promotion(
    candidate: Mapping[str, Any],
    incumbent: Mapping[str, Any],
    others: Mapping[str, Any] | None = None,
    *,
    propose: bool = False,
) -> GateDecision:
    """Decide whether the candidate replaces the incumbent, is proposed, or refused.

    The candidate passes if no metric has dropped beyond its tolerance: mAP50-95 and mAP50 over all labels, AP50 of each
    label with at least ``LABEL_BOXES`` boxes, and HOTA and IDF1 where there are ground-truth tracks; and if, on other
    videos, no more sure tracks are lost or relabelled than :func:`allowed_losses`.

    Args:
        candidate, incumbent: metrics as :func:`ml_backend.training.evaluate.evaluate` returns them.
        others: the comparison on other videos, likewise; ``None`` without such videos.
        propose: a candidate that passes is proposed in any case.
    """
    if _value(candidate, "map50_95") is None:
        return GateDecision("refused", "Nothing in the held-out part could be measured.")
    if not _value(candidate, "map50"):
        return GateDecision("refused", "The candidate finds nothing in the held-out part.")
    evidence = _evidence(candidate, others)
    worse = [*_worse_metrics(candidate, incumbent), *_worse_labels(candidate, incumbent)]
    reasons = [f"Worse than the present model: {', '.join(worse)}."] if worse else []
    if others and (lost := _worse_elsewhere(others)):
        reasons.append(f"Worse on other videos: {lost}.")
    if reasons:
        return GateDecision("refused", " ".join([*reasons, evidence]))
    reason = f"Not worse than the present model: {_figures(candidate, incumbent)}."
    doubts = _doubts(candidate, others) if others else ""
    if propose or doubts:
        why = doubts or "the project's policy asks for a person's decision"
        return GateDecision("proposed", f"{reason} Proposed, since {why}. {evidence}")
    return GateDecision("promoted", f"{reason} {evidence}")


def allowed_losses(tracks: int) -> int:
    """Return how many of so many sure tracks may be lost or relabelled by chance: the upper bound of a binomial.

    At least one: a single track never proves anything.
    """
    from scipy.stats import binom

    return max(1, int(binom.ppf(CERTAINTY, tracks, CHANCE))) if tracks else 0


def describe_changes(others: Mapping[str, Any]) -> str:
    """Return the numbers of changes, such as ``2 tracks lost, 1 relabelled``; empty without changes."""
    counts = [(int(others.get(kind) or 0), kind) for kind in ("lost", "relabelled", "gained")]
    texts = [f"{number} {kind}" for number, kind in counts if number]
    if not texts:
        return ""
    number, kind = texts[0].split()
    return ", ".join([f"{number} track{'' if number == '1' else 's'} {kind}", *texts[1:]])


def _worse_elsewhere(others: Mapping[str, Any]) -> str:
    """Return what is lost on other videos if it is more than chance explains, else an empty text."""
    worse, tracks = int(others["worse"]), int(others["tracks"])
    if worse > (may := allowed_losses(tracks)):
        changes = [c for c in others["changes"] if c["kind"] != "gained" and not c["wanted"] and not c["renamed"]]
        return f"{worse} of {tracks} sure tracks lost or relabelled (chance explains {may}): {_named(changes)}"
    if base := others.get("base"):
        # What the incumbent has lost already is not news.
        may = allowed_losses(base["tracks"])
        if base["worse"] > max(may, base["worse_before"]):
            return (
                f"{base['worse']} of {base['tracks']} sure tracks that the base model finds, of labels that nobody has "
                f"annotated, are lost or relabelled by now (chance explains {may}; so far {base['worse_before']})"
            )
    return ""


def _doubts(candidate: Mapping[str, Any], others: Mapping[str, Any]) -> str:
    """Return why a person should decide; empty if nothing speaks against a promotion."""
    changes = describe_changes(others)
    if not changes:
        return ""
    named = f"{changes} on other videos ({_named(others['changes'])})"
    if number := others["renamed"]:
        return f"{named}, and only people can say whether they mean these {number}, too, as in their annotations"
    videos, tracks = int(candidate.get("videos") or 0), int(candidate.get("tracks") or 0)
    if videos < THIN_VIDEOS or tracks < THIN_TRACKS:
        return f"{named}, and few annotations measure it"
    if others["worse"] and others["tracks"] < FEW_SURE:
        return f"{named}, and there are few sure tracks to tell that from chance"
    return ""


def _named(changes: Sequence[Mapping[str, Any]]) -> str:
    texts = [_name(change) for change in changes[:NAMED]]
    more = [f"{len(changes) - NAMED} more"] if len(changes) > NAMED else []
    return "; ".join([*texts, *more])


def _name(change: Mapping[str, Any]) -> str:
    place = f"{change['label']} in task {change['task']}, frames {change['first']}-{change['last']}"
    return f"{place}, {change['kind']}" + (f" to {change['now']}" if change["now"] else "")


def _evidence(candidate: Mapping[str, Any], others: Mapping[str, Any] | None) -> str:
    """Return what was measured, in numbers of videos, tracks and frames."""
    held_out = (
        f"Measured on {_count(candidate, 'frames', 'held-out frame')} of {_count(candidate, 'videos', 'video')} "
        f"with {_count(candidate, 'tracks', 'annotated track')}"
    )
    if not others:
        return f"{held_out}; there is no other video to compare on."
    kept = int(others["tracks"]) - int(others["lost"]) - int(others["relabelled"])
    share = ""
    if interval := others.get("kept_interval"):
        share = f" ({kept / others['tracks']:.0%}, 95 % interval {interval[0]:.0%} to {interval[1]:.0%})"
    return (
        f"{held_out}; on {_count(others, 'frames', 'frame')} of {_count(others, 'videos', 'other video')} it keeps "
        f"{kept} of {_count(others, 'tracks', 'sure track')}{share}."
    )


def _count(facts: Mapping[str, Any], name: str, noun: str) -> str:
    number = int(facts.get(name) or 0)
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _worse_metrics(candidate: Mapping[str, Any], incumbent: Mapping[str, Any]) -> list[str]:
    worse = []
    for name, noise in NOISE.items():
        new, old = _value(candidate, name), _value(incumbent, name)
        noise += TRACK_NOISE.get(name, 0.0) / math.sqrt(max(_value(candidate, "frames") or 0.0, 1.0))
        if new is not None and old is not None and new < old - noise:
            worse.append(f"{_change(name, candidate, incumbent)} (may fall by {noise:.3f})")
    return worse


def _worse_labels(candidate: Mapping[str, Any], incumbent: Mapping[str, Any]) -> list[str]:
    worse = []
    for label, facts in sorted((incumbent.get("labels") or {}).items()):
        new_facts = (candidate.get("labels") or {}).get(label) or {}
        old_ap, new_ap = _value(facts, "ap50"), _value(new_facts, "ap50")
        if old_ap is None or (facts.get("boxes") or 0) < LABEL_BOXES:
            continue
        if (new_ap or 0.0) < old_ap - LABEL_LOSS:
            worse.append(f"AP50 of {label} {old_ap:.3f} -> {new_ap or 0.0:.3f} (may fall by {LABEL_LOSS:.3f})")
    return worse


def _figures(candidate: Mapping[str, Any], incumbent: Mapping[str, Any]) -> str:
    return ", ".join(_change(name, candidate, incumbent) for name in _NAMES if _value(candidate, name) is not None)


def _change(name: str, candidate: Mapping[str, Any], incumbent: Mapping[str, Any]) -> str:
    """Return a metric of both models, such as ``mAP50 0.916 [0.88, 0.95] -> 0.970 [0.95, 0.99]``."""
    texts = []
    for facts in (incumbent, candidate):
        value, interval = _value(facts, name), facts.get(f"{name}_interval")
        text = "-" if value is None else f"{value:.3f}"
        texts.append(f"{text} [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else text)
    return f"{_NAMES[name]} {' -> '.join(texts)}"


def _value(facts: Mapping[str, Any], name: str) -> float | None:
    value = facts.get(name)
    return float(value) if isinstance(value, (int, float)) else None
