"""Output files for download: naming, what they were made from, and retention."""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ml_backend.core.errors import StorageError
from ml_backend.core.files import storage_error, write_text
from ml_backend.core.settings import Settings

log = logging.getLogger(__name__)

#: Names that :meth:`Outputs.new` gives, and nothing else: no separators, one dot, no hidden files.
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,150}\.(?:mp4|zip|json)")
#: Outputs are deleted at this age.
MAX_AGE_S = 30 * 24 * 3600
#: Partial files and uploads without a job that were not modified for this long are left over from a crash or failure.
STALE_S = 2 * 24 * 3600
#: Prefix of the folders of unfinished uploads.
UPLOAD_PREFIX = "part-"
#: Folder of the playable copies, below the data folder or, for local files, below Label Studio's document root.
PLAYABLE_FOLDER = "playable"
GB = 1 << 30
#: Facts are a few hundred bytes; larger files are not ours.
_MAX_FACTS_BYTES = 1 << 16


class OutputFacts(BaseModel):
    """What an output was made from, stored beside it as ``<name>.json``.

    Attributes:
        format: of an export; empty for a rendered video.
        source: ``annotations``, ``predictions``, ``both``, ``base``, or a version such as ``v2``.
        model: model version of the tracks or predictions; empty without any.
        task: of a rendered video.
        video: name of the video, or of the first one.
        videos: number of videos.
        skipped: number of videos that could not be exported.
        tracks: number of tracks that are drawn.
    """

    model_config = ConfigDict(frozen=True)

    format: str = ""
    source: str
    model: str = ""
    task: int | None = None
    video: str = ""
    videos: int = Field(1, ge=0)
    skipped: int = Field(0, ge=0)
    tracks: int | None = Field(None, ge=0)


def project_of(name: str) -> int | None:
    """Return the project of an output by its name; ``None`` for one of a command."""
    found = re.match(r"project-(\d{1,10})-", name)
    return int(found[1]) if found else None


@dataclass(frozen=True, slots=True)
class Output:
    """An output file; ``facts`` is ``None`` for one of an earlier release."""

    name: str
    bytes: int
    created_at: datetime
    facts: OutputFacts | None


