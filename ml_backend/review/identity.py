"""Checks who is who: tracks that change their object, broken lives, two boxes on one object."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np

from ml_backend.core.boxes import iou_matrix
from ml_backend.core.types import Float64Array, Track
from ml_backend.labeling.few_shot.identity_jumps import weakest_link
from ml_backend.review.finding import Finding
from ml_backend.review.repairs import Delete, Join, SplitAt, SwapFrom, apply_repair
from ml_backend.review.video import Evidence, ReviewVideo, likeness
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
    yield from _identity_jumps(evidence)
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
        self._predicted = lru_cache(maxsize=100_000)(self._predict)

    def odds(self, track: Track, ends: Track | None, begins: Track | None, frame: int) -> float:
        """Return the log-odds of an exchange; ``-inf`` if there is nothing to compare.

        Args:
            ends, begins: the other track before and from ``frame`` on: the same one if it goes on.
        """
        own = self._predicted(track.track_id, frame, True), self._predicted(track.track_id, frame, False)
        other = [
            None if part is None else self._predicted(part.track_id, frame, before)
            for part, before in ((ends, True), (begins, False))
        ]
        if own[0] is None or own[1] is None or all(part is None for part in other):
            return -np.inf
        if ends is not begins and any(
            apart(a, b) > FITS for a, b in ((other[0], own[1]), (own[0], other[1])) if a is not None and b is not None
        ):
            return -np.inf
        motion = _exchange_gain([own[0], own[1], *other], ends is begins, lambda a, b: -apart(a, b))
        if motion < -1:
            return -np.inf
        views = [*self._views(track, track, frame), *self._views(ends, begins, frame)]
        alike = _exchange_gain(views, ends is begins, likeness)
        return SWAP_MOTION * min(motion, 1.5) + SWAP_VIEWS * float(np.clip(alike, -1, 1)) - SWAP_PRIOR

    def distance(self, a: Track, b: Track, frame: int) -> float:
        """Return how far two tracks are apart just before a frame, in box sizes."""
        ends = [self._predicted(track.track_id, frame, True) for track in (a, b)]
        return np.inf if ends[0] is None or ends[1] is None else apart(ends[0], ends[1])

    def _predict(self, track_id: int, frame: int, before: bool) -> Float64Array | None:
        return predicted(self._evidence.by_id[track_id], frame, self._evidence.video.fps, before=before)

    def _views(self, ends: Track | None, begins: Track | None, frame: int) -> Iterator[Float64Array | None]:
        """Yield the last views before a frame and the first from it on."""
        for track, before in ((ends, True), (begins, False)):
            views = None if track is None else self._evidence.views.get(track.track_id)
            if views is None:
                yield None
                continue
            cut = int(np.searchsorted(views.frames, frame))
            rows = views.unit[max(0, cut - NEAREST) : cut] if before else views.unit[cut : cut + NEAREST]
            yield rows if len(rows) else None


#: Weights of motion, in box sizes, and of likeness of views, and how rare exchanges are.
SWAP_MOTION, SWAP_VIEWS, SWAP_PRIOR = 4.0, 3.0, 2.5


def _exchange_gain(
    parts: Sequence[Float64Array | None], same: bool, likeness_of: Callable[[Float64Array, Float64Array], float]
) -> float:
    """Return how much better two tracks go on if they are exchanged; 0 where too little is known.

    Args:
        parts: the first track before and after, then the second one; a part of the second may be missing.
        same: whether the second track goes on; if not, the first one tells how well tracks do.
    """
    a_before, a_after, b_before, b_after = parts
    if a_before is None or a_after is None:
        return 0.0
    straight = likeness_of(a_before, a_after)
    crossed = [
        likeness_of(before, after)
        for before, after in ((b_before, a_after), (a_before, b_after))
        if before is not None and after is not None
    ]
    if not crossed:
        return 0.0
    if same and b_before is not None and b_after is not None:
        return sum(crossed) - straight - likeness_of(b_before, b_after)
    return 2 * (float(np.mean(crossed)) - straight)


def _swaps(evidence: Evidence, meetings: dict[Pair, list[int]], exchanges: _Exchanges) -> Iterator[Finding]:
    reach = max(2, round(MEET_S * evidence.video.fps))
    for (a_id, b_id), met in meetings.items():
        a, b = evidence.by_id[a_id], evidence.by_id[b_id]
        near = np.unique(np.add.outer(met, np.arange(-reach, reach + 1)))
        for first, last in runs(np.isin(np.arange(near[0], near[-1] + 1), near)):
            frames = [f for f in range(int(near[0]) + first, int(near[0]) + last + 1, 2) if _both_go_on(a, b, f, reach)]
            scored = [(odds, f) for f in frames if (odds := exchanges.odds(a, b, b, f)) > 0]
            if not scored:
                continue
            best, frame = max(scored)
            # An exchange from one frame to the next is seen exactly; smoothed boxes only tell about when.
            cut, sharpest = min((_cut(a, b, f), f) for _, middle in scored for f in (middle - 1, middle, middle + 1))
            sharp = cut < -max(SHARP, exchanges.distance(a, b, frame))
            frame = sharpest if sharp else frame
            blend = 0 if sharp else _blend(evidence, (a, b), frame)
            reason = "Two tracks seem to exchange their objects where they meet."
            yield _exchange((a_id, b_id), frame, best, reason, SwapFrom(a_id, b_id, frame, blend))


def _both_go_on(a: Track, b: Track, frame: int, reach: int) -> bool:
    return all(track.frames[0] + reach <= frame <= track.frames[-1] - reach for track in (a, b))


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
        ids = evidence.rows_by_frame[frame][0] if frame in evidence.rows_by_frame else np.zeros(0, np.int64)
        best: tuple[float, Finding] | None = None
        for track_id in ids.tolist():
            track = evidence.by_id[track_id]
            for ends, begins in options:
                if track in (ends, begins) or not track.frames[0] < frame - reach <= frame + reach < track.frames[-1]:
                    continue
                found = max((exchanges.odds(track, ends, begins, f), f) for f in (frame - 2, frame, frame + 2))
                other = ends or begins
                if found[0] > 0 and other is not None and (best is None or found[0] > best[0]):
                    repair = SwapFrom(track_id, other.track_id, frame, _blend(evidence, [track], frame))
                    tracks = tuple(part.track_id for part in (track, ends, begins) if part is not None)
                    reason = "The track seems to go over to the object of another one, which ends or begins here."
                    best = found[0], _exchange(tracks, frame, found[0], reason, repair)
        if best:
            yield best[1]


def _cut(a: Track, b: Track, frame: int) -> float:
    """Return how far boxes are from the other track's just before: smallest where the two were exchanged."""
    rows = [int(np.searchsorted(track.frames, frame)) for track in (a, b)]
    if not all(0 < row < len(track) for row, track in zip(rows, (a, b), strict=True)):
        return np.inf
    (i, j) = rows
    boxes = a.xyxy.astype(np.float64), b.xyxy.astype(np.float64)
    crossed = apart(boxes[0][i - 1], boxes[1][j]) + apart(boxes[1][j - 1], boxes[0][i])
    return crossed - apart(boxes[0][i - 1], boxes[0][i]) - apart(boxes[1][j - 1], boxes[1][j])


