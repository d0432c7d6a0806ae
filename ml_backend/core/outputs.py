"""Output files for download: naming and retention."""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from ml_backend.core.errors import StorageError
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

    def find(self, name: str) -> Path | None:
        """Return the output of that name, or ``None`` if there is none."""
        if not NAME.fullmatch(name):
            return None
        path = self.folder / name
        return path if path.is_file() and not path.is_symlink() else None

    def of_project(self, project_id: int) -> list[Path]:
        """List the outputs of a project, newest first."""
        return [path for path, _ in self._files() if path.name.startswith(f"project-{project_id}-")]

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
                removed.append(path.name)
        for path in _list_folder(self.folder):
            if not NAME.fullmatch(path.name) and _is_stale(path, now):
                _remove(path)
        self._clean_uploads(now, needed)
        if removed:
            log.info("Removed old or excess outputs: %s", ", ".join(removed))
        return removed

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
