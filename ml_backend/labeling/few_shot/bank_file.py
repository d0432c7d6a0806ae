"""Export a pattern bank to a file and import it in another project, on another machine, or without Label Studio.

The format is safetensors: arrays and text, no code. The file names its embedder, as no other one can use it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ml_backend.core.errors import ConfigError
from ml_backend.core.files import atomic_binary_writer
from ml_backend.core.types import FloatArray, IntArray
from ml_backend.embeddings.crop_embeddings import CropEmbedding, from_half
from ml_backend.labeling.few_shot.pattern_bank import Exemplars
from ml_backend.labeling.few_shot.pattern_store import ExemplarOrigin, NewExemplar, PatternStore

FORMAT = "video-pattern-bank"
VERSION = "1"
#: Far above what people annotate: 200,000 embeddings of 1,536 dimensions with thumbnails.
MAX_BYTES = 2 << 30
#: Length of the label column in the database.
MAX_LABEL = 255


@dataclass(frozen=True, slots=True)
class BankFile:
    """Content of a pattern bank file.

    Attributes:
        model_id: of the embedder.
        labels: ``(n,)``; ``UNLABELLED`` is background.
        vectors: ``(n, d)`` float32, L2-normalised.
        groups: ``(n,)`` int64, one number per annotated object.
        thumbnails: ``(n,)`` JPEGs.
        classes: ``(n,)`` detector classes; empty strings if unknown, as in files of earlier releases.
        origin: digest of the content.
    """

    model_id: str
    labels: tuple[str, ...]
    vectors: FloatArray
    groups: IntArray
    thumbnails: tuple[bytes, ...]
    classes: tuple[str, ...]
    origin: str

    def exemplars(self) -> tuple[Exemplars, dict[int, ExemplarOrigin]]:
        """Return exemplars and origins as :meth:`PatternStore.exemplars` does."""
        ids = np.arange(1, len(self.labels) + 1, dtype=np.int64)
        rows = zip(ids.tolist(), self.labels, self.groups.tolist(), strict=True)
        origins = {
            i: ExemplarOrigin(label, 0, f"{self.origin}-{group}", i - 1, self.origin) for i, label, group in rows
        }
        return Exemplars(ids, self.vectors, self.labels, self.groups, self.classes), origins


def export_bank(store: PatternStore, project_id: int, model_id: str, out: Path) -> int:
    """Write a project's exemplars of one model to a file and return their number.

    Raises:
        ConfigError: the project has none.
        StorageError: the file cannot be written.
    """
    from safetensors.numpy import save

    exemplars, _ = store.exemplars(project_id, model_id)
    if not len(exemplars):
        raise ConfigError(
            f"Project {project_id} has no exemplars by {model_id}.", "Annotate some tracks and submit them first."
        )
    thumbnails = store.thumbnails(project_id, model_id)
    blobs = [thumbnails.get(exemplar_id, b"") for exemplar_id in exemplars.ids.tolist()]
    tensors: dict[str, Any] = {
        "embeddings": exemplars.embeddings.astype(np.float16),
        "groups": exemplars.groups,
        "thumbnails": np.frombuffer(b"".join(blobs), np.uint8),
        "thumbnail_ends": np.cumsum([len(blob) for blob in blobs], dtype=np.int64),
    }
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "model": model_id,
        "labels": json.dumps(exemplars.labels, ensure_ascii=False),
        "classes": json.dumps(exemplars.classes, ensure_ascii=False),
    }
    with atomic_binary_writer(out) as file:
        file.write(save(tensors, metadata))
    return len(exemplars)


def read_bank(path: Path, model_id: str) -> BankFile:
    """Read a file written by :func:`export_bank`. Nothing in it is executed.

    Args:
        model_id: of the embedder in use.

    Raises:
        ConfigError: the file is no pattern bank, damaged, too large, or made with another embedder.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise _unusable(path, f"it has {size} bytes, more than the limit of {MAX_BYTES}")
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"The pattern bank {path} cannot be read: {error.strerror}.", "Check its path.") from error
    metadata, tensors = _parse(path, data)
    made_with = str(metadata.get("model"))
    if made_with != model_id:
        raise ConfigError(
            f"The pattern bank {path} was made with the embedder {made_with}; this one is {model_id}.",
            "Embeddings of different models cannot be compared: set EMBEDDER and DINOV2_MODEL to the same model, or "
            "annotate some tracks here.",
        )
    try:
        return _checked(metadata, tensors)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise _unusable(path, str(error) or type(error).__name__) from error


