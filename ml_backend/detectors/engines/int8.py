"""int8 for OpenVINO: quantise a network with a project's own frames, and check its detections against fp32.

Runs in a child process (:mod:`.make`): NNCF takes over logging and keeps every core busy for half a minute.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ml_backend.core.boxes import iou_matrix
from ml_backend.core.settings import Settings
from ml_backend.core.types import Detections, Float64Array, Image
from ml_backend.detectors.engines.calibration import MAX_VIDEOS, CalibrationPool, read_calibration_images
from ml_backend.detectors.engines.exports import (
    EngineExport,
    EnginePlan,
    ParityFailed,
    find_export,
    make_export,
    refusal,
)
from ml_backend.detectors.engines.openvino_engine import MODEL_FILE
from ml_backend.detectors.setup import setup_openvino
from ml_backend.detectors.yolo import YoloDetector

if TYPE_CHECKING:
    import openvino

log = logging.getLogger(__name__)

#: Each precision has to find the boxes of the other that have at least the first confidence, with at least the second:
#: boxes from which tracks are made, and not those that come and go with a hundredth of confidence.
TRUE_CONF, MATCH_CONF = 0.25, 0.1
MATCH_IOU = 0.5
#: yolo11n on a street finds all of them in int8 with one to 28 images of it, with a mean IoU of 0.98. Calibrated with
#: noise it finds 0.76 with 0.93, with the same images nearly dark 0.65 with 0.86, with grey areas 0.08.
MIN_FOUND = 0.95
MIN_IOU = 0.96
#: With fewer objects in all, a single one would decide.
MIN_BOXES = 20
#: No class with this many boxes may lose more than this share of them.
MIN_CLASS_BOXES, MIN_CLASS_FOUND = 10, 0.8


@dataclass(frozen=True, slots=True)
class Int8Parity:
    """Parity of int8 with fp32.

    Attributes:
        pictures: number of held-out images.
        boxes: number of fp32 boxes on them with a confidence of at least ``TRUE_CONF``.
        found: share of them that int8 finds.
        worst_class_found: the same of the class that loses most, among those with ``MIN_CLASS_BOXES``.
        confirmed: share of the boxes of int8 that fp32 finds.
        iou: mean over the boxes found.
    """

    pictures: int
    boxes: int
    found: float = 1.0
    worst_class_found: float = 1.0
    confirmed: float = 1.0
    iou: float = 1.0

    @property
    def failure(self) -> str:
        """Why int8 must not be used, else empty."""
        if self.boxes < MIN_BOXES:
            return f"{self.boxes} objects on {self.pictures} held-out images are too few to check it"
        if (
            min(self.found, self.confirmed) < MIN_FOUND
            or self.worst_class_found < MIN_CLASS_FOUND
            or self.iou < MIN_IOU
        ):
            return (
                f"compared with fp32 on {self.pictures} held-out images it finds {self.found:.0%} of {self.boxes} "
                f"objects ({self.worst_class_found:.0%} of one class), {self.confirmed:.0%} of what it finds is right, "
                f"and the mean IoU is {self.iou:.2f}; needed are {MIN_FOUND:.0%} ({MIN_CLASS_FOUND:.0%}), "
                f"{MIN_FOUND:.0%} and {MIN_IOU}"
            )
        return ""


def make_int8(plan: EnginePlan, fp32: EngineExport) -> None:
    """Collect frames of the plan's video, then quantise, check and store the network; takes half a minute.

    A rejected export is not tried again until the number of videos in the pool has doubled.

    Args:
        fp32: the same network in fp32.

    Raises:
        ParityFailed: int8 differs too much from fp32, or there are too few objects to tell.
        VideoError: the video cannot be decoded.
        StorageError, OSError: the disk cannot be written.
    """
    pool, video = plan.pool, plan.calibration.video
    if video is not None and pool.needs(video):
        pool.collect(video)
    folder = plan.int8(pool.generation)
    if not pool.generation or refusal(folder) or find_export(folder):
        return
    started = time.monotonic()
    export = make_export(folder, lambda target: _export(plan, fp32, target))
    seconds = time.monotonic() - started
    log.info("%s runs in int8 from the next video on (made in %.1f s: %s)", plan.path.name, seconds, export.check)


def _export(plan: EnginePlan, fp32: EngineExport, folder: Path) -> Mapping[str, Any]:
    """Write the network in int8, and compare it with fp32 on held-out images."""
    setup_openvino()
    import openvino

    calibrate, held_out = plan.pool.split()
    settings = plan.settings.model_copy(update={"conf": MATCH_CONF})
    detector = YoloDetector(plan.path, settings, fp32)
    images = list(read_calibration_images(held_out))
    expected = detector.detect(images)
    true_boxes = sum(int((detections.conf >= TRUE_CONF).sum()) for detections in expected)
    if failure := Int8Parity(len(images), true_boxes).failure:  # too few objects: skip the quantisation
        raise _parity_failed(failure, plan.pool)
    model = quantise(fp32, [detector.pixels([image]) for image in read_calibration_images(calibrate)])
    openvino.save_model(model, folder / MODEL_FILE, compress_to_fp16=False)
    export = replace(fp32, folder=folder, precision="int8")
    result = int8_parity(expected, detect(plan.path, export, settings, images))
    if result.failure:
        raise _parity_failed(result.failure, plan.pool)
    check = {**asdict(result), "calibrated_with": len(calibrate)}
    return {"names": fp32.names, "stride": fp32.stride, "end2end": fp32.end2end, "check": check}


def quantise(fp32: EngineExport, pixels: Sequence[np.ndarray[Any, Any]]) -> openvino.Model:
    """Quantise weights and activations to int8, except the part of the head that decodes boxes, like ultralytics.

    Args:
        fp32: the network in fp32.
        pixels: its inputs, ``(1, height, width, 3)`` uint8 BGR each; sizes may differ.
    """
    setup_openvino()
    import nncf
    import openvino

    # nncf.set_log_level would also change the level of other libraries' handlers.
    logging.getLogger("nncf").setLevel(logging.ERROR)
    model = openvino.Core().read_model(fp32.folder / MODEL_FILE)
    operations = [(op.get_friendly_name(), op.get_type_name()) for op in model.get_ordered_ops()]
    sigmoids = [name for name, kind in operations if kind == "Sigmoid"]  # the last one belongs to the head
    head = sigmoids[-1].split("/", 1)[0] if sigmoids else "no head"
    ignored = [name for name, kind in operations if kind == "Sigmoid" or name.startswith((f"{head}/", f"{head}.dfl"))]
    return nncf.quantize(
        model,
        nncf.Dataset(pixels),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(pixels),
        ignored_scope=nncf.IgnoredScope(names=ignored),
    )


def detect(path: Path, export: EngineExport, settings: Settings, images: Sequence[Image]) -> list[Detections]:
    """Run an export.

    Raises:
        RuntimeError: the export does not run.
    """
    detector = YoloDetector(path, settings, export)
    detections = detector.detect(images)
    if detector.engine["note"]:  # PyTorch has taken over
        raise RuntimeError(detector.engine["note"])
    return detections


def int8_parity(expected: Sequence[Detections], detections: Sequence[Detections]) -> Int8Parity:
    """Compare detections of int8 with those of fp32 (``expected``) on the same images, of at least ``MATCH_CONF``."""
    forth = np.concatenate([np.zeros(0), *map(_matched_iou, expected, detections)])
    back = np.concatenate([np.zeros(0), *map(_matched_iou, detections, expected)])
    found, confirmed = forth > 0, back > 0
    if not found.any():
        return Int8Parity(len(expected), len(forth), 0.0, 0.0, 0.0, 0.0)
    classes = np.concatenate([true.class_id[true.conf >= TRUE_CONF] for true in expected])
    boxes = np.bincount(classes)
    class_found = np.bincount(classes, found)[boxes >= MIN_CLASS_BOXES] / boxes[boxes >= MIN_CLASS_BOXES]
    shares = found.mean(), class_found.min(initial=1.0), confirmed.mean(), forth[found].mean()
    return Int8Parity(len(expected), len(forth), *(round(float(share), 4) for share in shares))


def _matched_iou(true: Detections, others: Detections) -> Float64Array:
    """Return the IoU ``(n,)`` of each box of ``TRUE_CONF`` with the best of its class in ``others``, 0 if not found."""
    sure = true.conf >= TRUE_CONF
    iou = iou_matrix(true.xyxy[sure], others.xyxy)
    iou[true.class_id[sure, None] != others.class_id[None]] = 0
    best = iou.max(axis=1, initial=0.0)
    return np.where(best >= MATCH_IOU, best, 0.0)


def _parity_failed(failure: str, pool: CalibrationPool) -> ParityFailed:
    videos = 2**pool.generation
    retry = f"It is tried again with frames of {videos} videos" if videos <= MAX_VIDEOS else "It is not tried again"
    return ParityFailed(f"{failure}. {retry}.", "Set PRECISION=auto.")
