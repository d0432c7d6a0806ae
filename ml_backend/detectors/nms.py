"""Turn the raw output of a detection network into detections."""

from __future__ import annotations

import cv2
import numpy as np

from ml_backend.core.types import Detections, FloatArray, IntArray

NMS_IOU = 0.7  # ultralytics' default for predict and track
MAX_DETECTIONS = 300  # ultralytics' default


def select_detections(raw: FloatArray, conf: float, *, end2end: bool) -> Detections:
    """Select the detections of one image: boxes above a confidence, without duplicates within a class.

    Args:
        raw: the network's output, ``(4 + classes, n)`` centres, sizes and confidences; of end-to-end networks, which
            have removed duplicates, ``(n, 6)`` corners, confidence and class, by falling confidence.
        conf: confidence that detections exceed.

    Returns:
        The most confident first, in pixels of the network's input.
    """
    if end2end:
        kept = np.flatnonzero(raw[:, 4] > conf)[:MAX_DETECTIONS]
        rows = raw[kept].astype(np.float32)
        return Detections(rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64))
    candidates = raw[:, raw[4:].max(axis=0) > conf].T.astype(np.float32)
    centre, half, confs = candidates[:, :2], candidates[:, 2:4] / 2, candidates[:, 4:]
    class_id = confs.argmax(axis=1).astype(np.int64)
    xyxy = np.concatenate([centre - half, centre + half], axis=1, dtype=np.float32)
    best = confs.max(axis=1, initial=0)
    kept = suppress_duplicates(xyxy, best, class_id)[:MAX_DETECTIONS]
    return Detections(xyxy[kept], best[kept], class_id[kept])


def suppress_duplicates(xyxy: FloatArray, conf: FloatArray, class_id: IntArray) -> IntArray:
    """Return the indices ``(k,)`` of the boxes that greedy NMS within each class leaves, the most confident first."""
    if not len(xyxy):
        return np.zeros(0, np.int64)
    xywh = np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], axis=1).astype(np.float64)
    kept = cv2.dnn.NMSBoxesBatched(xywh, conf.tolist(), class_id.tolist(), 0.0, NMS_IOU)
    return np.asarray(kept, np.int64).reshape(-1)
