"""Track-focused association (TrackTrack) with one set of arrays for all tracks of a video.

Method: Shim et al., "Focusing on Tracks for Online Multi-Object Tracking", CVPR 2025, with a Kalman filter of constant
velocity whose measurement noise falls with the detection's confidence (Du et al., "GIAOTracker", 2021). Parameters and
order of steps follow ultralytics' implementation, which gives the same tracks with one Python object a track. Where
they differ: a track that was found again in its last frame before removal is a track like any other.
"""

from __future__ import annotations

from itertools import count

import numpy as np
import numpy.typing as npt

from ml_backend.core.boxes import iou_matrix
from ml_backend.core.types import Affine, BoolArray, Detections, Float64Array, IntArray
from ml_backend.tracking import appearance
from ml_backend.tracking.association import Thresholds, appearance_cost, blend_colours

MIN_IOU = 0.1  # of a track and a detection that may belong together
MATCH_COST = 0.7  # highest cost of the first round of association; each further round lowers it
COST_STEP = 0.05
CONF_WEIGHT = 0.1
ANGLE_WEIGHT = 0.05
WEAK_PENALTY = 0.2  # added to the cost of detections below the high threshold
NEW_TRACK_IOU = 0.55  # a detection that overlaps a track more than this starts no track of its own
DUPLICATE_IOU = 0.85  # of a visible and a lost track that show one object
HISTORY = 4  # last boxes of a track
VELOCITY_FRAMES = 3  # over which the direction of movement is measured
POSITION_STD = 1 / 20  # standard deviations of the Kalman filter, in shares of the box's width or height
VELOCITY_STD = 1 / 160
MIN_NOISE = 0.05  # measurement variance of the surest detection, as a share

_NEVER = -(10**9)
_X, _Y = np.array([0, 0, 2, 2]), np.array([1, 3, 1, 3])  # columns of xyxy: the corners of a box

_TRACK = np.dtype(
    [
        ("id", np.int64),
        ("mean", np.float64, 8),  # centre x, centre y, width, height, and their change per frame; pixels
        ("covariance", np.float64, (8, 8)),
        ("conf", np.float64),
        ("previous_conf", np.float64),
        ("class_id", np.int64),
        ("colours", np.float32, appearance.SIZE),  # NaN: unknown
        ("first", np.int64),  # frame
        ("frames", np.int64, HISTORY),  # of the last boxes, the newest last
        ("boxes", np.float64, (HISTORY, 4)),  # xyxy
        ("direction", np.float64, (4, 2)),  # unit vector of each corner, weakened where they disagree
        ("lost", np.bool_),
    ]
)
_Tracks = npt.NDArray[np.void]


