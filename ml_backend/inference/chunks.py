"""Split a long video into chunks: several processes detect at once, and a killed one loses a single chunk.

Together the chunks give the same features as a single pass, see
:func:`ml_backend.inference.detection_stream.detection_stream`. Tracking needs no images and runs over all features in
one pass, so nothing has to be stitched.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ml_backend.core.errors import Interrupted
from ml_backend.core.types import Detections, FrameFeatures, VideoInfo


@dataclass(frozen=True, slots=True)
class VideoChunk:
    """A range of a video's frames.

    Attributes:
        number: 0, 1, ... in order of time.
        start: first frame to decode; except in chunk 0 it still belongs to the chunk before.
        end: last frame, inclusive; ``None`` for that of the video.
    """

    number: int
    start: int
    end: int | None


#: Shortest chunk: opening a file and seeking in it must cost little compared with detection.
MIN_FRAMES = 64


def plan_chunks(info: VideoInfo, stride: int, seconds: float, seek_cost: float = 0.0) -> tuple[VideoChunk, ...]:
    """Split a video into chunks of equal length; the last one takes the remainder.

    Args:
        info: of the video.
        stride: of the detector; chunks start at its multiples.
        seconds: length of a chunk; 0 for a single chunk.
        seek_cost: frames decoded per seek, see :func:`ml_backend.video.reader.seek_cost`; a video where this exceeds
            the length of a chunk is not split.
    """
    length = round(max(seconds * info.fps, MIN_FRAMES) / stride) * stride if seconds > 0 else 0
    length = 0 if seek_cost > length else length
    count = max(1, info.frames // length) if length > 0 else 1
    return tuple(VideoChunk(n, n * length, (n + 1) * length if n + 1 < count else None) for n in range(count))


class ChunkStore(Protocol):
    """Leases and results of one video's chunks, shared by the processes that work on it."""

    def load(self, chunk: VideoChunk) -> Sequence[FrameFeatures] | None:
        """Return the features of a finished chunk, else ``None``."""

    def claim(self, chunk: VideoChunk, *, ahead: bool = False) -> bool:
        """Lease a chunk to the caller; false if it is finished or leased to another process.

        Args:
            ahead: the chunk is not needed yet; false as well if its features could not be stored.
        """

    def save(self, chunk: VideoChunk, features: Sequence[FrameFeatures]) -> None:
        """Store the features of a claimed chunk for all processes."""

    def wait(self) -> None:
        """Sleep briefly while other processes work."""


DetectChunk = Callable[[VideoChunk], Iterable[FrameFeatures]]


def detect_chunks(
    chunks: Sequence[VideoChunk],
    store: ChunkStore,
    detect: DetectChunk,
    should_stop: Callable[[], bool] = lambda: False,
) -> Generator[FrameFeatures, None, None]:
    """Yield the features of all chunks, in order.

    While another process works on the next chunk, a later one is detected.

    Args:
        chunks: from :func:`plan_chunks`.
        store: shared with the other processes.
        detect: yields the features of one chunk.
        should_stop: polled while nothing can be yielded.

    Raises:
        Interrupted: ``should_stop`` returned true.
    """
    for chunk in chunks:
        while (stored := store.load(chunk)) is None:
            if store.claim(chunk):
                detected = []
                for features in detect(chunk):
                    detected.append(features)
                    yield features
                store.save(chunk, detected)
                break
            if should_stop():
                raise Interrupted(
                    f"Stopped at chunk {chunk.number} of {len(chunks)}.", "Wait for the worker to resume the job."
                )
            later = next((other for other in chunks[chunk.number + 1 :] if store.claim(other, ahead=True)), None)
            if later is None:
                store.wait()
            else:
                store.save(later, list(_until_stopped(detect(later), should_stop)))
        else:
            yield from stored


def help_with_chunks(
    chunks: Sequence[VideoChunk],
    store: ChunkStore,
    detect: DetectChunk,
    should_stop: Callable[[], bool],
    is_needed_elsewhere: Callable[[], bool] = lambda: False,
) -> int:
    """Detect unclaimed chunks from the end, since the tracking process starts at the beginning.

    Args:
        chunks, store, detect: as for :func:`detect_chunks`.
        should_stop: polled for each chunk and frame.
        is_needed_elsewhere: polled after each finished chunk.

    Returns:
        Number of chunks detected.

    Raises:
        Interrupted: ``should_stop`` returned true within a chunk.
    """
    done = 0
    for chunk in reversed(chunks):
        if should_stop() or (done and is_needed_elsewhere()):
            break
        if store.claim(chunk, ahead=True):
            store.save(chunk, list(_until_stopped(detect(chunk), should_stop)))
            done += 1
    return done


def _until_stopped(
    stream: Iterable[FrameFeatures], should_stop: Callable[[], bool]
) -> Generator[FrameFeatures, None, None]:
    for features in stream:
        if should_stop():
            raise Interrupted(f"Stopped at frame {features.index}.", "Wait for the worker to resume the job.")
        yield features


def dump_frame_features(frames: Sequence[FrameFeatures]) -> bytes:
    """Serialise as a compressed ``.npz``, without loss."""
    detections = [frame.detections for frame in frames]
    cameras = [np.full((2, 3), np.nan) if frame.camera is None else frame.camera for frame in frames]
    arrays = {
        "index": np.array([frame.index for frame in frames], np.int64),
        "count": np.array([len(d) for d in detections], np.int64),
        "camera": np.array(cameras, np.float64).reshape(-1, 2, 3),
        "xyxy": np.concatenate([np.zeros((0, 4), np.float32), *(d.xyxy for d in detections)]),
        "conf": np.concatenate([np.zeros(0, np.float32), *(d.conf for d in detections)]),
        "class_id": np.concatenate([np.zeros(0, np.int64), *(d.class_id for d in detections)]),
    }
    colours = [d.colours for d in detections if d.colours is not None]
    if len(colours) == len(detections) and detections:
        arrays["features"] = np.concatenate(colours)
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)  # type: ignore[arg-type]
    return out.getvalue()


def load_frame_features(data: bytes) -> list[FrameFeatures]:
    """Deserialise what :func:`dump_frame_features` wrote.

    Raises:
        ValueError: the data is damaged.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        ends = np.cumsum(arrays["count"])
        colours = arrays.get("features")
        frames = []
        for n, (index, end) in enumerate(zip(arrays["index"], ends, strict=True)):
            rows = slice(int(end - arrays["count"][n]), int(end))
            camera = arrays["camera"][n]
            detections = Detections(
                arrays["xyxy"][rows],
                arrays["conf"][rows],
                arrays["class_id"][rows],
                None if colours is None else colours[rows],
            )
            frames.append(FrameFeatures(int(index), detections, None if np.isnan(camera).any() else camera))
        return frames
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError, IndexError, TypeError) as error:
        raise ValueError(f"invalid frame features: {error}") from error
