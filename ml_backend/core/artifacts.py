"""The artifact store for weights: a folder or any fsspec URL, shared by all workers."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ml_backend.core.errors import BackendError, ConfigError, StorageError, WeightsError
from ml_backend.core.files import atomic_binary_writer, file_sha256
from ml_backend.core.settings import Settings
from ml_backend.core.timestamps import ensure_utc
from ml_backend.core.urls import extra_hint, shown_url

log = logging.getLogger(__name__)

_CHUNK = 1 << 20
#: Seconds after which a partial file counts as left behind by a killed process: no transfer takes so long.
LEFT_S = 24 * 3600.0
#: Seconds without use after which a cached copy of a remote file is removed; it is fetched again on demand.
UNUSED_S = 30 * 24 * 3600.0


class Artifacts:
    """Files by name below one location. A name appears only when its file is complete.

    A checkpoint is code, and others may write to a shared location: what is used is a copy in ``data_dir``, which
    appears only if it has the digest that the database has recorded.

    Args:
        settings: ``artifacts_url`` is the location; empty: a folder in ``data_dir``, whose files are used in place.
    """

    def __init__(self, settings: Settings) -> None:
        self._url = settings.artifacts_url or str(settings.data_dir / "artifacts")
        self._shown = shown_url(self._url)
        self._cache = settings.data_dir / "artifact-cache"
        self._copies = bool(settings.artifacts_url)
        self._configured = Path(settings.yolo_weights)
        self._fs: Any = None
        self._root = ""

    def _connect(self) -> Any:
        if self._fs is None:
            import fsspec  # 0.1 s, not needed to answer requests

            try:
                self._fs, self._root = fsspec.core.url_to_fs(self._url, use_listings_cache=False)
            except (ImportError, ValueError, OSError) as error:
                missing = extra_hint(self._url) if isinstance(error, ImportError) else ""
                raise ConfigError(
                    f"ARTIFACTS_URL {self._shown!r} cannot be used: {error}.",
                    missing or "Give a folder, or an fsspec URL such as s3://bucket/folder with its package installed.",
                ) from error
        return self._fs

    @property
    def _local_root(self) -> Path | None:
        """The location as a local folder, without connecting to anything; ``None`` for a URL."""
        text = self._url.removeprefix("file://")
        return Path(text) if "://" not in text and "::" not in text else None

    def local_path(self, name: str, sha256: str) -> Path:
        """Return where the file is, or will be once :meth:`fetch` has downloaded it. Does no I/O."""
        root = None if self._copies else self._local_root
        return root / name if root else self._cache / f"{sha256}{Path(name).suffix}"

    def put(self, path: Path, name: str) -> str:
        """Store a file, atomically replacing one of that name, and return its SHA-256.

        Raises:
            StorageError: the store is full, read-only or unreachable.
        """
        digest = file_sha256(path)
        root = self._local_root
        fs = self._connect()
        try:
            if root:
                with path.open("rb") as source, atomic_binary_writer(root / name) as target:
                    shutil.copyfileobj(source, target, _CHUNK)
                    target.flush()
                    os.fsync(target.fileno())  # a registered version must survive a power cut
            else:
                place = f"{self._root}/{name}"
                fs.makedirs(os.path.dirname(place), exist_ok=True)
                fs.put_file(str(path), place)  # stores of objects show whole ones only
        except Exception as error:
            raise StorageError(
                f"{name} could not be stored at {self._shown}: {error}.",
                "Free disk space, or check ARTIFACTS_URL, and try again. A training resumes from its last epoch.",
            ) from error
        return digest

    def fetch(self, name: str, sha256: str) -> Path:
        """Return the local path of a file, copied to this machine if necessary and verified against its digest.

        Args:
            name: empty for versions whose weights were removed.

        Raises:
            WeightsError: the file is gone or damaged.
            StorageError: the local disk is full.
        """
        if not name:
            raise WeightsError(
                "The version's weights were removed because there are newer versions.",
                "Choose one that has weights (scripts/versions.py list). KEEP_VERSIONS sets how many keep them.",
            )
        path = self.local_path(name, sha256)
        if self._copies and not path.is_file():
            self._download(name, sha256, path)
        try:
            digest = file_sha256(path)
        except OSError as error:
            raise WeightsError(
                f"{name} is not at {self._shown}: {error.strerror}.",
                "Restore it, check ARTIFACTS_URL, or switch to another version with scripts/versions.py.",
            ) from error
        if digest != sha256:
            if self._copies:
                path.unlink(missing_ok=True)
            raise self._damaged(name)
        if self._copies:
            with contextlib.suppress(OSError):
                os.utime(path)  # it is used
        return path

    def check(self, name: str, sha256: str) -> None:
        """Raise as :meth:`fetch` does, but download nothing: that may take minutes, and workers do it."""
        remote = self._copies and self._local_root is None and not self.local_path(name, sha256).is_file()
        if not name or not remote:
            self.fetch(name, sha256)
        elif not self.exists(name):
            raise self._gone(name)

    def _gone(self, name: str) -> WeightsError:
        return WeightsError(
            f"{name} is not at {self._shown}.", "Restore it, or switch to another version with scripts/versions.py."
        )

    def _damaged(self, name: str) -> WeightsError:
        return WeightsError(
            f"{name} at {self._shown} is damaged: it is not what was registered.",
            "Restore it, or switch to another version with scripts/versions.py.",
        )

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the bytes of each file directly in a folder, by its name.

        Raises:
            StorageError: the store is unreachable.
        """
        return {name: int(info["size"] or 0) for name, info in self._list(folder).items() if "/" not in name}

    def ages(self, folder: str) -> dict[str, float]:
        """Return the seconds since each file below a folder was written, by its path from there.

        Raises:
            StorageError: the store is unreachable.
        """
        fs, now = self._connect(), datetime.now(timezone.utc)
        ages = {}
        for name, info in self._list(folder).items():
            try:
                ages[name] = (now - ensure_utc(fs.modified(info["name"]))).total_seconds()
            except FileNotFoundError:
                continue  # somebody has removed it meanwhile
            except Exception as error:
                raise self._no_answer(error) from error
        return ages

    def _no_answer(self, error: Exception) -> StorageError:
        return StorageError(f"{self._shown} does not answer: {error}.", "Check ARTIFACTS_URL.")

    def _list(self, folder: str) -> dict[str, Any]:
        fs, place = self._connect(), f"{self._root}/{folder}"
        try:
            found = fs.find(place, detail=True)
        except FileNotFoundError:
            return {}
        except Exception as error:
            raise self._no_answer(error) from error
        return {path.removeprefix(place).lstrip("/"): info for path, info in found.items()}

    def download(self, name: str, path: Path) -> None:
        """Copy a file that is no code to ``path``, where it appears once it is complete.

        Raises:
            WeightsError: it is gone.
            StorageError: the store is unreachable, or the disk full.
        """
        self._download(name, None, path)

    def _download(self, name: str, sha256: str | None, path: Path) -> None:
        fs = self._connect()
        try:
            with fs.open(f"{self._root}/{name}", "rb") as source, atomic_binary_writer(path) as target:
                digest = hashlib.sha256()
                while chunk := source.read(_CHUNK):
                    digest.update(chunk)
                    target.write(chunk)
                if sha256 not in (None, digest.hexdigest()):
                    raise self._damaged(name)
        except BackendError:
            raise
        except FileNotFoundError as error:
            raise self._gone(name) from error
        except Exception as error:
            raise StorageError(f"{name} could not be fetched from {self._shown}: {error}.") from error

    def write(self, name: str, data: bytes) -> None:
        """Store a small file.

        Raises:
            StorageError: the store or the local disk is full, read-only or unreachable.
        """
        try:
            with tempfile.NamedTemporaryFile() as file:
                file.write(data)
                file.flush()
                self.put(Path(file.name), name)
        except OSError as error:
            raise StorageError(f"{name} cannot be written: {error.strerror}.", "Free disk space.") from error

    def read(self, name: str) -> bytes | None:
        """Return the content of a small file; ``None`` where it does not exist.

        Raises:
            StorageError: the store is unreachable.
        """
        fs = self._connect()
        try:
            return bytes(fs.cat_file(f"{self._root}/{name}"))
        except FileNotFoundError:
            return None
        except Exception as error:
            raise StorageError(
                f"{name} could not be read from {self._shown}: {error}.", "Check ARTIFACTS_URL and its credentials."
            ) from error

    def exists(self, name: str) -> bool:
        """Return whether a file exists.

        Raises:
            StorageError: the store is unreachable.
        """
        fs = self._connect()
        try:
            return bool(fs.exists(f"{self._root}/{name}"))
        except Exception as error:
            raise self._no_answer(error) from error

    def remove(self, name: str, sha256: str = "") -> bool:
        """Remove a file and return whether it is gone; a file that does not exist counts as removed.

        Args:
            sha256: content whose local cached copy is removed too.
        """
        fs = self._connect()
        try:
            fs.rm_file(f"{self._root}/{name}")
        except FileNotFoundError:
            pass
        except Exception as error:  # noqa: BLE001 - every store raises its own
            log.warning("%s was not removed from %s: %s", name, self._shown, error)
            return False
        copy = self.local_path(name, sha256)
        if sha256 and self._copies and not self._is_configured(copy):
            with contextlib.suppress(OSError):
                copy.unlink(missing_ok=True)
        return True

    def is_configured(self, name: str, sha256: str) -> bool:
        """Return whether ``YOLO_WEIGHTS`` is this very file, or its copy on this machine."""
        root = self._local_root
        return self._is_configured(self.local_path(name, sha256)) or bool(root and self._is_configured(root / name))

    def _is_configured(self, path: Path) -> bool:
        try:
            return path.samefile(self._configured)
        except OSError:  # one of them does not exist
            return False

    def tidy(self) -> int:
        """Remove partial files of killed processes and cached copies unused for long; return the number of files."""
        now, removed, root = time.time(), 0, self._local_root
        for path in [*self._cache.glob("*"), *(root.rglob("*.part") if root else ())]:
            after_s = LEFT_S if path.suffix == ".part" else UNUSED_S
            try:
                if now - path.stat().st_mtime > after_s and not self._is_configured(path):
                    path.unlink()
                    removed += 1
            except OSError as error:
                log.warning("%s was not removed: %s", path, error)
        if removed:
            log.info("%d unused files were removed from the artifact cache.", removed)
        return removed
