"""Checks labels against the detector's classes and against other tracks that look alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ml_backend.core.boxes import iou_matrix
from ml_backend.core.types import Track
from ml_backend.review.finding import Finding
from ml_backend.review.repairs import Relabel
from ml_backend.review.video import Evidence

#: IoU from which a detection tells the class of a track's box.
SAME_IOU = 0.5
#: Tracks that a class counts as for the label that the config gives to it, or that has its name.
NAMED = 1.0
#: Log-odds from which a label is doubted, and weights of classes and views.
DOUBT, CLASSES, VIEWS = 1.0, 1.0, 6.0
#: Tracks of a label of which views are compared, and the most alike ones of these that count.
COMPARED, NEAREST = 50, 3
#: Share of a class that no track of a label has.
UNSEEN = 0.05


def find(evidence: Evidence) -> Iterator[Finding]:
    """Yield tracks of which the detector's classes and the views speak for another label."""
    video = evidence.video
    by_class = set(video.class_labels.values())
    names = sorted({track.label for track in video.tracks if track.label} | by_class)
    if len(names) < 2:
        return
    shares = _class_shares(evidence)
    known = _class_counts(evidence, shares)
    seen = {name: [t for t in video.tracks if t.label == name and t.track_id in evidence.views] for name in names}
    for track in video.tracks:
        label = track.label
        if not label:
            continue
        classes = _class_evidence(shares[track.track_id], label, known)
        views = _view_evidence(evidence, track, seen)
        odds = {
            name: CLASSES * (classes[name] - classes[label] if name in classes and label in classes else 0.0)
            + VIEWS * (views[name] - views[label] if name in views and label in views else 0.0)
            for name in names
            if name != label
        }
        best = max(odds, key=lambda name: (odds[name], name in by_class, name))
        if odds[best] <= DOUBT:
            continue
        yield Finding(
            "label",
            (track.track_id,),
            int(track.frames[0]),
            int(track.frames[-1]),
            min(float(1 / (1 + np.exp(DOUBT - odds[best]))), 0.95),
            f"It is labelled {label}, but looks like {best}.",
            Relabel(track.track_id, best),
        )


def _class_shares(evidence: Evidence) -> dict[int, Mapping[str, float]]:
    """Return for each track how the detector's classes share its boxes; empty if that is unknown."""
    video = evidence.video
    votes: dict[int, dict[str, float]] = {track.track_id: defaultdict(float) for track in video.tracks}
    for frame, found in (video.detections or {}).items():
        if frame not in evidence.rows_by_frame or not len(found):
            continue
        ids, boxes = evidence.rows_by_frame[frame]
        iou = iou_matrix(boxes, found.xyxy)
        likely = np.where(iou >= SAME_IOU, iou * found.conf, -1.0)
        best = likely.argmax(axis=1)
        for row in np.flatnonzero(likely.max(axis=1) >= 0).tolist():
            name = video.class_names.get(int(found.class_id[best[row]]), "object")
            votes[int(ids[row])][name] += float(found.conf[best[row]])
    shares: dict[int, Mapping[str, float]] = {}
    for track in video.tracks:
        scores: Mapping[str, float] = votes[track.track_id] if video.detections else track.class_scores
        total = sum(scores.values())
        shares[track.track_id] = {name: score / total for name, score in scores.items()} if total else {}
    return shares


def _class_counts(evidence: Evidence, shares: Mapping[int, Mapping[str, float]]) -> dict[str, defaultdict[str, float]]:
    """Return how many tracks of each label have each class, with :data:`NAMED` for the class that has the label."""
    known: dict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    for name, label in evidence.video.class_labels.items():
        known[label][name] += NAMED
    for track in evidence.video.tracks:
        for name, share in shares[track.track_id].items():
            if track.label:
                known[track.label][name] += share
    for label in {name for own in shares.values() for name in own} - evidence.video.class_labels.keys():
        if label in known:
            known[label][label] += NAMED
    return known


def _class_evidence(own: Mapping[str, float], label: str, known: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the log-likelihood of a track's classes for each label of which something else is known.

    Args:
        own: shares of its classes.
        label: of the track, whose own shares are left out.
    """
    out: dict[str, float] = {}
    for name, counts in known.items():
        others = {c: count - own.get(c, 0.0) * (name == label) for c, count in counts.items()}
        total = sum(others.values())
        if own and total > 0.5:  # less is rounding, or a part of a track
            likely = sum(share * others.get(c, 0.0) / total for c, share in own.items())
            out[name] = float(np.log(max(likely, UNSEEN)))
    return out


def _view_evidence(evidence: Evidence, track: Track, seen: Mapping[str, Sequence[Track]]) -> dict[str, float]:
    """Return for each label how alike the views of the track and of the label's most similar other tracks are."""
    own = evidence.mean_views.get(track.track_id)
    if own is None:
        return {}
    out = {}
    for name, tracks in seen.items():
        others = [other.track_id for other in tracks if other is not track]
        others = others[:: -(-len(others) // COMPARED) or 1]
        found = [float(own @ evidence.mean_views[number]) for number in others]
        if len(found) >= NEAREST:
            out[name] = float(np.mean(sorted(found)[-NEAREST:]))
    return out
