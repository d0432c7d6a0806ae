"""Outputs and uploads of several hosts: what one has made or received, every other can open.

With ``ARTIFACTS_URL``, both are stored there too, in the folders ``outputs`` and ``uploads``; the local folders keep
copies of what this host has made or was asked for.
"""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Callable
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path

from pydantic import ValidationError

from ml_backend.core.artifacts import Artifacts
from ml_backend.core.errors import MediaError, StorageError
from ml_backend.core.outputs import GB, MAX_AGE_S, NAME, STALE_S, Output, OutputFacts, Outputs, facts_path
from ml_backend.core.settings import Settings

log = logging.getLogger(__name__)

_OUTPUTS, _UPLOADS = "outputs", "uploads"
#: Seconds for which a list of the store is used.
FRESH_S = 3.0
_CACHED_FACTS = 2000
#: The time in an output's name.
_STAMP = re.compile(r"-(\d{8}-\d{6})-[0-9a-f]{8}\.")


class SharedOutputs(Outputs):
    """Outputs in a store that all hosts share; the local folder is a cache."""

    def __init__(self, settings: Settings, store: Artifacts) -> None:
        super().__init__(settings)
        self._store = store
        self._listed: tuple[float, dict[str, int]] | None = None
        self._facts = lru_cache(maxsize=_CACHED_FACTS)(self._read_facts)

    def add(self, made: Path, facts: OutputFacts, *words: str | int) -> Path:
        out = super().add(made, facts, *words)
        try:
            for path in (facts_path(out), out):  # the facts first: no output is without
                self._store.put(path, f"{_OUTPUTS}/{path.name}")
        except StorageError:
            super().delete(out.name)
            raise
        self._listed = None
        return out

    def find(self, name: str) -> Path | None:
        """Return the output of that name, copied to this host if necessary; ``None`` if there is none."""
        if not NAME.fullmatch(name):
            return None
        found = self.find_local(name)
        if not self._store.exists(f"{_OUTPUTS}/{name}"):
            super().delete(name)  # another host has deleted it
            return None
        if found is not None:
            return found
        path = self.folder / name
        facts = facts_path(path)
        if self._store.exists(f"{_OUTPUTS}/{facts.name}"):
            self._store.download(f"{_OUTPUTS}/{facts.name}", facts)
        self._store.download(f"{_OUTPUTS}/{name}", path)
        super().clean()  # a host without workers has nobody else who does
        return self.find_local(name)

    def delete(self, name: str) -> bool:
        if not NAME.fullmatch(name):
            return False
        existed = super().delete(name)
        existed |= self._store.exists(f"{_OUTPUTS}/{name}")
        self._remove(name)
        return existed

    def of_project(self, project_id: int) -> list[Output]:
        sizes = self._list()
        prefix = f"project-{project_id}-"
        names = [name for name in sizes if name.startswith(prefix) and NAME.fullmatch(name)]
        return [self._describe(name, sizes[name]) for name in sorted(names, key=_made_at, reverse=True)]

    def _list(self) -> dict[str, int]:
        """Return the bytes of each file in the store; pages ask for them every second."""
        listed = self._listed
        if listed is None or time.monotonic() - listed[0] > FRESH_S:
            self._listed = listed = time.monotonic(), self._store.sizes(_OUTPUTS)
        return listed[1]

    def _describe(self, name: str, size: int) -> Output:
        return Output(name, size, _made_at(name), self._facts(name))

    def _read_facts(self, name: str) -> OutputFacts | None:
        content = self._store.read(f"{_OUTPUTS}/{facts_path(Path(name)).name}")
        try:
            return OutputFacts.model_validate_json(content) if content else None
        except ValidationError as error:
            log.warning("The facts of %s are ignored: %s", name, error)
            return None

    def clean(self, now: float | None = None, needed: Callable[[str], bool] | None = None) -> list[str]:
        removed = super().clean(now, needed)
        now = time.time() if now is None else now
        budget, sizes = int(self._settings.outputs_gb * GB), self._store.sizes(_OUTPUTS)
        names = sorted(filter(NAME.fullmatch, sizes), key=_made_at, reverse=True)
        for number, name in enumerate(names):
            budget -= sizes[name]
            if number and (budget < 0 or now - _made_at(name).timestamp() > MAX_AGE_S):
                self._remove(name)
                removed.append(name)
        return removed

    def _remove(self, name: str) -> None:
        self._listed = None
        self._store.remove(f"{_OUTPUTS}/{name}")
        self._store.remove(f"{_OUTPUTS}/{facts_path(Path(name)).name}")


