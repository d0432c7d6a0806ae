"""Extract what a tracker needs besides detections, appearance and camera motion, from a reduced frame."""

from __future__ import annotations

import cv2
import numpy as np

from ml_backend.core.boxes import scaled_size
from ml_backend.core.types import Detections, FloatArray, FrameFeatures, Image
from ml_backend.tracking import appearance
from ml_backend.tracking.camera_motion import CameraMotion

SMALL_WIDTH = 320  # of the reduced frame, pixels
#: Weaker detections may be background, whose corners show the camera motion.
MIN_FOREGROUND_CONF = 0.25


class FrameFeatureExtractor:
    """Extract object colours and camera motion of one video; frames in order, some may be skipped."""

    def __init__(self) -> None:
        self._camera = CameraMotion()

    def extract(self, index: int, detections: Detections, image: Image, size: tuple[int, int]) -> FrameFeatures:
        """Extract the features of one frame.

        Args:
            index: 0-based, larger than all before.
            detections: of the frame, in pixels of the displayed video.
            image: the frame, BGR, of any size.
            size: ``(width, height)`` of the displayed video.

        Returns:
            Features whose ``camera`` maps from the frame of the previous call.
        """
        small = shrink_frame(image)
        scale = np.array([small.shape[1] / size[0], small.shape[0] / size[1]], np.float32)
        boxes: FloatArray = detections.xyxy * np.tile(scale, 2)
        colours = appearance.mean_colours(small, boxes)
        camera = self._camera.since_last(small, boxes[detections.conf >= MIN_FOREGROUND_CONF])
        camera = np.column_stack([camera[:, :2], camera[:, 2] * (1 / float(scale[0]))])  # in pixels of the video
        with_colours = Detections(detections.xyxy, detections.conf, detections.class_id, colours)
        return FrameFeatures(index, with_colours, camera)


def shrink_frame(image: Image) -> Image:
    """Reduce a frame to the size that :meth:`FrameFeatureExtractor.extract` works with."""
    height, width = image.shape[:2]
    scale = min(1.0, SMALL_WIDTH / width)
    if scale == 1.0:
        return image
    return np.asarray(cv2.resize(image, scaled_size(width, height, scale), interpolation=cv2.INTER_AREA), np.uint8)
