"""Embedders: map crops to vectors whose cosine similarity tells how alike two objects look."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from ml_backend.core.errors import WeightsError
from ml_backend.core.memory import OutOfMemoryFallback, device_type, select_device
from ml_backend.core.settings import Settings
from ml_backend.core.types import FloatArray, Image
from ml_backend.embeddings.crops import letterbox

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

#: Crops per call on a CPU; more are no faster and need more memory.
CPU_BATCH = 8
#: Crops per call on a GPU; more are hardly faster. Reduced automatically when memory runs out.
EMBED_BATCH = 32
#: Types of devices on which fp16 halves time and memory; elsewhere it is slower or lacks operations.
FP16_DEVICES = frozenset({"cuda"})

T = TypeVar("T")


class Embedder(Protocol):
    """Embeds crops of objects.

    Attributes:
        model_id: name, weights and recipe; embeddings are comparable only if it is equal.
        dim: length of an embedding.
    """

    model_id: str
    dim: int

    def embed(self, crops: Sequence[Image]) -> FloatArray:
        """Embed crops.

        Args:
            crops: ``(h, w, 3)`` uint8 BGR each, h, w >= 1; sizes may differ.

        Returns:
            ``(n, dim)`` float32, L2-normalised rows in the order of the crops; ``(0, dim)`` for none.

        Raises:
            WeightsError: the network's output is not finite.
        """
        ...


class TorchEmbedder(OutOfMemoryFallback):
    """Base of embedders in torch: handles batches, devices, precision and running out of memory.

    A subclass sets ``model_id`` and ``dim``, passes the network to :meth:`_set_up`, and defines :meth:`_forward`.
    """

    model_id: str
    dim: int
    cpu_batch: int = CPU_BATCH
    item_name = "crops"

    def _set_up(
        self, model: torch.nn.Module, settings: Settings, input_size: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        """Move the network to its device.

        Args:
            model: on the CPU in float32.
            settings: ``device`` is used.
            input_size: side of the network's input in pixels.
            mean, std: of RGB, on the scale 0..255.

        Raises:
            WeightsError: the device does not exist.
        """
        import torch

        self._model = model.eval().requires_grad_(False)
        self._input_size = input_size
        self._mean = torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1)
        self._std = torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1)
        red, green, blue = (round(value) for value in mean)
        self._fill = (blue, green, red)
        self.batch = EMBED_BATCH
        self.move_to(select_device(settings.device))

    def embed(self, crops: Sequence[Image]) -> FloatArray:
        """See :meth:`Embedder.embed`."""
        return self._in_batches(crops, lambda batch: self._forward(self._to_input(batch)))

    def _forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map ``(n, 3, size, size)`` normalised RGB to ``(n, dim)``, not L2-normalised."""
        raise NotImplementedError

    def place(self, device: str) -> None:
        """Move the network; see :meth:`OutOfMemoryFallback.place`."""
        import torch

        self._dtype = torch.float16 if device_type(device) in FP16_DEVICES else torch.float32
        self._model.to(device=device, dtype=self._dtype)
        if device == "cpu":
            self.batch = min(self.batch, self.cpu_batch)

    def _to_input(self, crops: Sequence[Image]) -> torch.Tensor:
        import torch

        squares = np.stack([letterbox(crop, self._input_size, self._fill) for crop in crops])
        pixels = torch.from_numpy(squares).to(self._device).permute(0, 3, 1, 2).flip(1)  # BGR to RGB
        mean, std = self._mean.to(self._device), self._std.to(self._device)
        return pixels.float().sub_(mean).div_(std).to(self._dtype)

    def _in_batches(self, items: Sequence[T], run: Callable[[Sequence[T]], torch.Tensor]) -> FloatArray:
        """Run all items in batches that fit into memory; return L2-normalised rows."""
        rows: list[FloatArray] = []
        done = 0
        while done < len(items):
            rows.append(self.run_with_fallback(partial(self._run, items[done:], run)))
            done += len(rows[-1])
        return np.concatenate(rows) if rows else np.zeros((0, self.dim), np.float32)

    def _run(self, items: Sequence[T], run: Callable[[Sequence[T]], torch.Tensor], limit: int) -> FloatArray:
        import torch

        items = items[:limit]
        with torch.inference_mode():
            result = _normalise(run(items))
            if result is None and self._dtype is torch.float16:
                log.warning("%s exceeds the range of fp16: using fp32.", self.model_id)
                self._dtype = torch.float32
                self._model.to(dtype=self._dtype)
                result = _normalise(run(items))
        if result is None:
            raise WeightsError(
                f"The output of {self.model_id} is zero or not finite.",
                "Download its weights again; they may be damaged.",
            )
        return result


def _normalise(rows: torch.Tensor) -> FloatArray | None:
    """L2-normalise rows; return ``None`` if one is all zero or not finite."""
    import torch

    rows = rows.float()
    length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    if not bool((torch.isfinite(length) & (length > 0)).all()):
        return None
    return np.ascontiguousarray((rows / length).cpu().numpy(), np.float32)
