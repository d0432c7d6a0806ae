"""Which embedder and which CLIP model can run here: resolve, download once, or fall back. Never imports torch.

Models come from a folder that the operator configured, or from the public Hugging Face hub into our own cache, where
they lie as plain folders: what a site without a network needs is a copy of that folder, nothing else.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ml_backend.errors import StorageError, WeightsError
from ml_backend.files import file_sha256
from ml_backend.models import fallback
from ml_backend.models.model_folder import (
    CLIP_WEIGHTS,
    ModelFolder,
    read_clip_folder,
    read_dinov2_folder,
)
from ml_backend.models.weights import Progress, fetch, recent_failure, remember_failure
from ml_backend.settings import Settings

if TYPE_CHECKING:
    from ml_backend.models.clip import ClipEmbedder
    from ml_backend.models.embedder import Embedder

log = logging.getLogger(__name__)

#: CLIP ViT-bigG has 10 GB.
MAX_BYTES = 16 << 30
#: Bytes per second that a download must keep up: DINOv2-base (350 MB) in an hour and a half at the slowest.
MIN_RATE = 64 << 10
#: What a download that was killed left is removed when nothing was written to it for so long.
STALE_S = 3600.0

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
#: Names that are taken from a hub's listing: plain files of the top folder.
_FILE_NAME = re.compile(r"\w[\w.-]*", re.ASCII)
#: Configuration and tokeniser. Pickles and Python files are code and never taken.
_SMALL_FILES = (".json", ".txt", ".model")


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model that can be loaded.

    Attributes:
        kind: which class loads it.
        name: short name for people, e.g. ``"dinov2-base"``.
        model_id: equal exactly where embeddings may be compared; that of the loaded model, without loading it.
        path: its folder; ``None`` for the fallback.
        note: why it is not what was asked for, else empty; meant to be shown.
    """

    kind: Literal["dinov2", "clip", "fallback"]
    name: str
    model_id: str
    path: Path | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Unavailable:
    """No such model here.

    Attributes:
        note: what is missing and how to provide it; meant to be shown.
    """

    note: str


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One of the two settings that name a model."""

    setting: str
    value: str
    read: Callable[[Path], ModelFolder]
    weights: Callable[[set[str]], set[str]]


def resolve_embedder(settings: Settings, *, download: bool = False, progress: Progress | None = None) -> ResolvedModel:
    """Decide which embedder the settings mean on this machine at this moment.

    Args:
        settings: ``embedder`` and ``dinov2_model`` are what matters.
        download: whether the network may be tried; without it the answer takes milliseconds.
        progress: called with (bytes so far, bytes in total) while downloading.

    Raises:
        WeightsError: a configured folder does not exist or is no such model, or ``embedder="dinov2"`` and nothing
            can be had, or the package with the fallback's weights is missing.
    """
    if settings.embedder == "fallback":
        return _fallback()
    wanted = _Wanted("DINOV2_MODEL", settings.dinov2_model, read_dinov2_folder, _dinov2_weights)
    found = _find(wanted, settings, download, progress)
    if isinstance(found, ModelFolder):
        return _resolved(found)
    missing, cure = found
    if settings.embedder == "dinov2":
        raise WeightsError(f"{missing}.", cure)
    return _fallback(f"{missing}: EfficientNet-Lite0 is used instead, which tells things apart less well. {cure}")


def resolve_clip(
    settings: Settings, *, download: bool = False, progress: Progress | None = None
) -> ResolvedModel | Unavailable:
    """Decide which CLIP model the settings mean; there is none to fall back to.

    Args:
        settings: ``clip_model`` is what matters.
        download, progress: see :func:`resolve_embedder`.

    Raises:
        WeightsError: a configured folder does not exist or is no such model.
    """
    wanted = _Wanted("CLIP_MODEL", settings.clip_model, read_clip_folder, _clip_weights)
    found = _find(wanted, settings, download, progress)
    if isinstance(found, ModelFolder):
        return _resolved(found)
    missing, cure = found
    return Unavailable(f"{missing}. {cure}")


def load_embedder(resolved: ResolvedModel, settings: Settings) -> Embedder:
    """Load what :func:`resolve_embedder` found.

    Raises:
        WeightsError: it cannot be loaded.
    """
    if resolved.kind == "dinov2" and resolved.path is not None:
        from ml_backend.models.dinov2 import Dinov2Embedder

        return Dinov2Embedder(resolved.path, settings)
    if resolved.kind == "fallback":
        from ml_backend.models.efficientnet import EfficientNetEmbedder

        return EfficientNetEmbedder(settings)
    raise ValueError(f"expected a DINOv2 model or the fallback, got {resolved}")


def load_clip(resolved: ResolvedModel, settings: Settings) -> ClipEmbedder:
    """Load what :func:`resolve_clip` found.

    Raises:
        WeightsError: it cannot be loaded.
    """
    from ml_backend.models.clip import ClipEmbedder

    if resolved.kind != "clip" or resolved.path is None:
        raise ValueError(f"expected a CLIP model, got {resolved}")
    return ClipEmbedder(resolved.path, settings)


def _resolved(folder: ModelFolder) -> ResolvedModel:
    return ResolvedModel(folder.kind, folder.name, folder.model_id, folder.path)


def _fallback(note: str = "") -> ResolvedModel:
    return ResolvedModel("fallback", fallback.NAME, fallback.model_id(), note=note)


def _find(
    wanted: _Wanted, settings: Settings, download: bool, progress: Progress | None
) -> ModelFolder | tuple[str, str]:
    """The model, or what is missing and how to cure it."""
    local = Path(wanted.value).expanduser()
    if wanted.value and local.exists():
        return wanted.read(local.absolute())
    if not _HUB_ID.fullmatch(wanted.value) or ".." in wanted.value:
        raise WeightsError(
            f"The model folder {wanted.value!r} does not exist.",
            f"Set {wanted.setting} to an existing folder, or to a model of the Hugging Face hub as owner/name.",
        )
    cached = settings.weights_dir / wanted.value.replace("/", "--")
    if cached.is_dir():
        return wanted.read(cached)
    reason = recent_failure(cached)
    if download and reason is None:
        try:
            _download(wanted, cached, settings.weights_timeout_s, progress)
            return wanted.read(cached)
        except (WeightsError, StorageError) as error:
            reason = error.message.rstrip(".")
            remember_failure(cached, reason)
    return (
        f"{wanted.value} is not here{f' ({reason})' if reason else ' yet'}",
        f"To provide it, put the model's folder at {cached} or set {wanted.setting} to where it is.",
    )


def _dinov2_weights(names: set[str]) -> set[str]:
    """Which files of a hub's listing are the weights; none where there are none that may be loaded."""
    if "model.safetensors" in names:
        return {"model.safetensors"}
    return {name for name in names if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name)}


