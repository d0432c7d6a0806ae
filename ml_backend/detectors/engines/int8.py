"""int8 for OpenVINO: a network quantised with a project's own pictures, and used only if it finds what fp32 finds.

Runs in a process of its own (:mod:`.make`): NNCF, which quantises, takes over logging and half a minute of every core.
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
from ml_backend.detectors.engines.calibration import MAX_VIDEOS, CalibrationPool, read_frames_for_calibration
from ml_backend.detectors.engines.exports import (
    EngineExport,
    EnginePlan,
    ParityFailed,
    find_export,
    keep_export,
    refusal,
)
from ml_backend.detectors.engines.openvino_engine import MODEL_FILE
from ml_backend.detectors.openvino_setup import setup_openvino
from ml_backend.detectors.yolo import YoloDetector

if TYPE_CHECKING:
    import openvino

log = logging.getLogger(__name__)

#: What fp32 finds with this confidence is what int8 has to find.
TRUE_CONF = 0.25
#: Average precision looks at weak detections too.
CONF = 0.01
#: fp32 itself reaches 0.995 in both. yolo11n on a street reaches 0.985 to 0.990 and 0.95 to 0.985 in int8, with one to
#: 28 pictures of it; with the head in int8 too 0.94 to 0.95 and 0.70, calibrated with noise 0.92 to 0.93 and 0.81, with
#: the same pictures nearly dark 0.54 to 0.63 and 0.40 to 0.45.
MIN_MAP50 = 0.96
MIN_MAP50_95 = 0.90
#: Fewer objects in all show nothing: one that is found a little worse would decide.
MIN_BOXES = 20
#: Classes with fewer count as one class together, and not at all if even so there are fewer.
MIN_CLASS_BOXES = 10


@dataclass(frozen=True, slots=True)
class Int8Parity:
    """How much of what fp32 finds int8 finds.

    Attributes:
        pictures: held-out ones.
        boxes: of fp32 on them, with a confidence of ``TRUE_CONF``.
        map50, map50_95: of int8, with these for the truth; 0 without any.
    """

    pictures: int
    boxes: int
    map50: float
    map50_95: float

    @property
    def complaint(self) -> str:
        """Why int8 must not be used, else empty."""
        if self.boxes < MIN_BOXES:
            return f"{self.boxes} objects on {self.pictures} held-out pictures are too few to check it"
        if self.map50 < MIN_MAP50 or self.map50_95 < MIN_MAP50_95:
            return (
                f"of what fp32 finds on {self.pictures} held-out pictures it reaches an mAP50 of {self.map50:.3f} and "
                f"an mAP50-95 of {self.map50_95:.3f}, not {MIN_MAP50} and {MIN_MAP50_95}"
            )
        return ""


def make_int8(plan: EnginePlan, exact: EngineExport) -> None:
    """Take pictures of the plan's video, and make what is missing with them: quantise, check and keep; half a minute.

    What is refused stays so until the pool's videos have doubled.

    Args:
        exact: the same network in fp32.

    Raises:
        Unsound: it does not find what fp32 finds, or nobody can tell.
        VideoError: the video cannot be decoded.
        StorageError, OSError: the disk does not take it.
    """
    pool, video = plan.pool, plan.footage.video
    if video is not None and pool.wants(video):
        pool.collect(video)
    folder = plan.int8(pool.generation)
    if not pool.generation or refusal(folder) or find_export(folder):
        return
    started = time.monotonic()
    made = keep_export(folder, lambda target: _export(plan, exact, target))
    seconds = time.monotonic() - started
    log.info("%s runs in int8 from the next video on (made in %.1f s: %s)", plan.path.name, seconds, made.check)


def _export(plan: EnginePlan, exact: EngineExport, folder: Path) -> Mapping[str, Any]:
    """Write the network in int8, and compare it with fp32 on held-out pictures."""
    setup_openvino()
    import openvino

    calibrate, held_out = plan.pool.parts()
    lenient = plan.settings.model_copy(update={"conf": CONF})
    detector = YoloDetector(plan.path, lenient, exact)
    pictures = list(read_frames_for_calibration(held_out))
    expected = detector.detect(pictures)
    sure = sum(int((one.conf >= TRUE_CONF).sum()) for one in expected)
    if few := Int8Parity(len(pictures), sure, 1.0, 1.0).complaint:  # before the work
        raise _unsound(few, plan.pool)
    model = quantise(exact, [detector.pixels([image]) for image in read_frames_for_calibration(calibrate)])
    openvino.save_model(model, folder / MODEL_FILE, compress_to_fp16=False)
    made = replace(exact, folder=folder, precision="int8")
    found = parity(expected, detect(plan.path, made, lenient, pictures), exact.names)
    if found.complaint:
        raise _unsound(found.complaint, plan.pool)
    check = {**asdict(found), "calibrated_with": len(calibrate)}
    return {"names": exact.names, "stride": exact.stride, "end2end": exact.end2end, "check": check}


def quantise(exact: EngineExport, pixels: Sequence[np.ndarray[Any, Any]]) -> openvino.Model:
    """Weights and activations in int8, but for the part of the head that decodes boxes, as ultralytics has it.

    Args:
        exact: the network in fp32.
        pixels: its input, ``(1, height, width, 3)`` uint8 BGR each; sizes may differ.
    """
    setup_openvino()
    import nncf
    import openvino

    # Not by nncf.set_log_level: it also sets the level of handlers, whoever they belong to.
    logging.getLogger("nncf").setLevel(logging.ERROR)
    model = openvino.Core().read_model(exact.folder / MODEL_FILE)
    operations = [(op.get_friendly_name(), op.get_type_name()) for op in model.get_ordered_ops()]
    sigmoids = [name for name, kind in operations if kind == "Sigmoid"]  # the last one is the head's
    head = sigmoids[-1].split("/", 1)[0] if sigmoids else "no head"
    exactly = [name for name, kind in operations if kind == "Sigmoid" or name.startswith((f"{head}/", f"{head}.dfl"))]
    return nncf.quantize(
        model,
        nncf.Dataset(pixels),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(pixels),
        ignored_scope=nncf.IgnoredScope(names=exactly),
    )


def detect(path: Path, export: EngineExport, settings: Settings, pictures: Sequence[Image]) -> list[Detections]:
    """What an export finds.

    Raises:
        RuntimeError: it does not run.
    """
    detector = YoloDetector(path, settings, export)
    found = detector.detect(pictures)
    if detector.engine["note"]:  # else PyTorch would be compared
        raise RuntimeError(detector.engine["note"])
    return found


def parity(expected: Sequence[Detections], found: Sequence[Detections], names: Mapping[int, str]) -> Int8Parity:
    """Compare what int8 finds with what fp32 finds, picture by picture."""
    true = [_where(mine, mine.conf >= TRUE_CONF) for mine in expected]
    boxes = np.bincount(np.concatenate([np.zeros(0, np.int64), *(mine.class_id for mine in true)]))
    boxes = np.pad(boxes, (0, max(names) + 1 - len(boxes)))
    frequent = np.flatnonzero(boxes >= MIN_CLASS_BOXES)
    index = np.full(len(boxes), len(frequent), np.int64)
    index[frequent] = np.arange(len(frequent))
    few = boxes.sum() - boxes[frequent].sum() < MIN_CLASS_BOXES
    precision = AveragePrecision([*(names[int(i)] for i in frequent), "others"])
    for mine, other in zip(true, found, strict=True):
        mine, other = (replace(each, class_id=index[each.class_id]) for each in (mine, other))
        if few:
            mine, other = (_where(each, each.class_id < len(frequent)) for each in (mine, other))
        precision.add(other, mine.xyxy.astype(np.float64), mine.class_id)
    result = precision.result()
    score, strict = result["map50"] or 0.0, result["map50_95"] or 0.0
    return Int8Parity(len(expected), int(boxes.sum()), round(score, 4), round(strict, 4))


def _unsound(complaint: str, pool: CalibrationPool) -> ParityFailed:
    videos = 2**pool.generation
    again = f"It is tried again with pictures of {videos} videos" if videos <= MAX_VIDEOS else "It is not tried again"
    return ParityFailed(f"{complaint}. {again}.", "Set PRECISION=auto.")


def _where(found: Detections, rows: np.ndarray[Any, Any]) -> Detections:
    return Detections(found.xyxy[rows], found.conf[rows], found.class_id[rows])
