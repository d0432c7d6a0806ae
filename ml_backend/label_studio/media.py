"""Resolve a task's video to a local file: in place if visible, else by a resumable, cached download.

A task's data is written by people who may see less than the token of this service: of Label Studio's own addresses,
only uploads and local files of the task's project are opened.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Protocol
from urllib.parse import SplitResult, parse_qs, quote, unquote, urlsplit

from ml_backend.core.errors import Interrupted, MediaError, MediaRefused, MediaUnavailable, StorageError, VideoError
from ml_backend.core.settings import Settings
from ml_backend.core.urls import shown_url

if TYPE_CHECKING:
    import httpx

log = logging.getLogger(__name__)

CLOUD_SCHEMES = frozenset({"s3", "gs", "azure-blob", "azure_spi", "dbfs", "gcs"})
ATTEMPTS = 4
#: Seconds without a byte before a retry; storages that fetch from an archive take a while.
TIMEOUT_S = 30.0
#: Slowest accepted download in bytes per second, averaged over :data:`TIMEOUT_S`: a slower one holds a worker for days.
MIN_RATE = 16 << 10
#: Seconds between calls of ``should_stop`` while a server or another process is waited for.
POLL_S = 0.5
#: Bytes between checks of free disk space: others write too, and the size of a download may be unknown.
CHECK_BYTES = 64 << 20
#: Disk space that downloads leave free for databases and logs.
SPARE_BYTES = 256 << 20
#: No space on the device, quota exceeded, file too large.
_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_OWN_SUFFIXES = (".lock", ".json", ".part")
#: In no path that Label Studio makes; some systems take a backslash for a slash.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\]")
#: Label Studio's addresses of uploads and local files.
_UPLOADS, _LOCAL_FILES = "/data/upload/", "/data/local-files"


class Authenticated(Protocol):
    """The part of the API client that downloads need."""

    url: str

    def auth_headers(self) -> dict[str, str]: ...

    def local_files_folders(self, project_id: int) -> Sequence[str]: ...


def canonical_uri(uri: str, label_studio_url: str = "") -> str:
    """Normalise a media address, so that one video has one address.

    Label Studio's API rewrites cloud URIs to resolver paths (``/tasks/7/resolve/?fileuri=<base64>``) that differ per
    task, and uploads may include its host. Both are undone.

    Raises:
        MediaError: the address is malformed.
    """
    uri = uri.strip()
    parts = _split(uri)
    if label_studio_url and parts.path.startswith("/") and _same_host(uri, label_studio_url):
        uri = parts.path + (f"?{parts.query}" if parts.query else "")
        parts = _split(uri)
    if not parts.scheme and parts.path.rstrip("/").rsplit("/", 1)[-1] in ("resolve", "presign"):
        encoded = parse_qs(parts.query).get("fileuri", [""])[0]
        try:
            decoded = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
            _split(decoded)
            return decoded
        except (binascii.Error, UnicodeDecodeError, ValueError):
            log.debug("Not a resolver path: %s", uri)
    return uri


def public_uri(uri: str) -> str:
    """Return a media address without credentials and signatures, for messages and logs."""
    parts = urlsplit(uri)
    if not parts.netloc:
        return uri
    return f"{parts.scheme}://{_server(uri)}{parts.path}"


@dataclass(frozen=True, slots=True)
class _Source:
    """The URL to download a media URI from."""

    url: str
    send_auth: bool
    any_host_after_redirect: bool = False


#: Storages redirect once or twice.
MAX_REDIRECTS = 5


class MediaStore:
    """Finds or downloads media. The cache is shared by all processes with the same ``data_dir``.

    Args:
        should_stop: polled during downloads.
        unreachable: servers that did not answer, added here and not tried again: only the first of a hundred videos
            on such a server takes minutes.

    Attributes:
        folder: the cache.
    """

    def __init__(
        self,
        settings: Settings,
        client: Authenticated,
        should_stop: Callable[[], bool] = lambda: False,
        unreachable: set[str] | None = None,
    ) -> None:
        self._should_stop = should_stop
        self._unreachable = set[str]() if unreachable is None else unreachable
        self._settings = settings
        self._client = client
        self.folder = settings.media_dir
        self._cache = MediaCache(self.folder, int(settings.media_cache_gb * (1 << 30)))

    def clear_cache(self) -> None:
        """Remove the copies of videos that nothing reads at the moment."""
        self._cache.clear()

    @contextlib.contextmanager
    def open(self, uri: str, task_id: int, project_id: int) -> Iterator[Path]:
        """Yield a local path of the media; the file exists while the context is open.

        Args:
            uri: value of the task's video field.
            task_id: used to resolve cloud URIs.
            project_id: of the task; uploads and local files of other projects are refused.

        Raises:
            MediaError: not allowed, refused (401, 403), not found (404), too large.
            MediaUnavailable: no response or a server error, after several attempts.
            StorageError: the file cannot be written.
            Interrupted: ``should_stop`` returned true during a download.
        """
        if not isinstance(uri, str) or not uri.strip():
            raise MediaError("The task's video field is empty.", "Set it to a URL or an upload.")
        uri = canonical_uri(uri, self._client.url)
        if file := _OwnFile.parse(uri):
            self._check_project(file, project_id)
            uri = file.uri
        if local := self.local_path(uri):
            yield local
            return
        source = self._source(uri, task_id)
        # Label Studio decides by project who may read a storage, so that a copy is the project's own.
        target = self._target(f"{project_id} {uri}" if urlsplit(uri).scheme in CLOUD_SCHEMES else uri)
        lock = target.with_suffix(".lock")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"{self.folder} cannot be created: {error.strerror}.", "Set DATA_DIR elsewhere."
            ) from error
        for _ in range(3):
            # A shared lock: others may read the file for hours, and the cache does not evict it.
            with locked(lock, exclusive=False, while_waiting=self._check_stop):
                if target.is_file():
                    os.utime(target)
                    try:
                        yield target
                    except VideoError:
                        target.unlink(missing_ok=True)  # download it again once it is repaired
                        raise
                    return
            with locked(lock, exclusive=True, while_waiting=self._check_stop):
                if not target.is_file():
                    self._download(source, target)
        # Evicted each time between the two locks.
        raise MediaUnavailable(
            f"{public_uri(uri)} was evicted from the cache while it was opened.", "Raise MEDIA_CACHE_GB."
        )

    def opener(self, project_id: int) -> Callable[[str, int], contextlib.AbstractContextManager[Path]]:
        """Return :meth:`open` for the tasks of a project."""
        return lambda uri, task_id: self.open(uri, task_id, project_id)

    def local_path(self, uri: str) -> Path | None:
        """Return the file itself if it is below ``UPLOADS_ROOT`` or ``LOCAL_FILES_ROOT``; else ``None``."""
        file = _OwnFile.parse(uri)
        if file is None:
            return None
        uploads = self._settings.uploads_root
        root = self._settings.local_files_root if file.is_local else uploads and uploads / "upload"
        return _inside(root, file.path) if root else None

    def _check_project(self, file: _OwnFile, project_id: int) -> None:
        if not file.is_local:
            owner = file.path.parts[0]
            if owner != str(project_id) or len(file.path.parts) < 2:
                raise MediaError(
                    f"The video {file.uri} is no upload of its task's project {project_id}.",
                    "Upload it to that project and correct the task.",
                )
            return
        root = self._settings.local_files_root
        if not any(
            _is_served(file.path.parent, PurePosixPath(folder), root)
            for folder in self._client.local_files_folders(project_id)
        ):
            raise MediaRefused(
                f"The video {file.uri} is in no local files storage of its task's project {project_id}.",
                "Add its folder there (Settings → Cloud Storage → Local files), or use import_videos.py --local-files.",
            )

    def _source(self, uri: str, task_id: int) -> _Source:
        parts = urlsplit(uri)
        base = self._client.url
        if parts.scheme in CLOUD_SCHEMES:
            encoded = base64.urlsafe_b64encode(uri.encode()).decode()
            # Label Studio responds with the bytes, or a redirect to a signed URL on the storage's host.
            return _Source(f"{base}/tasks/{task_id}/resolve/?fileuri={quote(encoded)}", True, True)
        if parts.scheme in ("http", "https"):
            self._check_host(uri)
            return _Source(uri, _same_host(uri, base))
        if _OwnFile.parse(uri):
            return _Source(base + uri, True)
        raise MediaError(
            f"The video address {public_uri(uri)[:200]!r} is of a kind that is not supported.",
            "Use an upload, a local-files or cloud storage of Label Studio, or an http(s) URL.",
        )

    def _check_host(self, url: str) -> None:
        parts = urlsplit(url)
        host = (parts.hostname or "").lower()
        host = f"[{host}]" if ":" in host else host
        usual = parts.port in (None, {"http": 80, "https": 443}.get(parts.scheme))
        server = host if usual else f"{host}:{parts.port}"
        if not {server, f"{host}:*"} & set(self._settings.media_allowed_hosts):
            raise MediaRefused(
                f"Videos are not fetched from the host {server!r}.",
                f"Add {server} to MEDIA_ALLOWED_HOSTS if you trust it.",
            )

    def _check_stop(self) -> None:
        if self._should_stop():
            raise Interrupted("Stopped while waiting for a video.", "Run it again: downloads resume where they were.")

    def _target(self, uri: str) -> Path:
        suffix = PurePosixPath(urlsplit(uri).path).suffix
        # A hash: only a plain suffix of the address becomes part of the path.
        plain = suffix[1:].isascii() and suffix[1:].isalnum() and len(suffix) <= 6
        safe = suffix.lower() if plain and suffix.lower() not in _OWN_SUFFIXES else ".media"
        return self.folder / (hashlib.sha256(uri.encode()).hexdigest()[:40] + safe)

    # -- download

    def _download(self, source: _Source, target: Path) -> None:
        if (server := _server(source.url)) in self._unreachable:
            raise MediaUnavailable(
                f"The video cannot be fetched from {server}: it did not answer a moment ago.",
                "Check that the host is reachable from this machine.",
            )
        part = target.with_name(target.name + ".part")
        meta = target.with_name(target.name + ".part.json")
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._stream_unless_stopped(source, part, meta)
                break
            except MediaUnavailable as error:
                if attempt == ATTEMPTS:
                    if _is_unreachable(error.__cause__, source.url):
                        self._unreachable.add(server)
                    raise
                self._check_stop()
                time.sleep(0.2 * 2**attempt)  # the next attempt resumes the download
        part.replace(target)
        meta.unlink(missing_ok=True)
        self._cache.trim(keep=target)
        self._check_stop()  # a short download ends before it is asked

    def _stream_unless_stopped(self, source: _Source, part: Path, meta: Path) -> None:
        """Stream in a thread, and leave it to its timeout when asked to stop: a server may be silent for long."""
        transfer = _Transfer()

        def stream() -> None:
            try:
                self._stream(source, part, meta, transfer)
            except BaseException as error:  # noqa: BLE001 - raised by the thread that waits
                transfer.error = error

        thread = threading.Thread(target=stream, name="download", daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(POLL_S)
                if thread.is_alive():
                    self._check_stop()
        finally:
            transfer.abandon()
        if transfer.error:
            raise transfer.error

    def _stream(self, source: _Source, part: Path, meta: Path, transfer: _Transfer) -> None:
        import httpx

        validator = _read_validator(meta)
        done = part.stat().st_size if validator and part.is_file() else 0
        headers = {"Accept-Encoding": "identity"}
        if done:
            headers |= {"Range": f"bytes={done}-", "If-Range": validator}
        if source.send_auth:
            headers |= self._client.auth_headers()  # httpx drops it on redirects to other hosts

        def check(request: httpx.Request) -> None:
            url = str(request.url)
            if _split(url).scheme not in ("http", "https"):
                raise httpx.UnsupportedProtocol(request.url.scheme)
            if _same_host(url, self._client.url):
                # A redirect must not lead to another of Label Studio's addresses.
                if _path(url) != _path(source.url) or not source.send_auth:
                    raise MediaError(f"{_server(source.url)} redirects into Label Studio, which is not followed.")
            elif not source.any_host_after_redirect:
                self._check_host(url)

        try:
            with (
                httpx.Client(timeout=TIMEOUT_S, event_hooks={"request": [check]}) as http,
                contextlib.closing(_follow(http, http.build_request("GET", source.url, headers=headers))) as response,
            ):
                if response.status_code == 416 or not _resumes_at(response, done):
                    with transfer.writing():
                        meta.unlink(missing_ok=True)  # the next attempt starts over
                    raise MediaUnavailable(f"{_server(source.url)} does not resume the download.")
                self._check_status(response)
                self._receive(response, part, meta, done if response.status_code == 206 else 0, transfer)
        except (httpx.TooManyRedirects, httpx.UnsupportedProtocol) as error:
            raise MediaError("The video's address redirects in circles or to something that is not http.") from error
        except (httpx.InvalidURL, UnicodeError) as error:
            raise MediaError(f"The address {shown_url(source.url)[:200]!r} is malformed.") from error
        except httpx.HTTPError as error:
            where = _server(source.url)
            raise MediaUnavailable(
                f"The video cannot be fetched from {where}: {error.__class__.__name__}.",
                "Check that the host is reachable from this machine.",
            ) from error

    def _check_status(self, response: httpx.Response) -> None:
        status = response.status_code
        if status in (200, 206):
            return
        name = _server(str(response.url)) + urlsplit(str(response.url)).path
        if status in (401, 403):
            # Storages also refuse access to missing files.
            kind = MediaRefused if _same_host(str(response.url), self._client.url) else MediaError
            raise kind(f"{name} refuses access ({status}).", "Check LABEL_STUDIO_API_KEY and the storage's rights.")
        if status in (404, 410):
            raise MediaError(f"{name} does not exist ({status}).", "Import the video again or correct the task.")
        if status >= 500 or status in (408, 416, 429):
            raise MediaUnavailable(f"{name} fails ({status}).", "See that server's log.")
        raise MediaError(f"{name} responds with status {status}.")

    def _receive(self, response: httpx.Response, part: Path, meta: Path, done: int, transfer: _Transfer) -> None:
        limit = int(self._settings.media_max_gb * (1 << 30))
        length = int(response.headers.get("content-length") or 0)
        expected = done + length if length else 0
        if max(expected, done) > limit:
            raise self._too_large()
        if "text/html" in response.headers.get("content-type", ""):
            raise MediaError(
                f"{_server(str(response.url))} responds with a web page instead of a video.",
                "Check the address and the token: it may be a login page.",
            )
        try:
            with transfer.writing():
                if not done:
                    part.unlink(missing_ok=True)  # starting over: free its space
                self._cache.make_room(length or CHECK_BYTES, keep=part)
                # If-Range requires a strong validator.
                etag = response.headers.get("etag", "")
                validator = etag if etag and not etag.startswith("W/") else response.headers.get("last-modified", "")
                if validator:
                    meta.write_text(json.dumps({"validator": validator}))
                else:
                    meta.unlink(missing_ok=True)
            checked = timed = done
            started = time.monotonic()
            with part.open("ab" if done else "wb") as file:
                for chunk in response.iter_raw():
                    done += len(chunk)
                    if done > limit:
                        raise self._too_large()
                    with transfer.writing():
                        file.write(chunk)
                        file.flush()
                    if (waited := time.monotonic() - started) >= TIMEOUT_S:
                        if done - timed < MIN_RATE * waited:
                            raise MediaUnavailable(
                                f"{_server(str(response.url))} sends less than {MIN_RATE >> 10} KiB/s.",
                                "See what slows it down; the next attempt resumes the download.",
                            )
                        timed, started = done, time.monotonic()
                    if done - checked >= CHECK_BYTES and done != expected:
                        checked = done
                        self._cache.make_room(min(CHECK_BYTES, expected - done) if expected else CHECK_BYTES, keep=part)
        except (StorageError, MediaRefused):
            with transfer.writing():
                _discard(part, meta)  # an incomplete file must not use up the disk
            raise
        except OSError as error:
            if error.errno in _FULL_ERRNOS:
                with transfer.writing():
                    _discard(part, meta)
            raise StorageError(f"{part} cannot be written: {error.strerror}.", "Free some disk space.") from error
        if expected and done != expected:
            raise MediaUnavailable(f"The download stopped at {done} of {expected} bytes.")

    def _too_large(self) -> MediaError:
        return MediaRefused(f"The video is larger than {self._settings.media_max_gb} GB.", "Raise MEDIA_MAX_GB.")


class _Abandoned(Exception):
    """Nobody waits for the download any more."""


class _Transfer:
    """What a download's thread and the one that waits for it share.

    Attributes:
        error: with which the download failed.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self._lock = threading.Lock()
        self._abandoned = False

    def abandon(self) -> None:
        """End the download at its next byte. From now on it writes nothing: another may write the same file."""
        with self._lock:
            self._abandoned = True

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Permit changes to files during the block.

        Raises:
            _Abandoned: nobody waits for them any more.
        """
        with self._lock:
            if self._abandoned:
                raise _Abandoned
            yield


@dataclass(frozen=True, slots=True)
class _OwnFile:
    """An upload or a local file of Label Studio.

    Attributes:
        is_local: of a local files storage.
        path: below the folder of all uploads, or below LOCAL_FILES_DOCUMENT_ROOT.
    """

    is_local: bool
    path: PurePosixPath

    @classmethod
    def parse(cls, uri: str) -> _OwnFile | None:
        """Parse an address without a host; ``None`` if it is no upload or local file.

        Raises:
            MediaError: it is not in normal form: ``/data/../api/`` would be another of Label Studio's addresses.
        """
        parts = _split(uri)
        if parts.scheme or parts.netloc:
            return None
        if parts.path.startswith(_UPLOADS):
            is_local, path = False, unquote(parts.path[len(_UPLOADS) :])
        elif parts.path.rstrip("/") == _LOCAL_FILES:
            is_local, path = True, parse_qs(parts.query).get("d", [""])[-1].lstrip("/")
        else:
            return None
        if any(name in ("", ".", "..") for name in path.split("/")) or _UNSAFE.search(path):
            raise MediaError(f"The video address {uri[:200]!r} is no file of Label Studio.", "Correct it in the task.")
        return cls(is_local, PurePosixPath(path))

    @property
    def uri(self) -> str:
        """Its only address."""
        path = quote(self.path.as_posix())
        return f"{_LOCAL_FILES}/?d={path}" if self.is_local else _UPLOADS + path


def _is_served(folder: PurePosixPath, storage: PurePosixPath, root: Path | None) -> bool:
    """Return whether a folder of LOCAL_FILES_DOCUMENT_ROOT is in a storage.

    Args:
        folder: relative to the root, as Label Studio sees it.
        storage: absolute, as Label Studio sees it: a folder below the root, whose address there is unknown.
        root: address of the root on this machine, which may be another one.
    """
    if root and storage.is_relative_to(root):
        return folder.is_relative_to(storage.relative_to(root))
    return any(folder.parts[:n] == storage.parts[-n:] for n in range(1, len(storage.parts)))


def _is_unreachable(error: BaseException | None, url: str) -> bool:
    """Return whether the server of the URL itself, not of a redirect, did not answer."""
    import httpx

    no_response = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.ReadTimeout)
    return no_response and isinstance(error, httpx.RequestError) and _same_host(str(error.request.url), url)


def _split(uri: str) -> SplitResult:
    try:
        parts = urlsplit(uri)
        parts.port  # noqa: B018 - read for its check
        uri.encode()
    except ValueError as error:
        raise MediaError(f"The address {shown_url(uri)[:200]!r} is malformed.", "Correct it in the task.") from error
    return parts


def _server(url: str) -> str:
    """Return host and port, without user and password."""
    return urlsplit(url).netloc.rpartition("@")[2]


def _path(url: str) -> str:
    return urlsplit(url).path.rstrip("/")


def _same_host(url: str, base: str) -> bool:
    def origin(address: str) -> tuple[str, str | None, int | None]:
        parts = urlsplit(address)
        return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)

    return origin(url) == origin(base)


def _inside(root: Path, relative: PurePosixPath) -> Path | None:
    """Return ``root/relative`` if it is a file below ``root`` after resolving links, else ``None``."""
    try:
        path = (root / relative).resolve()
        return path if path.is_relative_to(root.resolve()) and path.is_file() else None
    except (OSError, ValueError, RuntimeError) as error:  # name too long, null byte, circular links
        log.debug("Not a file: %r: %s", str(relative)[:200], error)
        return None


def _read_validator(meta: Path) -> str:
    """Return the validator of a partial download; empty without a valid one."""
    try:
        validator = json.loads(meta.read_text(encoding="utf-8"))["validator"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.debug("No partial download beside %s: %s", meta, error)
        return ""
    return validator if isinstance(validator, str) and validator.isascii() and validator.isprintable() else ""


def _follow(http: httpx.Client, request: httpx.Request) -> httpx.Response:
    """Follow redirects, without reading their bodies, which may be endless."""
    import httpx

    for _ in range(MAX_REDIRECTS + 1):
        response = http.send(request, stream=True)
        if response.next_request is None:
            return response
        response.close()
        request = response.next_request
    raise httpx.TooManyRedirects("", request=request)


def _resumes_at(response: httpx.Response, done: int) -> bool:
    """Return whether a partial response starts exactly at ``done``; some caches round ranges down."""
    if response.status_code != 206:
        return True
    content_range: str = response.headers.get("content-range", "")
    return content_range.replace(" ", "").startswith(f"bytes{done}-")


def _discard(part: Path, meta: Path) -> None:
    """Delete a partial download."""
    for file in (part, meta):
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s cannot be removed: %s", file, error)


# -- cache


class MediaCache:
    """An LRU cache of files in a folder that processes share; locked files are not evicted.

    Args:
        limit: maximum total size in bytes.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self._limit = folder, limit

    def trim(self, keep: Path) -> None:
        """Remove the least recently used files, except ``keep`` and files in use, until the cache fits its limit."""
        entries = self._entries()
        self._evict(entries, sum(size for _, size, _ in entries) - self._limit, keep)

    def clear(self) -> None:
        """Remove all files that are not in use.

        Raises:
            StorageError: one cannot be removed.
        """
        for _, _, file in self._entries() if self.folder.is_dir() else ():
            try:
                _remove_unused(file)
            except OSError as error:
                raise StorageError(
                    f"{file} cannot be removed: {error.strerror}.", "Check the rights of its folder; then repeat it."
                ) from error

    def make_room(self, wanted: int, keep: Path) -> None:
        """Remove least recently used files until ``wanted`` bytes and :data:`SPARE_BYTES` are free on the disk.

        The disk may be smaller than the cache's limit, so that the cache alone could fill it.

        Args:
            wanted: bytes.
            keep: the current download.

        Raises:
            StorageError: there is not enough space.
        """
        missing = self._missing(wanted)
        if missing <= 0:
            return
        entries = [entry for entry in self._entries() if entry[2] != keep]
        # Evict nothing if all of it would not be enough.
        if sum(size for _, size, _ in entries) >= missing:
            self._evict(entries, missing, keep)
        if self._missing(wanted) > 0:
            raise StorageError(
                f"No room in {self.folder} for {wanted / 1e9:.2f} GB.",
                "Free some disk space, or set DATA_DIR on a larger disk.",
            )

    def _missing(self, wanted: int) -> int:
        return wanted + SPARE_BYTES - shutil.disk_usage(self.folder).free

    def _entries(self) -> list[tuple[float, int, Path]]:
        """Return last use, size and path of every file, including partial downloads."""
        entries = []
        for file in self.folder.iterdir():
            if file.suffix in (".lock", ".json") or not file.is_file():
                continue
            with contextlib.suppress(FileNotFoundError):  # another process evicts too
                stat = file.stat()
                entries.append((stat.st_mtime, stat.st_size, file))
        return entries

    def _evict(self, entries: list[tuple[float, int, Path]], excess: int, keep: Path) -> None:
        for _, size, file in sorted(entries):
            if excess <= 0:
                return
            if file != keep and _remove_unused(file):
                log.debug("%s was evicted from the cache", file)
                excess -= size


@contextlib.contextmanager
def locked(path: Path, *, exclusive: bool, while_waiting: Callable[[], None] | None = None) -> Iterator[IO[bytes]]:
    """Hold a lock file.

    Args:
        while_waiting: called every half a second while another process holds it; may raise.

    Raises:
        StorageError: the file cannot be created.
        BlockingIOError: another process holds it, and there is no ``while_waiting``.
    """
    try:
        file = path.open("ab")
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror}.", "Check DATA_DIR's rights and space."
        ) from error
    with file:
        mode = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        while True:
            try:
                fcntl.flock(file, mode | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if while_waiting is None:
                    raise
            while_waiting()
            time.sleep(POLL_S)
        yield file


def _remove_unused(file: Path) -> bool:
    base = file.with_name(file.name.removesuffix(".part"))
    try:
        with locked(base.with_suffix(".lock"), exclusive=True):
            file.unlink(missing_ok=True)
            file.with_name(file.name + ".json").unlink(missing_ok=True)
        return True
    except BlockingIOError:
        return False  # in use
