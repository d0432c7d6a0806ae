"""Find annotated tracks that jump from one object to another, so that they do not teach two objects as one.

A box that goes where no object could in the time has jumped to another one. Where it goes on smoothly, looks decide:
A track's views are compared by their embeddings and by the colours of their thumbnails: an embedder tells kinds of
objects apart better than two people on one street, and colours do the opposite. Where a track's views fall into an
earlier and a later part that look less alike than other tracks' parts do, the track has jumped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
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
    weakest = _Compared(others[:MAX_OTHERS]).weakest(views)
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


def weakest_links(tracks: Sequence[TrackViews], compared: int) -> list[WeakestLink | None]:
    """Compare the parts of each track of a scene as :func:`find_jump` does; ``None`` if there is too little to compare.

    Args:
        compared: number of other tracks with which one is compared.
    """
    step = -(-len(tracks) // (compared + 1)) or 1
    others = _Compared(tracks[::step])
    return [others.weakest(views, None if n % step else n // step) for n, views in enumerate(tracks)]


class _Compared:
    """Tracks with which the parts of others, and of each of them, are compared.

    Likeness is computed from products of the tracks' views and mean views: subtracting a centre, which is another one
    for each two tracks, is then a matter of small matrices.
    """

    def __init__(self, tracks: Sequence[TrackViews]) -> None:
        self._tracks = tracks
        self._means: list[Float64Array] = []  # (n, d) of vectors and of colours
        if tracks:
            for name in ("vectors", "colours"):
                self._means.append(np.stack([getattr(views, name).mean(axis=0, dtype=np.float64) for views in tracks]))

    def weakest(self, views: TrackViews, without: int | None = None) -> WeakestLink | None:
        """Return where a track is least alike.

        Args:
            without: its own index among the tracks that it is compared with.
        """
        others = np.ones(len(self._tracks))
        if without is not None:
            others[without] = 0
        count = others.sum()
        if len(views.vectors) < 2 or count < MIN_OTHERS:
            return None
        rows = np.flatnonzero((others > 0) & (self._products.lengths > 1))
        # A track's own mean is no part of the centre.
        weights = (others - np.eye(len(others))[rows]) / (count - 1)
        clean, _ = _least_alike(self._products.of(rows), self._between, weights)
        own = self._multiplied([views]) if without is None else self._products.of(np.array([without]))
        (likeness,), (index,) = _least_alike(own, self._between, others[None] / count)
        mean, spread = _usual_likeness(clean)
        return WeakestLink(int(index), (mean - float(likeness)) / spread)

    @cached_property
    def _between(self) -> Float64Array:
        """Products ``(2, n, n)`` of the mean views."""
        return np.stack([means @ means.T for means in self._means])

    @cached_property
    def _products(self) -> _Products:
        return self._multiplied(self._tracks)

    def _multiplied(self, tracks: Sequence[TrackViews]) -> _Products:
        lengths = np.array([len(views.vectors) for views in tracks], np.int64)
        size = int(lengths.max(initial=0))
        own = np.zeros((2, len(tracks), size, size))
        to_means = np.zeros((2, len(tracks), size, len(self._tracks)))
        for n, views in enumerate(tracks):
            for kind, values in enumerate((views.vectors, views.colours)):
                rows, m = values.astype(np.float64), len(values)
                own[kind, n, :m, :m] = rows @ rows.T
                to_means[kind, n, :m] = rows @ self._means[kind].T
        return _Products(lengths, own, to_means)


@dataclass(frozen=True, slots=True)
class _Products:
    """Products of the views of ``k`` tracks, padded with zeros to ``m`` views: of vectors, and of colours.

    Attributes:
        lengths: ``(k,)`` numbers of views.
        own: ``(2, k, m, m)`` with each other.
        to_means: ``(2, k, m, n)`` with the mean views of ``n`` tracks.
    """

    lengths: IntArray
    own: Float64Array
    to_means: Float64Array

    def of(self, rows: IntArray) -> _Products:
        return _Products(self.lengths[rows], self.own[:, rows], self.to_means[:, rows])


def _usual_likeness(clean: Float64Array) -> tuple[float, float]:
    """Return mean and standard deviation of how alike clean tracks' parts are, from tracks of which most are clean."""
    mean, variance = PRIOR_MEAN, PRIOR_SPREAD**2
    if len(clean):
        # Median and median deviation, since some of these tracks may have jumped, too.
        middle = float(np.median(clean))
        spread = 1.4826 * float(np.median(np.abs(clean - middle)))
        weight = len(clean) / (len(clean) + PRIOR_TRACKS)
        mean += weight * (middle - mean)
        variance += weight * (spread**2 - variance)
    return mean, float(np.sqrt(variance))


def _least_alike(tracks: _Products, means: Float64Array, weights: Float64Array) -> tuple[Float64Array, IntArray]:
    """Return of each track the mean likeness of its two parts that are least alike, and where the second begins.

    Args:
        means: products ``(2, n, n)`` of mean views.
        weights: ``(k, n)`` of the mean views in the centre that is subtracted from a track's.
    """
    toward = (tracks.to_means @ weights[..., None])[..., 0]
    centre = ((weights @ means) * weights).sum(axis=-1)
    products = tracks.own - toward[..., None] - toward[..., None, :] + centre[..., None, None]
    norms = np.sqrt(np.maximum(np.diagonal(products, axis1=-2, axis2=-1), 1e-12))
    alike = (products / (norms[..., None] * norms[..., None, :])).mean(axis=0)
    inside = np.arange(alike.shape[-1]) < tracks.lengths[:, None]
    sums = np.where(inside[:, :, None] & inside[:, None], alike, 0.0).cumsum(axis=1).cumsum(axis=2)
    sizes = np.arange(1, alike.shape[-1])
    rest = tracks.lengths[:, None] - sizes
    between = sums[:, sizes - 1, -1] - sums[:, sizes - 1, sizes - 1]
    parts = np.where(rest > 0, between / (sizes * np.maximum(rest, 1)), np.inf)
    least = parts.argmin(axis=1)
    return parts[np.arange(len(parts)), least], least + 1


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
    bins = np.repeat(np.arange(STRIPES), heights)[:, None] * BINS**3
    for channel, table in enumerate(_bin_tables()):
        bins = bins + table[lab[:, :, channel]]
    counts = np.bincount(bins.ravel(), weight.ravel(), STRIPES * BINS**3).reshape(STRIPES, BINS, -1)
    # Neighbouring bins share counts, so that a little more light does not make another colour.
    side_by_side = counts.astype(np.float32).transpose(1, 0, 2).reshape(BINS, -1)
    blurred = cv2.GaussianBlur(side_by_side, (1, 3), 0.7).reshape(BINS, STRIPES, -1).transpose(1, 0, 2)
    stripes = blurred.reshape(STRIPES, -1)
    joined = np.sqrt(stripes / np.maximum(stripes.sum(axis=1, keepdims=True), 1e-9)).ravel()
    return np.asarray(joined / max(float(np.linalg.norm(joined)), 1e-9), np.float32)


@cache
def _bin_tables() -> list[IntArray]:
    """Return for each CIELAB channel what a value ``(256,)`` adds to the number of a colour's bin."""
    tables = []
    for scale, low, high in ((BINS**2, 0, 256), (BINS, 90, 166), (1, 90, 166)):  # few objects are more colourful
        values = np.arange(256).clip(low, high - 1) - low
        tables.append(scale * (values // ((high - low) / BINS)).astype(np.int64))
    return tables
