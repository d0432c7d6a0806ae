"""Average precision of detections, computed as in ultralytics' validation.

Values are slightly lower than that validation's, which lets a box count for several classes; here it has one, as in
predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.core.types import Detections, IntArray
from ml_backend.detectors.setup import setup_ultralytics

#: IoU thresholds of a true positive; the mean over all of them is mAP50-95.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)


class AveragePrecision:
    """Accumulates detections and true boxes of images.

    Args:
        classes: labels, indexed by class id.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = tuple(classes)
        self._true_positives: list[npt.NDArray[np.bool_]] = [np.zeros((0, len(IOU_THRESHOLDS)), np.bool_)]
        self._conf: list[npt.NDArray[np.float32]] = [np.zeros(0, np.float32)]
        self._predicted: list[IntArray] = [np.zeros(0, np.int64)]
        self._true: list[IntArray] = [np.zeros(0, np.int64)]

    def add(self, detections: Detections, xyxy: npt.NDArray[np.float64], labels: IntArray) -> None:
        """Add an image.

        Args:
            detections: sorted by confidence, highest first.
            xyxy: ``(n, 4)`` true boxes, pixels.
            labels: ``(n,)`` their class ids.
        """
        self._true_positives.append(_true_positives(detections, xyxy, labels))
        self._conf.append(detections.conf)
        self._predicted.append(detections.class_id)
        self._true.append(labels)

    def result(self) -> dict[str, Any]:
        """Return ``map50`` and ``map50_95``, ``None`` without true boxes, and ``labels`` with the AP of each label."""
        true = np.concatenate(self._true)
        if not len(true):
            return {"map50": None, "map50_95": None, "labels": {}}
        setup_ultralytics()
        from ultralytics.utils.metrics import ap_per_class

        metrics = ap_per_class(*(np.concatenate(a) for a in (self._true_positives, self._conf, self._predicted)), true)
        ap, indices = metrics[5], metrics[6]
        labels = {
            self._classes[index]: {
                "ap50": float(row[0]),
                "ap50_95": float(row.mean()),
                "boxes": int((true == index).sum()),
            }
            for index, row in zip(indices, ap, strict=True)
        }
        return {"map50": float(ap[:, 0].mean()), "map50_95": float(ap.mean()), "labels": labels}


def _true_positives(detections: Detections, xyxy: npt.NDArray[np.float64], labels: IntArray) -> npt.NDArray[np.bool_]:
    """Return at which thresholds each detection is a true positive, ``(n, 10)``."""
    if not len(detections) or not len(labels):
        return np.zeros((len(detections), len(IOU_THRESHOLDS)), np.bool_)
    setup_ultralytics()
    import torch
    from ultralytics.engine.validator import BaseValidator
    from ultralytics.utils.metrics import box_iou

    iou = box_iou(torch.from_numpy(xyxy).float(), torch.from_numpy(detections.xyxy))
    # All that the method uses of a validator, which would require a dataset on disk.
    validator = SimpleNamespace(iouv=torch.from_numpy(IOU_THRESHOLDS))
    predicted, true = torch.from_numpy(detections.class_id), torch.from_numpy(labels)
    return np.asarray(BaseValidator.match_predictions(validator, predicted, true, iou).numpy(), np.bool_)
