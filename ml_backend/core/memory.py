"""How much memory there is, how much models take, and what to do when it is not enough.

torch is never imported here: where it is not loaded yet, nothing of it takes memory.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import psutil

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Where a container finds its limit (control groups version 2), since psutil shows the memory of the host.
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True, slots=True)
class MemoryUsage:
    """Bytes of one kind of memory.

    Attributes:
        total: all of it, or what this process may have of it.
        available: what can still be had.
    """

    total: int
    available: int


def machine_memory() -> MemoryUsage:
    """Main memory of the machine, or of the container where that is less."""
    machine = psutil.virtual_memory()
    total, available = int(machine.total), int(machine.available)
    with contextlib.suppress(OSError, ValueError):  # not there; "max"
        total = min(total, int(CONTAINER_LIMIT.read_text()))
    return MemoryUsage(total, min(total, available))


def process_memory() -> int:
    """Bytes of main memory that this process occupies (resident set size)."""
    return int(psutil.Process().memory_info().rss)


def gpu_memory(device: str = "cuda:0") -> MemoryUsage | None:
    """Memory of a CUDA card; ``None`` where there is none, or nothing of this process runs on it so far."""
    torch = sys.modules.get("torch")
    # Asking for the memory would otherwise begin to use the card, which alone takes hundreds of megabytes of it.
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    free, total = torch.cuda.mem_get_info(device)
    return MemoryUsage(int(total), int(free))


def free_gpu_memory() -> None:
    """Give the card back what torch keeps of it for later."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def model_memory(model: object) -> dict[str, int]:
    """Bytes that a model takes, by device (``"cpu"``, ``"cuda:0"``), where it is now.

    Those of a torch module are its parameters and buffers; others say it by an attribute ``memory_bytes``.
    """
    told: Mapping[str, int] | None = getattr(model, "memory_bytes", None)
    if told is not None:
        return dict(told)
    torch = sys.modules.get("torch")
    sizes: dict[str, int] = {}
    if torch is not None and isinstance(model, torch.nn.Module):
        for tensor in itertools.chain(model.parameters(), model.buffers()):
            sizes[str(tensor.device)] = sizes.get(str(tensor.device), 0) + tensor.nbytes
    return sizes


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is short. torch's allocators raise a RuntimeError, or one derived from it."""
    words = ("out of memory", "can't allocate memory", "status_alloc_failed")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(phrase in str(error).lower() for phrase in words)
    )


class FitsMemory:
    """A network that goes on when memory is short: with smaller batches, then on the CPU.

    A subclass keeps ``_batch`` and ``_device``, defines :meth:`_to_cpu`, and calls its network by :meth:`_fitting`.
    """

    _batch: int
    _device: torch.device
    _items = "items"  # of which a batch consists, in words
    max_concurrency: int = 1  # calls; must not change after the first

    @property
    def device(self) -> str:
        """Where the network runs now: ``"cpu"``, ``"cuda:0"``, ``"mps"``."""
        return str(self._device)

    def _to_cpu(self) -> None:
        """Bring the network to the CPU, and set ``_device``."""
        raise NotImplementedError

    def _placed(self, device: torch.device, put: Callable[[torch.device], T]) -> T:
        """What ``put`` makes of a device, or of the CPU where that device has no room for the network."""
        try:
            return put(device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or device.type == "cpu":
                raise
        # Not within the except block: while it lasts, the error keeps the failed call's tensors alive.
        log.warning("The memory of %s has no room for the network: going on with the CPU.", device)
        free_gpu_memory()
        return put(type(device)("cpu"))

    def _fitting(self, call: Callable[[int], T]) -> T:
        """Call with the largest batch that fits.

        Threads that share the network take turns, ``max_concurrency`` of them: each needs memory of its own.

        Args:
            call: gets how many items it may take at once; called again with fewer when memory was short.

        Raises:
            RuntimeError: memory is short for one item on the CPU; whatever else ``call`` raises.
        """
        with self.__dict__.setdefault("_turn", threading.BoundedSemaphore(self.max_concurrency)):
            while True:
                batch, device = self._batch, self._device
                try:
                    return call(batch)
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error) or (device.type == "cpu" and batch <= 1):
                        raise
                with self._changing:  # not within the except block, as above
                    if (batch, device) == (self._batch, self._device):  # no other thread has met the same
                        self._shrink()

    @property
    def _changing(self) -> threading.RLock:
        """Held by the one that replaces the network, or its batch, while others may use it."""
        lock: threading.RLock = self.__dict__.setdefault("_change_lock", threading.RLock())
        return lock

    def _shrink(self) -> None:
        """Make the next call need less memory: half the batch, then the CPU."""
        if self._batch > 1:
            self._batch //= 2
            log.warning("Out of memory on %s: going on with %d %s per call.", self._device, self._batch, self._items)
        else:
            log.warning("Out of memory on %s with a batch of one: going on with the CPU.", self._device)
            self._to_cpu()
        free_gpu_memory()
