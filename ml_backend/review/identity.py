"""Checks who is who: tracks that change their object, broken lives, two boxes on one object."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np

from ml_backend.core.boxes import iou_matrix
from ml_backend.core.types import Float64Array, IntArray, Track
from ml_backend.labeling.few_shot.identity_jumps import weakest_links
from ml_backend.review.finding import Finding
from ml_backend.review.repairs import Delete, Join, SplitAt, SwapFrom, apply_repair
from ml_backend.review.video import Evidence, ReviewVideo
from ml_backend.tracking.assembly import DUPLICATE_IOU, DUPLICATE_IOU_CLASSES, DUPLICATE_SHARE, MAX_GAP_S
from ml_backend.tracking.box_motion import JUMP, apart, predicted, runs, steps
from ml_backend.tracking.stitch import best_pairs
from ml_backend.tracking.tracklet import Tracklet

#: IoU of two tracks' boxes from which they may have been exchanged.
MEET_IOU = 0.02
#: Seconds before and after two tracks meet at which an exchange is looked for, and for which each must last.
MEET_S = 0.2
#: Step, in box sizes, of an exchange that no smoothing has hidden.
SHARP = 0.1
#: Seconds before and after an exchange that smoothing may have blended.
BLEND_S = 0.2
#: Distance, in box sizes, from which a track does not go on where another one has ended.
FITS = 0.7
#: Longest gap in a life, seconds; the assembler has joined what it could over 2 s.
GAP_S = 3.0
#: Frames whose motion is predicted at once, and how many such blocks are kept: 100 MB at most, whatever the length of
#: tracks, and enough for a moment at which thousands of them are there.
BLOCK, KEPT_BLOCKS = 64, 40_000
#: Views on either side of an exchange, and other tracks, that are compared.
NEAREST, COMPARED = 4, 40
#: Seconds that a part of a track lasts in which its views show another object.
PART_S = 0.3
#: Score of a broken life from which it is joined without asking.
SAME_OBJECT = 0.6
#: Longest occlusion, in seconds, after which an object is known by its looks, and how far it moves meanwhile, in box
#: sizes per second.
AGAIN_S, REACH_PER_S = 5.0, 2.0
#: Likeness of its views before and after, and by how much it must exceed that of any other two tracks. Behind pillars
#: drawn into a street video the views of one person have 0.40 and more, those of two people 0.31 at most.
ALIKE, DISTINCT = 0.35, 0.05
#: Seconds at the ends of two parts of a life whose views are compared.
VIEWS_S = 3.0


def find(evidence: Evidence) -> Iterator[Finding]:
    """Yield where tracks seem to show another object than before, or the same as another track."""
    meetings, overlaps = _meetings(evidence)
    yield from _duplicates(evidence, overlaps)
    exchanges = _Exchanges(evidence)
    yield from _swaps(evidence, meetings, exchanges)
    yield from _takeovers(evidence, exchanges)
    yield from _identity_jumps(evidence, exchanges)
    yield from _broken_lives(evidence)


Pair = tuple[int, int]


def _meetings(evidence: Evidence) -> tuple[dict[Pair, list[int]], dict[Pair, Counter[float]]]:
    """Return the frames at which each two tracks touch, and how often they exceed each IoU of a duplicate."""
    meetings: dict[Pair, list[int]] = defaultdict(list)
    overlaps: dict[Pair, Counter[float]] = defaultdict(Counter)
    for frame in sorted(evidence.rows_by_frame):
        ids, boxes = evidence.rows_by_frame[frame]
        iou = np.triu(iou_matrix(boxes, boxes), 1)
        for i, j in np.argwhere(iou >= MEET_IOU).tolist():
            a, b = sorted((int(ids[i]), int(ids[j])))
            meetings[a, b].append(frame)
            for bound in (DUPLICATE_IOU, DUPLICATE_IOU_CLASSES):
                overlaps[a, b][bound] += bool(iou[i, j] >= bound)
    # Tracks that jump at once may be exchanged over any distance.
    jumps: dict[int, list[int]] = defaultdict(list)
    for track in evidence.video.tracks:
        if len(track) > 2:
            moved = steps(track.frames, track.xyxy, evidence.video.width, evidence.video.height)
            for row in np.flatnonzero(moved > JUMP).tolist():
                jumps[int(track.frames[row + 1])].append(track.track_id)
    for frame, together in jumps.items():
        for a, b in combinations(sorted(together), 2):
            meetings[a, b].append(frame)
    return meetings, overlaps


def _duplicates(evidence: Evidence, overlaps: dict[Pair, Counter[float]]) -> Iterator[Finding]:
    for (a_id, b_id), count in overlaps.items():
        a, b = evidence.by_id[a_id], evidence.by_id[b_id]
        common = np.intersect1d(a.frames, b.frames, assume_unique=True)
        bound = DUPLICATE_IOU if a.label == b.label else DUPLICATE_IOU_CLASSES
        share = count[bound] / max(len(common), 1)
        if count[bound] < 3 or share < DUPLICATE_SHARE:
            continue
        shorter, longer = sorted((a, b), key=lambda track: (len(track), -track.score, track.track_id))
        inside = len(common) >= 0.7 * len(shorter)
        yield Finding(
            "duplicate",
            (longer.track_id, shorter.track_id),
            int(common[0]),
            int(common[-1]),
            min(0.95, 0.35 + 0.6 * share),
            f"Two boxes are on one object for {len(common) / evidence.video.fps:.1f} s.",
            Delete(shorter.track_id) if inside else Join(longer.track_id, shorter.track_id),
        )


class _Exchanges:
    """Weighs whether a track exchanges its object with another one at a frame, by motion and views.

    The other one may be two tracks: one that ends there and one that begins, of which one may be missing.
    """

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._motion = lru_cache(maxsize=KEPT_BLOCKS)(self._predict)

    def odds(self, track: Track, ends: Track | None, begins: Track | None, frames: IntArray) -> Float64Array:
        """Return the log-odds ``(k,)`` of an exchange at each frame; ``-inf`` where they are below 0 for certain.

        Args:
            ends, begins: the other track before and from the frame on: the same one if it goes on.
            frames: ``(k,)``.
        """
        own = self.boxes(track, frames, before=True), self.boxes(track, frames, before=False)
        other = self.boxes(ends, frames, before=True), self.boxes(begins, frames, before=False)
        crossed = -apart(np.stack([other[0], own[0]]), np.stack([own[1], other[1]]))
        rest = -apart(*other) if ends is begins else np.full(len(frames), np.nan)
        motion = _exchange_gain(-apart(*own), rest, crossed)
        possible = (SWAP_MOTION * motion + SWAP_VIEWS > SWAP_PRIOR) & np.isfinite(own).all(axis=(0, 2))
        possible &= np.isfinite(crossed).any(axis=0)
        if ends is not begins:
            possible &= ~(crossed < -FITS).any(axis=0)
        odds = np.full(len(frames), -np.inf)
        if possible.any():
            alike = self._views_gain(track, ends, begins, frames[possible])
            odds[possible] = (
                SWAP_MOTION * np.minimum(motion[possible], 1.5) + SWAP_VIEWS * alike.clip(-1, 1) - SWAP_PRIOR
            )
        return odds

    def boxes(self, track: Track | None, frames: IntArray, *, before: bool) -> Float64Array:
        """Return where motion leads a track ``(k, 4)``; NaN where it does not, or without a track.

        Args:
            frames: ``(k,)`` ascending.
        """
        found = np.full((len(frames), 4), np.nan)
        if track is not None and len(frames):
            for block in range(int(frames[0]) // BLOCK, int(frames[-1]) // BLOCK + 1):
                rows = slice(*np.searchsorted(frames, (block * BLOCK, (block + 1) * BLOCK)))
                found[rows] = self._motion(track.track_id, block, before)[frames[rows] - block * BLOCK]
        return found

    def _predict(self, track_id: int, block: int, before: bool) -> Float64Array:
        """Return the predicted boxes ``(BLOCK, 4)`` of a block of frames."""
        frames = np.arange(block * BLOCK, (block + 1) * BLOCK)
        return predicted(self._evidence.by_id[track_id], frames, self._evidence.video.fps, before=before)

    def _views_gain(self, track: Track, ends: Track | None, begins: Track | None, frames: IntArray) -> Float64Array:
        """Return how much more alike ``(k,)`` the last views before each frame and the first from it on would be."""
        views = [
            self._evidence.views[part.track_id] for part in (track, ends, begins) if part and self._has_views(part)
        ]
        seen = np.concatenate([np.zeros(0, np.int64), *(item.frames for item in views)])
        # From one view to the next the same ones are compared.
        between = np.searchsorted(np.unique(seen), frames)
        _, rows, inverse = np.unique(between, return_index=True, return_inverse=True)
        own, other = (
            (self._mean_views(a, frames[rows], before=True), self._mean_views(b, frames[rows], before=False))
            for a, b in ((track, track), (ends, begins))
        )
        crossed = np.stack([(a * b).sum(axis=1) for a, b in ((other[0], own[1]), (own[0], other[1]))])
        rest = (other[0] * other[1]).sum(axis=1) if ends is begins else np.full(len(rows), np.nan)
        return _exchange_gain((own[0] * own[1]).sum(axis=1), rest, crossed)[inverse]

    def _has_views(self, track: Track) -> bool:
        return track.track_id in self._evidence.views

    def _mean_views(self, track: Track | None, frames: IntArray, *, before: bool) -> Float64Array:
        """Return the mean view ``(k, d)`` next to each frame, NaN without one; ``(k, 1)`` without any."""
        if track is None or not self._has_views(track):
            return np.full((len(frames), 1), np.nan)
        views = self._evidence.views[track.track_id]
        means = np.full((len(frames), views.unit.shape[1]), np.nan)
        for mean, cut in zip(means, np.searchsorted(views.frames, frames).tolist(), strict=True):
            near = views.unit[max(0, cut - NEAREST) : cut] if before else views.unit[cut : cut + NEAREST]
            if len(near):
                mean[:] = near.mean(axis=0)
        return means


#: Weights of motion, in box sizes, and of likeness of views, and how rare exchanges are.
SWAP_MOTION, SWAP_VIEWS, SWAP_PRIOR = 4.0, 3.0, 2.5


def _exchange_gain(straight: Float64Array, rest: Float64Array, crossed: Float64Array) -> Float64Array:
    """Return how much better ``(k,)`` two tracks go on if they are exchanged; 0 where too little is known.

    All are likenesses, NaN where unknown.

    Args:
        straight: ``(k,)`` of the first track before and after.
        rest: ``(k,)`` of the second one; where it is unknown the first one tells how well tracks do.
        crossed: ``(2, k)`` of the second one before and the first one after, and the other way round.
    """
    known = np.isfinite(crossed)
    mean = np.where(known, crossed, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    alone = np.where(known.any(axis=0), 2 * (mean - straight), 0.0)
    return np.nan_to_num(np.where(np.isfinite(rest), crossed.sum(axis=0) - straight - rest, alone))


def _swaps(evidence: Evidence, meetings: dict[Pair, list[int]], exchanges: _Exchanges) -> Iterator[Finding]:
    reach = max(2, round(MEET_S * evidence.video.fps))
    for (a_id, b_id), met in meetings.items():
        a, b = evidence.by_id[a_id], evidence.by_id[b_id]
        begin = max(int(track.frames[0]) for track in (a, b)) + reach  # both go on
        end = min(int(track.frames[-1]) for track in (a, b)) - reach
        near = np.unique(np.add.outer(met, np.arange(-reach, reach + 1)))
        for first, last in runs(np.isin(np.arange(near[0], near[-1] + 1), near)):
            frames = np.arange(near[0] + first, near[0] + last + 1, 2)
            frames = frames[(frames >= begin) & (frames <= end)]
            odds = exchanges.odds(a, b, b, frames)
            scored = frames[odds > 0]
            if not len(scored):
                continue
            best, frame = max(zip(odds.tolist(), frames.tolist(), strict=True))
            # An exchange from one frame to the next is seen exactly; smoothed boxes only tell about when.
            cuts = np.unique(np.add.outer(scored, (-1, 0, 1)))
            cut, sharpest = min(zip(_cut(a, b, cuts).tolist(), cuts.tolist(), strict=True))
            at = np.array([frame])
            distance = float(apart(exchanges.boxes(a, at, before=True), exchanges.boxes(b, at, before=True))[0])
            sharp = cut < -SHARP and cut < -distance  # an unknown distance, NaN, is none
            frame = sharpest if sharp else frame
            blend = 0 if sharp else _blend(evidence, (a, b), frame)
            reason = "Two tracks seem to exchange their objects where they meet."
            yield _exchange((a_id, b_id), frame, best, reason, SwapFrom(a_id, b_id, frame, blend))


def _blend(evidence: Evidence, tracks: Sequence[Track], frame: int) -> int:
    """Return the frames around an exchange that smoothing may have blended, at most as many as all tracks have."""
    rooms = [min(frame - 1 - int(track.frames[0]), int(track.frames[-1]) - frame) for track in tracks]
    return max(0, min(round(BLEND_S * evidence.video.fps), *rooms))


def _exchange(tracks: tuple[int, ...], frame: int, odds: float, reason: str, repair: SwapFrom) -> Finding:
    score = min(float(1 / (1 + np.exp(-odds))), 0.97)
    return Finding("identity_jump", tracks, frame, frame, score, reason, repair)


def _takeovers(evidence: Evidence, exchanges: _Exchanges) -> Iterator[Finding]:
    """Yield tracks that take the object of one that ends there, or leave theirs to one that begins there."""
    video = evidence.video
    reach = max(2, round(MEET_S * video.fps))
    begin_at: dict[int, list[Track]] = defaultdict(list)
    end_at: dict[int, list[Track]] = defaultdict(list)
    for track in video.tracks:
        if len(track) >= PART_S * video.fps:
            begin_at[int(track.frames[0])].append(track)
            end_at[int(track.frames[-1]) + 1].append(track)
    for frame in sorted({*begin_at, *end_at}):
        if not 0 < frame < video.frames:
            continue
        around = range(frame - reach, frame + reach + 1)
        ended = end_at.get(frame, [])
        begun = [track for near in around for track in begin_at.get(near, [])] if ended else begin_at[frame]
        options: list[tuple[Track | None, Track | None]] = [(e, b) for e in ended for b in begun if e is not b]
        options += [(e, None) for e in ended] + [(None, b) for b in begin_at.get(frame, [])]
        ids = evidence.rows_by_frame[frame][0].tolist() if frame in evidence.rows_by_frame else ()
        going = [evidence.by_id[number] for number in ids]
        going = [track for track in going if track.frames[0] < frame - reach <= frame + reach < track.frames[-1]]
        if not going:
            continue
        near = np.array([frame - 2, frame, frame + 2])
        befores, afters = (
            np.stack([exchanges.boxes(track, near, before=before) for track in going]) for before in (True, False)
        )
        best: tuple[float, Finding] | None = None
        for ends, begins in options:
            other = ends or begins
            # Most go on elsewhere: what odds() finds impossible, for all tracks at once.
            away = apart(exchanges.boxes(ends, near, before=True), afters) > FITS
            away |= apart(befores, exchanges.boxes(begins, near, before=False)) > FITS
            for row in np.flatnonzero(~away.all(axis=1)).tolist():
                track = going[row]
                if track in (ends, begins) or other is None:
                    continue
                found = float(exchanges.odds(track, ends, begins, near).max())
                if found > 0 and (best is None or found > best[0]):
                    repair = SwapFrom(track.track_id, other.track_id, frame, _blend(evidence, [track], frame))
                    tracks = tuple(part.track_id for part in (track, ends, begins) if part is not None)
                    reason = "The track seems to go over to the object of another one, which ends or begins here."
                    best = found, _exchange(tracks, frame, found, reason, repair)
        if best:
            yield best[1]


def _cut(a: Track, b: Track, frames: IntArray) -> Float64Array:
    """Return how far ``(k,)`` boxes are from the other track's just before: smallest where the two were exchanged."""
    rows = [np.searchsorted(track.frames, frames) for track in (a, b)]
    inside = (rows[0] > 0) & (rows[0] < len(a)) & (rows[1] > 0) & (rows[1] < len(b))
    (a0, a1), (b0, b1) = (
        [track.xyxy[(row + step).clip(0, len(track) - 1)].astype(np.float64) for step in (-1, 0)]
        for track, row in zip((a, b), rows, strict=True)
    )
    return np.where(inside, apart(a0, b1) + apart(b0, a1) - apart(a0, a1) - apart(b0, b1), np.inf)


