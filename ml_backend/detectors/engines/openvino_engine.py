"""OpenVINO on CPUs: pictures of a batch run at once, each on cores of its own."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from cachetools import LRUCache

from ml_backend.detectors.engines.exports import EngineExport
from ml_backend.detectors.engines.torch_engine import Pixels
from ml_backend.detectors.openvino_setup import setup_openvino

if TYPE_CHECKING:
    import openvino

MODEL_FILE = "model.xml"
#: Networks compiled for one input size each; videos of a project have one or two.
MAX_SIZES = 4
#: No picture takes so long. Requests that never end have been seen on some machines.
TIMEOUT_S = 120.0
#: What has been cancelled ends with the picture it is at.
CANCEL_MS = 2000


class OpenvinoEngine:
    """Offers what TorchEngine does. The GIL is free while the network runs.

    May be used from many threads; two keep it busy while one of them prepares or reads what it is given.

    Args:
        export: made by :mod:`ml_backend.detectors.engines.make`; takes uint8 BGR pictures as they are.
        parallel: most pictures that are given at once.

    Raises:
        RuntimeError: it cannot be read.
    """

    name = "openvino"

    def __init__(self, export: EngineExport, parallel: int) -> None:
        setup_openvino()
        import joblib  # type: ignore[import-untyped,unused-ignore]
        import openvino

        self._core = openvino.Core()
        file = export.folder / MODEL_FILE
        self._model = self._core.read_model(file)
        self._weights = file.with_suffix(".bin").stat().st_size
        self.precision = export.precision
        self.names, self.stride, self.end2end = export.names, export.stride, export.end2end
        self.max_batch = max(1, parallel)
        cores = joblib.cpu_count()
        self._streams = min(cores, self.max_batch)
        self._options: dict[str, str] = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "NUM_STREAMS": str(self._streams),
            # By itself it takes bfloat16 where the processor has it, with other results.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        if cores < (os.cpu_count() or 1):  # OpenVINO knows of no container's share; joblib does
            self._options["INFERENCE_NUM_THREADS"] = str(cores)
        self.max_concurrency = 2
        self._sizes: LRUCache[tuple[int, int], _Requests] = LRUCache(MAX_SIZES)
        self._compiling = threading.Lock()

    @property
    def memory_bytes(self) -> Mapping[str, int]:
        """An estimate, as the runtime does not tell: each compiled network has weights of its own."""
        return {"cpu": self._weights * (1 + len(self._sizes))}

    def infer(self, pixels: Pixels) -> Any:
        import torch

        return torch.from_numpy(np.concatenate(self._requests_for(pixels.shape[1], pixels.shape[2]).run(pixels)))

    def _requests_for(self, height: int, width: int) -> _Requests:
        """Of the network for this input; its compilation takes less than a second."""
        size = (height, width)
        with self._compiling:
            if size not in self._sizes:
                self._model.reshape([1, height, width, 3])
                compiled = self._core.compile_model(self._model, "CPU", self._options)
                self._sizes[size] = _Requests([compiled.create_infer_request() for _ in range(self._streams)])
            return self._sizes[size]


class _Requests:
    """Requests of one compiled network, shared by threads."""

    def __init__(self, requests: list[openvino.InferRequest]) -> None:
        self._free: queue.SimpleQueue[openvino.InferRequest] = queue.SimpleQueue()
        for request in requests:
            self._free.put(request)

    def run(self, pixels: Pixels) -> list[Any]:
        """Outputs of pictures, in order. Waits for one request, and takes more while there are any."""
        found: list[Any] = []
        running: deque[openvino.InferRequest] = deque()
        try:
            # Without callbacks, which would need the GIL in the middle of it.
            for index in range(len(pixels)):
                try:
                    request = self._free.get(block=not running, timeout=TIMEOUT_S)
                except queue.Empty:
                    if not running:
                        raise _no_answer() from None
                    found.append(_result(running[0]))
                    request = running.popleft()
                running.append(request)
                request.start_async({0: pixels[index : index + 1]})  # copied: it may outlive an error here
            while running:
                found.append(_result(running[0]))
                self._free.put(running.popleft())
        finally:
            # After an error. They are free when they have really ended, which takes until their network has run.
            for request in running:
                with suppress(RuntimeError):
                    request.cancel()
            for request in running:
                with suppress(RuntimeError):
                    request.wait_for(CANCEL_MS)
                self._free.put(request)
        return found


def _result(request: openvino.InferRequest) -> Any:
    if not request.wait_for(int(TIMEOUT_S * 1000)):
        raise _no_answer()
    return request.get_output_tensor(0).data.copy()


def _no_answer() -> RuntimeError:
    return RuntimeError(f"no answer in {TIMEOUT_S:.0f} s")