class TrackTrack:
    """Associate the detections of one video with tracks.

    Args:
        thresholds: confidences of detections.
        buffer: frames for which a lost track may be found again.
    """

    def __init__(self, thresholds: Thresholds, buffer: int) -> None:
        self._thresholds, self._buffer = thresholds, buffer
        self._tracks: _Tracks = np.zeros(0, _TRACK)
        self._ids = count(1)
        self._frame = 0

    def update(self, detections: Detections, camera: Affine | None) -> tuple[IntArray, IntArray]:
        """Advance by one frame.

        Args:
            detections: of the frame, ``n`` of them, with colours.
            camera: ``(2, 3)`` map of pixels from the previous frame; ``None`` if unknown.

        Returns:
            Ids of the tracks that were seen, and for each the index of its detection; both ``(k,)``.
        """
        self._frame += 1
        if camera is not None:
            _move(self._tracks, camera)
        _predict(self._tracks)
        conf = detections.conf
        high = conf >= self._thresholds.high
        weak = ~high & (conf > self._thresholds.low)
        cost = self._costs(detections)
        cost[:, weak] += WEAK_PENALTY
        cost[:, ~(high | weak)] = np.inf
        rows, columns = _associate(cost)

        was_lost = self._tracks["lost"].copy()
        self._tracks["lost"] = True
        self._correct(rows, detections, columns, was_lost[rows])
        new = high & (conf > self._thresholds.new)
        new[columns] = False
        kept_up = np.zeros(len(self._tracks), np.bool_)
        kept_up[rows] = ~was_lost[rows]
        started = self._start(detections, np.flatnonzero(new), _xyxy(self._tracks["mean"][kept_up]))

        chosen: IntArray = np.full(len(self._tracks), -1, np.int64)  # each track's detection
        chosen[rows] = columns
        chosen[len(was_lost) :] = started
        alive = ~self._duplicates() & (self._frame - self._tracks["frames"][:, -1] <= self._buffer + 1)
        self._tracks, chosen = self._tracks[alive], chosen[alive]
        seen = chosen >= 0
        return self._tracks["id"][seen], chosen[seen]

    def _costs(self, detections: Detections) -> Float64Array:
        """Return the ``(tracks, detections)`` cost of belonging together; 1 where the boxes hardly overlap."""
        tracks, boxes = self._tracks, detections.xyxy.astype(np.float64)
        iou = iou_matrix(_xyxy(tracks["mean"]), boxes)
        cost = np.ones_like(iou)
        i, j = np.nonzero(iou > MIN_IOU)
        if not len(i):
            return cost
        predicted, found = _xyxy(tracks["mean"])[i], boxes[j]
        inter = np.minimum(predicted[:, 3], found[:, 3]) - np.maximum(predicted[:, 1], found[:, 1])
        union = np.maximum(predicted[:, 3], found[:, 3]) - np.minimum(predicted[:, 1], found[:, 1])
        height_iou = np.clip(inter / (union + 1e-9), 0, 1)
        conf = detections.conf.astype(np.float64)[j]
        expected_conf = (2 * tracks["conf"] - tracks["previous_conf"])[i]
        pair_cost = 1 - height_iou * iou[i, j] + CONF_WEIGHT * np.abs(expected_conf - conf)

        # Angle between the track's direction and the way from where it was to the detection, corner by corner.
        past = tracks["frames"] == self._frame - VELOCITY_FRAMES
        slot = np.where(past.any(axis=1), past.argmax(axis=1), HISTORY - 1)
        way = _directions(found - tracks["boxes"][np.arange(len(tracks)), slot][i])
        cosine = np.clip((tracks["direction"][i] * way).sum(-1), -1, 1)
        pair_cost += ANGLE_WEIGHT * conf * np.arccos(cosine).mean(-1) / np.pi

        assert detections.colours is not None
        looks = appearance_cost(
            tracks["colours"][i], tracks["class_id"][i], detections.colours[j], detections.class_id[j]
        )
        cost[i, j] = np.clip(pair_cost, 0, 1) + looks
        return cost

    def _correct(self, rows: IntArray, detections: Detections, columns: IntArray, was_lost: BoolArray) -> None:
        """Update matched tracks with their detections."""
        tracks, found = self._tracks[rows], detections.xyxy[columns].astype(np.float64)
        conf = detections.conf[columns]
        # Kalman update. The measurement is the first half of the state.
        predicted, covariance = tracks["mean"], tracks["covariance"]
        noise = (POSITION_STD * _scale(predicted)) ** 2 * np.maximum(1 - conf, MIN_NOISE)[:, None]
        innovation = covariance[:, :4, :4] + noise[:, :, None] * np.eye(4)
        gain = np.linalg.solve(innovation, covariance[:, :4])  # (k, 4, 8), transposed
        error = _xywh(found) - predicted[:, :4]
        tracks["mean"] = predicted + (error[:, None] @ gain)[:, 0]
        tracks["covariance"] = covariance - covariance[:, :, :4] @ gain

        age = self._frame - tracks["frames"][:, 1:]  # (k, 3)
        steps = _directions(found[:, None] - tracks["boxes"][:, 1:]) / np.maximum(age, 1)[..., None, None]
        recent = (age <= VELOCITY_FRAMES)[..., None, None]
        direction = (steps * recent).sum(axis=1) / VELOCITY_FRAMES
        tracks["direction"] = np.where(was_lost[:, None, None], tracks["direction"], direction)
        tracks["frames"][:, :-1], tracks["frames"][:, -1] = tracks["frames"][:, 1:].copy(), self._frame
        newest = np.where(was_lost[:, None], _xyxy(tracks["mean"]), found)
        tracks["boxes"][:, :-1], tracks["boxes"][:, -1] = tracks["boxes"][:, 1:].copy(), newest

        assert detections.colours is not None
        tracks["colours"] = blend_colours(tracks["colours"], detections.colours[columns], conf)
        tracks["previous_conf"], tracks["conf"] = tracks["conf"].copy(), conf
        tracks["class_id"], tracks["lost"] = detections.class_id[columns], False
        self._tracks[rows] = tracks

    def _start(self, detections: Detections, candidates: IntArray, visible: Float64Array) -> IntArray:
        """Start tracks of unmatched detections that overlap neither a visible track nor a surer new one.

        Returns:
            ``(k,)`` indices of the detections whose tracks were appended.
        """
        if not len(candidates):
            return candidates
        boxes = detections.xyxy[candidates].astype(np.float64)
        allowed: BoolArray = iou_matrix(boxes, visible).max(axis=1, initial=0) <= NEW_TRACK_IOU
        overlap = iou_matrix(boxes, boxes) > NEW_TRACK_IOU
        for i in np.argsort(-detections.conf[candidates]):
            if allowed[i]:
                allowed &= ~overlap[i]
                allowed[i] = True
        chosen = candidates[allowed]
        new = np.zeros(len(chosen), _TRACK)
        new["id"] = [next(self._ids) for _ in chosen]
        new["mean"][:, :4] = _xywh(boxes[allowed])
        size = _scale(new["mean"])
        std = np.concatenate([2 * POSITION_STD * size, 10 * VELOCITY_STD * size], axis=1)
        new["covariance"] = std[:, :, None] ** 2 * np.eye(8)
        new["conf"] = new["previous_conf"] = detections.conf[chosen]
        new["class_id"] = detections.class_id[chosen]
        assert detections.colours is not None
        new["colours"] = detections.colours[chosen]
        new["frames"] = _NEVER
        new["first"] = new["frames"][:, -1] = self._frame
        new["boxes"][:, -1] = boxes[allowed]
        self._tracks = np.concatenate([self._tracks, new])
        return chosen

    def _duplicates(self) -> BoolArray:
        """Return which tracks to drop since they show the object of a track that has lived longer."""
        tracks = self._tracks
        dropped = np.zeros(len(tracks), np.bool_)
        visible, lost = np.flatnonzero(~tracks["lost"]), np.flatnonzero(tracks["lost"])
        if len(visible) and len(lost):
            boxes, life = _xyxy(tracks["mean"]), tracks["frames"][:, -1] - tracks["first"]
            i, j = np.nonzero(iou_matrix(boxes[visible], boxes[lost]) > DUPLICATE_IOU)
            longer = life[visible[i]] > life[lost[j]]
            dropped[np.where(longer, lost[j], visible[i])] = True
        return dropped