def _identity_jumps(evidence: Evidence, exchanges: _Exchanges) -> Iterator[Finding]:
    """Yield tracks whose earlier and later views are less alike than other tracks' are."""
    fps = evidence.video.fps
    links = weakest_links([views.looks for views in evidence.views.values()], COMPARED)
    for (track_id, views), weakest in zip(evidence.views.items(), links, strict=True):
        if weakest is None or JUMP_VIEWS * weakest.deviations + JUMP_MOTION * MAX_BREAK < JUMP_PRIOR:
            continue
        track = evidence.by_id[track_id]
        if len(track) < 2 * PART_S * fps:
            continue
        before, after = int(views.frames[weakest.index - 1]), int(views.frames[weakest.index])
        # Between the two views the track breaks where its motion does.
        inside = (track.frames > before) & (track.frames <= after)
        inside &= (track.frames - track.frames[0] >= PART_S * fps) & (track.frames[-1] - track.frames >= PART_S * fps)
        rows = np.flatnonzero(inside)
        if not len(rows):
            continue
        moments = track.frames[rows]
        ends = [exchanges.boxes(track, moments, before=before) for before in (True, False)]
        broken = np.nan_to_num(apart(*ends))
        middle = -np.abs(rows - rows.mean())
        residual, _, row = max(zip(broken.tolist(), middle.tolist(), rows.tolist(), strict=True))
        step = steps(track.frames, track.xyxy, evidence.video.width, evidence.video.height)[rows - 1]
        if step.max() > SHARP:
            row = rows[step.argmax()]
        odds = JUMP_VIEWS * weakest.deviations + JUMP_MOTION * min(residual, MAX_BREAK) - JUMP_PRIOR
        score = 1 / (1 + np.exp(-odds))
        if score >= 0.5:
            frame = int(track.frames[row])
            yield Finding(
                "identity_jump",
                (track_id,),
                before,
                after,
                min(float(score), 0.95),
                "The track seems to show another object from here on.",
                SplitAt(track_id, frame),
            )


