"""Objects that move in front of a fixed camera: a detector that needs no weights."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from ml_backend.types import Detections, FloatArray, Image

WIDTH = 640  # pixels that frames are reduced to: fragments merge, noise averages out, and it is 9 times faster
HISTORY_S = 20.0  # memory of the background model: what stands still for longer becomes background
VAR_THRESHOLD = 25.0  # squared distance, in variances, at which a pixel differs from the background
WARM_UP_S = 0.4  # until the background is known nothing is reported
GLOBAL_CHANGE = 0.35  # share of the picture that no set of objects covers: light switched, camera moved
MIN_AREA = 2.2e-4  # share of the picture; smaller blobs are leaves and noise
MIN_FILL = 0.15  # share of a box that must be moving

Mask = npt.NDArray[np.uint8]


class MotionDetector:
    """Class-agnostic detection of moving objects by background subtraction.

    Zivkovic's MOG2 (ICPR 2004) with shadow detection on a reduced picture, morphology, and merging of fragments.
    Stateful: frames of one video in order; :meth:`reset` before another. Implements
    :class:`~ml_backend.models.detector.Detector`.

    Args:
        fps: frames per second of what :meth:`detect` is given.
    """

    def __init__(self, fps: float = 25.0) -> None:
        if fps <= 0:
            raise ValueError(f"expected fps > 0, got {fps}")
        self.names: dict[int, str] = {0: "object"}
        self._fps = fps
        self.reset()

    def reset(self) -> None:
        """Forget the background: another video begins."""
        history = max(10, round(HISTORY_S * self._fps))
        self._model = cv2.createBackgroundSubtractorMOG2(history, VAR_THRESHOLD, detectShadows=True)
        self._seen = 0

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        """Moving objects of consecutive frames.

        Args:
            images: ``(height, width, 3)`` uint8 BGR each.

        Returns:
            One :class:`Detections` per image; ``conf`` is the share of the box that moves.
        """
        return [self._detect(image) for image in images]

    def _detect(self, image: Image) -> Detections:
        height, width = image.shape[:2]
        scale = min(1.0, WIDTH / width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = cv2.GaussianBlur(cv2.resize(image, size, interpolation=cv2.INTER_AREA), (5, 5), 0)
        raw = self._model.apply(small)
        self._seen += 1
        foreground = (raw == 255).astype(np.uint8)  # 127 marks shadows
        if float(foreground.mean()) > GLOBAL_CHANGE:
            self.reset()
            self._model.apply(small)
            self._seen = 1
            return Detections.empty()
        if self._seen <= WARM_UP_S * self._fps:
            return Detections.empty()
        foreground = cv2.morphologyEx(foreground, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
        # People are taller than wide: close more along the vertical, where coats and legs come apart.
        foreground = cv2.morphologyEx(foreground, cv2.MORPH_CLOSE, np.ones((15, 7), np.uint8))
        boxes, fill = _blobs(foreground)
        boxes /= np.array([size[0] / width, size[1] / height] * 2, np.float32)
        return Detections(boxes, fill, np.zeros(len(boxes), np.int64))


def _blobs(foreground: Mask) -> tuple[FloatArray, FloatArray]:
    """``(n, 4)`` boxes of the connected parts of a mask, and the share of each that is set."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(foreground, connectivity=8)
    stats = stats[1:].astype(np.float32)  # the first is the background
    x, y, w, h, area = stats.T
    fill = area / np.maximum(w * h, 1)
    good = (area >= MIN_AREA * foreground.size) & (fill >= MIN_FILL)
    return np.stack([x, y, x + w, y + h], axis=1)[good].astype(np.float32), fill[good].clip(0, 1).astype(np.float32)