def _associate(cost: Float64Array) -> tuple[IntArray, IntArray]:
    """Match tracks and detections that are each other's cheapest, in rounds of falling highest cost.

    Returns:
        Rows and columns of the matches, ``(k,)`` each.
    """
    cost, limit = cost.copy(), MATCH_COST
    matches: list[tuple[IntArray, IntArray]] = [(np.zeros(0, np.int64),) * 2]
    tracks = np.arange(len(cost))
    while cost.size:
        nearest = cost.argmin(axis=1)
        rows = np.flatnonzero((cost.argmin(axis=0)[nearest] == tracks) & (cost[tracks, nearest] < limit))
        if not len(rows):
            break
        matches.append((rows, nearest[rows]))
        cost[rows] = np.inf
        cost[:, nearest[rows]] = np.inf
        limit -= COST_STEP
    rows, columns = zip(*matches, strict=True)
    return np.concatenate(rows), np.concatenate(columns)


def _predict(tracks: _Tracks) -> None:
    """Advance the Kalman filter by one frame, in place. Lost tracks keep their size."""
    mean, covariance = tracks["mean"], tracks["covariance"]
    size = _scale(mean)
    mean[tracks["lost"], 6:] = 0
    mean[:, :4] += mean[:, 4:]
    covariance[:, :4] += covariance[:, 4:]
    covariance[:, :, :4] += covariance[:, :, 4:]
    diagonal = np.arange(8)
    covariance[:, diagonal, diagonal] += np.concatenate([POSITION_STD * size, VELOCITY_STD * size], axis=1) ** 2


def _move(tracks: _Tracks, camera: Affine) -> None:
    """Move the states as the camera moved, in place: sizes grow to those of the enclosing upright box."""
    turn = camera[:, :2]
    transform = np.zeros((8, 8))
    transform[:2, :2] = transform[4:6, 4:6] = turn
    transform[2:4, 2:4] = transform[6:, 6:] = np.abs(turn)
    tracks["mean"] = tracks["mean"] @ transform.T
    tracks["mean"][:, :2] += camera[:, 2]
    tracks["covariance"] = transform @ tracks["covariance"] @ transform.T


def _directions(delta: Float64Array) -> Float64Array:
    """Return unit vectors ``(..., 4, 2)`` of how the corners of boxes moved, from ``(..., 4)`` differences of xyxy."""
    vectors = np.stack([delta[..., _X], delta[..., _Y]], axis=-1)
    return np.asarray(vectors / (np.linalg.norm(vectors, axis=-1, keepdims=True) + 1e-5), np.float64)


def _scale(state: Float64Array) -> Float64Array:
    """Return ``(n, 4)`` width, height, width, height, at least a pixel: without noise the filter is singular."""
    return np.maximum(np.tile(state[:, 2:4], 2), 1.0)


def _xyxy(state: Float64Array) -> Float64Array:
    """Return ``(n, 4)`` corners of boxes given by centre and size in the first four columns."""
    half = state[:, 2:4] / 2
    return np.concatenate([state[:, :2] - half, state[:, :2] + half], axis=1)


def _xywh(xyxy: Float64Array) -> Float64Array:
    """Return ``(n, 4)`` centre and size of boxes."""
    return np.concatenate([(xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]], axis=1)
