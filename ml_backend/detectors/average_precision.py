"""Average precision of labelled detections, as ultralytics' validation computes it.

Figures are still a little lower than that validation's: it lets a box count for several classes at once, while here
each has one, as in predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.core.types import Detections, IntArray
from ml_backend.detectors.ultralytics_setup import setup_ultralytics

#: IoU from which a detection is right; the mean over all of them is mAP50-95.
THRESHOLDS = np.linspace(0.5, 0.95, 10)


class AveragePrecision:
    """Collects the pictures' detections. A few numbers of each are kept.

    Args:
        classes: labels; class ids are their indices.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = tuple(classes)
        self._right: list[npt.NDArray[np.bool_]] = [np.zeros((0, len(THRESHOLDS)), np.bool_)]
        self._conf: list[npt.NDArray[np.float32]] = [np.zeros(0, np.float32)]
        self._predicted: list[IntArray] = [np.zeros(0, np.int64)]
        self._true: list[IntArray] = [np.zeros(0, np.int64)]

    def add(self, detections: Detections, xyxy: npt.NDArray[np.float64], labels: IntArray) -> None:
        """Add a picture.

        Args:
            detections: the most confident first.
            xyxy: ``(n, 4)`` true boxes, pixels.
            labels: ``(n,)`` their indices.
        """
        self._right.append(_right(detections, xyxy, labels))
        self._conf.append(detections.conf)
        self._predicted.append(detections.class_id)
        self._true.append(labels)

    def result(self) -> dict[str, Any]:
        """``map50`` and ``map50_95`` over the labels that have true boxes, ``None`` without any; and ``labels``."""
        true = np.concatenate(self._true)
        if not len(true):
            return {"map50": None, "map50_95": None, "labels": {}}
        setup_ultralytics()
        from ultralytics.utils.metrics import ap_per_class

        found = ap_per_class(*(np.concatenate(a) for a in (self._right, self._conf, self._predicted)), true)
        ap, indices = found[5], found[6]
        labels = {
            self._classes[index]: {
                "ap50": float(row[0]),
                "ap50_95": float(row.mean()),
                "boxes": int((true == index).sum()),
            }
            for index, row in zip(indices, ap, strict=True)
        }
        return {"map50": float(ap[:, 0].mean()), "map50_95": float(ap.mean()), "labels": labels}


def _right(detections: Detections, xyxy: npt.NDArray[np.float64], labels: IntArray) -> npt.NDArray[np.bool_]:
    """``(n, 10)``: at which thresholds each detection is right."""
    if not len(detections) or not len(labels):
        return np.zeros((len(detections), len(THRESHOLDS)), np.bool_)
    setup_ultralytics()
    import torch
    from ultralytics.engine.validator import BaseValidator
    from ultralytics.utils.metrics import box_iou

    iou = box_iou(torch.from_numpy(xyxy).float(), torch.from_numpy(detections.xyxy))
    # The method needs nothing else of a validator, which would want a dataset on the disk.
    validator = SimpleNamespace(iouv=torch.from_numpy(THRESHOLDS))
    predicted, true = torch.from_numpy(detections.class_id), torch.from_numpy(labels)
    return np.asarray(BaseValidator.match_predictions(validator, predicted, true, iou).numpy(), np.bool_)
