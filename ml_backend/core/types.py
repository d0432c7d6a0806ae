"""Data types that all stages share: frames, detections, tracks. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Image = npt.NDArray[np.uint8]
Affine = npt.NDArray[np.float64]

#: Reports how much of how much is done.
Progress = Callable[[int, int], None]

#: The label of a track that is shown although no label fits.
UNLABELLED = ""


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """Metadata of a video file.

    Attributes:
        path: local file.
        width, height: displayed size in pixels, that is after ``rotation``.
        fps: average frames per second, ``frames / duration``.
        frames: number of presented frames.
        duration: seconds from the start of the first frame to the end of the last one.
        codec, pix_fmt: FFmpeg's names, e.g. ``"h264"`` and ``"yuv420p"``.
        rotation: degrees clockwise (0, 90, 180, 270) by which decoded frames are turned for display.
        variable_frame_rate: whether frame intervals differ by more than rounding.
        has_audio: whether there is an audio stream.
    """

    path: str
    width: int
    height: int
    fps: float
    frames: int
    duration: float
    codec: str
    pix_fmt: str
    rotation: int = 0
    variable_frame_rate: bool = False
    has_audio: bool = False


class Frame:
    """One decoded frame.

    Args:
        image: ``(height, width, 3)`` uint8, BGR, upright; or a function that converts it, called when it is needed.

    Attributes:
        index: 0-based position among the decoded frames.
        time: presentation time in seconds on the browser's clock; that of the first frame may be above 0.
    """

    __slots__ = ("_image", "index", "time")

    def __init__(self, index: int, time: float, image: Image | Callable[[], Image]) -> None:
        self.index, self.time, self._image = index, time, image

    @property
    def image(self) -> Image:
        """The image that was given, or that the function returned."""
        if not isinstance(self._image, np.ndarray):
            self._image = self._image()
        return self._image


@dataclass(frozen=True, slots=True)
class Detections:
    """Detections in one frame.

    Attributes:
        xyxy: ``(n, 4)`` float32, pixels, corners left, top, right, bottom.
        conf: ``(n,)`` float32 in 0..1.
        class_id: ``(n,)`` int64, index into the detector's ``names``.
        colours: ``(n, 9)`` float32, see :func:`ml_backend.tracking.appearance.mean_colours`; ``None`` if unknown.
    """

    xyxy: FloatArray
    conf: FloatArray
    class_id: IntArray
    colours: FloatArray | None = None

    def __post_init__(self) -> None:
        n = len(self.xyxy)
        if self.xyxy.shape != (n, 4):
            raise ValueError(f"expected xyxy of shape (n, 4), got {self.xyxy.shape}")
        for name in ("conf", "class_id"):
            shape = getattr(self, name).shape
            if shape != (n,):
                raise ValueError(f"expected {name} of shape ({n},), got {shape}")
        if self.colours is not None and (self.colours.ndim != 2 or len(self.colours) != n):
            raise ValueError(f"expected colours of shape ({n}, d), got {self.colours.shape}")

    def __len__(self) -> int:
        return len(self.xyxy)

    def take(self, rows: IntArray | BoolArray) -> Detections:
        """Return some of the detections, by their indices or a mask."""
        colours = None if self.colours is None else self.colours[rows]
        return Detections(self.xyxy[rows], self.conf[rows], self.class_id[rows], colours)

    @classmethod
    def empty(cls) -> Detections:
        """Return no detections."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))


@dataclass(frozen=True, slots=True)
class FrameFeatures:
    """Features of one frame that the tracker uses; no pixels.

    Attributes:
        index: 0-based position among the decoded frames.
        detections: in pixels of the displayed video.
        camera: ``(2, 3)`` float64, affine map of pixels from the previous frame to this one; ``None`` if unknown.
    """

    index: int
    detections: Detections
    camera: Affine | None = None


@dataclass(slots=True)
class Track:
    """One object over time.

    Frames may have gaps, in which the object is hidden.

    Attributes:
        track_id: unique within one run.
        frames: ``(n,)`` int64, strictly increasing 0-based decoded frame indices.
        xyxy: ``(n, 4)`` float32, pixels of the displayed video.
        conf: ``(n,)`` float32, detector confidence; 0 for interpolated boxes.
        class_scores: sum of confidence per detector class name, over the whole track.
        label: the project's label, ``UNLABELLED``, or ``None`` before label assignment.
        score: 0..1, confidence in the track and its label.
    """

    track_id: int
    frames: IntArray
    xyxy: FloatArray
    conf: FloatArray
    class_scores: Mapping[str, float] = field(default_factory=dict)
    label: str | None = None
    score: float = 0.0

    def __post_init__(self) -> None:
        n = len(self.frames)
        if self.frames.shape != (n,):
            raise ValueError(f"expected frames of shape (n,), got {self.frames.shape}")
        if self.xyxy.shape != (n, 4):
            raise ValueError(f"expected xyxy of shape ({n}, 4), got {self.xyxy.shape}")
        if self.conf.shape != (n,):
            raise ValueError(f"expected conf of shape ({n},), got {self.conf.shape}")
        if n > 1 and not bool(np.all(np.diff(self.frames) > 0)):
            raise ValueError("expected strictly increasing frames")

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def top_class(self) -> str:
        """The detector class with the highest score; see :func:`top_class`."""
        return top_class(self.class_scores)


def top_class(class_scores: Mapping[str, float]) -> str:
    """Return the class with the highest score, of equal ones the alphabetically first; ``"object"`` without scores."""
    if not class_scores:
        return "object"
    return min(class_scores, key=lambda name: (-class_scores[name], name))
