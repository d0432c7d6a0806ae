"""Devices, memory of the machine and of models, and inference that recovers from running out of it.

Only :func:`select_device` imports torch, and only where there may be a GPU: torch takes seconds and 200 MB.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

from ml_backend.core.errors import WeightsError

log = logging.getLogger(__name__)

T = TypeVar("T")

#: The memory limit of a container (cgroup v2); psutil reports the host's memory.
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
#: Microseconds of CPU time in each period that a container may use, and the period (cgroup v2).
CONTAINER_CPU = Path("/sys/fs/cgroup/cpu.max")
#: One of them exists on a Linux machine, or in a container, with a GPU that torch can use.
GPU_DEVICE_FILES = ("/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/dxg", "/dev/kfd")


@dataclass(frozen=True, slots=True)
class MemoryUsage:
    """Bytes of main memory or GPU memory.

    Attributes:
        total: installed, or the limit of this process.
        available: free for allocation.
    """

    total: int
    available: int


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use: a container or an affinity may limit it.

    As joblib does, whose import would be a tenth of all imports of a prediction.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no such file, or it says "max"
        quota, period = map(int, CONTAINER_CPU.read_text().split())
        cores = min(cores, -(-quota // period))
    return cores


def machine_memory() -> MemoryUsage:
    """Return the main memory of the machine, or of the container if that has less."""
    machine = psutil.virtual_memory()
    total, available = int(machine.total), int(machine.available)
    with contextlib.suppress(OSError, ValueError):  # no such file, or it says "max"
        total = min(total, int(CONTAINER_LIMIT.read_text()))
    return MemoryUsage(total, min(total, available))


def process_memory() -> int:
    """Return the resident set size of this process in bytes."""
    return int(psutil.Process().memory_info().rss)


def _loaded_torch() -> Any:
    """Return torch if this process has loaded it; ``None`` also while another thread still does so."""
    torch = sys.modules.get("torch")
    return None if getattr(getattr(torch, "__spec__", None), "_initializing", False) else torch


def gpu_memory(device: str = "cuda:0") -> MemoryUsage | None:
    """Return the memory of a CUDA card; ``None`` without one, or while this process does not use it."""
    torch = _loaded_torch()
    # The query would otherwise create a CUDA context, which takes hundreds of megabytes of GPU memory.
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    free, total = torch.cuda.mem_get_info(device)
    return MemoryUsage(int(total), int(free))


def free_gpu_memory() -> None:
    """Empty torch's cache of GPU memory."""
    torch = _loaded_torch()
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def model_memory(model: object) -> dict[str, int]:
    """Return the bytes of a model by device (``"cpu"``, ``"cuda:0"``).

    Sums up the parameters and buffers of a torch module; other models state it in their attribute ``memory_bytes``.
    """
    memory_bytes: Mapping[str, int] | None = getattr(model, "memory_bytes", None)
    if memory_bytes is not None:
        return dict(memory_bytes)
    torch = _loaded_torch()
    sizes: dict[str, int] = {}
    if torch is not None and isinstance(model, torch.nn.Module):
        for tensor in itertools.chain(model.parameters(), model.buffers()):
            sizes[str(tensor.device)] = sizes.get(str(tensor.device), 0) + tensor.nbytes
    return sizes


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means out of memory. torch raises a RuntimeError, or one derived from it."""
    phrases = ("out of memory", "can't allocate memory", "status_alloc_failed")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(phrase in str(error).lower() for phrase in phrases)
    )


def select_device(name: str) -> str:
    """Return torch's name of a device: ``"cpu"``, ``"cuda:0"``, ``"mps"``; ``auto``: CUDA, then Apple's GPU, the CPU.

    Raises:
        WeightsError: the name is invalid, or the machine has no such device.
    """
    if name == "cpu" or (name == "auto" and _has_no_gpu()):
        return "cpu"
    import torch

    mps = torch.backends.mps.is_available()
    if name == "auto":
        return "cuda:0" if torch.cuda.is_available() else "mps" if mps else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise WeightsError(f"DEVICE={name!r} is not a device name.", "Use auto, cpu, cuda, cuda:0 or mps.") from error
    cuda = (device.index or 0) < torch.cuda.device_count()
    if not {"cpu": True, "mps": mps, "cuda": cuda}.get(device.type, False):
        raise WeightsError(f"DEVICE={name!r} is not available on this machine.", "Set DEVICE=auto.")
    return str(device)


def _has_no_gpu() -> bool:
    """Return whether torch certainly finds no GPU: on Linux, drivers of NVIDIA, of AMD and of WSL have device files."""
    return sys.platform == "linux" and not any(map(os.path.exists, GPU_DEVICE_FILES))


def device_type(device: str) -> str:
    """Return ``"cpu"``, ``"cuda"`` or ``"mps"``."""
    return device.partition(":")[0]


class OutOfMemoryFallback:
    """Mixin for networks: when memory runs out, retry with smaller batches, then on the CPU.

    A subclass sets ``batch`` and ``_model``, or defines :meth:`place`, loads its network by :meth:`move_to`, and calls
    it by :meth:`run_with_fallback`.

    Attributes:
        batch: maximum number of items per call; halved when memory runs out.
        item_name: what the items are, for log messages.
        max_concurrency: number of concurrent calls; must not change after the first.
    """

    batch: int
    item_name = "items"
    max_concurrency: int = 1
    _device: str
    _model: Any

    @property
    def memory_bytes(self) -> Mapping[str, int]:
        """Bytes of the network by device."""
        return model_memory(self._model)

    @property
    def device(self) -> str:
        """The network's current device: ``"cpu"``, ``"cuda:0"``, ``"mps"``."""
        return self._device

    def place(self, device: str) -> None:
        """Load or move the network to a device."""
        self._model.to(device)

    def move_to(self, device: str) -> None:
        """Place the network on a device, or on the CPU if the device has too little memory."""
        try:
            return self._move_to(device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or device == "cpu":
                raise
        # Outside the except block, because the error keeps the failed call's tensors alive.
        log.warning("%s has too little memory for the network: using the CPU.", device)
        free_gpu_memory()
        self._move_to("cpu")

    def run_with_fallback(self, call: Callable[[int], T]) -> T:
        """Call with the largest batch that fits.

        At most ``max_concurrency`` threads run at once, as each call needs memory of its own.

        Args:
            call: takes the maximum batch size; called again with a smaller one after running out of memory.

        Raises:
            RuntimeError: the CPU has too little memory for a single item, or ``call`` raised it.
        """
        with self.__dict__.setdefault("_slots", threading.BoundedSemaphore(self.max_concurrency)):
            while True:
                batch, device = self.batch, self._device
                try:
                    return call(batch)
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error) or (device == "cpu" and batch <= 1):
                        raise
                with self._reload_lock:  # outside the except block, as above
                    if (batch, device) == (self.batch, self._device):  # no other thread has reduced it yet
                        self._reduce_memory()

    @property
    def _reload_lock(self) -> threading.RLock:
        """Held while the network or its batch size is replaced."""
        lock: threading.RLock = self.__dict__.setdefault("_reload_rlock", threading.RLock())
        return lock

    def _reduce_memory(self) -> None:
        """Halve the batch, or move to the CPU if it is 1."""
        if self.batch > 1:
            self.batch //= 2
            log.warning(
                "Out of memory on %s: continuing with %d %s per call.", self._device, self.batch, self.item_name
            )
        else:
            log.warning("Out of memory on %s with a batch of 1: using the CPU.", self._device)
            self._move_to("cpu")
        free_gpu_memory()

    def _move_to(self, device: str) -> None:
        self.place(device)
        self._device = device
