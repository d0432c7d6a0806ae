"""How the camera moved between two frames, cheaply."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np
import numpy.typing as npt

from ml_backend.types import Image

MIN_POINTS = 12  # with fewer, the estimate is more noise than motion
STILL = 0.25  # pixels; smaller motions are noise of a fixed camera

Affine = npt.NDArray[np.float64]


class CameraMotion:
    """Estimates the camera's motion as a similarity transform; a drop-in for ultralytics' ``GMC``.

    Sparse optical flow of corners outside the tracked boxes, RANSAC. It is given reduced frames and returns exactly
    the identity for a fixed camera, so that noise does not shake the tracks.

    Attributes:
        scale: size of the frames given, relative to the frames that boxes and results refer to.
    """

    method = "sparseOptFlow"  # read by ultralytics: anything but None means "on"

    def __init__(self) -> None:
        self.scale = 1.0
        self.reset_params()

    def reset_params(self) -> None:
        """Forget the last frame."""
        self._gray: Image | None = None
        self._points: npt.NDArray[np.float32] | None = None

    def apply(self, image: Image, boxes: Iterable[npt.NDArray[np.float32]] | None = None) -> Affine:
        """Motion since the last call.

        Args:
            image: frame, BGR, reduced by ``scale``.
            boxes: moving objects to leave out, ``(4,)`` xyxy in full pixels each.

        Returns:
            ``(2, 3)`` affine matrix from the last frame's full pixels to this frame's; identity when unknown.
        """
        gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        last, points = self._gray, self._points
        mask = np.full(gray.shape, 255, np.uint8)
        for box in boxes if boxes is not None else ():
            x1, y1, x2, y2 = (np.asarray(box[:4]) * self.scale).clip(0).astype(int)
            mask[y1:y2, x1:x2] = 0
        self._gray = gray
        # minDistance 0 saves the grid search: more corners instead of better spread ones.
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
        if warp is None:
            return identity
        warp[:, 2] /= self.scale
        return np.asarray(warp, np.float64)