#: Weights of the views' standard deviations and of motion, in box sizes up to ``MAX_BREAK``, and how rare jumps are.
JUMP_VIEWS, JUMP_MOTION, JUMP_PRIOR, MAX_BREAK = 1.5, 2.0, 4.5, 1.5


def _broken_lives(evidence: Evidence) -> Iterator[Finding]:
    for life in broken_lives(evidence):
        yield Finding(
            "broken_life",
            (life.track.track_id, life.later.track_id),
            int(life.track.frames[-1]),
            int(life.later.frames[0]),
            min(life.score, 0.95),
            f"One track ends in mid-picture, and another one goes on from there after {life.gap_s:.1f} s.",
            life.join,
        )


@dataclass(frozen=True, slots=True)
class BrokenLife:
    """Two tracks of one object.

    Attributes:
        gap_s: seconds between them.
        score: probability that the object is the same.
    """

    track: Track
    later: Track
    gap_s: float
    score: float

    @property
    def join(self) -> Join:
        """The repair, with boxes in a gap in which they can be told, as assembly does."""
        return Join(self.track.track_id, self.later.track_id, fill=self.gap_s <= MAX_GAP_S)


def broken_lives(evidence: Evidence) -> Iterator[BrokenLife]:
    """Yield ends in mid-picture near the beginning of another track that continues the motion and looks alike."""
    video = evidence.video
    ends = max(3, round(video.fps / 2))
    tracklets = [_ends(track, ends) for track in video.tracks if len(track) > 1]
    for tail, head in best_pairs(tracklets, video.fps, GAP_S, round(video.width), round(video.height)):
        a, b = evidence.by_id[tail.track_id], evidence.by_id[head.track_id]
        gap = max(0.0, (int(b.frames[0]) - int(a.frames[-1])) / video.fps)
        alike = _likeness_across(evidence, a, b)
        odds = 2.0 - 1.0 * gap + (0.0 if alike is None else 4.0 * (alike - 0.35)) - 1.5 * (a.label != b.label)
        score = float(1 / (1 + np.exp(-odds)))
        if score >= 0.4:
            yield BrokenLife(a, b, gap, score)


