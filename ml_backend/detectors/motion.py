"""Detection of moving objects in front of a static camera; needs no weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from ml_backend.core.boxes import scaled_size
from ml_backend.core.types import Detections, FloatArray, Image

WIDTH = 640  # pixels that frames are reduced to: merges fragments, averages out noise, and is 9 times faster
HISTORY_S = 60.0  # of the background model: what stands still for a tenth of it becomes background
# Highest learning rate, per second. OpenCV's own schedule absorbs walkers in the first seconds.
MAX_RATE = 0.4
VAR_THRESHOLD = 20.0  # squared distance, in variances, at which a pixel is foreground
# Pixels darkened to no less than this share are shadow. OpenCV's 0.5 takes dark coats on a grey street for shadows.
SHADOW = 0.8
WARM_UP_S = 0.2  # no detections until the background is learned
GLOBAL_CHANGE = 0.35  # foreground share of the image from which it is no object: light switched, camera moved
MAX_AREA = 0.5  # largest box, as a share of the image
MIN_AREA = 3e-4  # smallest blob, as a share of the image; smaller ones are leaves and noise
MIN_FILL = 0.2  # smallest share of foreground in a box
# Width and height of the closing kernel: tall, as people break apart at coats and legs.
CLOSE = (5, 25)

Mask = npt.NDArray[np.uint8]


class MotionDetector:
    """Class-agnostic detection of moving objects by background subtraction.

    Zivkovic's MOG2 (ICPR 2004) with shadow detection on downscaled frames, followed by morphological closing. Stateful:
    call with the frames of one video in order, and :meth:`reset` before another. Implements
    :class:`~ml_backend.detectors.yolo.Detector`.

    Args:
        fps: frames per second of the images given to :meth:`detect`.
    """

    def __init__(self, fps: float = 25.0) -> None:
        if fps <= 0:
            raise ValueError(f"expected fps > 0, got {fps}")
        self.names: dict[int, str] = {0: "object"}
        self.max_concurrency = 1
        self._fps = fps
        self.reset()

    def reset(self) -> None:
        """Forget the background before another video."""
        self._model = cv2.createBackgroundSubtractorMOG2(500, VAR_THRESHOLD, detectShadows=True)
        self._model.setShadowThreshold(SHADOW)
        self._frames_learned = 0
        self._warm_up = WARM_UP_S * self._fps

    def prime(self, images: Iterable[Image]) -> None:
        """Learn the background from frames spread over the video, before the first :meth:`detect`.

        Optional: without it, objects in the first seconds leave ghosts and are detected a little later.

        Args:
            images: at least 5, better 20, far enough apart for objects to have moved on; kept in memory, downscaled.
        """
        reduced = [self._downscale(image) for image in images]
        if len(reduced) < 5 or len({image.shape for image in reduced}) > 1:
            return
        self.reset()
        background = np.median(np.stack(reduced), axis=0).astype(np.uint8)
        for _ in range(10):
            self._model.apply(background, learningRate=0.5)
        for image in reduced:
            self._model.apply(image, learningRate=0.01)  # learns the variance of each pixel
        self._frames_learned = len(reduced)
        self._warm_up = 0.0

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        """Detect moving objects in consecutive frames.

        Args:
            images: ``(height, width, 3)`` uint8 BGR each.

        Returns:
            One :class:`Detections` per image; ``conf`` is the share of foreground in the box.
        """
        return [self._detect(image) for image in images]

    def working_size(self, width: int, height: int) -> tuple[int, int]:
        """See :meth:`~ml_backend.detectors.yolo.Detector.working_size`."""
        scale = min(1.0, WIDTH / width)
        return scaled_size(width, height, scale)

    def _learning_rate(self) -> float:
        """Return the weight of the next frame, which is high in the beginning."""
        self._frames_learned += 1
        slowest, fastest = 1 / (HISTORY_S * self._fps), min(0.5, MAX_RATE / self._fps)
        return float(min(max(1 / (2 * self._frames_learned), slowest), fastest)) if self._frames_learned > 1 else 1.0

    def _downscale(self, image: Image) -> Image:
        height, width = image.shape[:2]
        small = cv2.resize(image, self.working_size(width, height), interpolation=cv2.INTER_AREA)
        return np.asarray(cv2.GaussianBlur(small, (5, 5), 0), np.uint8)

    def _detect(self, image: Image) -> Detections:
        small = self._downscale(image)
        foreground = (self._model.apply(small, learningRate=self._learning_rate()) == 255).astype(
            np.uint8
        )  # 127 marks shadows
        if self._warm_up > 0:
            self._warm_up -= 1
            return Detections.empty()
        if float(foreground.mean()) > GLOBAL_CHANGE:
            self.reset()
            self._model.apply(small, learningRate=self._learning_rate())
            return Detections.empty()
        foreground = cv2.morphologyEx(foreground, cv2.MORPH_CLOSE, np.ones(CLOSE[::-1], np.uint8))
        boxes, fill = _blobs(foreground)
        boxes *= np.array([image.shape[1] / small.shape[1], image.shape[0] / small.shape[0]] * 2, np.float32)
        return Detections(boxes, fill, np.zeros(len(boxes), np.int64))


def _blobs(foreground: Mask) -> tuple[FloatArray, FloatArray]:
    """Return the ``(n, 4)`` boxes of the connected components of a mask, and the share of each box that is set."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(foreground, connectivity=8)
    stats = stats[1:].astype(np.float32)  # without the background
    x, y, w, h, area = stats.T
    fill = area / np.maximum(w * h, 1)
    share = area / foreground.size
    good = (share >= MIN_AREA) & (fill >= MIN_FILL) & (w * h <= MAX_AREA * foreground.size)
    return np.stack([x, y, x + w, y + h], axis=1)[good].astype(np.float32), fill[good].clip(0, 1).astype(np.float32)
