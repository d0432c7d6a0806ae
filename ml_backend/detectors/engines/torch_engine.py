"""PyTorch: a checkpoint on any device."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ml_backend.core.errors import WeightsError
from ml_backend.core.memory import is_out_of_memory, model_memory
from ml_backend.detectors.ultralytics_setup import setup_ultralytics

if TYPE_CHECKING:
    import torch

#: ``(n, height, width, 3)`` uint8 BGR, letterboxed.
Pixels = npt.NDArray[np.uint8]
#: On a CPU the layers' outputs of more frames no longer fit into its cache: 8 at once are a tenth slower than 2.
CPU_BATCH = 2
GPU_BATCH = 1024  # no limit but the settings' and the memory's


class TorchEngine:
    """A network of one checkpoint, ready to run.

    Attributes:
        name: ``"torch"``; of the other engine ``"openvino"``.
        precision: ``"fp32"``, ``"fp16"`` or, with OpenVINO, ``"int8"``.
        names: class name by class id.
        stride: sides of the input are multiples of it.
        end2end: whether its output needs no NMS.
        max_batch: more pictures in one call only make it slower.
        max_concurrency: calls that are worth making at the same time, from as many threads.

    Args:
        path: checkpoint. It is code: trusted paths only.
        device: where it runs.
        half: fp16, which halves time and memory on CUDA; elsewhere it is slower or breaks models.

    Raises:
        WeightsError: the file is unreadable, or not a detection model.
    """

    def __init__(self, path: Path, device: torch.device, *, half: bool) -> None:
        setup_ultralytics()
        from ultralytics.nn.autobackend import AutoBackend

        try:
            backend = AutoBackend(str(path), device=device, fp16=half, verbose=False)
        except Exception as error:  # unpickling foreign files raises anything
            if is_out_of_memory(error):
                raise
            raise WeightsError(
                f"{path} cannot be loaded as a YOLO model ({type(error).__name__}: {error}).",
                "The file may be damaged or of another kind; download or export it again.",
            ) from error
        if backend.format != "pt":
            raise WeightsError(f"{path} is no PyTorch checkpoint.", "Set YOLO_WEIGHTS to the .pt file it was made of.")
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
        self._running = threading.Lock()  # the head remembers the size of its last input
        self.max_batch = CPU_BATCH if device.type == "cpu" else GPU_BATCH

    @property
    def network(self) -> torch.nn.Module:
        """The checkpoint's network itself."""
        network: torch.nn.Module = self._backend.model
        return network

    @property
    def memory_bytes(self) -> Mapping[str, int]:
        """What it takes, by device."""
        return model_memory(self.network)

    def infer(self, pixels: Pixels) -> Any:
        """Raw output of the network, as ultralytics' NMS takes it.

        Raises:
            RuntimeError: it does not run; also when memory is short.
        """
        import torch

        count = len(pixels)
        if self._device.type == "cuda" and (missing := padded(count) - count):
            pixels = np.concatenate([pixels, np.zeros((missing, *pixels.shape[1:]), np.uint8)])
        with self._running, torch.inference_mode():
            tensor = torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2).contiguous().flip(1)  # BGR to RGB
            tensor = (tensor.half() if self._backend.fp16 else tensor.float()).div_(255)
            raw = self._backend(tensor)
            if len(pixels) == count:
                return raw
            return (raw[0] if isinstance(raw, (list, tuple)) else raw)[:count]  # NMS wants no more of it


def padded(count: int) -> int:
    """Pictures that a GPU is given at once for so many: a power of two.

    The first call with a number of pictures takes a second or more, as cuDNN prepares its kernels for it. Without this
    a video, with all the numbers from 1 to the batch, took longer than with every frame looked at.
    """
    return 1 << max(0, count - 1).bit_length()


def select_device(name: str) -> torch.device:
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