def _parse(path: Path, data: bytes) -> tuple[dict[str, str], dict[str, Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {}) if 8 + length <= len(data) else {}
        if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
            raise _unusable(path, "its header names another format")
        return metadata, load(data)
    except (SafetensorError, KeyError, ValueError, AttributeError, RecursionError) as error:
        raise _unusable(path, "it is damaged or no safetensors file") from error


def _checked(metadata: dict[str, str], tensors: dict[str, Any]) -> BankFile:
    labels = _checked_names(metadata["labels"])
    n = len(labels)
    classes = _checked_names(metadata["classes"]) if "classes" in metadata else [""] * n
    if len(classes) != n:
        raise ValueError(f"expected {n} classes, got {len(classes)}")
    half, groups, ends = tensors["embeddings"], tensors["groups"], tensors["thumbnail_ends"]
    if half.dtype != np.float16 or half.ndim != 2 or len(half) != n or not half.shape[1]:
        raise ValueError(f"expected embeddings of shape ({n}, d), got {half.shape}")
    if groups.dtype != np.int64 or groups.shape != (n,) or ends.dtype != np.int64 or ends.shape != (n,):
        raise ValueError(f"expected groups and thumbnail_ends of shape ({n},)")
    vectors = from_half([row.astype("<f2").tobytes() for row in half])
    if not np.isfinite(vectors).all():
        raise ValueError("expected finite embeddings")
    jpegs = tensors["thumbnails"].tobytes()
    bounds = [0, *ends.tolist()]
    if bounds != sorted(bounds) or bounds[-1] != len(jpegs):
        raise ValueError("expected thumbnail_ends to match the thumbnails")
    thumbnails = tuple(jpegs[a:b] for a, b in pairwise(bounds))
    # A digest of the content, as the order of the file's header may vary.
    content = hashlib.sha256(repr((metadata["model"], labels, groups.tolist(), bounds)).encode())
    content.update(repr(classes).encode() if any(classes) else b"")  # digests of earlier files stay
    content.update(half.tobytes() + jpegs)
    origin = content.hexdigest()[:16]
    return BankFile(str(metadata["model"]), tuple(labels), vectors, groups, thumbnails, tuple(classes), origin)


def _checked_names(text: str) -> list[str]:
    names = json.loads(text)
    if not isinstance(names, list) or not all(isinstance(x, str) and len(x) <= MAX_LABEL for x in names):
        raise ValueError(f"expected labels and classes of up to {MAX_LABEL} characters")
    if any("\0" in name for name in names):
        raise ValueError("expected labels and classes without NUL characters")
    "".join(names).encode()  # fails on lone surrogates, which no database takes
    return names


def _unusable(path: Path, why: str) -> ConfigError:
    return ConfigError(f"{path} cannot be used as a pattern bank: {why}.", "Export it again.")


def check_dimension(bank: BankFile, path: Path, dim: int) -> None:
    """Check that a bank's embeddings have the embedder's dimension.

    Raises:
        ConfigError: they have another one.
    """
    if bank.vectors.shape[1] != dim:
        raise _unusable(path, f"its embeddings have {bank.vectors.shape[1]} dimensions, those of {bank.model_id} {dim}")


def import_bank(store: PatternStore, project_id: int, bank: BankFile) -> int:
    """Add a file's exemplars to a project and return their number. Idempotent."""
    video = f"bank-{bank.origin}"
    crops = [
        CropEmbedding(number, (0.0, 0.0, 0.0, 0.0), vector, thumbnail)
        for number, (vector, thumbnail) in enumerate(zip(bank.vectors, bank.thumbnails, strict=True))
    ]
    store.crop_embeddings(video).add(bank.model_id, crops)
    exemplars = [
        NewExemplar(f"{bank.origin}-{group}", label, crop.key(video, bank.model_id), bank.origin, name)
        for label, name, group, crop in zip(bank.labels, bank.classes, bank.groups.tolist(), crops, strict=True)
    ]
    store.add_imported(project_id, bank.model_id, exemplars)
    return len(exemplars)
