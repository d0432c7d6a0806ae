"""Object detection with YOLO models."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Protocol

import numpy as np

from ml_backend.core.errors import WeightsError
from ml_backend.core.memory import OutOfMemoryFallback, device_type, is_out_of_memory, select_device
from ml_backend.core.settings import Settings
from ml_backend.core.types import Detections, Image
from ml_backend.detectors.engines.exports import EngineExport
from ml_backend.detectors.engines.openvino_engine import OpenvinoEngine
from ml_backend.detectors.engines.torch_engine import Pixels, TorchEngine, padded_batch_size
from ml_backend.detectors.letterbox import Letterbox
from ml_backend.detectors.nms import select_detections

log = logging.getLogger(__name__)

#: Errors of a broken runtime; not a job's timeout, which may be raised at any line.
_PYTHON_FAULTS = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, TypeError, ValueError)
RUNTIME_FAULTS = (RuntimeError, OSError, WeightsError, *_PYTHON_FAULTS)


class Detector(Protocol):
    """Detects objects in single frames.

    Attributes:
        names: class name by class id.
        max_concurrency: number of concurrent calls, from different threads, up to which throughput improves.
    """

    names: dict[int, str]
    max_concurrency: int

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        """Return the detections of each image, in order."""
        ...

    def working_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the (width, height) to which :meth:`detect` scales images; callers may scale them beforehand."""
        ...


class YoloDetector(OutOfMemoryFallback):
    """A YOLO detection model; implements :class:`Detector`.

    The input keeps the video's aspect ratio (384 x 640 for 16:9), which costs 40 % less than a square. Results equal
    those of ``YOLO(path).predict(images, conf=settings.conf, imgsz=settings.imgsz)``.

    Args:
        path: checkpoint (``.pt``). It is code: trusted paths only.
        settings: ``device``, ``imgsz``, ``batch``, ``conf`` and ``precision`` are used.
        export: OpenVINO export of the checkpoint; PyTorch is used without one, or if it fails.
        note: returns why the next video does not get the configured engine: it may be being prepared.

    Raises:
        WeightsError: the file is missing, unreadable, or not a detection model; the device does not exist.
    """

    item_name = "frames"

    def __init__(
        self, path: str | Path, settings: Settings, export: EngineExport | None = None, note: Callable[[], str] = str
    ) -> None:
        path = Path(path)
        if not path.exists():
            raise WeightsError(f"No model weights at {path}.", "Set YOLO_WEIGHTS to an existing checkpoint.")
        self._path = path
        self._conf = settings.conf
        self._imgsz = settings.imgsz
        self.batch = settings.batch
        self._half = settings.precision != "fp32"
        self._export = export
        self._note, self._fault = note, ""
        self._warm: set[tuple[int, int]] = set()
        self.move_to(select_device("cpu" if export else settings.device))
        self.max_concurrency = self._engine.max_concurrency
        self.names: dict[int, str] = self._engine.names

    @property
    def memory_bytes(self) -> Mapping[str, int]:
        """Bytes of the network by device."""
        return self._engine.memory_bytes

    @property
    def engine(self) -> dict[str, str]:
        """``name`` and ``precision`` of the engine, and a ``note`` why it is not the configured one, else empty."""
        return {"name": self._engine.name, "precision": self._engine.precision, "note": self._fault or self._note()}

    def working_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the size inside the letterbox: 640 x 360 for 1920 x 1080 at ``imgsz`` 640; never enlarges."""
        fitted = self._letterbox(width, height).scaled_size
        return fitted if fitted < (width, height) else (width, height)

    def warm_up(self, width: int, height: int) -> None:
        """On a GPU, run the network once with each batch size for videos of this size: first calls compile kernels.

        On a CPU the first call compiles the network while a video's first frames are decoded.
        """
        size = self.working_size(width, height)
        if size not in self._warm and self._device != "cpu":
            limit = min(self.batch, self._engine.max_batch) if device_type(self._device) == "cuda" else 1
            for count in sorted({min(padded_batch_size(n), limit) for n in range(1, limit + 1)}):
                self.detect([np.zeros((size[1], size[0], 3), np.uint8)] * count)
            self._warm.add(size)

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        """Detect objects.

        Args:
            images: ``(height, width, 3)`` uint8 BGR each; sizes may differ.

        Returns:
            One :class:`Detections` per image, highest confidence first, boxes in pixels of the image.
        """
        results: list[Detections] = []
        while len(results) < len(images):
            results += self.run_with_fallback(partial(self._detect_from, images, len(results)))
        return results

    def place(self, device: str) -> None:
        """Load the network; see :meth:`OutOfMemoryFallback.place`."""
        self._engine = self._load(device)
        self.batch = min(self.batch, self._engine.max_batch)

    def pixels(self, images: Sequence[Image]) -> Pixels:
        """Letterbox images of one size to the network's input."""
        letterbox = self._letterbox(images[0].shape[1], images[0].shape[0])
        return np.stack([letterbox.apply(image) for image in images])

    def _load(self, device: str) -> TorchEngine | OpenvinoEngine:
        if self._export is not None:
            try:
                return OpenvinoEngine(self._export, self.batch)
            except RUNTIME_FAULTS as error:
                if is_out_of_memory(error):
                    raise
                self._drop_export(self._export, _reason(error))
        # fp16 halves time and memory on CUDA; elsewhere it is slower or breaks models.
        return TorchEngine(self._path, device, half=self._half and device_type(device) == "cuda")

    def _drop_export(self, export: EngineExport, reason: str) -> None:
        self._export = None
        self._fault = f"openvino failed ({reason}): PyTorch is used."
        export.failed(reason)
        log.warning("%s: %s", self._path.name, self._fault)

    def _detect_from(self, images: Sequence[Image], start: int, limit: int) -> list[Detections]:
        shape = images[start].shape
        batch = list(takewhile(lambda image: image.shape == shape, images[start : start + limit]))
        engine = self._engine
        try:
            return self._detect_batch(engine, batch)
        except RUNTIME_FAULTS as error:
            with self._reload_lock:
                if self._engine is engine and (self._export is None or is_out_of_memory(error)):
                    raise
            reason = _reason(error)
        # Outside the except block, because the error keeps the failed call's tensors alive.
        with self._reload_lock:
            if self._engine is engine and self._export is not None:  # else another thread has replaced the engine
                self._drop_export(self._export, reason)
                self.place(self._device)
        return self._detect_batch(self._engine, batch[: self.batch])

    def _detect_batch(self, engine: TorchEngine | OpenvinoEngine, images: Sequence[Image]) -> list[Detections]:
        letterbox = self._letterbox(images[0].shape[1], images[0].shape[0])
        found = [
            select_detections(raw, self._conf, end2end=engine.end2end) for raw in engine.infer(self.pixels(images))
        ]
        return [replace(detections, xyxy=letterbox.to_image(detections.xyxy)) for detections in found]

    def _letterbox(self, width: int, height: int) -> Letterbox:
        stride = self._engine.stride
        return Letterbox.fit((width, height), math.ceil(self._imgsz / stride) * stride, stride)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]
