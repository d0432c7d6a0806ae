"""Estimate the camera motion between two frames by sparse optical flow."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np

from ml_backend.core.types import Affine, FloatArray, Image

MIN_POINTS = 12  # with fewer, the estimate is more noise than motion
STILL = 0.25  # pixels; smaller motions are noise of a fixed camera
STILL_CHECK = 4  # a fixed camera is recognised by every fourth corner


class CameraMotion:
    """Estimate the camera motion as a similarity transform, from corners outside moving objects, with RANSAC.

    For a fixed camera it is exactly the identity, so that noise does not shake the tracks.
    """

    def __init__(self) -> None:
        self._gray: Image | None = None
        self._points: FloatArray | None = None

    def since_last(self, image: Image, boxes: Iterable[FloatArray] | None = None) -> Affine:
        """Return the motion since the last call.

        Args:
            image: frame, BGR; a quarter of the video's size is enough.
            boxes: moving objects to mask out, ``(4,)`` xyxy each, in pixels of ``image``.

        Returns:
            ``(2, 3)`` affine matrix from the last frame's pixels to this frame's; identity when unknown.
        """
        gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        last, points = self._gray, self._points
        mask = np.full(gray.shape, 255, np.uint8)
        for box in boxes if boxes is not None else ():
            x1, y1, x2, y2 = np.asarray(box[:4]).clip(0).astype(int)
            mask[y1:y2, x1:x2] = 0
        self._gray = gray
        # minDistance 0 skips the grid search, for more instead of better spread corners.
        self._points = cv2.goodFeaturesToTrack(gray, 200, 0.01, 0, mask=mask)
        identity = np.eye(2, 3)
        if last is None or points is None or last.shape != gray.shape or len(points) < MIN_POINTS:
            return identity
        for chosen in (np.ascontiguousarray(points[::STILL_CHECK]), points):
            start, end = _follow(last, gray, chosen)
            if len(start) >= MIN_POINTS and float(np.median(np.linalg.norm(end - start, axis=-1))) < STILL:
                return identity
        if len(start) < MIN_POINTS:
            return identity
        warp, _ = cv2.estimateAffinePartial2D(start, end, method=cv2.RANSAC)
        return identity if warp is None else np.asarray(warp, np.float64)


def _follow(last: Image, gray: Image, points: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return those of the ``(n, 1, 2)`` points that are found again, and where they are now."""
    moved, status, _ = cv2.calcOpticalFlowPyrLK(last, gray, points, np.zeros_like(points))
    found = status.ravel() == 1
    return points[found], np.asarray(moved[found], np.float32)
