"""A long video in segments: several processes observe them at once, and one that was killed loses a single segment.

Segments give together the observations that one pass gives, see
:func:`ml_backend.inference.detection_stream.detection_stream`. Tracking, which needs no frames, runs over them in one
pass, so nothing has to be stitched.
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
    """A part of a video.

    Attributes:
        number: 0, 1, ... in order of time.
        start: first frame that is looked at; it belongs to the segment only where that is the first.
        end: last frame; ``None``: the video's.
    """

    number: int
    start: int
    end: int | None


#: No segment has fewer: opening a file and seeking in it must be little beside the work.
MIN_FRAMES = 64


def plan_chunks(info: VideoInfo, stride: int, seconds: float, seek_cost: float = 0.0) -> tuple[VideoChunk, ...]:
    """Cut a video; what would be left over is added to the last segment.

    Args:
        stride: of the observation; segments begin at its multiples.
        seconds: of each segment; 0: a single one.
        seek_cost: see :func:`ml_backend.video.reader.seek_cost`; a video where it is more than a segment is not cut.
    """
    length = round(max(seconds * info.fps, MIN_FRAMES) / stride) * stride if seconds > 0 else 0
    length = 0 if seek_cost > length else length
    count = max(1, info.frames // length) if length > 0 else 1
    return tuple(VideoChunk(n, n * length, (n + 1) * length if n + 1 < count else None) for n in range(count))


class ChunkStore(Protocol):
    """What the processes that observe one video know of each other."""

    def load(self, segment: VideoChunk) -> Sequence[FrameFeatures] | None:
        """The observations of a segment that somebody has finished."""

    def claim(self, segment: VideoChunk, *, ahead: bool = False) -> bool:
        """Whether the caller is to observe it now; not where it is finished, or another does.

        Args:
            ahead: it is not needed yet; then not where its observations could not be kept, either.
        """

    def save(self, segment: VideoChunk, observations: Sequence[FrameFeatures]) -> None:
        """Keep the observations of a claimed segment for all."""

    def wait(self) -> None:
        """Let some time pass in which others work."""


DetectChunk = Callable[[VideoChunk], Iterable[FrameFeatures]]


def detect_chunks(
    segments: Sequence[VideoChunk],
    board: ChunkStore,
    look: DetectChunk,
    should_stop: Callable[[], bool] = lambda: False,
) -> Generator[FrameFeatures, None, None]:
    """All observations of a video, in order; what others are at is waited for, with a later segment meanwhile.

    Args:
        look: observes a segment.

    Raises:
        Interrupted: ``should_stop`` said so while nothing could be given out.
    """
    for segment in segments:
        while (known := board.load(segment)) is None:
            if board.claim(segment):
                kept = []
                for observation in look(segment):
                    kept.append(observation)
                    yield observation
                board.save(segment, kept)
                break
            if should_stop():
                raise Interrupted(f"Stopped at segment {segment.number} of {len(segments)}.", "It is taken up again.")
            later = next((other for other in segments[segment.number + 1 :] if board.claim(other, ahead=True)), None)
            if later is None:
                board.wait()
            else:
                board.save(later, list(_until_stopped(look(later), should_stop)))
        else:
            yield from known


def help_with_chunks(
    segments: Sequence[VideoChunk],
    board: ChunkStore,
    look: DetectChunk,
    should_stop: Callable[[], bool],
    is_needed_elsewhere: Callable[[], bool] = lambda: False,
) -> int:
    """Help with what nobody is at, from the end: the one who tracks begins at the start. How many segments it were.

    Args:
        is_needed_elsewhere: asked after each segment.

    Raises:
        Interrupted: ``should_stop`` said so.
    """
    done = 0
    for segment in reversed(segments):
        if should_stop() or (done and is_needed_elsewhere()):
            break
        if board.claim(segment, ahead=True):
            board.save(segment, list(_until_stopped(look(segment), should_stop)))
            done += 1
    return done


def _until_stopped(
    observations: Iterable[FrameFeatures], should_stop: Callable[[], bool]
) -> Generator[FrameFeatures, None, None]:
    for observation in observations:
        if should_stop():
            raise Interrupted(f"Stopped at frame {observation.index}.", "The job is taken up again.")
        yield observation


def dump_frame_features(observations: Sequence[FrameFeatures]) -> bytes:
    """As a compressed ``.npz``; nothing is rounded."""
    found = [o.detections for o in observations]
    cameras = [np.full((2, 3), np.nan) if o.camera is None else o.camera for o in observations]
    arrays = {
        "index": np.array([o.index for o in observations], np.int64),
        "count": np.array([len(d) for d in found], np.int64),
        "camera": np.array(cameras, np.float64).reshape(-1, 2, 3),
        "xyxy": np.concatenate([np.zeros((0, 4), np.float32), *(d.xyxy for d in found)]),
        "conf": np.concatenate([np.zeros(0, np.float32), *(d.conf for d in found)]),
        "class_id": np.concatenate([np.zeros(0, np.int64), *(d.class_id for d in found)]),
    }
    features = [d.features for d in found if d.features is not None]
    if len(features) == len(found) and found:
        arrays["features"] = np.concatenate(features)
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)  # type: ignore[arg-type]
    return out.getvalue()


def load_frame_features(data: bytes) -> list[FrameFeatures]:
    """The inverse of :func:`dump_frame_features`.

    Raises:
        ValueError: it is damaged.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        ends = np.cumsum(arrays["count"])
        features = arrays.get("features")
        observations = []
        for n, (index, end) in enumerate(zip(arrays["index"], ends, strict=True)):
            part = slice(int(end - arrays["count"][n]), int(end))
            camera = arrays["camera"][n]
            detections = Detections(
                arrays["xyxy"][part],
                arrays["conf"][part],
                arrays["class_id"][part],
                None if features is None else features[part],
            )
            observations.append(FrameFeatures(int(index), detections, None if np.isnan(camera).any() else camera))
        return observations
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError, IndexError, TypeError) as error:
        raise ValueError(f"no observations: {error}") from error
