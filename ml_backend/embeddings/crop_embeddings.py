"""Embeddings of tracks' crops, computed once and stored per video and model.

Stored embeddings make a changed label, a new pattern or a switch of the mode cost no decoding.
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

#: Longer side in pixels of the crops in memory; embedders use 224.
MAX_CROP = 320
#: Longer side of thumbnails in pixels.
THUMBNAIL = 96
#: Boxes with this IoU on one frame share an embedding: accepting a track moves its boxes a little through keyframes.
SAME_CROP_IOU = 0.85
#: Number of crops to embed at once; more are no faster.
MAX_PENDING_CROPS = 64


@dataclass(frozen=True, slots=True)
class CropEmbedding:
    """The embedding of one box.

    Attributes:
        frame: 0-based index of the decoded frame.
        xyxy: pixels of the displayed video, rounded to 0.1.
        vector: ``(d,)`` float32, L2-normalised, rounded to half precision as stored.
        thumbnail: JPEG.
    """

    frame: int
    xyxy: tuple[float, float, float, float]
    vector: FloatArray = field(compare=False)
    thumbnail: bytes = field(compare=False)

    def key(self, video: str, model_id: str) -> str:
        """Return a digest of the video, the model and the box; 40 hex digits."""
        return hashlib.sha256(f"{video}|{model_id}|{self.frame}|{self.xyxy}".encode()).hexdigest()[:40]


class CropEmbeddingStore(Protocol):
    """Storage for the crop embeddings of one video."""

    def get(self, model_id: str) -> list[CropEmbedding]:
        """Return all embeddings of a model."""
        ...

    def add(self, model_id: str, added: Sequence[CropEmbedding]) -> None:
        """Store new embeddings."""
        ...


class MemoryCropEmbeddings:
    """A :class:`CropEmbeddingStore` in memory."""

    def __init__(self) -> None:
        self._embeddings: dict[str, list[CropEmbedding]] = {}

    def get(self, model_id: str) -> list[CropEmbedding]:
        return list(self._embeddings.get(model_id, []))

    def add(self, model_id: str, added: Sequence[CropEmbedding]) -> None:
        self._embeddings.setdefault(model_id, []).extend(added)


def to_half(vectors: FloatArray) -> bytes:
    """Convert ``(d,)`` or ``(n, d)`` to the stored format, little-endian half precision."""
    return vectors.astype("<f2").tobytes()


def from_half(blobs: Sequence[bytes]) -> FloatArray:
    """Convert ``n`` stored vectors to ``(n, d)`` float32, L2-normalised; ``(0, 0)`` if there are none."""
    if not blobs:
        return np.zeros((0, 0), np.float32)
    vectors = np.frombuffer(b"".join(blobs), "<f2").reshape(len(blobs), -1).astype(np.float32)
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norm > 0, norm, 1.0), np.float32)


def embed_tracks(
    candidates: Sequence[Sequence[CropBox]],
    embedder: Callable[[], AbstractContextManager[Embedder]],
    model_id: str,
    store: CropEmbeddingStore,
    open_video: OpenVideo,
    k: int,
    should_stop: Callable[[], bool] | None = None,
) -> list[list[CropEmbedding]]:
    """Return stored embeddings of tracks, or compute missing ones in a sparse pass over the video.

    Opens neither the model nor the video if all embeddings are stored. Memory holds only the crops of tracks that are
    on screen.

    Args:
        candidates: of each track, from :func:`ml_backend.embeddings.crop_selection.candidate_crops`.
        embedder: opens the embedder.
        model_id: of the embedder.
        store: embeddings of the video; new ones are added.
        open_video: opens the local file.
        k: embeddings per track.
        should_stop: polled at each frame.

    Returns:
        At most ``k`` embeddings for each track, in order of time; none if its frames cannot be decoded.

    Raises:
        VideoError: the file cannot be used.
        Interrupted: ``should_stop`` returned true; finished embeddings are stored.
    """
    embeddings = stored_embeddings(candidates, store.get(model_id), k)
    missing = {i: boxes for i, boxes in enumerate(candidates) if boxes and not embeddings[i]}
    if not missing:
        return embeddings
    pending: list[tuple[int, _Crop]] = []

    def flush(model: Embedder) -> None:
        """Embed the pending crops in one call."""
        if not pending:
            return
        exact = model.embed([crop.image for _, crop in pending])
        vectors = from_half([to_half(vector) for vector in exact])  # rounded, as when they are read from the store
        new = []
        for (track, crop), vector in zip(pending, vectors, strict=True):
            new.append(CropEmbedding(crop.box.frame, crop.box.xyxy, vector, _thumbnail(crop.image)))
            embeddings[track].append(new[-1])
        store.add(model_id, new)
        pending.clear()

    with embedder() as model, open_video() as path:
        try:
            for track, crops in _track_crops(path, missing, should_stop):
                best = select_crops([crop.box for crop in crops], [crop.sharpness for crop in crops], k)
                pending += [(track, crops[i]) for i in best]
                if len(pending) >= MAX_PENDING_CROPS:
                    flush(model)
        finally:
            flush(model)  # also if interrupted, for when the job is resumed
    return embeddings


def stored_embeddings(
    candidates: Sequence[Sequence[CropBox]], stored: Sequence[CropEmbedding], k: int
) -> list[list[CropEmbedding]]:
    """Return the embeddings of tracks as :func:`embed_tracks`, without those that are not stored."""
    by_frame: dict[int, list[CropEmbedding]] = {}
    for embedding in stored:
        by_frame.setdefault(embedding.frame, []).append(embedding)
    return [_stored_embeddings(boxes, by_frame, k) for boxes in candidates]


def _stored_embeddings(
    candidates: Sequence[CropBox], by_frame: dict[int, list[CropEmbedding]], k: int
) -> list[CropEmbedding]:
    """Return ``k`` stored ones (all, of a shorter track) that match the candidates, or none if fewer match."""
    matches = []
    for box in candidates:
        stored = by_frame.get(box.frame)
        if not stored:
            continue
        iou = iou_pairs([box.xyxy] * len(stored), [embedding.xyxy for embedding in stored])
        best = int(iou.argmax())
        if iou[best] >= SAME_CROP_IOU:
            matches.append(stored[best])
    if len(matches) < min(k, len(candidates)):
        return []
    if len(matches) <= k:
        return matches
    spread = np.unique(np.linspace(0, len(matches) - 1, k).round().astype(int))
    return [matches[i] for i in spread.tolist()]


@dataclass(slots=True)
class _Crop:
    box: CropBox
    image: Image
    sharpness: float


def _track_crops(
    path: Path, candidates: dict[int, Sequence[CropBox]], should_stop: Callable[[], bool] | None
) -> Iterator[tuple[int, list[_Crop]]]:
    """Yield the crops of each track once its last candidate has been decoded."""
    from ml_backend.embeddings.crops import cut_crop, sharpness
    from ml_backend.video.probe import probe
    from ml_backend.video.reader import read_at

    by_frame: dict[int, list[tuple[int, CropBox]]] = {}
    for track, boxes in candidates.items():
        for box in boxes:
            by_frame.setdefault(box.frame, []).append((track, box))
    last_frame = {track: boxes[-1].frame for track, boxes in candidates.items()}
    open_tracks: dict[int, list[_Crop]] = {}
    for frame in _decodable(read_at(path, probe(path), sorted(by_frame))):
        if should_stop and should_stop():
            raise Interrupted(f"Stopped at frame {frame.index}.", "Wait: the job is resumed by itself.")
        for track, box in by_frame[frame.index]:
            image = cut_crop(frame.image, box.xyxy)
            if image is not None:
                small = _shrink(image, MAX_CROP)
                open_tracks.setdefault(track, []).append(_Crop(box, small, sharpness(small)))
        # "<=", because a track's last frame may not be decodable.
        for track in [track for track in open_tracks if last_frame[track] <= frame.index]:
            yield track, open_tracks.pop(track)
    yield from open_tracks.items()


def _decodable(frames: Iterator[Frame]) -> Iterator[Frame]:
    """Yield frames until none can be decoded, instead of raising."""
    try:
        yield from frames
    except VideoError as error:
        log.warning("Some tracks cannot be embedded: %s", error)


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
