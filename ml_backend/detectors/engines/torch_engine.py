"""PyTorch engine: runs a checkpoint on any device."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ml_backend.core.errors import WeightsError
from ml_backend.core.memory import device_type, is_out_of_memory, model_memory
from ml_backend.core.types import FloatArray
from ml_backend.detectors.setup import setup_ultralytics

if TYPE_CHECKING:
    import torch

#: ``(n, height, width, 3)`` uint8 BGR, letterboxed.
Pixels = npt.NDArray[np.uint8]
#: The activations of more frames do not fit into a CPU's cache: a batch of 8 is a tenth slower than one of 2.
CPU_BATCH = 2
GPU_BATCH = 1024  # only the settings and the memory limit it


class TorchEngine:
    """The network of a checkpoint in PyTorch.

    Attributes:
        name: ``"torch"``; of the other engine ``"openvino"``.
        precision: ``"fp32"``, ``"fp16"`` or, with OpenVINO, ``"int8"``.
        names: class name by class id.
        stride: the sides of the input are multiples of it.
        end2end: whether the output needs no NMS.
        max_batch: batch size above which throughput drops.
        max_concurrency: number of concurrent calls, from different threads, up to which throughput improves.

    Args:
        path: checkpoint. It is code: trusted paths only.
        device: where to run.
        half: use fp16, which halves time and memory on CUDA; elsewhere it is slower or breaks models.

    Raises:
        WeightsError: the file is unreadable, or not a detection model.
    """

    def __init__(self, path: Path, device: str, *, half: bool) -> None:
        setup_ultralytics()
        import torch
        from ultralytics.nn.autobackend import AutoBackend

        try:
            backend = AutoBackend(str(path), device=torch.device(device), fp16=half, verbose=False)
        except Exception as error:  # unpickling foreign files raises anything
            if is_out_of_memory(error):
                raise
            raise WeightsError(
                f"{path} cannot be loaded as a YOLO model ({type(error).__name__}: {error}).",
                "Download or export it again; it may be damaged or of another kind.",
            ) from error
        if backend.format != "pt":
            raise WeightsError(f"{path} is not a PyTorch checkpoint.", "Set YOLO_WEIGHTS to the .pt file.")
        task = getattr(backend.model, "task", None)
        if task != "detect":
            raise WeightsError(
                f"{path} is a YOLO model for {task or 'an unknown task'}, not for detection.",
                "Set YOLO_WEIGHTS to a detection checkpoint such as yolo11n.pt.",
            )
        backend.eval()
        self._backend = backend
        self._device = device
        self.name = "torch"
        self.precision = "fp16" if backend.fp16 else "fp32"
        self.names = {int(i): str(name) for i, name in backend.names.items()}
        self.stride = int(backend.stride)
        self.end2end = bool(backend.end2end)
        self.max_concurrency = 1
        self._lock = threading.Lock()  # the head caches the size of its last input
        self.max_batch = CPU_BATCH if device == "cpu" else GPU_BATCH

    @property
    def network(self) -> torch.nn.Module:
        """The checkpoint's network."""
        network: torch.nn.Module = self._backend.model
        return network

    @property
    def memory_bytes(self) -> Mapping[str, int]:
        """Bytes of the network by device."""
        return model_memory(self.network)

    def infer(self, pixels: Pixels) -> list[FloatArray]:
        """Return the raw output of the network for each image; see :func:`ml_backend.detectors.nms.select_detections`.

        Raises:
            RuntimeError: the network failed, or is out of memory.
        """
        import torch

        count = len(pixels)
        if device_type(self._device) == "cuda" and (padding := padded_batch_size(count) - count):
            pixels = np.concatenate([pixels, np.zeros((padding, *pixels.shape[1:]), np.uint8)])
        with self._lock, torch.inference_mode():
            tensor = torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2).contiguous().flip(1)  # BGR to RGB
            tensor = (tensor.half() if self._backend.fp16 else tensor.float()).div_(255)
            raw = self._backend(tensor)
            boxes = raw[0] if isinstance(raw, (list, tuple)) else raw  # the rest is for losses
            return list(boxes[:count].float().cpu().numpy())


def padded_batch_size(count: int) -> int:
    """Round a batch size up to a power of two, to which GPU batches are padded.

    The first call with each batch size takes a second or more, as cuDNN chooses its kernels. Without padding, a video
    with all sizes from 1 to the maximum took longer than running on every frame.
    """
    return 1 << max(0, count - 1).bit_length()
