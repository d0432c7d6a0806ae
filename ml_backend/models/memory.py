"""How much memory there is, how much models take, and what to do when it is not enough.

torch is never imported here: where it is not loaded yet, nothing of it takes memory.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

T = TypeVar("T")

#: How deep tensors may lie within a model: detector, ultralytics' wrapper, its backend, the network.
MAX_DEPTH = 4
#: Larger containers are vocabularies and the like.
MAX_ITEMS = 200
_MODULE_PARTS = frozenset({"_parameters", "_buffers", "_modules"})
_PLAIN = (str, bytes, int, float, type, ModuleType, FunctionType, threading.Thread, logging.Logger, Path)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one kind of memory.

    Attributes:
        total: all of it, or what this process may have of it.
        available: what can still be had.
    """

    total: int
    available: int


def machine_memory(root: Path = Path("/")) -> Memory:
    """Main memory of the machine, or of the container where that is less.

    Args:
        root: where ``proc`` and ``sys`` are found.
    """
    machine = psutil.virtual_memory()
    total, available = int(machine.total), int(machine.available)
    for limit, used in _cgroup_limits(root):
        if limit < machine.total:  # "no limit" is a number too, a huge one
            total, available = min(total, limit), min(available, max(0, limit - used))
    return Memory(total, available)


def process_memory() -> int:
    """Bytes of main memory that this process occupies (resident set size)."""
    return int(psutil.Process().memory_info().rss)


def gpu_memory(device: str = "cuda:0") -> Memory | None:
    """Memory of a CUDA card; ``None`` where there is none, or nothing of this process runs on it so far."""
    torch = sys.modules.get("torch")
    # Asking for the memory would otherwise begin to use the card, which alone takes hundreds of megabytes of it.
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    free, total = torch.cuda.mem_get_info(device)
    return Memory(int(total), int(free))


def free_gpu_memory() -> None:
    """Give the card back what torch keeps of it for later."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def model_memory(model: object) -> dict[str, int]:
    """Bytes that a model takes, by device (``"cpu"``, ``"cuda:0"``), where it is now.

    Counted are all parameters, buffers and tensors that are found on the object and within its attributes. A model
    that keeps its weights elsewhere says so by an attribute ``memory_bytes``: the number, or one by device.
    """
    told = getattr(model, "memory_bytes", None)
    if isinstance(told, Mapping):
        return {str(device): int(size) for device, size in told.items()}
    if told is not None:
        return {str(getattr(model, "device", "cpu")): int(told)}
    sizes: dict[str, int] = {}
    for tensor in _tensors(model):
        device = str(tensor.device)
        sizes[device] = sizes.get(device, 0) + tensor.element_size() * tensor.nelement()
    return sizes


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is short; allocators other than CUDA's raise a bare RuntimeError."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        words in text for words in ("out of memory", "can't allocate memory", "status_alloc_failed")
    )


class FitsMemory:
    """A network that goes on when memory is short: with smaller batches, then on the CPU.

    A subclass keeps ``_batch`` and ``_device``, defines :meth:`_to_cpu`, and calls its network by :meth:`_fitting`.
    """

    _batch: int
    _device: torch.device
    _items = "items"  # of which a batch consists, in words
    at_once: int = 1  # calls; must not change after the first

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
        return put(_cpu())

    def _fitting(self, call: Callable[[int], T]) -> T:
        """Call with the largest batch that fits.

        Threads that share the network take turns, ``at_once`` of them: each needs memory of its own.

        Args:
            call: gets how many items it may take at once; called again with fewer when memory was short.

        Raises:
            RuntimeError: memory is short for one item on the CPU; whatever else ``call`` raises.
        """
        with self.__dict__.setdefault("_turn", threading.BoundedSemaphore(self.at_once)):
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


def _cpu() -> torch.device:
    import torch

    return torch.device("cpu")


def _tensors(model: object) -> Iterator[Any]:
    """All tensors of a model, each once."""
    torch = sys.modules.get("torch")
    if torch is None:
        return
    seen: set[int] = set()
    things, depth = [model], 0
    while things and depth <= MAX_DEPTH:
        inner: list[object] = []
        for thing in things:
            if id(thing) in seen or isinstance(thing, _PLAIN):
                continue
            seen.add(id(thing))
            if isinstance(thing, torch.Tensor):
                yield thing
            elif isinstance(thing, torch.nn.Module):
                for tensor in (*thing.parameters(), *thing.buffers()):
                    if id(tensor) not in seen:
                        seen.add(id(tensor))
                        yield tensor
                # Beside its parts it may carry what is no module.
                inner += [value for name, value in list(vars(thing).items()) if name not in _MODULE_PARTS]
            elif isinstance(thing, (Mapping, list, tuple)):
                if len(thing) <= MAX_ITEMS:
                    inner += thing.values() if isinstance(thing, Mapping) else thing
            else:
                inner += list(getattr(thing, "__dict__", {}).values())
        things, depth = inner, depth + 1


def _cgroup_limits(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, bytes used that cannot be reclaimed) of each control group that this process is in, version 1 and 2.

    A limit holds for all groups below. Within a container the paths may be the host's, which are not visible; its
    own group is then what the mount shows.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return  # not Linux
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            limit, used = _number(folder / names[0]), _number(folder / names[1])
            if limit is not None and used is not None:
                yield limit, max(0, used - _reclaimable(folder / "memory.stat", names[2]))
            if folder == top:
                break


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # not there; "max"
        return None


def _reclaimable(file: Path, name: str) -> int:
    """Files that are cached count as used, but are dropped when memory is wanted."""
    try:
        rows = dict(line.split() for line in file.read_text().splitlines())
        return int(rows.get(name, 0))
    except (OSError, ValueError):
        return 0
