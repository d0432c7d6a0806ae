"""Make the missing exports of a plan in a child process: ``python -m ml_backend.detectors.engines.make PLAN``.

Each export is compared with its checkpoint before use. Logs go to standard output, as lines ``LEVEL|message`` for the
parent process; this process exits when its parent does.
"""

from __future__ import annotations

import fcntl
import logging
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ml_backend.core.boxes import iou_matrix
from ml_backend.core.errors import BackendError
from ml_backend.core.subprocesses import exit_with_parent, lower_priority
from ml_backend.core.types import Detections, Image
from ml_backend.detectors.engines.exports import (
    EngineExport,
    EnginePlan,
    ParityFailed,
    find_export,
    make_export,
    not_installed,
)
from ml_backend.detectors.engines.int8 import detect, make_int8
from ml_backend.detectors.engines.openvino_engine import MODEL_FILE
from ml_backend.detectors.engines.torch_engine import TorchEngine
from ml_backend.detectors.setup import setup_openvino
from ml_backend.detectors.yolo import YoloDetector

if TYPE_CHECKING:
    import openvino

log = logging.getLogger("ml_backend.detectors.engines.make")  # not __main__, which has no handler

#: int8 of a large network takes minutes, on a busy machine many. What takes longer hangs.
TIMEOUT_S = 3600
#: Confidence thresholds of the comparison: low, to include weak boxes, and lower if there are no boxes at all.
CHECK_CONF = (1e-3, 1e-6)
CHECK_BEST = 100  # boxes per image
#: Share of the checkpoint's boxes that the export must match at ``MATCH_IOU``. It is below 1 because NMS may choose
#: differently between two nearly equal boxes.
MIN_MATCHED = 0.95
MATCH_IOU = 0.9
MAX_CONF_DIFFERENCE = 0.02  # mean over matched boxes; fp16 stays below a tenth of it


@dataclass(frozen=True, slots=True)
class EngineParity:
    """Parity of two detectors.

    Attributes:
        boxes: number of boxes of the reference.
        matched: share of them that the other detector matches: same class, IoU of ``MATCH_IOU``.
        conf_difference: mean absolute difference of matched boxes' confidence.
    """

    boxes: int
    matched: float
    conf_difference: float

    @property
    def passed(self) -> bool:
        return self.matched >= MIN_MATCHED and self.conf_difference <= MAX_CONF_DIFFERENCE


def engine_parity(reference: Sequence[Detections], others: Sequence[Detections]) -> EngineParity:
    """Compare the best ``CHECK_BEST`` boxes of each image. Images without boxes of either detector agree."""
    boxes = matched = 0
    differences: list[float] = []
    for expected, other in zip(reference, others, strict=True):
        count = min(len(expected), CHECK_BEST)
        boxes += count if len(expected) else len(other)
        if not count or not len(other):
            continue
        iou = iou_matrix(expected.xyxy[:count], other.xyxy)
        iou[expected.class_id[:count, None] != other.class_id[None]] = 0
        best = iou.argmax(axis=1)
        is_match = iou[np.arange(count), best] >= MATCH_IOU
        matched += int(is_match.sum())
        differences += np.abs(expected.conf[:count] - other.conf[best])[is_match].tolist()
    share = matched / boxes if boxes else 1.0
    return EngineParity(boxes, round(share, 4), round(float(np.mean(differences)), 5) if differences else 0.0)


