"""Cache of loaded models within a memory budget: shared by all threads, least recently used ones evicted first."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from ml_backend.core.memory import free_gpu_memory, gpu_memory, machine_memory, model_memory, process_memory

if TYPE_CHECKING:
    from ml_backend.core.settings import Settings

log = logging.getLogger(__name__)

T = TypeVar("T")

RAM_SHARE = 0.5  # of the machine's memory; decoding, activations and other programs need the rest
GPU_SHARE = 0.8  # of the card's memory; activations need the rest
GB = 1 << 30


@dataclass(slots=True, eq=False)
class _Entry:
    """A loaded model, or, if ``model`` is ``None``, one that the holder of the lock is loading."""

    name: str
    #: Bytes by device when the model was last loaded: what to evict others for before loading it again.
    expected: Mapping[str, int] = field(default_factory=dict)
    model: Any = None
    users: int = 0
    since: float = field(default_factory=time.monotonic)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def bytes(self) -> Mapping[str, int]:
        """Return the bytes by current device: the model may have moved to the CPU since it was loaded."""
        return self.expected if self.model is None else model_memory(self.model)


class ModelCache:
    """Thread-safe LRU cache of loaded models.

    Models in use are never evicted, even if together they exceed the budget: refusing would stop all work. Loading
    blocks only threads that wait for the same model.

    Attributes:
        ram_bytes: budget of main memory, for models that are not on a CUDA card.
        gpu_bytes: budget of each CUDA card; 0: four fifths of its memory.
    """

    def __init__(self, ram_bytes: int, gpu_bytes: int = 0) -> None:
        self.ram_bytes, self.gpu_bytes = ram_bytes, gpu_bytes
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()  # least recently used first
        self._sizes: dict[Hashable, Mapping[str, int]] = {}
        self._lock = threading.RLock()

    @contextmanager
    def use(self, key: Hashable, load: Callable[[], T], *, name: str) -> Iterator[T]:
        """Yield the model for ``key``, loading it if needed, and keep it loaded for the duration of the block.

        Args:
            key: everything that ``load`` depends on: kind, weights, device.
            load: makes the model. Called by one thread at a time per key; if it raises, the next caller tries again.
            name: of the model, for logs and the status page.
        """
        with self._lock:
            entry = self._entries.setdefault(key, _Entry(name, self._sizes.get(key, {})))
            entry.users += 1
            self._entries.move_to_end(key)
            evicted = self._evict(spare=entry) if entry.model is None else []
        try:
            _release(evicted)
            with entry.lock:
                if entry.model is None:
                    self._load(entry, load)
            model: Any = entry.model
            yield model
        finally:
            with self._lock:
                entry.users -= 1
                entry.since = time.monotonic()
                self._entries.move_to_end(key)
                if entry.model is not None:
                    self._sizes[key] = entry.bytes()
                elif entry.users == 0:  # loading failed
                    del self._entries[key]
                evicted = self._evict(spare=entry)
            _release(evicted)

    def status(self) -> dict[str, Any]:
        """Return the loaded models and the memory in bytes and seconds, as plain JSON.

        ``models`` are sorted from the least to the most recently used; ``engine`` (``name``, ``precision``, ``note``)
        is that of a detector, else ``None``. ``gpu`` is ``None`` if no CUDA card is in use.
        """
        now = time.monotonic()
        with self._lock:
            totals = self._totals()
            models = []
            for entry in self._entries.values():
                sizes = entry.bytes()
                device = getattr(entry.model, "device", None) or max(sizes, key=lambda name: sizes[name], default="cpu")
                models.append(
                    {
                        "name": entry.name,
                        "device": str(device),
                        "bytes": sum(sizes.values()),
                        "engine": getattr(entry.model, "engine", None),
                        "in_use": entry.users,
                        "loading": entry.model is None,
                        "idle_seconds": 0.0 if entry.users else round(now - entry.since, 3),
                    }
                )
        card = min(filter(_is_gpu, totals), default="cuda:0")
        machine, card_memory = machine_memory(), gpu_memory(card)
        on_gpu = sum(size for memory, size in totals.items() if _is_gpu(memory))
        gpu = {
            "budget": self._budget(card),
            "models": on_gpu,
            "total": card_memory.total if card_memory else None,
            "free": card_memory.available if card_memory else None,
        }
        return {
            "models": models,
            "ram": {
                "budget": self.ram_bytes,
                "models": totals.get("ram", 0),
                "process": process_memory(),
                "total": machine.total,
                "available": machine.available,
            },
            "gpu": gpu if card_memory or on_gpu else None,
        }

    def optimize(self) -> list[str]:
        """Unload all models that are not in use, and return their names."""
        with self._lock:
            evicted = [self._entries.pop(key) for key, entry in list(self._entries.items()) if not entry.users]
        _release(evicted)
        return [entry.name for entry in evicted]

    def _load(self, entry: _Entry, load: Callable[[], Any]) -> None:
        started = time.monotonic()
        entry.model = load()
        with self._lock:
            evicted = self._evict()
        _release(evicted)
        sizes = entry.bytes()
        summary = ", ".join(f"{size / 1e6:.0f} MB on {device}" for device, size in sizes.items())
        log.info("Loaded %s in %.1f s (%s)", entry.name, time.monotonic() - started, summary or "unknown size")
        for device, size in sizes.items():
            budget = self._budget(_memory_of(device))
            if budget is not None and size > budget:
                setting = "GPU_MEMORY_GB" if _is_gpu(device) else "MODEL_MEMORY_GB"
                log.warning("%s alone exceeds %s; it is used nevertheless.", entry.name, setting)

    def _evict(self, spare: _Entry | None = None) -> list[_Entry]:
        """Remove idle models, least recently used first, until the budgets are kept. The caller holds the lock."""
        evicted = []
        for key, entry in list(self._entries.items()):
            if entry.users or entry is spare:
                continue
            budgets = {memory: (total, self._budget(memory)) for memory, total in self._totals().items()}
            exceeded = {memory for memory, (total, budget) in budgets.items() if budget is not None and total > budget}
            if exceeded & {_memory_of(device) for device, size in entry.bytes().items() if size}:
                evicted.append(self._entries.pop(key))
        return evicted

    def _totals(self) -> dict[str, int]:
        """Return the bytes of all models by memory."""
        totals: dict[str, int] = {}
        for entry in self._entries.values():
            for device, size in entry.bytes().items():
                totals[_memory_of(device)] = totals.get(_memory_of(device), 0) + size
        return totals

    def _budget(self, memory: str) -> int | None:
        if not _is_gpu(memory):
            return self.ram_bytes
        if self.gpu_bytes:
            return self.gpu_bytes
        card = gpu_memory(memory)
        return None if card is None else int(card.total * GPU_SHARE)


def _is_gpu(device: str) -> bool:
    return device.startswith("cuda")


def _memory_of(device: str) -> str:
    """Return the memory that a device uses: its own for a CUDA card, else main memory, which Apple's GPU shares."""
    return device if _is_gpu(device) else "ram"


def _release(entries: list[_Entry]) -> None:
    """Free evicted models. Called without the lock, as it takes a while."""
    for entry in entries:
        log.info("Unloaded %s", entry.name)
        entry.model = None
    if entries:
        gc.collect()  # networks hold reference cycles
        free_gpu_memory()


_cache: ModelCache | None = None
_cache_lock = threading.Lock()


def get_model_cache(settings: Settings) -> ModelCache:
    """Return the process's cache, with the budgets of ``settings``."""
    global _cache
    ram = int(settings.model_memory_gb * GB) or int(machine_memory().total * RAM_SHARE)
    gpu = int(settings.gpu_memory_gb * GB)
    with _cache_lock:
        if _cache is None:
            _cache = ModelCache(ram, gpu)
        else:
            _cache.ram_bytes, _cache.gpu_bytes = ram, gpu
        return _cache


def current_model_cache() -> ModelCache | None:
    """Return the process's cache, or ``None`` before :func:`get_model_cache` was called."""
    return _cache
