"""Folders that hold a model: what is in them, whether it is whole, and the identity of its embeddings.

Nothing here imports torch: it answers in milliseconds, so that the web process can name the model in use.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from ml_backend.errors import WeightsError
from ml_backend.files import file_sha256

#: Version of how a crop becomes an embedding (margins, scaling, pooling). Raise it when that changes: embeddings made
#: before are then no longer compared with new ones.
RECIPE = "r1"

DINOV2_TYPES = ("dinov2", "dinov2_with_registers")
_DINOV2_SIZES = {384: "small", 768: "base", 1024: "large", 1536: "giant"}

#: Names of open_clip's weights, the first that is there is taken. A ``.bin`` is a pickle, of which nothing but tensors
#: is loaded.
CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
CLIP_CONFIG = "open_clip_config.json"

_MAX_HEADER = 100 << 20  # safetensors' own limit


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model on disk that looks usable.

    Attributes:
        kind: ``"dinov2"`` or ``"clip"``.
        path: the folder.
        name: short name for people.
        weights: its files, more than one where they are sharded.
        config: its main configuration file.
        model_id: equal for equal weights and recipe, wherever the folder lies.
    """

    kind: Literal["dinov2", "clip"]
    path: Path
    name: str
    weights: tuple[Path, ...]
    config: dict[str, Any]
    model_id: str


def read_dinov2_folder(path: Path) -> ModelFolder:
    """Look at a folder in transformers' format.

    Raises:
        WeightsError: it is missing, incomplete, damaged, or another kind of model.
    """
    config = _read_json(_existing(path, "DINOV2_MODEL"), "config.json", "DINOV2_MODEL")
    kind = config.get("model_type")
    if kind not in DINOV2_TYPES:
        raise WeightsError(
            f"{path} holds a model of type {kind!r}, not DINOv2.",
            "Set DINOV2_MODEL to a model such as facebook/dinov2-base, or to a folder with one.",
        )
    weights = _dinov2_weights(path)
    for file in weights:
        check_safetensors(file)
    hidden = config.get("hidden_size")
    size = _DINOV2_SIZES.get(hidden, hidden) if isinstance(hidden, int) else "unknown"
    name = f"{kind.replace('_with_registers', '-reg')}-{size}"
    return ModelFolder("dinov2", path, name, weights, config, _model_id(name, weights))


def read_clip_folder(path: Path) -> ModelFolder:
    """Look at a folder in open_clip's format.

    Raises:
        WeightsError: it is missing, incomplete, damaged, or another kind of model.
    """
    config = _read_json(_existing(path, "CLIP_MODEL"), CLIP_CONFIG, "CLIP_MODEL")
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
    if file.suffix == ".safetensors":
        check_safetensors(file)
    name = path.name.rsplit("--", 1)[-1]
    return ModelFolder("clip", path, name, (file,), config, _model_id(f"clip-{model.get('embed_dim')}", (file,)))


def check_safetensors(file: Path) -> None:
    """Whether all tensors that the header lists are there; reads nothing but the header.

    Raises:
        WeightsError: the file is damaged, cut off, or something else under this name.
    """
    cure = "Delete it and download it again."
    try:
        with file.open("rb") as stream:
            start = stream.read(8)
            if start.startswith(b"version"):
                raise WeightsError(f"{file} is a pointer of Git LFS, not the weights.", "Run git lfs pull there.")
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else _MAX_HEADER + 1
            header = json.loads(stream.read(length)) if length <= _MAX_HEADER else None
        if not isinstance(header, dict):
            raise ValueError("no header")
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        expected, actual = 8 + length + max(ends, default=0), file.stat().st_size
    except OSError as error:
        raise WeightsError(f"{file} cannot be read: {error.strerror}.", "Check the permissions.") from error
    except (ValueError, KeyError, TypeError, LookupError) as error:
        raise WeightsError(f"{file} is not a safetensors file.", cure) from error
    if actual != expected:
        raise WeightsError(f"{file} is damaged: it has {actual} bytes instead of {expected}.", cure)


def file_id(name: str, digest: str) -> str:
    """Identity of the embeddings that weights of this SHA-256 make, e.g. ``"dinov2-base-1a2b3c4d-r1"``."""
    return f"{name}-{digest[:8]}-{RECIPE}"


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


def _existing(path: Path, setting: str) -> Path:
    if not path.is_dir():
        what = "is a file, not a folder" if path.exists() else "does not exist"
        raise WeightsError(f"The model folder {path} {what}.", f"Set {setting} to an existing folder or a hub's model.")
    return path


def _read_json(folder: Path, name: str, setting: str) -> dict[str, Any]:
    if not (folder / name).is_file():
        raise WeightsError(
            f"{folder} has no {name}.", f"Put the whole model there, or set {setting} to another folder."
        )
    return read_json(folder / name)


def _dinov2_weights(path: Path) -> tuple[Path, ...]:
    whole, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if whole.is_file():
        return (whole,)
    if index.is_file():
        shards = read_json(index).get("weight_map")
        names = sorted(set(shards.values())) if isinstance(shards, dict) else []
        if not names or not all(isinstance(name, str) and re.fullmatch(r"[\w.-]+", name) for name in names):
            raise WeightsError(f"{index} names no weights.", "Delete it and download it again.")
        missing = [name for name in names if not (path / name).is_file()]
        if missing:
            raise WeightsError(f"{path} is incomplete: {', '.join(missing)} is missing.", "Put it there.")
        return tuple(path / name for name in names)
    if (path / "pytorch_model.bin").is_file():
        raise WeightsError(
            f"The weights {path / 'pytorch_model.bin'} are a pickle, which is code, and are not loaded.",
            "Put the model's model.safetensors there; save_pretrained() writes it.",
        )
    raise WeightsError(f"{path} has no weights.", "Put model.safetensors there.")


def _model_id(name: str, weights: Sequence[Path]) -> str:
    try:
        digests = [file_sha256(file) for file in weights]
    except OSError as error:
        raise WeightsError(f"The weights cannot be read: {error.strerror}.", "Check the permissions.") from error
    digest = digests[0] if len(digests) == 1 else sha256("".join(digests).encode()).hexdigest()
    return file_id(name, digest)
