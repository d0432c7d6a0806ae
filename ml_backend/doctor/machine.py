"""Checks of this machine: Python, packages, codecs, disk, weights, GPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version

from ml_backend.doctor.checks import Finding, Target

#: Importing PyTorch right after it was installed reads gigabytes.
IMPORT_TIMEOUT = 120.0
REINSTALL = "Run `bash scripts/up.sh` (or `pip install --no-deps -r requirements.lock`) to install the pinned versions."
LOW_DISK_GB = 5.0
FULL_DISK_GB = 0.5

PACKAGES = (
    "av",
    "flask",
    "gunicorn",
    "label-studio-sdk",
    "lap",
    "numpy",
    "open-clip-torch",
    "redis",
    "rq",
    "scikit-learn",
    "sqlalchemy",
    "timm",
    "transformers",
    "ultralytics",
)

# In a process of its own: a broken build of PyTorch may crash instead of raising.
_IMPORT_TORCH = """
import json, torch, torchvision
torchvision.ops.nms(torch.zeros((1, 4)), torch.zeros(1), 0.5)
cuda = torch.cuda.is_available()
print(json.dumps({
    "torch": torch.__version__, "torchvision": torchvision.__version__, "cuda": cuda, "build": torch.version.cuda,
    "mps": torch.backends.mps.is_available(), "device": torch.cuda.get_device_name(0) if cuda else "",
}))
"""


def python(target: Target) -> Iterator[Finding]:
    """Which Python runs this; in an older one than 3.10 it could not have been imported."""
    yield Finding("Python", "ok", f"{sys.version.split()[0]} ({sys.executable})")


def packages(target: Target) -> Iterator[Finding]:
    missing = [name for name in PACKAGES if _version(name) is None]
    if missing:
        yield Finding("Packages", "failed", f"missing: {', '.join(missing)}", REINSTALL)
    else:
        yield Finding("Packages", "ok", ", ".join(f"{name} {_version(name)}" for name in PACKAGES))
    yield from _opencv()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _opencv() -> Iterator[Finding]:
    """Two packages write the same folder; two versions of them leave a mixture."""
    versions = {name: _version(name) for name in ("opencv-python", "opencv-python-headless")}
    found = ", ".join(f"{name} {value or 'missing'}" for name, value in versions.items())
    installed = {value for value in versions.values() if value}
    headless_last = (
        "Reinstall the headless one last: `pip install --no-deps --force-reinstall opencv-python-headless==4.12.0.88`."
    )
    if len(installed) != 1:
        yield Finding("OpenCV", "failed", found, f"Both must have the same version. {REINSTALL}")
        return
    result = subprocess.run(
        [sys.executable, "-c", "import cv2; print(cv2.__version__)"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or ["crashed"])[-1]
        yield Finding("OpenCV", "failed", f"cannot be imported: {reason}", headless_last)
        return
    loaded = result.stdout.strip()
    if not installed.pop().startswith(loaded):
        yield Finding("OpenCV", "failed", f"{found}, but {loaded} is what gets imported", headless_last)
        return
    yield Finding("OpenCV", "ok", found)


def torch(target: Target) -> Iterator[Finding]:
    """PyTorch, whether torchvision fits it, and the device that is used."""
    try:
        result = subprocess.run(
            [sys.executable, "-c", _IMPORT_TORCH], capture_output=True, text=True, timeout=IMPORT_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        yield Finding(
            "PyTorch", "failed", f"the import takes longer than {IMPORT_TIMEOUT:.0f} s", "Is the disk overloaded?"
        )
        return
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or [f"crashed ({result.returncode})"])[-1]
        yield Finding("PyTorch", "failed", reason[:300], f"torch and torchvision must be a pair. {REINSTALL}")
        return
    facts = json.loads(result.stdout.strip().splitlines()[-1])
    yield Finding("PyTorch", "ok", f"torch {facts['torch']}, torchvision {facts['torchvision']}")
    yield device(target.settings.device, facts)


def device(wanted: str, facts: Mapping[str, object]) -> Finding:
    """What ``DEVICE`` means here; ``facts`` are PyTorch's: cuda, mps, build, device."""
    has_driver = shutil.which("nvidia-smi") is not None
    if wanted.startswith("cuda") and not facts["cuda"]:
        return Finding(
            "GPU", "failed", f"DEVICE={wanted}, but PyTorch sees no CUDA GPU", "Set DEVICE=auto or install the driver."
        )
    if facts["cuda"]:
        return Finding("GPU", "ok", f"{facts['device']} (CUDA {facts['build']})")
    if facts["mps"]:
        return Finding("GPU", "ok", "Apple GPU (mps)")
    if has_driver:
        cure = f"The driver may be too old for CUDA {facts['build']}: install a newer one, or set DEVICE=cpu."
        return Finding("GPU", "note", "there is an NVIDIA driver, but PyTorch cannot use the GPU", cure)
    return Finding("GPU", "ok", f"none; {os.cpu_count()} CPU cores are used")


def codecs(target: Target) -> Iterator[Finding]:
    """Decoders of common videos, and the encoder that makes browser-playable copies."""
    import av
    from av.codec import Codec
    from av.error import FFmpegError

    lacking = []
    for name, mode in (("libx264", "w"), ("h264", "r"), ("hevc", "r"), ("vp9", "r"), ("mpeg4", "r")):
        try:
            Codec(name, mode)
        except (ValueError, FFmpegError):
            lacking.append(f"{name} ({'encoder' if mode == 'w' else 'decoder'})")
    found = f"PyAV {av.__version__}"
    if lacking:
        yield Finding("Codecs", "failed", f"{found} lacks {', '.join(lacking)}", f"Use the PyAV wheel. {REINSTALL}")
    else:
        yield Finding("Codecs", "ok", f"{found}: H.264 encoder; H.264, HEVC, VP9, MPEG-4 decoders")


def disk(target: Target) -> Iterator[Finding]:
    """Whether the data folder can be written and has room."""
    folder = target.settings.data_dir
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        yield Finding(
            "Data folder", "failed", f"{folder}: {error.strerror}", "Set DATA_DIR to a folder you may write to."
        )
        return
    free_gb = shutil.disk_usage(existing).free / 1e9
    found = f"{folder}, {free_gb:.1f} GB free"
    if free_gb < FULL_DISK_GB:
        yield Finding("Data folder", "failed", found, "Free some disk space.")
    elif free_gb < min(LOW_DISK_GB, target.settings.media_cache_gb):
        yield Finding("Data folder", "note", found, "Free some space or lower MEDIA_CACHE_GB.")
    else:
        yield Finding("Data folder", "ok", found)


def labels(target: Target) -> Iterator[Finding]:
    """Which models would give labels beside the detector."""
    from ml_backend.modes import hybrid_models

    models = hybrid_models(target.settings, target.settings.mode)
    found = [f"mode {models.mode}", *(model.model_id for model in (models.embedder, models.clip) if model)]
    yield Finding("Labels", "note" if models.notes else "ok", ", ".join(found), " ".join(models.notes))


def weights(target: Target) -> Iterator[Finding]:
    """Which detector would be used now."""
    from ml_backend.models.weights import resolve_detector

    detector = resolve_detector(target.settings, download=False)
    if detector.note:
        yield Finding("Detector", "note", detector.name, detector.note)
    else:
        yield Finding("Detector", "ok", f"{detector.name}{f' ({detector.path})' if detector.path else ''}")
