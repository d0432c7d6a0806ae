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

from ml_backend.models.memory import (
    free_gpu_memory,
    gpu_memory,
    is_out_of_memory,
    machine_memory,
    model_memory,
    process_memory,
)

if TYPE_CHECKING:
    from ml_backend.settings import Settings

log = logging.getLogger(__name__)

T = TypeVar("T")

RAM_SHARE = 0.5  # of the machine's memory; decoding, activations and everybody else need the rest
GPU_SHARE = 0.8  # of the card's; activations need the rest
GB = 1 << 30


@dataclass(slots=True, eq=False)
class _Entry:
    """A model that is loaded, or being loaded by the thread ``loader``."""

    name: str
    loader: int | None
    expected: Mapping[str, int]
    model: Any = None
    users: int = 0
    since: float = field(default_factory=time.monotonic)

    def bytes(self) -> Mapping[str, int]:
        """By device, where the model is now: it may have moved to the CPU since it was loaded."""
        return self.expected if self.loader is not None else model_memory(self.model)


class ModelPool:
    """Keeps models loaded while there is room, the most recently used ones first.

    Models in use are never unloaded, even if they exceed the budget together: refusing would stop all work. May be
    used from many threads; loading holds up only those who wait for the same model.

    Args:
        ram_bytes: budget of main memory, for what is not on a CUDA card.
        gpu_bytes: budget of each CUDA card; 0: four fifths of it.
    """

    def __init__(self, ram_bytes: int, gpu_bytes: int = 0) -> None:
        self.set_budget(ram_bytes, gpu_bytes)
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()  # least recently used first
        self._sizes: dict[Hashable, Mapping[str, int]] = {}  # last known; remembered after unloading
        self._changed = threading.Condition()

    def set_budget(self, ram_bytes: int, gpu_bytes: int = 0) -> None:
        """Other budgets from now on; what exceeds them goes when the next model comes or becomes idle.

        Raises:
            ValueError: a budget below 0, or no main memory at all.
        """
        if ram_bytes <= 0 or gpu_bytes < 0:
            raise ValueError(f"expected ram_bytes > 0 and gpu_bytes >= 0, got {ram_bytes} and {gpu_bytes}")
        self._ram_bytes, self._gpu_bytes = ram_bytes, gpu_bytes

    @contextmanager
    def use(self, key: Hashable, load: Callable[[], T], *, name: str) -> Iterator[T]:
        """A model, loaded if it is not, for the duration of the block.

        Args:
            key: equal for equal models: kind, weights, device and whatever else ``load`` depends on.
            load: makes the model. Called by one thread at a time for one key; when it raises, nothing is kept, and
                the next caller tries again.
            name: of the model, for people.

        Raises:
            RuntimeError: ``load`` asks for its own key.
        """
        entry = self._acquire(key, load, name)
        try:
            yield entry.model
        finally:
            with self._changed:
                entry.users -= 1
                entry.since = time.monotonic()
                self._entries.move_to_end(key)
                self._sizes[key] = entry.bytes()
                gone = self._evict(spare=entry) if entry.users == 0 else []
            _release(gone)

    def status(self) -> dict[str, Any]:
        """What is loaded and how much memory there is, in bytes and seconds; plain JSON.

        ``models`` are listed from the least recently used on; ``engine`` says what runs a detector's network (``name``,
        ``precision``, ``note``), else it is ``None``. ``gpu`` is ``None`` where no CUDA card is in use.
        """
        with self._changed:
            entries = [(entry, dict(entry.bytes())) for entry in self._entries.values()]
            now = time.monotonic()
            models = [
                {
                    "name": entry.name,
                    "device": _main_device(entry, sizes),
                    "engine": getattr(entry.model, "engine", None),
                    "bytes": sum(sizes.values()),
                    "in_use": entry.users,
                    "loading": entry.loader is not None,
                    "idle_seconds": 0.0 if entry.users or entry.loader is not None else round(now - entry.since, 3),
                }
                for entry, sizes in entries
            ]
        cards = sorted({device for _, sizes in entries for device in sizes if _is_gpu(device)}) or ["cuda:0"]
        machine, card = machine_memory(), gpu_memory(cards[0])
        on_gpu = sum(size for _, sizes in entries for device, size in sizes.items() if _is_gpu(device))
        in_ram = sum(size for _, sizes in entries for device, size in sizes.items() if not _is_gpu(device))
        gpu: dict[str, Any] | None = None
        if card is not None or on_gpu:
            gpu = {
                "budget": self._budget(cards[0]),
                "models": on_gpu,
                "total": card.total if card else None,
                "free": card.available if card else None,
            }
        return {
            "models": models,
            "ram": {
                "budget": self._ram_bytes,
                "models": in_ram,
                "process": process_memory(),
                "total": machine.total,
                "available": machine.available,
            },
            "gpu": gpu,
        }

    def optimize(self) -> dict[str, Any]:
        """Unload all models that are not in use.

        Returns:
            ``unloaded``: name, device and bytes of each; ``before`` and ``after``: what :meth:`status` says of
            ``ram`` and ``gpu``.
        """
        before = self.status()
        with self._changed:
            gone = self._idle()
            for key, _ in gone:
                del self._entries[key]
            unloaded = [
                {"name": entry.name, "device": _main_device(entry, sizes), "bytes": sum(sizes.values())}
                for entry, sizes in ((entry, entry.bytes()) for _, entry in gone)
            ]
        entries = [entry for _, entry in gone]
        del gone
        _release(entries, collect=True)
        after = self.status()
        keep = ("ram", "gpu")
        return {
            "unloaded": unloaded,
            "before": {name: before[name] for name in keep},
            "after": {name: after[name] for name in keep},
        }

    def _acquire(self, key: Hashable, load: Callable[[], Any], name: str) -> _Entry:
        """The entry of a loaded model, with one user more."""
        me = threading.get_ident()
        with self._changed:
            while (found := self._entries.get(key)) is not None:
                if found.loader is None:
                    found.users += 1
                    self._entries.move_to_end(key)
                    return found
                if found.loader == me:
                    raise RuntimeError(f"loading {name} asks for {name} itself")
                self._changed.wait()
            entry = _Entry(name, me, self._sizes.get(key, {}))
            self._entries[key] = entry
            gone = self._evict(spare=entry)  # what is known to be needed is made room for in advance
        try:
            _release(gone)
            started = time.monotonic()
            model = self._load(load, name)
            sizes = model_memory(model)
        except BaseException:
            with self._changed:
                del self._entries[key]
                self._changed.notify_all()
            raise
        with self._changed:
            entry.model, entry.loader, entry.users = model, None, 1
            self._sizes[key] = sizes
            self._entries.move_to_end(key)
            gone = self._evict(spare=entry)
            self._changed.notify_all()
        log.info("Loaded %s in %.1f s (%s)", name, time.monotonic() - started, _words(sizes))
        _release(gone)
        self._warn_if_over(entry, sizes)
        return entry

    def _load(self, load: Callable[[], T], name: str) -> T:
        try:
            return load()
        except (RuntimeError, MemoryError) as error:
            with self._changed:
                idle = self._idle() if is_out_of_memory(error) else []
                for key, _ in idle:
                    del self._entries[key]
            if not idle:
                raise
        log.warning("Out of memory while loading %s: trying again without the models that are idle.", name)
        entries = [entry for _, entry in idle]
        del idle
        _release(entries)
        return load()

    def _idle(self) -> list[tuple[Hashable, _Entry]]:
        return [(key, entry) for key, entry in self._entries.items() if entry.loader is None and entry.users == 0]

    def _evict(self, spare: _Entry) -> list[_Entry]:
        """Take idle models out, least recently used first, until the rest keeps the budgets. Holds the lock."""
        sizes = {key: entry.bytes() for key, entry in self._entries.items()}
        gone = []
        for key, entry in self._idle():
            over = self._over(sizes)
            if entry is not spare and any(size > 0 and _place(device) in over for device, size in sizes[key].items()):
                del sizes[key], self._entries[key]
                gone.append(entry)
        return gone

    def _over(self, sizes: Mapping[Hashable, Mapping[str, int]]) -> set[str]:
        """Places whose budget is exceeded."""
        totals: dict[str, int] = {}
        for by_device in sizes.values():
            for device, size in by_device.items():
                totals[_place(device)] = totals.get(_place(device), 0) + size
        budgets = {place: self._budget(place) for place in totals}
        return {place for place, total in totals.items() if (budget := budgets[place]) is not None and total > budget}

    def _budget(self, place: str) -> int | None:
        if not _is_gpu(place):
            return self._ram_bytes
        if self._gpu_bytes:
            return self._gpu_bytes
        card = gpu_memory(place)
        return None if card is None else int(card.total * GPU_SHARE)

    def _warn_if_over(self, entry: _Entry, sizes: Mapping[str, int]) -> None:
        for place in self._over({entry.name: sizes}):
            needed = sum(size for device, size in sizes.items() if _place(device) == place)
            log.warning(
                "%s alone takes %.2f GB, more than the %.2f GB that %s allows; it is used nevertheless.",
                entry.name,
                needed / GB,
                (self._budget(place) or 0) / GB,
                "GPU_MEMORY_GB" if _is_gpu(place) else "MODEL_MEMORY_GB",
            )


def _is_gpu(device: str) -> bool:
    return device.startswith("cuda")


def _place(device: str) -> str:
    """What has a budget of its own: each CUDA card, and main memory, which Apple's GPU shares."""
    return device if _is_gpu(device) else "ram"


def _main_device(entry: _Entry, sizes: Mapping[str, int]) -> str:
    device = getattr(entry.model, "device", None)
    if device is not None:
        return str(device)
    return max(sizes, key=lambda name: sizes[name], default="cpu")


def _words(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{size / 1e6:.0f} MB on {device}" for device, size in sizes.items()) or "of unknown size"


def _release(entries: list[_Entry], *, collect: bool = False) -> None:
    """Let go of models that have been taken out. Without the lock: it takes a while."""
    for entry in entries:
        log.info("Unloaded %s", entry.name)
        entry.model = None
    if entries or collect:
        entries.clear()
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
            _pool.set_budget(ram, gpu)
        return _pool


def current_pool() -> ModelPool | None:
    """The process's pool, if anything has been loaded yet."""
    return _pool