def make(plan: EnginePlan) -> None:
    """Make the missing exports of a plan, after waiting for other processes that export the same network.

    Raises:
        ParityFailed: an export differs too much from its checkpoint.
        WeightsError: the checkpoint cannot be loaded.
        VideoError, StorageError: calibration images for int8 cannot be collected.
        OSError: the disk cannot be written.
    """
    plan.fp32.parent.mkdir(parents=True, exist_ok=True)
    with plan.fp32.with_name(f"{plan.fp32.name}.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed
        fp32 = find_export(plan.fp32) or make_export(plan.fp32, lambda folder: _export(plan, folder))
        if plan.wants_int8 and not not_installed("nncf"):
            make_int8(plan, fp32)


def _export(plan: EnginePlan, folder: Path) -> Mapping[str, Any]:
    """Write the network in fp32, and compare it with the checkpoint."""
    setup_openvino()
    import openvino

    started = time.monotonic()
    engine = TorchEngine(plan.path, "cpu", half=False)
    openvino.save_model(_with_preprocessing(_convert(engine)), folder / MODEL_FILE, compress_to_fp16=False)
    export = EngineExport(folder, "fp32", engine.names, engine.stride, engine.end2end)
    result = check(plan, export)
    if not result.passed:
        raise ParityFailed(
            f"openvino finds {result.matched:.0%} of the boxes that PyTorch finds, and their confidence differs by "
            f"{result.conf_difference:.3f}.",
            "Set ENGINE=torch.",
        )
    log.info("openvino runs %s from the next video on (made in %.1f s)", plan.path.name, time.monotonic() - started)
    return {"names": export.names, "stride": export.stride, "end2end": export.end2end, "check": asdict(result)}


def check(plan: EnginePlan, export: EngineExport) -> EngineParity:
    """Compare an export with its checkpoint on a few images.

    Raises:
        RuntimeError: the export does not run.
    """
    images = _check_images()
    result = EngineParity(0, 1.0, 0.0)
    for conf in CHECK_CONF:
        settings = plan.settings.model_copy(update={"conf": conf, "precision": "fp32", "device": "cpu"})
        detections = detect(plan.path, export, settings, images)
        result = engine_parity(YoloDetector(plan.path, settings).detect(images), detections)
        if result.boxes:
            break
    return result


def _check_images() -> list[Image]:
    """Return the photographs of the ultralytics package and an image of random blocks, in three aspect ratios."""
    import cv2
    from ultralytics.utils import ASSETS

    blocks = np.random.default_rng(0).integers(0, 255, (9, 16, 3), np.uint8)
    images = [np.kron(blocks, np.ones((40, 40, 1), np.uint8))]
    images += [image for file in sorted(ASSETS.glob("*.jpg")) if (image := cv2.imread(str(file))) is not None]
    return images


def _convert(engine: TorchEngine) -> openvino.Model:
    """Convert the network for inputs of any size. Modifies the engine's network like ultralytics' exporter."""
    import openvino
    import torch
    from ultralytics.nn.modules import C2f, Detect

    network = engine.network
    for module in network.modules():
        if isinstance(module, Detect):
            module.dynamic = module.export = True
            module.format = "openvino"
            module.shape = None
        elif isinstance(module, C2f):
            module.forward = module.forward_split
    # All dimensions differ, so that tracing cannot confuse them.
    example = torch.zeros(1, 3, 12 * engine.stride, 20 * engine.stride)
    with torch.no_grad():
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]
            network, example, strict=False, check_trace=False
        )
        return openvino.convert_model(traced, example_input=example)


def _with_preprocessing(model: openvino.Model) -> openvino.Model:
    """Make the model take uint8 BGR images, ``(n, height, width, 3)``, which OpenVINO converts faster than NumPy."""
    from openvino import Layout, Type
    from openvino.preprocess import ColorFormat, PrePostProcessor

    steps = PrePostProcessor(model)
    steps.input().tensor().set_element_type(Type.u8).set_layout(Layout("NHWC")).set_color_format(ColorFormat.BGR)
    steps.input().model().set_layout(Layout("NCHW"))
    steps.input().preprocess().convert_element_type(Type.f32).convert_color(ColorFormat.RGB).scale(255.0)
    return steps.build()


def main(arguments: Sequence[str]) -> int:
    """Make the missing exports of a plan; return 0, or 1 after logging an error."""
    exit_with_parent()
    lower_priority()
    signal.alarm(TIMEOUT_S)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("\n%(levelname)s|%(message)s"))  # \n: progress bars do not end their line
    logger = logging.getLogger("ml_backend")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    plan = EnginePlan.load(arguments[0])
    try:
        make(plan)
    except BackendError as error:
        log.error("%s", error.message)
    except OSError as error:
        log.error("%s cannot be written: %s", error.filename or plan.fp32.parent, error.strerror or error)
    except Exception as error:  # exporters raise anything
        text = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        log.error("%s cannot be exported (%s)", plan.path.name, text, exc_info=True)
    else:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
