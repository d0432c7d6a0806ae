"""Find annotated tracks that jump from one object to another, so that they do not teach two objects as one.

A box that goes where no object could in the time has jumped to another one. Where it goes on smoothly, looks decide:
A track's views are compared by their embeddings and by the colours of their thumbnails: an embedder tells kinds of
objects apart better than two people on one street, and colours do the opposite. Where a track's views fall into an
earlier and a later part that look less alike than other tracks' parts do, the track has jumped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from ml_backend.core.types import Float64Array, FloatArray, IntArray
from ml_backend.embeddings.crop_embeddings import CropEmbedding
from ml_backend.tracking.box_motion import JUMP, steps

#: Other objects without which nothing is said: what all objects of a scene have in common is subtracted.
MIN_OTHERS = 4
#: Other objects that are compared with; more cost time and change little.
MAX_OTHERS = 50
#: Likeness of a clean track's least alike parts, as a prior that counts as much as ``PRIOR_TRACKS`` tracks. Measured on
#: half of the tracks of a street video; see ``benchmarks/identity_jumps.py``.
PRIOR_MEAN, PRIOR_SPREAD, PRIOR_TRACKS = 0.6, 0.16, 6.0
#: Standard deviations below the mean at which 5 % of normally distributed clean tracks lie.
ALARM = 1.645
#: Step of a box beyond its own motion that no object makes while it is hidden, in box sizes per second.
HIDDEN_SPEED = 3.0
#: Seconds for which a box that was drawn once and not moved stays, before it catches up with its object.
STAYS_S = 0.3
#: Of the colours: horizontal stripes of a crop, since clothes differ from top to bottom, and bins of each CIELAB axis.
STRIPES, BINS = 4, 8

Part = Literal["first", "second"]


@dataclass(frozen=True, slots=True)
class IdentityJump:
    """A jump of an annotated track from one object to another.

    Attributes:
        frame: 1-based frame on Label Studio's timeline from which the region seems to show the second object.
        untaught: the part that is left out of the pattern bank, the shorter one.
    """

    region_id: str
    label: str
    frame: int
    untaught: Part


@dataclass(frozen=True, slots=True)
class TrackViews:
    """Views of one track in order of time.

    Attributes:
        vectors: ``(m, d)`` embeddings.
        colours: ``(m, c)`` square roots of colour histograms, L2-normalised.
    """

    vectors: FloatArray
    colours: FloatArray

    @classmethod
    def of(cls, crops: Sequence[CropEmbedding]) -> TrackViews:
        """Take the embeddings of crops, and read the colours of their thumbnails."""
        return cls(np.stack([crop.vector for crop in crops]), np.stack([_colours(crop.thumbnail) for crop in crops]))


def find_box_jump(frames: IntArray, xyxy: Float64Array, fps: float, size: tuple[int, int]) -> int | None:
    """Return the first frame on which a box is where its object cannot be; ``None`` without one.

    A box that stays until then, to the pixel, was not moved with its object, and no other object is shown.

    Args:
        frames: ``(n,)`` ascending, those on which the box is visible.
        xyxy: ``(n, 4)`` pixels.
        fps: frames per second.
        size: ``(width, height)`` of the picture, pixels.
    """
    if len(frames) < 2:
        return None
    excess = steps(frames, xyxy, *size)
    hidden = np.diff(frames) > 1
    relative = np.where(hidden, excess * fps / HIDDEN_SPEED, excess / JUMP)
    moving = np.abs(np.diff(xyxy, axis=0)).max(axis=1) > 0.5
    for row in np.argsort(-relative):
        if relative[row] <= 1:
            return None
        before = (frames[:-1] < frames[row]) & (frames[:-1] >= frames[row] - STAYS_S * fps)
        if hidden[row] or not before.any() or moving[before].any():
            return int(frames[row + 1])
    return None


def find_jump(views: TrackViews, others: Sequence[TrackViews]) -> int | None:
    """Return the index of the first view that shows another object than those before it; ``None`` without a jump.

    Args:
        others: other objects of the project; those with several views say how alike one object's views are.
    """
    weakest = weakest_link(views, others)
    return weakest.index if weakest and weakest.deviations > ALARM else None


@dataclass(frozen=True, slots=True)
class WeakestLink:
    """Where the earlier and the later views of a track are least alike.

    Attributes:
        index: of the first later view.
        deviations: how far less alike than the parts of other tracks, in standard deviations of these.
    """

    index: int
    deviations: float


def weakest_link(views: TrackViews, others: Sequence[TrackViews]) -> WeakestLink | None:
    """Compare the parts of a track as :func:`find_jump` does; ``None`` if there is too little to compare."""
    if len(views.vectors) < 2 or len(others) < MIN_OTHERS:
        return None
    others = others[:MAX_OTHERS]
    means = [TrackViews(o.vectors.mean(axis=0), o.colours.mean(axis=0)) for o in others]
    vectors, colours = (np.sum([getattr(mean, name) for mean in means], axis=0) for name in ("vectors", "colours"))
    clean = [
        _least_alike(
            other,
            TrackViews((vectors - mean.vectors) / (len(means) - 1), (colours - mean.colours) / (len(means) - 1)),
        )[0]
        for other, mean in zip(others, means, strict=True)
        if len(other.vectors) > 1
    ]
    likeness, index = _least_alike(views, TrackViews(vectors / len(means), colours / len(means)))
    mean, spread = _usual_likeness(clean)
    return WeakestLink(index, (mean - likeness) / spread)


def _usual_likeness(clean: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation of how alike clean tracks' parts are, from tracks of which most are clean."""
    mean, variance = PRIOR_MEAN, PRIOR_SPREAD**2
    if clean:
        # Median and median deviation, since some of these tracks may have jumped, too.
        middle = float(np.median(clean))
        spread = 1.4826 * float(np.median(np.abs(np.array(clean) - middle)))
        weight = len(clean) / (len(clean) + PRIOR_TRACKS)
        mean += weight * (middle - mean)
        variance += weight * (spread**2 - variance)
    return mean, float(np.sqrt(variance))


