"""What models see in boxes of a video: embedded once, kept, and used again.

A *look* is one box's embedding by one model. Looks are kept per video, so that a changed label, another pattern or a
mode that is switched back costs no decoding.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ml_backend.core.boxes import iou_pairs, scaled_size
from ml_backend.core.errors import Interrupted, VideoError
from ml_backend.core.types import FloatArray, Frame, Image
from ml_backend.embeddings.crop_selection import CropBox, select_crops

if TYPE_CHECKING:
    from ml_backend.embeddings.embedder import Embedder

log = logging.getLogger(__name__)

OpenVideo = Callable[[], AbstractContextManager[Path]]

#: Crops wait at this size (px, longer side) for the end of their track; embedders look at 224.
MAX_CROP = 320
#: Longer side of what people are shown, px.
THUMBNAIL = 96
#: Boxes that overlap so on one frame show the same: a person accepted a track, and keyframes moved its edges a little.
SAME_LOOK_IOU = 0.85
#: Crops that wait for the network; more at once are no faster.
WAITING = 64


@dataclass(frozen=True, slots=True)
class CropEmbedding:
    """One embedded box.

    Attributes:
        frame: 0-based decoded frame.
        xyxy: pixels of the displayed video, rounded to 0.1.
        vector: ``(d,)`` float32, L2-normalised, in the precision in which it is kept.
        thumbnail: JPEG.
    """

    frame: int
    xyxy: tuple[float, float, float, float]
    vector: FloatArray = field(compare=False)
    thumbnail: bytes = field(compare=False)

    def key(self, video: str, model_id: str) -> str:
        """Digest of what was looked at, and by which model; 40 hex digits."""
        return hashlib.sha256(f"{video}|{model_id}|{self.frame}|{self.xyxy}".encode()).hexdigest()[:40]


class CropEmbeddingStore(Protocol):
    """Looks of one video."""

    def known(self, model_id: str) -> list[CropEmbedding]:
        """All that this model has seen of the video."""
        ...

    def add(self, model_id: str, looks: Sequence[CropEmbedding]) -> None:
        """Keep what is new."""
        ...


class MemoryCropEmbeddings:
    """Kept as long as the object lives."""

    def __init__(self) -> None:
        self._known: dict[str, list[CropEmbedding]] = {}

    def known(self, model_id: str) -> list[CropEmbedding]:
        return list(self._known.get(model_id, []))

    def add(self, model_id: str, looks: Sequence[CropEmbedding]) -> None:
        self._known.setdefault(model_id, []).extend(looks)


def to_half(vectors: FloatArray) -> bytes:
    """``(d,)`` or ``(n, d)`` as they are kept: little-endian half precision."""
    return vectors.astype("<f2").tobytes()


def from_half(blobs: Sequence[bytes]) -> FloatArray:
    """``(n, d)`` float32, normalised again, of ``n`` kept vectors; ``(0, 0)`` of none."""
    if not blobs:
        return np.zeros((0, 0), np.float32)
    vectors = np.frombuffer(b"".join(blobs), "<f2").reshape(len(blobs), -1).astype(np.float32)
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norm > 0, norm, 1.0), np.float32)


def embed_tracks(
    wanted: Sequence[Sequence[CropBox]],
    embedder: Callable[[], AbstractContextManager[Embedder]],
    model_id: str,
    looks: CropEmbeddingStore,
    open_video: OpenVideo,
    k: int,
    should_stop: Callable[[], bool] | None = None,
) -> list[list[CropEmbedding]]:
    """The looks of tracks: those that are known, else new ones from a sparse pass over the video.

    Neither the model nor the video is touched where everything is known. Memory holds the crops of the tracks that
    are on screen, not the video's.

    Args:
        wanted: candidates of each track, from :func:`ml_backend.embeddings.crop_selection.candidate_crops`.
        embedder: opens the embedder; ``model_id`` is its.
        open_video: opens the local file.
        k: looks per track.

    Returns:
        At most ``k`` looks for each track, in order of time; none for a track whose pictures cannot be decoded.

    Raises:
        VideoError: the file cannot be used.
        Interrupted: ``should_stop`` said so; what is finished is kept.
    """
    by_frame: dict[int, list[CropEmbedding]] = {}
    for look in looks.known(model_id):
        by_frame.setdefault(look.frame, []).append(look)
    found = [_known_of(candidates, by_frame, k) for candidates in wanted]
    missing = {i: candidates for i, candidates in enumerate(wanted) if candidates and not found[i]}
    if not missing:
        return found
    waiting: list[tuple[int, _Crop]] = []

    def flush(model: Embedder) -> None:
        """Embed what waits in one call of the network."""
        if not waiting:
            return
        exact = model.embed([crop.image for _, crop in waiting])
        vectors = from_half([to_half(vector) for vector in exact])  # what a later reader will find
        new = []
        for (number, crop), vector in zip(waiting, vectors, strict=True):
            new.append(CropEmbedding(crop.view.frame, crop.view.xyxy, vector, _thumbnail(crop.image)))
            found[number].append(new[-1])
        looks.add(model_id, new)
        waiting.clear()

    with embedder() as model, open_video() as path:
        try:
            for number, crops in _crops_of_tracks(path, missing, should_stop):
                best = select_crops([crop.view for crop in crops], [crop.sharpness for crop in crops], k)
                waiting += [(number, crops[i]) for i in best]
                if len(waiting) >= WAITING:
                    flush(model)
        finally:
            flush(model)  # of a job that is stopped, and taken up again, too
    return found


def _known_of(candidates: Sequence[CropBox], by_frame: dict[int, list[CropEmbedding]], k: int) -> list[CropEmbedding]:
    """``k`` (or, of a shorter track, all its) known looks among the candidates' frames; else none."""
    chosen = []
    for view in candidates:
        near = by_frame.get(view.frame)
        if not near:
            continue
        overlap = iou_pairs([view.xyxy] * len(near), [look.xyxy for look in near])
        best = int(overlap.argmax())
        if overlap[best] >= SAME_LOOK_IOU:
            chosen.append(near[best])
    if len(chosen) < min(k, len(candidates)):
        return []
    if len(chosen) <= k:
        return chosen
    spread = np.unique(np.linspace(0, len(chosen) - 1, k).round().astype(int))
    return [chosen[i] for i in spread.tolist()]


