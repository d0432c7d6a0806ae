"""From a task's video field to a local file: in place where visible, else a streamed, cached download."""

from __future__ import annotations

import base64
import binascii
import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol
from urllib.parse import SplitResult, parse_qs, quote, unquote, urlsplit

from ml_backend.errors import Interrupted, MediaError, MediaRefused, MediaUnavailable, StorageError, VideoError
from ml_backend.settings import Settings

if TYPE_CHECKING:
    import httpx

log = logging.getLogger(__name__)

CLOUD_SCHEMES = frozenset({"s3", "gs", "azure-blob", "azure_spi", "dbfs", "gcs"})
ATTEMPTS = 4
#: Without a byte, before a download is tried again: stores that fetch a file from their archive are silent at first.
TIMEOUT_S = 30.0
#: Bytes between two looks at the room that is left: others write on the disk too, and not every server says how much
#: will come.
CHECK_BYTES = 64 << 20
#: Room that a download leaves on the disk for databases and logs.
SPARE_BYTES = 256 << 20
_OWN_SUFFIXES = (".lock", ".part")


class Authenticated(Protocol):
    """What is needed of the API client; files that are not Label Studio's have none."""

    url: str

    def auth_headers(self) -> dict[str, str]: ...


def canonical_uri(uri: str, label_studio_url: str = "") -> str:
    """The same name for the same media, however Label Studio spells it.

    Label Studio's API rewrites cloud URIs to resolver paths (``/tasks/7/resolve/?fileuri=<base64>``) that differ per
    task, and uploads may carry its host. Both are undone here, so that one video has one identity.

    Raises:
        MediaError: no address can be made of it.
    """
    uri = uri.strip()
    if label_studio_url and uri.startswith(label_studio_url.rstrip("/") + "/"):
        uri = uri[len(label_studio_url.rstrip("/")) :]
    parts = _split(uri)
    if not parts.scheme and parts.path.rstrip("/").rsplit("/", 1)[-1] in ("resolve", "presign"):
        encoded = parse_qs(parts.query).get("fileuri", [""])[0]
        try:
            decoded = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
            _split(decoded)
            return decoded
        except (binascii.Error, UnicodeDecodeError, ValueError):
            log.debug("Not a resolver path after all: %s", uri)
    return uri


def public_uri(uri: str) -> str:
    """A media address without what may be secret in it, for messages and logs: credentials and signatures."""
    parts = urlsplit(uri)
    if not parts.netloc:
        return uri
    return f"{parts.scheme}://{_server(uri)}{parts.path}"


@dataclass(frozen=True, slots=True)
class _Source:
    """Where the bytes of a media URI come from."""

    url: str
    send_auth: bool
    any_host_after_redirect: bool = False


