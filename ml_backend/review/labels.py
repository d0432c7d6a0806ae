"""Checks labels against the detector's classes and against other tracks that look alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np

from ml_backend.core.boxes import iou_matrix
from ml_backend.core.types import Track
from ml_backend.labeling.few_shot.identity_jumps import MAX_OTHERS, likeness
from ml_backend.review.finding import Finding
from ml_backend.review.repairs import Relabel
from ml_backend.review.video import Evidence

#: IoU from which a detection tells the class of a track's box.
SAME_IOU = 0.5
#: Weight of the class that bears a label's name, or that the config gives to it, in tracks.
NAMED = 1.0
#: Log-odds from which a label is doubted, and weights of classes and views.
DOUBT, CLASSES, VIEWS = 0.5, 1.0, 6.0
#: Tracks of a label of which views are compared: the most alike ones.
NEAREST = 3
#: Share of a class that no track of a label has.
UNSEEN = 0.05


def find(evidence: Evidence) -> Iterator[Finding]:
    """Yield tracks of which the detector's classes and the views speak for another label."""
    tracks = evidence.video.tracks
    names = sorted({track.label for track in tracks if track.label} | set(evidence.video.class_labels.values()))
    if len(names) < 2:
        return
    shares = _class_shares(evidence)
    for track in tracks:
        if not track.label:
            continue
        classes = _class_evidence(evidence, track, names, shares)
        views = _view_evidence(evidence, track, names)
        odds = {
            name: CLASSES * (classes[name] - classes[track.label])
            + VIEWS * (views[name] - views[track.label] if name in views and track.label in views else 0.0)
            for name in names
            if name != track.label
        }
        best = max(odds, key=lambda name: (odds[name], name))
        score = float(1 / (1 + np.exp(-(odds[best] - 2 * DOUBT))))
        if odds[best] <= 2 * DOUBT:
            continue
        yield Finding(
            "label",
            (track.track_id,),
            int(track.frames[0]),
            int(track.frames[-1]),
            min(score, 0.95),
            f"It is labelled {track.label}, but looks like {best}.",
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
        for row, track_id in enumerate(ids.tolist()):
            near = np.flatnonzero(iou[row] >= SAME_IOU)
            if len(near):
                best = near[np.argmax(iou[row, near] * found.conf[near])]
                votes[track_id][video.class_names.get(int(found.class_id[best]), "object")] += float(found.conf[best])
    shares: dict[int, Mapping[str, float]] = {}
    for track in video.tracks:
        scores: Mapping[str, float] = votes[track.track_id] if video.detections else track.class_scores
        total = sum(scores.values())
        shares[track.track_id] = {name: score / total for name, score in scores.items()} if total else {}
    return shares


def _class_evidence(
    evidence: Evidence, track: Track, names: list[str], shares: Mapping[int, Mapping[str, float]]
) -> dict[str, float]:
    """Return the log-likelihood of a track's classes for each label, from the other tracks that have it."""
    own = shares[track.track_id]
    out = dict.fromkeys(names, 0.0)
    if not own:
        return out
    known: dict[str, dict[str, float]] = {name: defaultdict(float) for name in names}
    for name, label in evidence.video.class_labels.items():
        known[label][name] += NAMED
    for other in evidence.video.tracks:
        if other is not track and other.label:
            for name, share in shares[other.track_id].items():
                known[other.label][name] += share
    for name in names:
        if name not in evidence.video.class_labels.values() and not known[name] and name not in own:
            continue
        total = sum(known[name].values()) + NAMED * (name in own)
        likely = sum(share * (known[name][c] + NAMED * (c == name)) / max(total, NAMED) for c, share in own.items())
        out[name] = float(np.log(max(likely, UNSEEN)))
    return out


def _view_evidence(evidence: Evidence, track: Track, names: list[str]) -> dict[str, float]:
    """Return for each label how alike the views of the track and of the label's most similar other tracks are."""
    own = evidence.views.get(track.track_id)
    if own is None:
        return {}
    out = {}
    for name in names:
        others = [
            other.track_id
            for other in evidence.video.tracks
            if other.label == name and other is not track and other.track_id in evidence.views
        ]
        others = others[:: -(-len(others) // MAX_OTHERS) or 1]
        found = [likeness(own.looks, evidence.views[number].looks, evidence.centre) for number in others]
        if len(found) >= NEAREST:
            out[name] = float(np.mean(sorted(found)[-NEAREST:]))
    return out