class Uploads:
    """Uploaded videos that wait for their import.

    Args:
        store: shared by all hosts; ``None``: only this host's workers import them.
    """

    def __init__(self, settings: Settings, store: Artifacts | None) -> None:
        self._folder, self._store = settings.uploads_dir, store

    def add(self, path: Path, upload_id: str, name: str) -> None:
        """Move a received file here.

        Raises:
            StorageError: the store cannot be written.
            OSError: the local folder cannot be written.
        """
        if self._store:
            self._store.put(path, f"{_UPLOADS}/{upload_id}/{name}")
            path.unlink()
            return
        (self._folder / upload_id).mkdir(exist_ok=True)
        path.replace(self._folder / upload_id / name)

    def open(self, upload_id: str, name: str) -> Path:
        """Return the local path of an upload, copied to this host if necessary.

        Raises:
            MediaError: it does not exist.
            StorageError: the store does not answer, or the disk is full.
        """
        path = self._folder / upload_id / name
        if self._store and not path.is_file() and self._store.exists(f"{_UPLOADS}/{upload_id}/{name}"):
            self._store.download(f"{_UPLOADS}/{upload_id}/{name}", path)
        if not path.is_file():
            raise MediaError(
                "The uploaded file is not on this machine.",
                "Upload it again; workers on other machines need ARTIFACTS_URL, or the same DATA_DIR.",
            )
        return path

    def remove(self, upload_id: str, name: str) -> None:
        """Remove an upload everywhere."""
        shutil.rmtree(self._folder / upload_id, ignore_errors=True)
        if self._store:
            self._store.remove(f"{_UPLOADS}/{upload_id}/{name}")

    def remove_project(self, project_id: int) -> int:
        """Remove the uploads to a project, whose ids begin with its number; return how many there were.

        Raises:
            StorageError: the store does not answer.
        """
        found = [(path.name, "") for path in self._folder.glob(f"{project_id}-*")]
        if self._store:
            stored = [name.partition("/") for name in self._store.ages(_UPLOADS) if name.startswith(f"{project_id}-")]
            found += [(upload_id, name) for upload_id, _, name in stored]
        for upload_id, name in found:
            self.remove(upload_id, name)
        return len({upload_id for upload_id, _ in found})

    def clean(self, needed: Callable[[str], bool]) -> None:
        """Remove stored uploads that no job needs and that are older than ``STALE_S``."""
        if self._store is None:
            return
        for name, age_s in self._store.ages(_UPLOADS).items():
            upload_id = name.partition("/")[0]
            if age_s > STALE_S and not needed(upload_id):
                log.info("Removed the upload %s, which has no job.", upload_id)
                self._store.remove(f"{_UPLOADS}/{name}")


def make_outputs(settings: Settings) -> Outputs:
    """Return this host's outputs, or those of all hosts."""
    return SharedOutputs(settings, Artifacts(settings)) if settings.artifacts_url else Outputs(settings)


def make_uploads(settings: Settings) -> Uploads:
    """Return this host's uploads, or those of all hosts."""
    return Uploads(settings, Artifacts(settings) if settings.artifacts_url else None)


def _made_at(name: str) -> datetime:
    found = _STAMP.search(name)
    stamp = datetime.strptime(found[1], "%Y%m%d-%H%M%S") if found else datetime.fromtimestamp(0)
    return stamp.replace(tzinfo=timezone.utc)