class Outputs:
    """The folder of outputs; its files are written atomically."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.folder = settings.outputs_dir

    def new(self, *words: str | int, suffix: str) -> Path:
        """Return an unused path, named after ``words`` and the current time, and create the folder.

        Args:
            suffix: ``mp4``, ``zip`` or ``json``.

        Raises:
            StorageError: the folder cannot be created.
        """
        stem = "-".join(re.sub(r"[^a-z0-9]+", "-", str(word).lower()).strip("-") for word in words)[:90].strip("-")
        stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
        name = f"{stem or 'output'}-{stamp}-{secrets.token_hex(4)}.{suffix}"
        if not NAME.fullmatch(name):
            raise ValueError(f"expected the suffix mp4, zip or json, got {suffix!r}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"{self.folder} cannot be created: {error.strerror}.", "Free disk space, or change DATA_DIR."
            ) from error
        return self.folder / name

    def add(self, made: Path, facts: OutputFacts, *words: str | int) -> Path:
        """Move a finished file of the same disk here, with its facts; return its path, named as by :meth:`new`.

        Raises:
            StorageError: the folder cannot be written.
        """
        out = self.new(*words, suffix=made.suffix.removeprefix("."))
        write_text(facts_path(out), facts.model_dump_json(exclude_defaults=True))  # first: no output is without facts
        try:
            os.replace(made, out)
        except OSError as error:
            _remove(facts_path(out))
            raise storage_error(out, error) from error
        return out

    def find(self, name: str) -> Path | None:
        """Return the output of that name, or ``None`` if there is none."""
        return self.find_local(name)

    def find_local(self, name: str) -> Path | None:
        """Return the output of that name in the local folder, or ``None`` if there is none."""
        if not NAME.fullmatch(name):
            return None
        path = self.folder / name
        return path if path.is_file() and not path.is_symlink() else None

    def delete(self, name: str) -> bool:
        """Delete an output and its facts; return whether it existed.

        Raises:
            StorageError: it cannot be deleted.
        """
        path = self.find_local(name)
        if path is None:
            return False
        try:
            path.unlink()
            facts_path(path).unlink(missing_ok=True)
        except FileNotFoundError:  # another process was faster
            return False
        except OSError as error:
            raise StorageError(f"{path} cannot be deleted: {error.strerror}.", "Check its permissions.") from error
        return True

    def of_project(self, project_id: int) -> list[Output]:
        """List the outputs of a project, newest first.

        Raises:
            StorageError: the store does not answer.
        """
        paths = [path for path, _ in self._files() if path.name.startswith(f"project-{project_id}-")]
        return [output for path in paths if (output := self._describe_file(path))]

    def clean(self, now: float | None = None, needed: Callable[[str], bool] | None = None) -> list[str]:
        """Remove outputs that are too old or exceed ``OUTPUTS_GB``, and leftovers of crashes and failures.

        Args:
            needed: returns whether a job waits for or works on the upload in the folder of that name, which may be days
                old if no worker was running. ``None``: keep all uploads.

        Returns:
            Names of the removed outputs. The newest output is never removed.
        """
        now = time.time() if now is None else now
        budget, removed = int(self._settings.outputs_gb * GB), []
        for number, (path, stat) in enumerate(self._files()):
            budget -= stat.st_size
            if number and (budget < 0 or now - stat.st_mtime > MAX_AGE_S):
                _remove(path)
                _remove(facts_path(path))
                removed.append(path.name)
        entries = _list_folder(self.folder)
        kept = {path.name for path in entries if NAME.fullmatch(path.name)}
        kept |= {facts_path(Path(name)).name for name in kept}
        for path in entries:
            if path.name not in kept and _is_stale(path, now):
                _remove(path)
        self._clean_uploads(now, needed)
        if removed:
            log.info("Removed old or excess outputs: %s", ", ".join(removed))
        return removed

    def _describe_file(self, path: Path) -> Output | None:
        stat = _stat(path)
        if stat is None:  # deleted meanwhile
            return None
        created_at = datetime.fromtimestamp(stat.st_mtime, timezone.utc)
        return Output(path.name, stat.st_size, created_at, _read_facts(facts_path(path)))

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        """List the outputs, newest first."""
        names = (path for path in _list_folder(self.folder) if NAME.fullmatch(path.name))
        files = ((path, stat) for path in names if (stat := _stat(path)))
        return sorted(files, key=lambda item: item[1].st_mtime, reverse=True)

    def _clean_uploads(self, now: float, needed: Callable[[str], bool] | None) -> None:
        for path in _list_folder(self._settings.uploads_dir):
            complete = not path.name.startswith(UPLOAD_PREFIX)
            if _is_stale(path, now) and (not complete or (needed is not None and not needed(path.name))):
                log.info("Removed the upload %s, which has no job.", path.name)
                _remove(path)
        copies, root = self._settings.data_dir / PLAYABLE_FOLDER, self._settings.local_files_root
        if root is not None and root.resolve() == self._settings.data_dir.resolve():
            return  # Label Studio serves these copies
        # Copies are named by their source's hash, uploads by their project and hash.
        pending = {path.name.rpartition("-")[2] for path in _list_folder(self._settings.uploads_dir)}
        for path in _list_folder(copies):
            if path.name not in pending and _is_stale(path, now):
                _remove(path)


def facts_path(path: Path) -> Path:
    """Return where the facts of an output are."""
    return path.with_name(f"{path.name}.json")


def _read_facts(path: Path) -> OutputFacts | None:
    try:
        with path.open("rb") as file:
            return OutputFacts.model_validate_json(file.read(_MAX_FACTS_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        log.warning("%s is ignored: %s", path, error)
        return None


def _is_stale(path: Path, now: float) -> bool:
    """Return whether a file, or everything in a folder, was not modified for ``STALE_S``."""
    stat = _stat(path)
    if stat is None or now - stat.st_mtime <= STALE_S:
        return False
    # A folder's own mtime does not change while a file in it grows, for days in a slow upload.
    children = (_stat(Path(root, name)) for root, folders, files in os.walk(path) for name in (*folders, *files))
    return all(now - child.st_mtime > STALE_S for child in children if child)


def _list_folder(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # does not exist yet
        return []


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except OSError:  # another process has removed it
        return None


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s cannot be removed: %s", path, error)
