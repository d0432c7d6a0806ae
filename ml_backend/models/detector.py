"""Object detection by YOLO models."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ml_backend.errors import WeightsError
from ml_backend.models._ultralytics import setup_ultralytics
from ml_backend.models.memory import FitsMemory, is_out_of_memory, model_memory
from ml_backend.settings import Settings
from ml_backend.types import Detections, Image

if TYPE_CHECKING:
    import torch

NMS_IOU = 0.7  # ultralytics' own default for predict and track
MAX_DETECTIONS = 300  # likewise

#: On a CPU the layers' outputs of more frames no longer fit into its cache: 8 at once are a tenth slower than 2.
CPU_BATCH = 2


class Detector(Protocol):
    """What finds objects in single frames.

    Attributes:
        names: class name by class id.
    """

    names: dict[int, str]

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        """Detections of each image; one entry per image, in their order."""
        ...


class YoloDetector(FitsMemory):
    """A YOLO detection model behind :class:`Detector`.

    The input keeps the video's aspect ratio (384 x 640 for 16:9), which costs 40 % less than a square. Results equal
    those of ``YOLO(path).predict(images, conf=settings.conf, imgsz=settings.imgsz)``.

    Args:
        path: checkpoint (``.pt``) or a model exported by ultralytics. A checkpoint is code: trusted paths only.
        settings: ``device``, ``imgsz``, ``batch`` and ``conf`` are used.

    Raises:
        WeightsError: the file is missing, unreadable, or not a detection model; the device does not exist.
    """

    _items = "frames"

    def __init__(self, path: str | Path, settings: Settings) -> None:
        path = Path(path)
        if not path.exists():
            raise WeightsError(f"No model weights at {path}.", "Set YOLO_WEIGHTS to an existing checkpoint.")
        setup_ultralytics()
        self._path = path
        self._conf = settings.conf
        self._imgsz = settings.imgsz
        self._batch = settings.batch
        self._placed(_select_device(settings.device), self._move)
        self.names: dict[int, str] = {int(i): str(name) for i, name in self._backend.names.items()}

    @property
    def memory_bytes(self) -> dict[str, int]:
        """Bytes that the network takes, by device; of an export, whose runtime does not tell, the file's size."""
        return model_memory(self._backend) or {self.device: sum(f.stat().st_size for f in _files(self._path))}

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        """Detect objects.

        Args:
            images: ``(height, width, 3)`` uint8 BGR each; sizes may differ.

        Returns:
            One :class:`Detections` per image, highest confidence first, boxes in the image's own pixels.
        """
        results: list[Detections] = []
        while len(results) < len(images):
            results += self._fitting(partial(self._detect_from, images, len(results)))
        return results

    def _move(self, device: torch.device) -> None:
        self._backend = self._load(device)
        self._device = device
        if device.type == "cpu":
            self._batch = min(self._batch, CPU_BATCH)

    def _to_cpu(self) -> None:
        import torch

        self._move(torch.device("cpu"))

    def _load(self, device: torch.device) -> Any:
        from ultralytics.nn.autobackend import AutoBackend

        try:
            # fp16 halves time and memory on CUDA; elsewhere it is slower or breaks models.
            backend = AutoBackend(str(self._path), device=device, fp16=device.type == "cuda", verbose=False)
        except Exception as error:  # unpickling foreign files raises anything
            if is_out_of_memory(error):
                raise
            raise WeightsError(
                f"{self._path} cannot be loaded as a YOLO model ({type(error).__name__}: {error}).",
                "The file may be damaged or of another kind; download or export it again.",
            ) from error
        task = getattr(backend, "task", None) or getattr(getattr(backend, "model", None), "task", None)
        if task != "detect":
            raise WeightsError(
                f"{self._path} is a YOLO model for {task or 'an unknown task'}, not for detection.",
                "Set YOLO_WEIGHTS to a detection checkpoint such as yolo11n.pt.",
            )
        backend.eval()
        return backend

    def _detect_from(self, images: Sequence[Image], start: int, limit: int) -> list[Detections]:
        return self._detect_batch(_same_shape(images, start, limit))

    def _detect_batch(self, images: Sequence[Image]) -> list[Detections]:
        import torch
        import torchvision  # noqa: F401 - once imported, ultralytics' NMS uses its faster kernel
        from ultralytics.data.augment import LetterBox
        from ultralytics.utils import nms, ops

        backend = self._backend
        rect = backend.format == "pt" or getattr(backend, "dynamic", False)
        letterbox = LetterBox(self._input_size(), auto=rect, stride=backend.stride)
        pixels = torch.from_numpy(np.stack([letterbox(image=image) for image in images])).to(self._device)
        with torch.inference_mode():
            tensor = pixels.permute(0, 3, 1, 2).contiguous().flip(1)  # BGR to RGB
            tensor = (tensor.half() if backend.fp16 else tensor.float()).div_(255)
            raw = backend(tensor)
            boxes = nms.non_max_suppression(raw, self._conf, NMS_IOU, max_det=MAX_DETECTIONS, end2end=backend.end2end)
            results = []
            for image, found in zip(images, boxes, strict=True):
                ops.scale_boxes(tensor.shape[2:], found[:, :4], image.shape)
                results.append(_to_detections(found))
            return results

    def _input_size(self) -> list[int]:
        from ultralytics.utils.checks import check_imgsz

        fixed = getattr(self._backend, "imgsz", None)  # exports with a static shape accept no other
        if fixed is not None and not getattr(self._backend, "dynamic", False):
            return list(fixed)
        return list(check_imgsz(self._imgsz, stride=self._backend.stride, min_dim=2))


def _same_shape(images: Sequence[Image], start: int, limit: int) -> Sequence[Image]:
    """The longest run of equally sized images from ``start``, at most ``limit``."""
    end = start + 1
    while end < min(len(images), start + limit) and images[end].shape == images[start].shape:
        end += 1
    return images[start:end]


def _files(path: Path) -> list[Path]:
    """Some exports are folders."""
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]


def _to_detections(found: torch.Tensor) -> Detections:
    rows = found.float().cpu().numpy()
    xyxy, conf = np.ascontiguousarray(rows[:, :4], np.float32), np.ascontiguousarray(rows[:, 4], np.float32)
    return Detections(xyxy, conf, rows[:, 5].astype(np.int64))


def _select_device(name: str) -> torch.device:
    """``auto``: CUDA, then Apple's GPU, then the CPU. Raises WeightsError for a device that is not there."""
    import torch

    mps = torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise WeightsError(f"DEVICE={name!r} is not a device name.", "Use auto, cpu, cuda, cuda:0 or mps.") from error
    there = {"cpu": True, "mps": mps, "cuda": (device.index or 0) < torch.cuda.device_count()}.get(device.type, False)
    if not there:
        raise WeightsError(f"DEVICE={name!r} is not available on this machine.", "Set DEVICE=auto.")
    return device