def _clip_weights(names: set[str]) -> set[str]:
    # The same folder on the hub also holds them in transformers' format, which would double the download.
    return {name for name in CLIP_WEIGHTS if name in names and name.endswith(".safetensors")}


def _download(wanted: _Wanted, target: Path, timeout: float, progress: Progress | None) -> None:
    """Fetch a model of the hub into ``target``, which appears only when all of it is there and looks right.

    Not by ``huggingface_hub.snapshot_download``: it neither ends when bytes merely trickle, nor gives up soon on a
    hub that takes connections and says nothing.

    Raises:
        WeightsError: no network, no such model, or not what the hub's listing says.
        StorageError: the disk does not take it.
    """
    from huggingface_hub import constants

    if constants.is_offline_mode():
        raise WeightsError("HF_HUB_OFFLINE is set")
    _remove_stale(target)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        listing = part / "listing"
        fetch(f"{constants.ENDPOINT}/api/models/{wanted.value}?blobs=true", listing, timeout)
        revision, files = _wanted_files(wanted, listing)
        listing.unlink()
        total = sum(_size(file) or 0 for file in files)
        done = 0
        for file in files:
            name, before = file["rfilename"], done
            fetch(
                f"{constants.ENDPOINT}/{wanted.value}/resolve/{revision}/{name}",
                part / name,
                timeout,
                check=_matches(file),
                progress=None if progress is None else lambda now, _, b=before: progress(b + now, total),  # type: ignore[misc]
                max_bytes=MAX_BYTES,
                min_rate=MIN_RATE,
            )
            done += (part / name).stat().st_size
        try:
            wanted.read(part)
        except WeightsError as error:
            raise WeightsError(error.message.replace(str(part), wanted.value)) from error
        _publish(part, target)
        log.info("Downloaded the model %s (%.0f MB)", wanted.value, done / 1e6)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _wanted_files(wanted: _Wanted, listing: Path) -> tuple[str, list[dict[str, Any]]]:
    """Revision and the entries of the files to download, small ones first.

    Raises:
        WeightsError: the listing is none, or lacks the weights.
    """
    try:
        answer = json.loads(listing.read_bytes())
    except ValueError:
        answer = None
    siblings, revision = (answer.get("siblings"), answer.get("sha")) if isinstance(answer, dict) else (None, None)
    if not isinstance(siblings, list) or not isinstance(revision, str) or not re.fullmatch(r"\w+", revision):
        raise WeightsError(f"the hub's answer about {wanted.value} is not understood (a proxy's page?)")
    files = {
        entry["rfilename"]: entry
        for entry in siblings
        if isinstance(entry, dict) and _FILE_NAME.fullmatch(str(entry.get("rfilename", "")))
    }
    weights = wanted.weights(set(files))
    if not weights:
        raise WeightsError(f"{wanted.value} has no weights as safetensors on the hub")
    small = {name for name in files if name.endswith(_SMALL_FILES)}
    return revision, [files[name] for name in [*sorted(small - weights), *sorted(weights)]]


def _matches(entry: dict[str, Any]) -> Callable[[Path], None]:
    """A check that a file is what the hub's listing says."""
    lfs = entry.get("lfs")
    digest = lfs.get("sha256") if isinstance(lfs, dict) else None
    size = _size(entry)

    def check(part: Path) -> None:
        actual = part.stat().st_size
        if size is not None and actual != size:
            raise WeightsError(f"{entry['rfilename']} came with {actual} bytes instead of {size}")
        if digest is not None and file_sha256(part) != digest:
            raise WeightsError(f"{entry['rfilename']} came damaged")

    return check


def _size(entry: dict[str, Any]) -> int | None:
    size = entry.get("size")
    return size if isinstance(size, int) else None


def _publish(part: Path, target: Path) -> None:
    try:
        part.rename(target)
    except OSError as error:
        if not target.is_dir():  # else another process was faster, and its folder is as whole as ours
            raise StorageError(f"{target} cannot be made: {error.strerror}.", "Free some disk space.") from error


def _remove_stale(target: Path) -> None:
    """Remove what killed downloads of this model left behind."""
    for folder in target.parent.glob(f"{target.name}.*.part"):
        try:
            newest = max(file.stat().st_mtime for file in (folder, *folder.iterdir()))
        except OSError:
            continue  # it goes away by itself
        if time.time() - newest > STALE_S:
            shutil.rmtree(folder, ignore_errors=True)
