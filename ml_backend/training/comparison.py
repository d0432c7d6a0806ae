"""Compare the tracks of two detectors on videos without annotations: what is lost, relabelled, gained.

Without annotations nobody knows which detector is right. But what people see now, they have seen and may rely on: a
*sure* track that disappears or gets another label makes their work worse, unless they have asked for it.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ml_backend.core.boxes import iou_pairs
from ml_backend.core.errors import VideoError
from ml_backend.core.types import Track, VideoInfo
from ml_backend.video.probe import probe

log = logging.getLogger(__name__)

#: Videos that are compared, and parts of videos; with fewer videos, several parts of one.
VIDEOS = 8
#: Seconds of a part: long enough for people to cross the picture. Many short parts show more objects than a long one.
PART_S, SHORTEST_PART_S = 4.0, 2.0
#: A track is sure from this score, at which it is rather an object than not: weaker ones come and go with any training.
SURE_SCORE = 0.5
#: Seconds that a sure track lasts: shorter ones are objects at the edge of the picture or of the part.
SURE_S = 1.0
#: IoU from which two boxes show one object, and the share of a track's frames on which another one must do so.
SAME_IOU, SAME_SHARE = 0.5, 0.5
#: Share of a label's sure tracks to which people have given one other label, from which they may mean all of them.
RENAMED_SHARE = 0.5
#: Changes that are listed, and those that clips show; all are counted.
LISTED, CLIPS = 60, 6

ChangeKind = Literal["lost", "relabelled", "gained"]
_KINDS: tuple[ChangeKind, ...] = ("lost", "relabelled", "gained")


@dataclass(frozen=True, slots=True)
class OtherVideo:
    """A video that nobody has annotated.

    Attributes:
        task: id of its task.
    """

    task: int
    path: Path


@dataclass(frozen=True, slots=True)
class VideoPart:
    """A part of a video on which detectors are compared.

    Attributes:
        first, last: decoded frames.
    """

    video: OtherVideo
    info: VideoInfo = field(compare=False)
    first: int
    last: int

    @property
    def frames(self) -> int:
        return self.last - self.first + 1


def sample_parts(videos: Sequence[OtherVideo], max_frames: int) -> list[VideoPart]:
    """Choose parts of the videos, the same ones each time; videos that cannot be read are left out.

    Args:
        max_frames: in total.
    """
    probed: list[tuple[OtherVideo, VideoInfo]] = []
    for video in videos[:VIDEOS]:
        try:
            probed.append((video, probe(video.path)))
        except VideoError as error:
            log.warning("The video of task %d is not compared: %s", video.task, error)
    per_video = VIDEOS // max(1, len(probed))
    slots = [
        (number, count, video, info)
        for video, info in probed
        for count in [max(1, min(per_video, int(info.duration / PART_S)))]
        for number in range(count)
    ]
    slots.sort(key=lambda slot: slot[0])  # the first part of each video before the second of any
    rates = sum(info.fps for _, _, _, info in slots)
    seconds = min(PART_S, max(SHORTEST_PART_S, max_frames / max(rates, 1.0)))
    parts: list[VideoPart] = []
    for number, count, video, info in slots:
        room = max_frames - sum(part.frames for part in parts)
        begin, end = info.frames * number // count, info.frames * (number + 1) // count
        length = min(math.ceil(seconds * info.fps), end - begin, room)
        if length < min(SHORTEST_PART_S * info.fps, end - begin):
            continue  # too short to tell tracks from flicker
        digest = hashlib.sha256(f"{video.task}/{number}".encode()).digest()
        first = begin + int.from_bytes(digest[:4], "big") % (end - begin - length + 1)
        parts.append(VideoPart(video, info, first, first + length - 1))
    return sorted(parts, key=lambda part: (part.video.task, part.first))


@dataclass(frozen=True, slots=True)
class Change:
    """A sure track of which the other detector has no counterpart with the same label.

    Attributes:
        task: id of the task.
        label: of the track.
        now: label that the candidate gives it, if it is relabelled.
        first, last: frames of the file between which it is visible, from 1.
        score: of the track.
        wanted: it is relabelled to a label that is new to the incumbent, and the old label has held-out annotations:
            these tell whether that is right.
        renamed: likewise, but nobody has annotated the old label: people gave the new one to most objects that had the
            old one. Whether they mean all of them, in all videos, only they can say.
        clip: index of the clip that shows it; ``None`` without one.
    """

    kind: ChangeKind
    task: int
    label: str
    now: str
    first: int
    last: int
    score: float
    wanted: bool = False
    renamed: bool = False
    clip: int | None = None


@dataclass(frozen=True, slots=True)
class Moment:
    """A change, with where to see it."""

    change: Change
    part: VideoPart
    track: Track


@dataclass(frozen=True, slots=True)
class TracksOfModel:
    """The tracks that a model finds in each part, each with its label.

    Attributes:
        labels: all labels that the model can give.
    """

    labels: frozenset[str]
    tracks: dict[VideoPart, list[Track]] = field(default_factory=dict)


class TrackComparison:
    """The comparison of a candidate's tracks with the incumbent's.

    Args:
        measured: labels with held-out annotations.
        base: the configured detector, unless it is the incumbent; the reference for labels that are not ``measured``.
        renames: see :func:`find_renames`.
    """

    def __init__(
        self,
        candidate: TracksOfModel,
        incumbent: TracksOfModel,
        measured: Collection[str],
        base: TracksOfModel | None = None,
        renames: Collection[tuple[str, str]] = (),
    ) -> None:
        models = [model for model in (candidate, incumbent, base) if model is not None]
        self._candidate, self._incumbent, self._base = candidate, incumbent, base
        self._measured, self._renames = frozenset(measured), frozenset(renames)
        #: Parts that all models could read.
        self.parts = [part for part in incumbent.tracks if all(part in model.tracks for model in models)]
        self.sure = sum(len(_sure(incumbent, part)) for part in self.parts)
        #: Ordered by kind, the surest first.
        self.moments = sorted(self._moments(), key=lambda item: (_KINDS.index(item.change.kind), -item.change.score))

    def _moments(self) -> Iterator[Moment]:
        for part in self.parts:
            old, new = self._incumbent.tracks[part], self._candidate.tracks[part]
            hits = _Hits(old, new)
            kept: set[int] = set()
            for i, track in enumerate(old):
                kind, now = hits.fate(i)
                if kind is None:
                    kept.add(i)
                elif _is_sure(track, part):
                    new_label = now not in (*self._incumbent.labels, "")
                    wanted = new_label and track.label in self._measured
                    yield _moment(kind, part, track, now, wanted, new_label and self._is_renamed(track, now))
            for j, track in enumerate(new):
                # Tracks with a label that the incumbent lacks are what it was trained for.
                known = track.label in self._incumbent.labels
                if known and _is_sure(track, part) and not hits.explained(j, kept):
                    yield _moment("gained", part, track)

    def _is_renamed(self, track: Track, now: str) -> bool:
        return track.label not in self._measured and (str(track.label), now) in self._renames

    def summary(self, moments: Sequence[Moment] | None = None) -> dict[str, Any]:
        """Return the comparison as plain JSON.

        Args:
            moments: the moments, where clips of them were made.

        Returns:
            ``videos``, ``frames``; ``tracks``, the incumbent's sure ones; of these ``lost`` and ``relabelled``;
            ``kept_interval``, the 95 % interval of the share of the others; ``gained``; ``renamed``, see
            :class:`Change`; ``worse``, those lost or relabelled that are neither wanted nor renamed; ``changes``, the
            first of them; and ``base`` with ``tracks``, ``worse`` and ``worse_before``, the incumbent's: of the labels
            that are not measured, compared with the base model; ``None`` where that is the incumbent.
        """
        changes = [moment.change for moment in (self.moments if moments is None else moments)]
        counts: dict[str, int] = {kind: sum(change.kind == kind for change in changes) for kind in _KINDS}
        wanted, renamed = sum(change.wanted for change in changes), sum(change.renamed for change in changes)
        return {
            "videos": len({part.video.task for part in self.parts}),
            "frames": sum(part.frames for part in self.parts),
            "tracks": self.sure,
            **counts,
            "renamed": renamed,
            "kept_interval": share_interval(self.sure - counts["lost"] - counts["relabelled"], self.sure),
            "worse": counts["lost"] + counts["relabelled"] - wanted - renamed,
            "changes": [asdict(c) for n, c in enumerate(changes) if n < LISTED - CLIPS or c.clip is not None],
            "base": None if self._base is None else self._drift(self._base),
        }

    def _drift(self, base: TracksOfModel) -> dict[str, int]:
        """Count the base model's sure tracks, of labels that are not measured, that others lose or relabel."""
        tracks = worse = before = 0
        for part in self.parts:
            reference = base.tracks[part]
            chosen = [
                i for i, track in enumerate(reference) if _is_sure(track, part) and track.label not in self._measured
            ]
            tracks += len(chosen)
            new, old = (_Hits(reference, model.tracks[part]) for model in (self._candidate, self._incumbent))
            lost_by = [
                sum(
                    kind is not None and not self._is_renamed(reference[i], now)
                    for i in chosen
                    for kind, now in [hits.fate(i)]
                )
                for hits in (new, old)
            ]
            worse, before = worse + lost_by[0], before + lost_by[1]
        return {"tracks": tracks, "worse": worse, "worse_before": before}


