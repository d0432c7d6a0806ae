"""The environment of the local stack's processes."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path

from ml_backend.cli.dev_stack.preflight import ROOT
from ml_backend.core.settings import Settings

#: Settings that describe models and machine, not where things are: an isolated stack takes them over, and only them.
MODEL_SETTINGS = frozenset(
    {
        *("mode", "detector", "yolo_weights", "embedder", "dinov2_model", "clip_model"),
        *("model_memory_gb", "gpu_memory_gb", "weights_timeout_s", "device", "imgsz", "batch", "tracker"),
    }
)
#: Settings that name a file or a folder, or else something to download.
_PLACES = ("YOLO_WEIGHTS", "DINOV2_MODEL", "CLIP_MODEL")


def base_environment(data_dir: Path, *, isolated: bool) -> dict[str, str]:
    """What all processes get: the caller's environment, less what would make them write outside ``data_dir``.

    Args:
        data_dir: absolute.
        isolated: drop settings that point to other databases or servers (smoke run, tests).
    """
    environment = dict(os.environ)
    if isolated:
        for name in set(Settings.model_fields) - MODEL_SETTINGS:
            environment.pop(name.upper(), None)
            environment.pop(name, None)
    for name in _PLACES:
        place = environment.get(name, "")
        if place and Path(place).exists():
            environment[name] = str(Path(place).absolute())  # processes have other working directories
    environment |= {
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        # ultralytics: install nothing, write nothing into the home folder.
        "YOLO_AUTOINSTALL": "false",
        "YOLO_CONFIG_DIR": str(data_dir / "ultralytics"),
        "MPLCONFIGDIR": str(data_dir / "matplotlib"),
        "HF_HOME": str(data_dir / "huggingface"),
        "TORCH_HOME": str(data_dir / "torch"),
    }
    spare_local_addresses(environment)
    return environment


def spare_local_addresses(environment: MutableMapping[str, str]) -> None:
    """Let no traffic within this machine go through the proxy that the environment may name; keeps what it spares.

    Both spellings get all that either has: where both are there, programs read only one of them.
    """
    names = ("no_proxy", "NO_PROXY")
    hosts = [host.strip() for name in names for host in environment.get(name, "").split(",") if host.strip()]
    # Some programs understand the star only where it stands alone.
    spared = "*" if "*" in hosts else ",".join(dict.fromkeys([*hosts, "localhost", "127.0.0.1"]))
    environment.update(dict.fromkeys(names, spared))