class MediaStore:
    """Finds or downloads media. Files of the cache are shared by all processes on one ``data_dir``.

    Args:
        silent: servers that did not answer at all, which are not asked again; empty when omitted. Of a hundred videos
            of a server that is away the first one takes minutes, the others none.
    """

    def __init__(
        self,
        settings: Settings,
        client: Authenticated,
        should_stop: Callable[[], bool] = lambda: False,
        silent: set[str] | None = None,
    ) -> None:
        self._should_stop = should_stop
        self._silent = set[str]() if silent is None else silent
        self._settings = settings
        self._client = client
        self._dir = settings.media_dir

    @contextlib.contextmanager
    def open(self, uri: str, task_id: int) -> Iterator[Path]:
        """A local path for the media; the file stays as long as the context is open.

        Args:
            uri: value of the task's video field.
            task_id: Label Studio resolves cloud URIs per task.

        Raises:
            MediaError: not allowed, refused (401, 403), not there (404), too large.
            MediaUnavailable: no answer or a server's error, after several tries.
            StorageError: the disk does not take it.
            Interrupted: ``should_stop`` said so during a download.
        """
        if not isinstance(uri, str) or not uri.strip():
            raise MediaError("The task's video field is empty.", "Put a URL or an upload there.")
        uri = canonical_uri(uri, self._client.url)
        if local := self.local_path(uri):
            yield local
            return
        source = self._source(uri, task_id)
        target = self._target(uri)
        lock = target.with_suffix(".lock")
        try:
            self._dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{self._dir} cannot be made: {error.strerror}.", "Set DATA_DIR elsewhere.") from error
        for _ in range(3):
            # Shared: others read it too, possibly for hours, and the clean-up of the cache passes it over.
            with locked(lock, exclusive=False):
                if target.is_file():
                    os.utime(target)
                    try:
                        yield target
                    except VideoError:
                        target.unlink(missing_ok=True)  # mended at its source, it is to be fetched anew
                        raise
                    return
            with locked(lock, exclusive=True):
                if not target.is_file():
                    self._download(source, target)
        # Removed again and again in the moment between the two locks.
        raise MediaUnavailable(f"{public_uri(uri)} left the cache while it was opened.", "Raise MEDIA_CACHE_GB.")

    def local_path(self, uri: str) -> Path | None:
        """The file itself, if it lies under a folder that the operator made visible; else ``None``."""
        parts = urlsplit(uri)
        if parts.scheme or parts.netloc:
            return None
        settings = self._settings
        if parts.path.startswith("/data/upload/") and settings.uploads_root:
            return _inside(settings.uploads_root / "upload", unquote(parts.path[len("/data/upload/") :]))
        if parts.path.rstrip("/") == "/data/local-files" and settings.local_files_root:
            return _inside(settings.local_files_root, parse_qs(parts.query).get("d", [""])[0])
        return None

    def _source(self, uri: str, task_id: int) -> _Source:
        parts = urlsplit(uri)
        base = self._client.url
        if parts.scheme in CLOUD_SCHEMES:
            encoded = base64.urlsafe_b64encode(uri.encode()).decode()
            # Label Studio answers with the bytes or a redirect to a signed URL of the storage's own host.
            return _Source(f"{base}/tasks/{task_id}/resolve/?fileuri={quote(encoded)}", True, True)
        if parts.scheme in ("http", "https"):
            self._check_host(uri)
            return _Source(uri, _same_host(uri, base))
        if not parts.scheme and parts.path.startswith("/data/"):
            return _Source(base + uri, True)
        raise MediaError(
            f"The video address {public_uri(uri)[:200]!r} is of a kind that is not fetched.",
            "Use an upload, a local-files or cloud storage of Label Studio, or an http(s) URL.",
        )

    def _check_host(self, url: str) -> None:
        host = (urlsplit(url).hostname or "").lower()
        if not _same_host(url, self._client.url) and host not in self._settings.media_allowed_hosts:
            raise MediaRefused(
                f"Videos are not fetched from the host {host!r}.", "Add it to MEDIA_ALLOWED_HOSTS if you trust it."
            )

    def _target(self, uri: str) -> Path:
        suffix = PurePosixPath(urlsplit(uri).path).suffix
        # The name is a hash: nothing of a request becomes part of a path but a plain suffix.
        plain = suffix[1:].isascii() and suffix[1:].isalnum() and len(suffix) <= 6
        safe = suffix.lower() if plain and suffix.lower() not in _OWN_SUFFIXES else ".media"
        return self._dir / (hashlib.sha256(uri.encode()).hexdigest()[:40] + safe)

    # -- download

    def _download(self, source: _Source, target: Path) -> None:
        if (server := _server(source.url)) in self._silent:
            raise MediaUnavailable(
                f"The video cannot be fetched from {server}: it did not answer a moment ago.",
                "Check that the host is reachable from this machine.",
            )
        part = target.with_name(target.name + ".part")
        try:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    self._stream(source, part)
                    break
                except MediaUnavailable as error:
                    if attempt == ATTEMPTS:
                        if _is_silent(error.__cause__, source.url):
                            self._silent.add(server)
                        raise
                    time.sleep(0.2 * 2**attempt)
            part.replace(target)
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)  # what nobody completes takes no room

    def _stream(self, source: _Source, part: Path) -> None:
        import httpx

        headers = {"Accept-Encoding": "identity"}
        if source.send_auth:
            headers |= self._client.auth_headers()  # httpx gives it to no other host that an answer leads to

        def check(request: httpx.Request) -> None:
            if _split(str(request.url)).scheme not in ("http", "https"):
                raise httpx.UnsupportedProtocol(request.url.scheme)
            if not source.any_host_after_redirect:
                self._check_host(str(request.url))

        try:
            with (
                httpx.Client(
                    timeout=TIMEOUT_S,
                    follow_redirects=True,
                    max_redirects=5,
                    event_hooks={"request": [check]},
                ) as http,
                http.stream("GET", source.url, headers=headers) as response,
            ):
                self._check_status(response)
                self._receive(response, part)
        except (httpx.TooManyRedirects, httpx.UnsupportedProtocol) as error:
            raise MediaError("The video's address redirects in circles or to something that is not http.") from error
        except (httpx.InvalidURL, UnicodeError) as error:
            raise MediaError(f"The address {public_uri(source.url)[:200]!r} is malformed: {error}.") from error
        except httpx.HTTPError as error:
            where = _server(source.url)
            raise MediaUnavailable(
                f"The video cannot be fetched from {where}: {error.__class__.__name__}.",
                "Check that the host is reachable from this machine.",
            ) from error

    def _check_status(self, response: httpx.Response) -> None:
        status = response.status_code
        if status == 200:
            return
        name = _server(str(response.url)) + urlsplit(str(response.url)).path
        if status in (401, 403):
            # Storages refuse what is not there, too: that is not waited for.
            kind = MediaRefused if _same_host(str(response.url), self._client.url) else MediaError
            raise kind(f"{name} refuses access ({status}).", "Check LABEL_STUDIO_API_KEY and the storage's rights.")
        if status in (404, 410):
            raise MediaError(f"{name} does not exist ({status}).", "Import the video again or correct the task.")
        if status >= 500 or status in (408, 429):
            raise MediaUnavailable(f"{name} fails ({status}).", "See that server's log.")
        raise MediaError(f"{name} answers with status {status}.")

    def _receive(self, response: httpx.Response, part: Path) -> None:
        limit = int(self._settings.media_max_gb * (1 << 30))
        expected = int(response.headers.get("content-length") or 0)
        if expected > limit:
            raise self._too_large()
        if "text/html" in response.headers.get("content-type", ""):
            raise MediaError(
                f"{_server(str(response.url))} answers with a web page instead of a video.",
                "Check the address and the token; a login page looks like this.",
            )
        done = checked = 0
        try:
            part.unlink(missing_ok=True)  # of an earlier try: its room is free
            self._make_room(expected or CHECK_BYTES)
            with part.open("wb") as file:
                for chunk in response.iter_raw():
                    done += len(chunk)
                    if done > limit:
                        raise self._too_large()
                    file.write(chunk)
                    if self._should_stop():
                        raise Interrupted(f"Stopped after {done} bytes.", "The download begins again with its job.")
                    if done - checked >= CHECK_BYTES and done != expected:
                        checked = done
                        self._make_room(min(CHECK_BYTES, expected - done) if expected else CHECK_BYTES)
        except OSError as error:
            raise StorageError(f"{part} cannot be written: {error.strerror}.", "Free some disk space.") from error
        if expected and done != expected:
            raise MediaUnavailable(f"The download stopped at {done} of {expected} bytes.")

    def _make_room(self, wanted: int) -> None:
        """Remove the least recently used files until so many bytes more fit into the cache, and onto the disk.

        The disk may be smaller than what the cache is allowed: without this, the cache alone would fill it for good.
        Files whose lock somebody holds stay, the one that is being downloaded among them.

        Raises:
            StorageError: the disk has no room even so.
        """

        def missing() -> int:
            return wanted + SPARE_BYTES - shutil.disk_usage(self._dir).free

        entries = []
        for file in self._dir.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process evicts too
                if file.suffix != ".lock":
                    stat = file.stat()
                    entries.append((stat.st_mtime, stat.st_size, file))
        held, short = sum(size for _, size, _ in entries), missing()
        # Where all of it would not be enough for the disk, nothing is thrown away in vain.
        excess = max(short if held >= short else 0, held + wanted - int(self._settings.media_cache_gb * (1 << 30)))
        for _, size, file in sorted(entries):
            if excess <= 0:
                break
            if _remove_unused(file):
                log.debug("%s left the cache", file)
                excess -= size
        if missing() > 0:
            raise StorageError(
                f"No room in {self._dir} for {wanted / 1e9:.2f} GB.",
                "Free some disk space, or set DATA_DIR on a larger disk.",
            )

    def _too_large(self) -> MediaError:
        return MediaRefused(f"The video is larger than {self._settings.media_max_gb} GB.", "Raise MEDIA_MAX_GB.")


