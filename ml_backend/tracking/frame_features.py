"""What a tracker needs of a frame besides its detections, read from a small picture of it."""

from __future__ import annotations

import cv2
import numpy as np

from ml_backend.core.boxes import scaled_size
from ml_backend.core.types import Detections, FloatArray, FrameFeatures, Image
from ml_backend.tracking import appearance
from ml_backend.tracking.camera_motion import CameraMotion

SMALL_WIDTH = 320  # pixels of the reduced frame from which colours and camera motion are read
#: Less sure detections may be background, whose corners tell how the camera moves.
SURE = 0.25


class FrameFeatureExtractor:
    """Colours of the objects, and how the camera moved. One video, frames in order; they need not be neighbours."""

    def __init__(self) -> None:
        self._camera = CameraMotion()

    def observe(self, index: int, detections: Detections, image: Image, size: tuple[int, int]) -> FrameFeatures:
        """See one frame.

        Args:
            index: 0-based, larger than all before.
            detections: of the frame, pixels of the displayed video.
            image: the frame, BGR, of any size.
            size: ``(width, height)`` of the displayed video.

        Returns:
            Observation whose ``camera`` maps from the frame that was seen before, whichever that was.
        """
        small = shrink_frame(image)
        scale = np.array([small.shape[1] / size[0], small.shape[0] / size[1]], np.float32)
        boxes: FloatArray = detections.xyxy * np.tile(scale, 2)
        looks = appearance.colour_histograms(small, boxes)
        camera = self._camera.since_last(small, boxes[detections.conf >= SURE])
        camera = np.column_stack([camera[:, :2], camera[:, 2] * (1 / float(scale[0]))])  # in pixels of the video
        found = Detections(detections.xyxy, detections.conf, detections.class_id, looks)
        return FrameFeatures(index, found, camera)


def shrink_frame(image: Image) -> Image:
    """As small as :meth:`FrameFeatureExtractor.observe` needs it, which does so anyway."""
    height, width = image.shape[:2]
    scale = min(1.0, SMALL_WIDTH / width)
    if scale == 1.0:
        return image
    return np.asarray(cv2.resize(image, scaled_size(width, height, scale), interpolation=cv2.INTER_AREA), np.uint8)
