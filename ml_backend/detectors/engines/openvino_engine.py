"""OpenVINO engine for CPUs: runs the images of a batch in parallel, each on its own cores."""

from __future__ import annotations

import fcntl
import os
import queue
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
from cachetools import LRUCache

from ml_backend.core.memory import usable_cores
from ml_backend.core.types import FloatArray
from ml_backend.detectors.engines.exports import META, EngineExport
from ml_backend.detectors.engines.torch_engine import Pixels
from ml_backend.detectors.setup import setup_openvino

if TYPE_CHECKING:
    import openvino

MODEL_FILE = "model.xml"
#: Folder in an export with networks compiled for an input size and a CPU, which take a third of the time to load.
COMPILED = "compiled"
#: Maximum number of compiled networks, one per input size; videos of a project have one or two.
MAX_SIZES = 4
#: No image takes this long, but on some machines requests have been seen to hang.
TIMEOUT_S = 120.0
#: A cancelled request ends only after its current image.
CANCEL_MS = 2000
#: OpenVINO's bindings deadlock where several threads pass them their first arrays.
_first_call = threading.Lock()


class OpenvinoEngine:
    """Same interface as :class:`~ml_backend.detectors.engines.torch_engine.TorchEngine`.

    Thread-safe, and releases the GIL while the network runs. Two threads keep it busy while one of them does pre- or
    postprocessing.

    Args:
        export: made by :mod:`ml_backend.detectors.engines.make`; its input is uint8 BGR.
        max_batch: maximum number of images per call.

    Raises:
        RuntimeError: the export cannot be read.
    """

    name = "openvino"

    def __init__(self, export: EngineExport, max_batch: int) -> None:
        setup_openvino()
        import openvino

        self._core = openvino.Core()
        self._folder = export.folder
        file = export.folder / MODEL_FILE
        self._model = self._core.read_model(file)
        self._weights = file.with_suffix(".bin").stat().st_size
        self.precision = export.precision
        self.names, self.stride, self.end2end = export.names, export.stride, export.end2end
        self.max_batch = max(1, max_batch)
        cores = usable_cores()
        self._streams = min(cores, self.max_batch)
        self._options: dict[str, str] = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "NUM_STREAMS": str(self._streams),
            # By default it uses bfloat16 if the CPU has it, which changes the results.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        if cores < (os.cpu_count() or 1):  # OpenVINO ignores a container's CPU limit
            self._options["INFERENCE_NUM_THREADS"] = str(cores)
        self.max_concurrency = 2
        self._sizes: LRUCache[tuple[int, int], _Requests] = LRUCache(MAX_SIZES)

    @property
    def memory_bytes(self) -> Mapping[str, int]:
        """An estimate of the bytes by device: each compiled network has its own copy of the weights."""
        return {"cpu": self._weights * (1 + len(self._sizes))}

    def infer(self, pixels: Pixels) -> list[FloatArray]:
        """Return the raw output for each image. The first call of a size compiles the network, up to a second."""
        height, width = pixels.shape[1:3]
        with _first_call:
            requests = self._sizes.get((height, width))
            if requests is None:
                compiled = self._compile(height, width)
                requests = _Requests([compiled.create_infer_request() for _ in range(self._streams)])
                self._sizes[height, width] = requests
                return requests.run(pixels)
        return requests.run(pixels)

    def _compile(self, height: int, width: int) -> openvino.CompiledModel:
        """Compile the network for an input size, or load it as another process has compiled it."""
        self._model.reshape([1, height, width, 3])
        if (self._folder / META).exists():  # else it is still being made
            folder = self._folder / COMPILED
            with suppress(OSError):  # a read-only folder
                folder.mkdir(exist_ok=True)
                with (folder / "lock").open("ab") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX)  # OpenVINO notices damaged files, but not that another reads them
                    options = {**self._options, "CACHE_DIR": str(folder)}
                    compiled = self._core.compile_model(self._model, "CPU", options)
                    files = sorted(folder.glob("*.blob"), key=lambda file: file.stat().st_mtime)
                    for file in files[:-MAX_SIZES]:
                        file.unlink()
                    return compiled
        return self._core.compile_model(self._model, "CPU", self._options)


class _Requests:
    """Pool of the inference requests of one compiled network, shared by threads."""

    def __init__(self, requests: list[openvino.InferRequest]) -> None:
        self._free: queue.SimpleQueue[openvino.InferRequest] = queue.SimpleQueue()
        for request in requests:
            self._free.put(request)

    def run(self, pixels: Pixels) -> list[FloatArray]:
        """Return the outputs of the images, in order. Waits for one request, then uses all that are free."""
        outputs: list[FloatArray] = []
        running: deque[openvino.InferRequest] = deque()
        try:
            # No callbacks: they would need the GIL during inference.
            for index in range(len(pixels)):
                try:
                    request = self._free.get(block=not running, timeout=TIMEOUT_S)
                except queue.Empty:
                    if not running:
                        raise _timeout_error() from None
                    outputs.append(_result(running[0]))
                    request = running.popleft()
                running.append(request)
                request.start_async({0: pixels[index : index + 1]})  # OpenVINO copies the array
            while running:
                outputs.append(_result(running[0]))
                self._free.put(running.popleft())
        finally:
            # After an error: a request is free only when its inference has ended.
            for request in running:
                with suppress(RuntimeError):
                    request.cancel()
            for request in running:
                with suppress(RuntimeError):
                    request.wait_for(CANCEL_MS)
                self._free.put(request)
        return outputs


def _result(request: openvino.InferRequest) -> FloatArray:
    if not request.wait_for(int(TIMEOUT_S * 1000)):
        raise _timeout_error()
    return np.array(request.get_output_tensor(0).data[0], np.float32)


def _timeout_error() -> RuntimeError:
    return RuntimeError(f"no answer in {TIMEOUT_S:.0f} s")
