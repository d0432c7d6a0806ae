"""The environment of the local stack's processes."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path

from ml_backend.cli.dev_stack.preflight import ROOT
from ml_backend.core.settings import Settings

#: Settings that are a path or the name of something to download.
_PATHS = ("yolo_weights", "dinov2_model", "clip_model", "open_vocabulary_model", "interactive_model", "segmenter")
#: Settings of models and hardware, the only ones that an isolated stack inherits.
MODEL_SETTINGS = frozenset(
    {
        *_PATHS,
        *("mode", "detector", "embedder"),
        *("model_memory_gb", "gpu_memory_gb", "weights_timeout_s", "device", "imgsz", "batch", "tracker"),
    }
)


def base_environment(data_dir: Path, *, isolated: bool) -> dict[str, str]:
    """Return the caller's environment, changed so that processes write only to ``data_dir``.

    Args:
        data_dir: absolute path.
        isolated: drop settings that point to other databases or servers (smoke test, tests).
    """
    environment = dict(os.environ)
    if isolated:
        for name in set(Settings.model_fields) - MODEL_SETTINGS:
            environment.pop(name.upper(), None)
            environment.pop(name, None)
    for name in map(str.upper, _PATHS):
        path = environment.get(name, "")
        if path and Path(path).exists():
            environment[name] = str(Path(path).absolute())  # processes have other working directories
    environment |= {
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        # ultralytics: install nothing, and write nothing to the home folder.
        "YOLO_AUTOINSTALL": "false",
        "YOLO_CONFIG_DIR": str(data_dir / "ultralytics"),
        "MPLCONFIGDIR": str(data_dir / "matplotlib"),
        "HF_HOME": str(data_dir / "huggingface"),
        "TORCH_HOME": str(data_dir / "torch"),
    }
    spare_local_addresses(environment)
    return environment


def spare_local_addresses(environment: MutableMapping[str, str]) -> None:
    """Add local addresses to ``no_proxy``, keeping its entries.

    Both spellings are set to the union of both, since programs read only one of them.
    """
    names = ("no_proxy", "NO_PROXY")
    hosts = [host.strip() for name in names for host in environment.get(name, "").split(",") if host.strip()]
    # Some programs support "*" only as the sole entry.
    no_proxy = "*" if "*" in hosts else ",".join(dict.fromkeys([*hosts, "localhost", "127.0.0.1"]))
    environment.update(dict.fromkeys(names, no_proxy))
