"""Average precision of detections, computed as in ultralytics' validation.

Values are slightly lower than that validation's, which lets a box count for several classes; here it has one, as in
predictions.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.core.types import Detections, IntArray
from ml_backend.detectors.setup import setup_ultralytics

#: IoU thresholds of a true positive; the mean over all of them is mAP50-95.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
#: Bootstrap resamples of an interval; its seed makes equal detections give equal intervals.
RESAMPLES, SEED = 1000, 0
#: Fewest blocks of images to resample: of fewer, an interval would say nothing.
MIN_BLOCKS = 3


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
        self._blocks: list[Hashable] = []

    def add(
        self, detections: Detections, xyxy: npt.NDArray[np.float64], labels: IntArray, block: Hashable = None
    ) -> None:
        """Add an image.

        Args:
            detections: sorted by confidence, highest first.
            xyxy: ``(n, 4)`` true boxes, pixels.
            labels: ``(n,)`` their class ids.
            block: images that resemble each other, such as those of one second, share a block: :meth:`interval`
                resamples blocks. By default an image is a block of its own.
        """
        self._blocks.append(len(self._blocks) if block is None else block)
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

    def interval(self) -> tuple[float, float] | None:
        """Return the 95 % interval of mAP50, by bootstrap over blocks of images; ``None`` with too few blocks."""
        numbers = {block: number for number, block in enumerate(dict.fromkeys(self._blocks))}
        if len(numbers) < MIN_BLOCKS or not any(map(len, self._true)):
            return None
        of_image = np.array([numbers[block] for block in self._blocks])
        hits, predicted = np.concatenate(self._true_positives), np.concatenate(self._predicted)
        conf = np.concatenate(self._conf)
        detected_in = np.repeat(of_image, [len(item) for item in self._conf[1:]])
        true, true_in = np.concatenate(self._true), np.repeat(of_image, [len(item) for item in self._true[1:]])
        order = np.argsort(-conf.astype(np.float64), kind="stable")
        classes = []
        for index in np.unique(true):
            rows = order[predicted[order] == index]
            truths = np.bincount(true_in[true == index], minlength=len(numbers))
            classes.append((hits[rows, 0], detected_in[rows], truths))
        random = np.random.default_rng(SEED)
        weights = (
            np.bincount(random.integers(len(numbers), size=len(numbers)), minlength=len(numbers))
            for _ in range(RESAMPLES)
        )
        values = [value for weight in weights if (value := _mean_ap50(classes, weight)) is not None]
        low, high = np.percentile(values, [2.5, 97.5])
        return float(low), float(high)


def _mean_ap50(classes: Sequence[tuple[npt.NDArray[np.bool_], IntArray, IntArray]], weight: IntArray) -> float | None:
    """Return mAP50 where each block of images counts ``weight`` times; ``None`` if no true box is left.

    Args:
        classes: of each class, whether its detections are true positives, by falling confidence ``(n,)``, their blocks
            ``(n,)``, and the number of true boxes in each block.
    """
    from ultralytics.utils.metrics import compute_ap

    values = []
    for hits, blocks, truths in classes:
        total = int(truths @ weight)
        if not total:
            continue
        times = weight[blocks]
        found = np.cumsum(times * hits)
        precision = found / np.maximum(np.cumsum(times), 1)
        values.append(float(compute_ap(found / total, precision)[0]) if len(hits) else 0.0)
    return float(np.mean(values)) if values else None


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
