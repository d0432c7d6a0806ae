"""Loaded models within one memory budget: loaded once, shared, and unloaded when others need the room."""

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

RAM_SHARE = 0.5  # of the machine's memory; decoding, activations and everybody else need the rest
GPU_SHARE = 0.8  # of the card's; activations need the rest
GB = 1 << 30


@dataclass(slots=True, eq=False)
class _Entry:
    """A model that is loaded, or, where it is ``None``, being loaded by who holds the lock."""

    name: str
    #: Bytes by device that the model took the last time, by which room is made before it is loaded again.
    expected: Mapping[str, int] = field(default_factory=dict)
    model: Any = None
    users: int = 0
    since: float = field(default_factory=time.monotonic)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def bytes(self) -> Mapping[str, int]:
        """By device, where the model is now: it may have moved to the CPU since it was loaded."""
        return self.expected if self.model is None else model_memory(self.model)


class ModelPool:
    """Keeps models loaded while there is room, the most recently used ones first.

    Models in use are never unloaded, even if they exceed the budget together: refusing would stop all work. May be
    used from many threads; loading holds up only those who wait for the same model.

    Attributes:
        ram_bytes: budget of main memory, for what is not on a CUDA card.
        gpu_bytes: budget of each CUDA card; 0: four fifths of it.
    """

    def __init__(self, ram_bytes: int, gpu_bytes: int = 0) -> None:
        self.ram_bytes, self.gpu_bytes = ram_bytes, gpu_bytes
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()  # least recently used first
        self._sizes: dict[Hashable, Mapping[str, int]] = {}
        self._lock = threading.RLock()

    @contextmanager
    def use(self, key: Hashable, load: Callable[[], T], *, name: str) -> Iterator[T]:
        """A model, loaded if it is not, for the duration of the block.

        Args:
            key: equal for equal models: kind, weights, device and whatever else ``load`` depends on.
            load: makes the model. Called by one thread at a time for one key; when it raises, nothing is kept, and
                the next caller tries again.
            name: of the model, for people.
        """
        with self._lock:
            entry = self._entries.setdefault(key, _Entry(name, self._sizes.get(key, {})))
            entry.users += 1
            self._entries.move_to_end(key)
            gone = self._evict(spare=entry) if entry.model is None else []
        try:
            _release(gone)
            with entry.lock:
                if entry.model is None:
                    self._load(entry, load)
            yield entry.model
        finally:
            with self._lock:
                entry.users -= 1
                entry.since = time.monotonic()
                self._entries.move_to_end(key)
                if entry.model is not None:
                    self._sizes[key] = entry.bytes()
                elif entry.users == 0:  # it could not be loaded
                    del self._entries[key]
                gone = self._evict(spare=entry)
            _release(gone)

    def status(self) -> dict[str, Any]:
        """What is loaded and how much memory there is, in bytes and seconds; plain JSON.

        ``models`` are listed from the least recently used on; ``engine`` says what runs a detector's network (``name``,
        ``precision``, ``note``), else it is ``None``. ``gpu`` is ``None`` where no CUDA card is in use.
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
        on_gpu = sum(size for place, size in totals.items() if _is_gpu(place))
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
        """Unload all models that are not in use; returns their names."""
        with self._lock:
            gone = [self._entries.pop(key) for key, entry in list(self._entries.items()) if not entry.users]
        _release(gone)
        return [entry.name for entry in gone]

    def _load(self, entry: _Entry, load: Callable[[], Any]) -> None:
        started = time.monotonic()
        entry.model = load()
        with self._lock:
            gone = self._evict()
        _release(gone)
        sizes = entry.bytes()
        words = ", ".join(f"{size / 1e6:.0f} MB on {device}" for device, size in sizes.items())
        log.info("Loaded %s in %.1f s (%s)", entry.name, time.monotonic() - started, words or "of unknown size")
        for device, size in sizes.items():
            budget = self._budget(_place(device))
            if budget is not None and size > budget:
                setting = "GPU_MEMORY_GB" if _is_gpu(device) else "MODEL_MEMORY_GB"
                log.warning("%s alone exceeds what %s allows; it is used nevertheless.", entry.name, setting)

    def _evict(self, spare: _Entry | None = None) -> list[_Entry]:
        """Take idle models out, least recently used first, until the rest keeps the budgets. Holds the lock."""
        gone = []
        for key, entry in list(self._entries.items()):
            if entry.users or entry is spare:
                continue
            budgets = {place: (total, self._budget(place)) for place, total in self._totals().items()}
            over = {place for place, (total, budget) in budgets.items() if budget is not None and total > budget}
            if over & {_place(device) for device, size in entry.bytes().items() if size}:
                gone.append(self._entries.pop(key))
        return gone

    def _totals(self) -> dict[str, int]:
        """Bytes of all models by place."""
        totals: dict[str, int] = {}
        for entry in self._entries.values():
            for device, size in entry.bytes().items():
                totals[_place(device)] = totals.get(_place(device), 0) + size
        return totals

    def _budget(self, place: str) -> int | None:
        if not _is_gpu(place):
            return self.ram_bytes
        if self.gpu_bytes:
            return self.gpu_bytes
        card = gpu_memory(place)
        return None if card is None else int(card.total * GPU_SHARE)


def _is_gpu(device: str) -> bool:
    return device.startswith("cuda")


def _place(device: str) -> str:
    """What has a budget of its own: each CUDA card, and main memory, which Apple's GPU shares."""
    return device if _is_gpu(device) else "ram"


def _release(entries: list[_Entry]) -> None:
    """Let go of models that have been taken out. Without the lock: it takes a while."""
    for entry in entries:
        log.info("Unloaded %s", entry.name)
        entry.model = None
    if entries:
        gc.collect()  # networks refer to themselves
        free_gpu_memory()


_pool: ModelPool | None = None
_pool_lock = threading.Lock()


def get_pool(settings: Settings) -> ModelPool:
    """The process's pool, with the budgets of these settings."""
    global _pool
    ram = int(settings.model_memory_gb * GB) or int(machine_memory().total * RAM_SHARE)
    gpu = int(settings.gpu_memory_gb * GB)
    with _pool_lock:
        if _pool is None:
            _pool = ModelPool(ram, gpu)
        else:
            _pool.ram_bytes, _pool.gpu_bytes = ram, gpu
        return _pool


def current_pool() -> ModelPool | None:
    """The process's pool, if anything has been loaded yet."""
    return _pool