@dataclass(slots=True)
class _Crop:
    view: CropBox
    image: Image
    sharpness: float


def _crops_of_tracks(
    path: Path, wanted: dict[int, Sequence[CropBox]], should_stop: Callable[[], bool] | None
) -> Iterator[tuple[int, list[_Crop]]]:
    """Each track's crops, as soon as its last candidate has passed."""
    from ml_backend.embeddings.crops import cut_crop, sharpness
    from ml_backend.video.probe import probe
    from ml_backend.video.reader import read_at

    at: dict[int, list[tuple[int, CropBox]]] = {}
    for number, candidates in wanted.items():
        for view in candidates:
            at.setdefault(view.frame, []).append((number, view))
    last = {number: candidates[-1].frame for number, candidates in wanted.items()}
    open_tracks: dict[int, list[_Crop]] = {}
    for frame in _readable(read_at(path, probe(path), sorted(at))):
        if should_stop and should_stop():
            raise Interrupted(f"Stopped at frame {frame.index}.", "The job is taken up again.")
        for number, view in at[frame.index]:
            image = cut_crop(frame.image, view.xyxy)
            if image is not None:
                small = _shrink(image, MAX_CROP)
                open_tracks.setdefault(number, []).append(_Crop(view, small, sharpness(small)))
        # Frames that cannot be decoded are left out, so a track's last one may have been before this.
        for number in [n for n in open_tracks if last[n] <= frame.index]:
            yield number, open_tracks.pop(number)
    yield from open_tracks.items()


def _readable(frames: Iterator[Frame]) -> Iterator[Frame]:
    """A file that can be read, but not where these tracks are, ends with what there is."""
    try:
        yield from frames
    except VideoError as error:
        log.warning("Some tracks cannot be looked at: %s", error)


def _shrink(image: Image, longest: int) -> Image:
    import cv2

    height, width = image.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return image
    return np.asarray(cv2.resize(image, scaled_size(width, height, scale), interpolation=cv2.INTER_AREA), np.uint8)


def _thumbnail(image: Image) -> bytes:
    import cv2

    _, data = cv2.imencode(".jpg", _shrink(image, THUMBNAIL), [cv2.IMWRITE_JPEG_QUALITY, 80])
    return bytes(data)
