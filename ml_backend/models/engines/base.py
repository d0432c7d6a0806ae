"""What every engine offers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

#: ``(n, height, width, 3)`` uint8 BGR, letterboxed.
Pixels = npt.NDArray[np.uint8]


class Engine(Protocol):
    """A network of one checkpoint, ready to run.

    Attributes:
        name: ``"torch"`` or ``"openvino"``.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``.
        names: class name by class id.
        stride: sides of the input are multiples of it.
        end2end: whether its output needs no NMS.
        max_batch: more pictures in one call only make it slower.
        at_once: calls that are worth making at the same time, from as many threads.
        memory_bytes: what it takes, by device.
    """

    name: str
    precision: str
    names: dict[int, str]
    stride: int
    end2end: bool
    max_batch: int
    at_once: int

    @property
    def memory_bytes(self) -> Mapping[str, int]: ...

    def infer(self, pixels: Pixels) -> Any:
        """Raw output of the network, as ultralytics' NMS takes it.

        Raises:
            RuntimeError: it does not run; also when memory is short.
        """
        ...