def _least_alike(views: TrackViews, centre: TrackViews) -> tuple[float, int]:
    """Return the mean likeness of the two parts of a track that are least alike, and where the second begins."""
    vectors, colours = centred(views, centre)
    sums = ((vectors @ vectors.T + colours @ colours.T) / 2).cumsum(axis=0).cumsum(axis=1)
    sizes = np.arange(1, len(sums))
    parts = (sums[sizes - 1, -1] - sums[sizes - 1, sizes - 1]) / (sizes * (len(sums) - sizes))
    index = int(parts.argmin())
    return float(parts[index]), index + 1


def centred(views: TrackViews, centre: TrackViews) -> tuple[Float64Array, Float64Array]:
    """Return the vectors ``(m, d)`` and colours ``(m, c)`` of views less the centre's, L2-normalised."""
    return _unit(views.vectors - centre.vectors), _unit(views.colours - centre.colours)


def _unit(rows: FloatArray) -> Float64Array:
    unit = rows.astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-9)
    return unit


@lru_cache(maxsize=1024)  # 8 MB: each check of a scene reads the same ones
def _colours(thumbnail: bytes) -> FloatArray:
    """Return the colours of a JPEG's stripes, of which the middle counts most: there the object is."""
    import cv2

    image = cv2.imdecode(np.frombuffer(thumbnail, np.uint8), cv2.IMREAD_COLOR) if thumbnail else None
    if image is None:
        return np.zeros(STRIPES * BINS**3, np.float32)
    lab = cv2.cvtColor(image, cv2.COLOR_BGR2LAB)
    weight = np.tile(np.exp(-2 * np.linspace(-1, 1, lab.shape[1]) ** 2), (len(lab), 1))
    heights = [len(rows) for rows in np.array_split(lab, STRIPES)]
    bins = np.repeat(np.arange(STRIPES), heights)[:, None]
    for channel, low, high in ((0, 0, 256), (1, 90, 166), (2, 90, 166)):  # few objects are more colourful
        values = lab[:, :, channel].astype(np.float64).clip(low, high - 1) - low
        bins = bins * BINS + (values // ((high - low) / BINS)).astype(np.int64)
    counts = np.bincount(bins.ravel(), weight.ravel(), STRIPES * BINS**3).reshape(STRIPES, BINS, -1)
    stripes = []
    for stripe in counts.astype(np.float32):
        # Neighbouring bins share counts, so that a little more light does not make another colour.
        blurred = cv2.GaussianBlur(stripe, (1, 3), 0.7)
        stripes.append(np.sqrt(blurred.ravel() / max(float(blurred.sum()), 1e-9)))
    joined = np.concatenate(stripes)
    return np.asarray(joined / max(float(np.linalg.norm(joined)), 1e-9), np.float32)