def _is_silent(error: BaseException | None, url: str) -> bool:
    """Whether a download failed because the address' own server, not one that it leads to, did not answer."""
    import httpx

    silent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.ReadTimeout)
    return silent and isinstance(error, httpx.RequestError) and _same_host(str(error.request.url), url)


def _split(uri: str) -> SplitResult:
    try:
        parts = urlsplit(uri)
        parts.port  # noqa: B018 - read for its check
        uri.encode()
    except ValueError as error:
        raise MediaError(f"The address {uri[:200]!r} is malformed: {error}.", "Correct it in the task.") from error
    return parts


def _server(url: str) -> str:
    """Host and port, without user and password."""
    return urlsplit(url).netloc.rpartition("@")[2]


def _same_host(url: str, base: str) -> bool:
    def place(address: str) -> tuple[str, str | None, int | None]:
        parts = urlsplit(address)
        return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)

    return place(url) == place(base)


def _inside(root: Path, relative: str) -> Path | None:
    """``root/relative`` if that is a file below ``root`` after all links are followed, else ``None``."""
    try:
        path = (root / relative.lstrip("/")).resolve()
        return path if path.is_relative_to(root.resolve()) and path.is_file() else None
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, links in a circle
        log.debug("Not a file: %r: %s", relative[:200], error)
        return None


# -- the folder of downloads, which all processes share


@contextlib.contextmanager
def locked(path: Path, *, exclusive: bool, wait: bool = True) -> Iterator[None]:
    """Hold a lock file.

    Raises:
        StorageError: it cannot be made.
        BlockingIOError: somebody else holds it, and ``wait`` is false.
    """
    try:
        file = path.open("ab")
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror}.", "Check DATA_DIR's rights and space."
        ) from error
    with file:
        mode = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        fcntl.flock(file, mode if wait else mode | fcntl.LOCK_NB)
        yield


def _remove_unused(file: Path) -> bool:
    base = file.with_name(file.name.removesuffix(".part"))
    try:
        with locked(base.with_suffix(".lock"), exclusive=True, wait=False):
            file.unlink(missing_ok=True)
        return True
    except BlockingIOError:
        return False  # somebody reads it
