"""Objects that move in front of a fixed camera: a detector that needs no weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from ml_backend.core.boxes import scaled_size
from ml_backend.core.types import Detections, FloatArray, Image

WIDTH = 640  # pixels that frames are reduced to: fragments merge, noise averages out, and it is 9 times faster
HISTORY_S = 60.0  # memory of the background model: what stands still for a tenth of it becomes background
# Fastest learning, share of the memory a second. OpenCV's own schedule swallows walkers in the first seconds.
MAX_RATE = 0.4
VAR_THRESHOLD = 20.0  # squared distance, in variances, at which a pixel differs from the background
# Darkening down to this share is a shadow. OpenCV's 0.5 takes dark coats on a grey street for shadows.
SHADOW = 0.8
WARM_UP_S = 0.2  # until the background is known nothing is reported
GLOBAL_CHANGE = 0.35  # share of the picture that no set of objects covers: light switched, camera moved
MAX_AREA = 0.5  # likewise for a single box
MIN_AREA = 3e-4  # share of the picture; smaller blobs are leaves and noise
MIN_FILL = 0.2  # share of a box that must be moving
# Width and height of what fragments are closed with: people are tall, and it is coats and legs that come apart.
CLOSE = (5, 25)

Mask = npt.NDArray[np.uint8]


class MotionDetector:
    """Class-agnostic detection of moving objects by background subtraction.

    Zivkovic's MOG2 (ICPR 2004) with shadow detection on a reduced picture, morphology, and merging of fragments.
    Stateful: frames of one video in order; :meth:`reset` before another. Implements
    :class:`~ml_backend.detectors.yolo.Detector`.

    Args:
        fps: frames per second of what :meth:`detect` is given.
    """

    def __init__(self, fps: float = 25.0) -> None:
        if fps <= 0:
            raise ValueError(f"expected fps > 0, got {fps}")
        self.names: dict[int, str] = {0: "object"}
        self.max_concurrency = 1
        self._fps = fps
        self.reset()

    def reset(self) -> None:
        """Forget the background: another video begins."""
        self._model = cv2.createBackgroundSubtractorMOG2(500, VAR_THRESHOLD, detectShadows=True)
        self._model.setShadowThreshold(SHADOW)
        self._learned = 0  # frames
        self._warm_up = WARM_UP_S * self._fps

    def prime(self, images: Iterable[Image]) -> None:
        """Learn the background from frames taken all over the video, before the first :meth:`detect`.

        Optional: without it, objects of the first seconds leave ghosts behind and are seen a little later.

        Args:
            images: at least 5, better 20, far enough apart that objects have moved on; held in memory, reduced.
        """
        reduced = [self._reduce(image) for image in images]
        if len(reduced) < 5 or len({image.shape for image in reduced}) > 1:
            return
        self.reset()
        background = np.median(np.stack(reduced), axis=0).astype(np.uint8)
        for _ in range(10):
            self._model.apply(background, learningRate=0.5)
        for image in reduced:
            self._model.apply(image, learningRate=0.01)  # how much each pixel varies
        self._learned = len(reduced)
        self._warm_up = 0.0

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        """Moving objects of consecutive frames.

        Args:
            images: ``(height, width, 3)`` uint8 BGR each.

        Returns:
            One :class:`Detections` per image; ``conf`` is the share of the box that moves.
        """
        return [self._detect(image) for image in images]

    def working_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) to which pictures are reduced in any case."""
        scale = min(1.0, WIDTH / width)
        return scaled_size(width, height, scale)

    def _rate(self) -> float:
        """How much the next frame counts: a lot in the beginning, when the first frame is all that is known."""
        self._learned += 1
        slowest, fastest = 1 / (HISTORY_S * self._fps), min(0.5, MAX_RATE / self._fps)
        return float(min(max(1 / (2 * self._learned), slowest), fastest)) if self._learned > 1 else 1.0

    def _reduce(self, image: Image) -> Image:
        height, width = image.shape[:2]
        small = cv2.resize(image, self.working_size(width, height), interpolation=cv2.INTER_AREA)
        return np.asarray(cv2.GaussianBlur(small, (5, 5), 0), np.uint8)

    def _detect(self, image: Image) -> Detections:
        small = self._reduce(image)
        foreground = (self._model.apply(small, learningRate=self._rate()) == 255).astype(np.uint8)  # 127 marks shadows
        if self._warm_up > 0:
            self._warm_up -= 1
            return Detections.empty()
        if float(foreground.mean()) > GLOBAL_CHANGE:
            self.reset()
            self._model.apply(small, learningRate=self._rate())
            return Detections.empty()
        foreground = cv2.morphologyEx(foreground, cv2.MORPH_CLOSE, np.ones(CLOSE[::-1], np.uint8))
        boxes, fill = _blobs(foreground)
        boxes *= np.array([image.shape[1] / small.shape[1], image.shape[0] / small.shape[0]] * 2, np.float32)
        return Detections(boxes, fill, np.zeros(len(boxes), np.int64))


def _blobs(foreground: Mask) -> tuple[FloatArray, FloatArray]:
    """``(n, 4)`` boxes of the connected parts of a mask, and the share of each that is set."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(foreground, connectivity=8)
    stats = stats[1:].astype(np.float32)  # the first is the background
    x, y, w, h, area = stats.T
    fill = area / np.maximum(w * h, 1)
    share = area / foreground.size
    good = (share >= MIN_AREA) & (fill >= MIN_FILL) & (w * h <= MAX_AREA * foreground.size)
    return np.stack([x, y, x + w, y + h], axis=1)[good].astype(np.float32), fill[good].clip(0, 1).astype(np.float32)