def _sure(model: TracksOfModel, part: VideoPart) -> list[Track]:
    return [track for track in model.tracks[part] if _is_sure(track, part)]


def _is_sure(track: Track, part: VideoPart) -> bool:
    return track.score >= SURE_SCORE and len(track) >= min(SURE_S * part.info.fps, part.frames)


def _moment(
    kind: ChangeKind, part: VideoPart, track: Track, now: str = "", wanted: bool = False, renamed: bool = False
) -> Moment:
    first, last = int(track.frames[0]) + 1, int(track.frames[-1]) + 1
    label = str(track.label)
    change = Change(kind, part.video.task, label, now, first, last, round(float(track.score), 3), wanted, renamed)
    return Moment(change, part, track)


class _Hits:
    """On which frames each track of one list shows the same object as each of another."""

    def __init__(self, old: Sequence[Track], new: Sequence[Track]) -> None:
        self._old, self._new = old, new
        self._by_pair: dict[tuple[int, int], tuple[npt.NDArray[Any], npt.NDArray[Any]]] = {}
        for i, a in enumerate(old):
            for j, b in enumerate(new):
                _, in_a, in_b = np.intersect1d(a.frames, b.frames, assume_unique=True, return_indices=True)
                same = iou_pairs(a.xyxy[in_a], b.xyxy[in_b]) >= SAME_IOU if len(in_a) else np.zeros(0, bool)
                if same.any():
                    self._by_pair[i, j] = in_a[same], in_b[same]

    def fate(self, i: int) -> tuple[ChangeKind | None, str]:
        """Return what became of an old track: the kind of change, ``None`` if it was kept, and its new label.

        However weak the new track is: as long as it is delivered, nothing is lost. A track may go on as several.
        """
        track = self._old[i]
        frames_by_label: dict[str, npt.NDArray[np.bool_]] = {}
        for (old, j), (in_old, _) in self._by_pair.items():
            if old == i:
                label = str(self._new[j].label)
                frames_by_label.setdefault(label, np.zeros(len(track), bool))[in_old] = True
        enough = SAME_SHARE * len(track)
        if str(track.label) in frames_by_label and frames_by_label[str(track.label)].sum() >= enough:
            return None, ""
        found = np.zeros(len(track), bool)
        for frames in frames_by_label.values():
            found |= frames
        if found.sum() < enough:
            return "lost", ""
        others = {label: int(frames.sum()) for label, frames in frames_by_label.items() if label != track.label}
        return "relabelled", max(sorted(others), key=others.__getitem__)

    def explained(self, j: int, kept: Collection[int]) -> bool:
        """Return whether a new track shows what old ones of its label show, or ones that have changed their label.

        Args:
            kept: old tracks that kept their label: one of another label beside it explains nothing.
        """
        track = self._new[j]
        found = np.zeros(len(track), bool)
        for (i, new), (_, in_new) in self._by_pair.items():
            if new == j and (self._old[i].label == track.label or i not in kept):
                found[in_new] = True
        return bool(found.sum() >= SAME_SHARE * len(track))


