"""Files that were made to be downloaded: their names, and how long they stay."""

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

#: Names that :meth:`Outputs.new` gives, and nothing else: no separators, no dots but the suffix's, no hidden files.
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,150}\.(?:mp4|zip|json)")
#: After so long nobody comes back for a file.
MAX_AGE_S = 30 * 24 * 3600
#: Half-made files are left over from a crash, and uploads without a job from a failure, when nobody has written to them
#: for so long.
STALE_S = 2 * 24 * 3600
#: Folders of uploads that are being received, or were.
RECEIVED = "part-"
#: Folder of the playable copies, below the data folder or, for local files, below Label Studio's document root.
COPIES = "playable"
GB = 1 << 30


class Outputs:
    """The folder of outputs. Its files appear whole under their names, or not at all."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.folder = settings.outputs_dir

    def new(self, *words: str | int, suffix: str) -> Path:
        """A path that nobody has, in a folder that exists; its name tells when and of what it was made.

        Args:
            suffix: ``mp4``, ``zip`` or ``json``.

        Raises:
            StorageError: the folder cannot be made.
        """
        said = "-".join(re.sub(r"[^a-z0-9]+", "-", str(word).lower()).strip("-") for word in words)[:90].strip("-")
        stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
        name = f"{said or 'output'}-{stamp}-{secrets.token_hex(4)}.{suffix}"
        if not NAME.fullmatch(name):
            raise ValueError(f"expected a suffix of an output, got {suffix!r}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"{self.folder} cannot be made: {error.strerror}.", "Free disk space, or set DATA_DIR elsewhere."
            ) from error
        return self.folder / name

    def find(self, name: str) -> Path | None:
        """The file of that name; ``None`` for every name that was not given here."""
        if not NAME.fullmatch(name):
            return None
        path = self.folder / name
        return path if path.is_file() and not path.is_symlink() else None

    def of_project(self, project_id: int) -> list[Path]:
        """Files that were made of a project, newest first."""
        named = (path for path in _listed(self.folder) if path.name.startswith(f"project-{project_id}-"))
        found = ((path, stat) for path in named if NAME.fullmatch(path.name) and (stat := _stat(path)))
        return [path for path, _ in sorted(found, key=lambda item: item[1].st_mtime, reverse=True)]

    def clean(self, now: float | None = None, needed: Callable[[str], bool] | None = None) -> list[str]:
        """Remove what is too old or too much, and what is left over from crashes and failures.

        Args:
            needed: whether a job waits for the upload in the folder of that name, or works on it, be it days old: the
                worker may have been away. Where nobody can tell, uploads stay.

        Returns:
            Names of the outputs that are gone: the oldest first, but never the newest.
        """
        now = time.time() if now is None else now
        files = sorted(
            ((path, stat) for path in _listed(self.folder) if NAME.fullmatch(path.name) and (stat := _stat(path))),
            key=lambda item: item[1].st_mtime,
            reverse=True,
        )
        budget, gone = int(self._settings.outputs_gb * GB), []
        for number, (path, stat) in enumerate(files):
            budget -= stat.st_size
            if number and (budget < 0 or now - stat.st_mtime > MAX_AGE_S):
                _remove(path)
                gone.append(path.name)
        for path in _listed(self.folder):
            if not NAME.fullmatch(path.name) and _is_stale(path, now):
                _remove(path)
        self._clean_uploads(now, needed)
        if gone:
            log.info("Removed outputs that are old or too many: %s", ", ".join(gone))
        return gone

    def _clean_uploads(self, now: float, needed: Callable[[str], bool] | None) -> None:
        for path in _listed(self._settings.uploads_dir):
            named = not path.name.startswith(RECEIVED)
            if _is_stale(path, now) and (not named or (needed is not None and not needed(path.name))):
                log.info("Removed the upload %s, which no job takes up.", path.name)
                _remove(path)
        copies, root = self._settings.data_dir / COPIES, self._settings.local_files_root
        if root is not None and root.resolve() == self._settings.data_dir.resolve():
            return  # Label Studio serves these copies
        # Copies are named by the content of what they were made of, and so are uploads, after their project.
        waiting = {path.name.rpartition("-")[2] for path in _listed(self._settings.uploads_dir)}
        for path in _listed(copies):
            if path.name not in waiting and _is_stale(path, now):
                _remove(path)


def _is_stale(path: Path, now: float) -> bool:
    """Whether nobody has written to a file, or to anything in a folder, for long."""
    found = _stat(path)
    if found is None or now - found.st_mtime <= STALE_S:
        return False
    # A folder does not show that a file in it grows, and whoever writes for days must not lose it.
    inside = (_stat(Path(root, name)) for root, folders, files in os.walk(path) for name in (*folders, *files))
    return all(now - item.st_mtime > STALE_S for item in inside if item)


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # not made yet
        return []


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except OSError:  # another process was faster
        return None


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s cannot be removed: %s", path, error)