def joined_lives(video: ReviewVideo) -> list[Track]:
    """Return a video's tracks, those of one object joined to one.

    Objects are found again where their motion leads (:class:`BrokenLife`), or, after longer occlusions, by their looks;
    these tracks are hidden in between.
    """
    evidence = Evidence(video)
    joins = [life.join for life in broken_lives(evidence) if life.score >= SAME_OBJECT]
    ended, begun = {join.track for join in joins}, {join.later for join in joins}
    again = [(a.track_id, b.track_id) for a, b in _seen_again(evidence)]
    joins += [Join(a, b, fill=False) for a, b in again if a not in ended and b not in begun]
    tracks, life_of = list(video.tracks), {track.track_id: track.track_id for track in video.tracks}
    for join in joins:
        life, later = life_of[join.track], life_of[join.later]
        tracks = apply_repair(tracks, Join(life, later, join.fill))
        life_of = {part: life if whole == later else whole for part, whole in life_of.items()}
    return tracks


def _seen_again(evidence: Evidence) -> Iterator[tuple[Track, Track]]:
    """Yield the tracks before and after an occlusion whose views are more alike than those of any other two.

    They are near enough for their object to have moved from one to the other.
    """
    fps = evidence.video.fps
    tracks = [track for track in evidence.video.tracks if track.track_id in evidence.views]
    if not tracks:
        return
    begin, end = (np.array([track.frames[row] for track in tracks], np.int64) for row in (0, -1))
    gaps_s = (begin[None] - end[:, None]) / fps
    labels = np.array([track.label for track in tracks], object)
    possible = (gaps_s > 0) & (gaps_s <= AGAIN_S) & (labels[:, None] == labels[None])
    # All at once: a crowd has too many pairs to compare one by one. Likeness to a track without views there is NaN.
    late, early = (np.stack([_mean_view(evidence, track, last=last) for track in tracks]) for last in (True, False))
    alike = np.where(possible, np.nan_to_num(late @ early.T, nan=-np.inf), -np.inf)
    for i, j in np.argwhere(alike == alike.max(axis=1, keepdims=True, initial=ALIKE)).tolist():
        others = np.concatenate([np.delete(alike[i], j), np.delete(alike[:, j], i)])
        distance = float(apart(tracks[i].xyxy[-1].astype(np.float64), tracks[j].xyxy[0].astype(np.float64)))
        if alike[i, j] - others.max(initial=-np.inf) >= DISTINCT and distance <= FITS + REACH_PER_S * gaps_s[i, j]:
            yield tracks[i], tracks[j]


def _ends(track: Track, count: int) -> Tracklet:
    tracklet = Tracklet(track.track_id)
    rows = range(len(track)) if len(track) <= 2 * count else [*range(count), *range(len(track) - count, len(track))]
    for row in rows:
        tracklet.append(int(track.frames[row]), track.xyxy[row], 1.0, 0, None)
    return tracklet


def _likeness_across(evidence: Evidence, a: Track, b: Track) -> float | None:
    """Return how alike the last views of one track and the first of another are; ``None`` if there are none."""
    if a.track_id not in evidence.views or b.track_id not in evidence.views:
        return None
    alike = float(_mean_view(evidence, a, last=True) @ _mean_view(evidence, b, last=False))
    return None if np.isnan(alike) else alike


def _mean_view(evidence: Evidence, track: Track, *, last: bool) -> Float64Array:
    """Return the mean ``(d,)`` of a track's last views, or its first ones; NaN without any so near to that end."""
    views, reach = evidence.views[track.track_id], VIEWS_S * evidence.video.fps
    near = views.frames >= track.frames[-1] - reach if last else views.frames <= track.frames[0] + reach
    mean: Float64Array = views.unit[near].mean(axis=0) if near.any() else np.full(views.unit.shape[1], np.nan)
    return mean
