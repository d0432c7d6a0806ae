"""Makes what an engine needs from a checkpoint, and compares it with the checkpoint before anybody uses it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ml_backend.geometry import iou_matrix
from ml_backend.models._openvino import setup_openvino
from ml_backend.models.detector import YoloDetector, _select_device
from ml_backend.models.engines.cache import Export, ExportKey, Exports, Unsound
from ml_backend.models.engines.openvino_engine import MODEL_FILE
from ml_backend.models.engines.torch_engine import TorchEngine
from ml_backend.settings import Settings
from ml_backend.types import Detections, Image

if TYPE_CHECKING:
    import openvino

#: Also what a network is hardly sure of is compared, and where it sees nothing at all in the pictures, the next.
CHECK_CONF = (1e-3, 1e-6)
CHECK_BEST = 100  # boxes a picture
#: Of the checkpoint's boxes, the share that the export finds too, at this IoU. In between lies what NMS decides
#: differently for two boxes that are nearly equal.
MIN_MATCHED = 0.95
MATCH_IOU = 0.9
MAX_CONF_DIFFERENCE = 0.02  # mean over matched boxes; fp16 stays below a tenth of it


@dataclass(frozen=True, slots=True)
class Agreement:
    """How well two detectors agree.

    Attributes:
        boxes: of the reference.
        matched: share of them that the other finds: same class, IoU of ``MATCH_IOU``.
        conf_difference: mean absolute difference of matched boxes' confidence.
    """

    boxes: int
    matched: float
    conf_difference: float

    @property
    def sound(self) -> bool:
        return self.matched >= MIN_MATCHED and self.conf_difference <= MAX_CONF_DIFFERENCE


def agreement(reference: Sequence[Detections], others: Sequence[Detections]) -> Agreement:
    """Compare the best ``CHECK_BEST`` boxes of each picture. Nothing found by both agrees; by one only, it does not."""
    boxes = matched = 0
    differences: list[float] = []
    for mine, other in zip(reference, others, strict=True):
        count = min(len(mine), CHECK_BEST)
        boxes += count if len(mine) else len(other)
        if not count or not len(other):
            continue
        iou = iou_matrix(mine.xyxy[:count], other.xyxy)
        iou[mine.class_id[:count, None] != other.class_id[None]] = 0
        best = iou.argmax(axis=1)
        there = iou[np.arange(count), best] >= MATCH_IOU
        matched += int(there.sum())
        differences += np.abs(mine.conf[:count] - other.conf[best])[there].tolist()
    share = matched / boxes if boxes else 1.0
    return Agreement(boxes, round(share, 4), round(float(np.mean(differences)), 5) if differences else 0.0)


def make_export(exports: Exports, key: ExportKey, path: Path, settings: Settings) -> Export:
    """Export, check and keep; seconds for OpenVINO, minutes for TensorRT.

    Raises:
        Unsound: it does not find what the checkpoint finds.
        WeightsError: it cannot be exported.
        StorageError: the disk does not take it.
    """
    write = _write_openvino if key.engine == "openvino" else _write_by_ultralytics

    def build(folder: Path) -> Mapping[str, Any]:
        facts = write(folder, key, path, settings)
        made = Export(folder, key.engine, key.precision, facts["names"], facts["stride"], facts["end2end"], {})
        found = check(path, made, settings)
        if not found.sound:
            raise Unsound(
                f"{key.engine} finds {found.matched:.0%} of the boxes that PyTorch finds, their confidence differs by "
                f"{found.conf_difference:.3f}.",
                "Set ENGINE=torch.",
            )
        return {**facts, "check": asdict(found)}

    return exports.make(key, build)


def check(path: Path, export: Export, settings: Settings) -> Agreement:
    """Compare an export with its checkpoint on a few pictures.

    Raises:
        RuntimeError: the export does not run.
    """
    pictures = check_pictures()
    found = Agreement(0, 1.0, 0.0)
    for conf in CHECK_CONF:
        lenient = settings.model_copy(update={"conf": conf, "precision": "fp32"})
        candidate = YoloDetector(path, lenient, export)
        detections = candidate.detect(pictures)
        if candidate.engine["note"]:  # it would compare PyTorch with itself
            raise RuntimeError(candidate.engine["note"])
        del candidate
        found = agreement(YoloDetector(path, lenient).detect(pictures), detections)
        if found.boxes:
            break
    return found


def check_pictures() -> list[Image]:
    """Photographs that come with ultralytics, and blocks of noise; of three aspects."""
    import cv2
    from ultralytics.utils import ASSETS

    blocks = np.random.default_rng(0).integers(0, 255, (9, 16, 3), np.uint8)
    pictures = [np.kron(blocks, np.ones((40, 40, 1), np.uint8))]
    pictures += [image for file in sorted(ASSETS.glob("*.jpg")) if (image := cv2.imread(str(file))) is not None]
    return pictures


def _write_openvino(folder: Path, key: ExportKey, path: Path, settings: Settings) -> dict[str, Any]:
    setup_openvino()
    import openvino
    import torch

    engine = TorchEngine(path, torch.device("cpu"), half=False)
    openvino.save_model(_with_preprocessing(_convert(engine)), folder / MODEL_FILE, compress_to_fp16=False)
    return {"names": engine.names, "stride": engine.stride, "end2end": engine.end2end}


def _convert(engine: TorchEngine) -> openvino.Model:
    """The network for inputs of any size. Changes the engine's network as ultralytics' exporter does."""
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
    # No side equals the other, and none the batch: what is traced must not take them for the same.
    example = torch.zeros(1, 3, 12 * engine.stride, 20 * engine.stride)
    with torch.no_grad():
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]
            network, example, strict=False, check_trace=False
        )
        return openvino.convert_model(traced, example_input=example)


def _with_preprocessing(model: openvino.Model) -> openvino.Model:
    """The same for uint8 BGR pictures, ``(n, height, width, 3)``: the engine converts them faster than NumPy."""
    from openvino import Layout, Type
    from openvino.preprocess import ColorFormat, PrePostProcessor

    steps = PrePostProcessor(model)
    steps.input().tensor().set_element_type(Type.u8).set_layout(Layout("NHWC")).set_color_format(ColorFormat.BGR)
    steps.input().model().set_layout(Layout("NCHW"))
    steps.input().preprocess().convert_element_type(Type.f32).convert_color(ColorFormat.RGB).scale(255.0)
    return steps.build()


def _write_by_ultralytics(folder: Path, key: ExportKey, path: Path, settings: Settings) -> dict[str, Any]:
    """TensorRT and CoreML."""
    import shutil
    import tempfile

    from ultralytics import YOLO

    device = _select_device(settings.device)
    arguments: dict[str, Any] = {"imgsz": settings.imgsz, "half": key.precision == "fp16", "verbose": False}
    if key.engine == "tensorrt":
        arguments |= {"format": "engine", "dynamic": True, "batch": settings.batch, "device": str(device)}
    else:
        arguments |= {"format": "coreml"}
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:  # it writes beside the checkpoint
        copy = Path(shutil.copy(path, Path(temporary) / "model.pt"))
        made = Path(YOLO(str(copy)).export(**arguments))
        shutil.move(str(made), folder / made.name)
    engine = TorchEngine(folder / made.name, device, half=key.precision == "fp16")
    return {"names": engine.names, "stride": engine.stride, "end2end": engine.end2end}