def annotated_as(found: Sequence[Track], annotated: Sequence[Track]) -> Counter[tuple[str, str]]:
    """Count a model's sure tracks of one part by their label and by that of people.

    Args:
        annotated: people's tracks on the same frames.

    Returns:
        Number of tracks by ``(label, label of people)``; the second is empty where people annotated nothing.
    """
    hits = _Hits(found, annotated)
    fates = [(str(track.label), *hits.fate(i)) for i, track in enumerate(found) if track.score >= SURE_SCORE]
    return Counter((label, label if kind is None else now) for label, kind, now in fates)


def find_renames(counts: Mapping[tuple[str, str], int]) -> frozenset[tuple[str, str]]:
    """Return the pairs of an old and a new label, where people gave the new one to most tracks that have the old one.

    Args:
        counts: see :func:`annotated_as`.
    """
    totals: Counter[str] = Counter()
    for (label, _), number in counts.items():
        totals[label] += number
    return frozenset(
        (label, now)
        for (label, now), number in counts.items()
        if now not in (label, "") and number > RENAMED_SHARE * totals[label]
    )


def share_interval(count: int, total: int) -> tuple[float, float] | None:
    """Return the 95 % interval of a share by Wilson (1927); ``None`` of nothing.

    A bootstrap, which resamples what was seen, would call a share of 100 % certain however few were seen.
    """
    from scipy.stats import binomtest

    if not total:
        return None
    interval = binomtest(count, total).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def moments_to_show(moments: Sequence[Moment]) -> list[int]:
    """Return the indices of up to ``CLIPS`` moments: of each kind in turn, the surest first."""
    queues = [[n for n, moment in enumerate(moments) if moment.change.kind == kind] for kind in _KINDS]
    turns = [(turn, n) for queue in queues for turn, n in enumerate(queue)]
    return sorted(n for _, n in sorted(turns)[:CLIPS])


def with_clip(moment: Moment, clip: int) -> Moment:
    """Return a moment whose change names its clip."""
    return replace(moment, change=replace(moment.change, clip=clip))
