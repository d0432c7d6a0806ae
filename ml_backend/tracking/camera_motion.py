"""Estimate the camera motion between two frames by sparse optical flow."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np
import numpy.typing as npt

from ml_backend.core.types import Affine, Image

MIN_POINTS = 12  # with fewer, the estimate is more noise than motion
STILL = 0.25  # pixels; smaller motions are noise of a fixed camera


class CameraMotion:
    """Estimate the camera motion as a similarity transform, from corners outside moving objects, with RANSAC.

    For a fixed camera it is exactly the identity, so that noise does not shake the tracks.
    """

    def __init__(self) -> None:
        self._gray: Image | None = None
        self._points: npt.NDArray[np.float32] | None = None

    def since_last(self, image: Image, boxes: Iterable[npt.NDArray[np.float32]] | None = None) -> Affine:
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
        moved, status, _ = cv2.calcOpticalFlowPyrLK(last, gray, points, np.zeros_like(points))
        good = status.ravel() == 1
        if good.sum() < MIN_POINTS:
            return identity
        shift = np.linalg.norm(moved[good] - points[good], axis=-1)
        if float(np.median(shift)) < STILL:
            return identity
        warp, _ = cv2.estimateAffinePartial2D(points[good], moved[good], method=cv2.RANSAC)
        return identity if warp is None else np.asarray(warp, np.float64)
