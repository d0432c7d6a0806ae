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

from ml_backend.core.settings import Settings
from ml_backend.core.types import Detections, Image
from ml_backend.detectors.average_precision import AveragePrecision
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

#: Detections of fp32 with this confidence are the ground truth for int8.
TRUE_CONF = 0.25
#: Average precision needs weak detections too.
CONF = 0.01
#: fp32 itself reaches 0.995 in both. yolo11n on a street reaches 0.985 to 0.990 and 0.95 to 0.985 in int8, with one to
#: 28 images of it; with the head in int8 too 0.94 to 0.95 and 0.70, calibrated with noise 0.92 to 0.93 and 0.81, with
#: the same images nearly dark 0.54 to 0.63 and 0.40 to 0.45.
MIN_MAP50 = 0.96
MIN_MAP50_95 = 0.90
#: With fewer objects in all, a single one would decide.
MIN_BOXES = 20
#: Classes with fewer boxes are pooled into one, which is ignored if it still has fewer.
MIN_CLASS_BOXES = 10


@dataclass(frozen=True, slots=True)
class Int8Parity:
    """Parity of int8 with fp32.

    Attributes:
        pictures: number of held-out images.
        boxes: number of fp32 boxes on them with a confidence of at least ``TRUE_CONF``.
        map50, map50_95: of int8 with these boxes as ground truth; 0 without any.
    """

    pictures: int
    boxes: int
    map50: float
    map50_95: float

    @property
    def failure(self) -> str:
        """Why int8 must not be used, else empty."""
        if self.boxes < MIN_BOXES:
            return f"{self.boxes} objects on {self.pictures} held-out images are too few to check it"
        if self.map50 < MIN_MAP50 or self.map50_95 < MIN_MAP50_95:
            return (
                f"compared with fp32 on {self.pictures} held-out images it reaches an mAP50 of {self.map50:.3f} and "
                f"an mAP50-95 of {self.map50_95:.3f}, below {MIN_MAP50} and {MIN_MAP50_95}"
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
    settings = plan.settings.model_copy(update={"conf": CONF})
    detector = YoloDetector(plan.path, settings, fp32)
    images = list(read_calibration_images(held_out))
    expected = detector.detect(images)
    true_boxes = sum(int((detections.conf >= TRUE_CONF).sum()) for detections in expected)
    if failure := Int8Parity(len(images), true_boxes, 1.0, 1.0).failure:  # too few objects: skip the quantisation
        raise _parity_failed(failure, plan.pool)
    model = quantise(fp32, [detector.pixels([image]) for image in read_calibration_images(calibrate)])
    openvino.save_model(model, folder / MODEL_FILE, compress_to_fp16=False)
    export = replace(fp32, folder=folder, precision="int8")
    result = int8_parity(expected, detect(plan.path, export, settings, images), fp32.names)
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


def int8_parity(
    expected: Sequence[Detections], detections: Sequence[Detections], names: Mapping[int, str]
) -> Int8Parity:
    """Compare detections of int8 with those of fp32 (``expected``) on the same images."""
    true = [_select(fp32, fp32.conf >= TRUE_CONF) for fp32 in expected]
    boxes = np.bincount(np.concatenate([np.zeros(0, np.int64), *(fp32.class_id for fp32 in true)]))
    boxes = np.pad(boxes, (0, max(names) + 1 - len(boxes)))
    frequent = np.flatnonzero(boxes >= MIN_CLASS_BOXES)
    index = np.full(len(boxes), len(frequent), np.int64)
    index[frequent] = np.arange(len(frequent))
    ignore_others = boxes.sum() - boxes[frequent].sum() < MIN_CLASS_BOXES
    precision = AveragePrecision([*(names[int(i)] for i in frequent), "others"])
    for fp32, int8 in zip(true, detections, strict=True):
        fp32, int8 = (replace(item, class_id=index[item.class_id]) for item in (fp32, int8))
        if ignore_others:
            fp32, int8 = (_select(item, item.class_id < len(frequent)) for item in (fp32, int8))
        precision.add(int8, fp32.xyxy.astype(np.float64), fp32.class_id)
    result = precision.result()
    map50, map50_95 = result["map50"] or 0.0, result["map50_95"] or 0.0
    return Int8Parity(len(expected), int(boxes.sum()), round(map50, 4), round(map50_95, 4))


def _parity_failed(failure: str, pool: CalibrationPool) -> ParityFailed:
    videos = 2**pool.generation
    retry = f"It is tried again with frames of {videos} videos" if videos <= MAX_VIDEOS else "It is not tried again"
    return ParityFailed(f"{failure}. {retry}.", "Set PRECISION=auto.")


def _select(detections: Detections, rows: np.ndarray[Any, Any]) -> Detections:
    return Detections(detections.xyxy[rows], detections.conf[rows], detections.class_id[rows])