def _identity_jumps(evidence: Evidence) -> Iterator[Finding]:
    """Yield tracks whose earlier and later views are less alike than other tracks' are."""
    fps = evidence.video.fps
    for track_id, views in evidence.views.items():
        others = [other.looks for number, other in evidence.views.items() if number != track_id]
        others = others[:: -(-len(others) // COMPARED) or 1]
        weakest = weakest_link(views.looks, others)
        if weakest is None:
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
        broken = [(_break(track, int(track.frames[row]), fps), -abs(row - rows.mean()), row) for row in rows]
        residual, _, row = max(broken)
        step = steps(track.frames, track.xyxy, evidence.video.width, evidence.video.height)[rows - 1]
        if step.max() > SHARP:
            row = rows[step.argmax()]
        score = 1 / (1 + np.exp(-(JUMP_VIEWS * weakest.deviations + JUMP_MOTION * min(residual, 1.5) - JUMP_PRIOR)))
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


#: Weights of the views' standard deviations and of motion, in box sizes, and how rare jumps are.
JUMP_VIEWS, JUMP_MOTION, JUMP_PRIOR = 1.5, 2.0, 4.5


def _break(track: Track, frame: int, fps: float) -> float:
    """Return how far a track is from where its motion before ``frame`` leads, in box sizes."""
    before, after = predicted(track, frame, fps, before=True), predicted(track, frame, fps, before=False)
    return 0.0 if before is None or after is None else apart(before, after)


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
        distance = apart(tracks[i].xyxy[-1].astype(np.float64), tracks[j].xyxy[0].astype(np.float64))
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
