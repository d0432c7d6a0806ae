"""Read a camera so that its newest frame is always at hand: frames are dropped, never queued."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import av
import av.error

from ml_backend.core.boxes import scaled_size
from ml_backend.core.errors import BackendError, ConfigError, VideoError
from ml_backend.core.types import Frame, Image
from ml_backend.core.urls import shown_url
from ml_backend.video.container import check_file, demux, select_stream
from ml_backend.video.probe import probe
from ml_backend.video.reader import read_frames

log = logging.getLogger(__name__)

#: Protocols of cameras. What they send may name other addresses (a playlist, say), but never a local file.
SCHEMES = ("rtsp", "rtsps", "http", "https", "udp", "rtp", "tcp")
_PROTOCOLS = "rtsp,rtsps,rtp,rtcp,udp,tcp,tls,http,https,httpproxy,crypto,hls"
#: Seconds until a camera must have answered, and in which it must send something.
OPEN_S, SILENT_S = 10.0, 5.0
#: Seconds without a frame after which objects cannot be followed any more.
GAP_S = 2.0
#: Seconds from a lost camera to the first try, doubled with each failure up to the longest.
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0

SourceState = Literal["connecting", "running", "lost", "ended"]


@dataclass(slots=True)
class SourceStatus:
    """What is known of a camera.

    Attributes:
        frames: received ones.
        times_lost: how often the connection was lost, or could not be made.
        gaps: how often frames came after ``GAP_S`` seconds without one.
        error: why it is lost, without user and password; empty while it runs.
        since: ``time.time()`` at which the state began.
    """

    state: SourceState = "connecting"
    frames: int = 0
    times_lost: int = 0
    gaps: int = 0
    error: str = ""
    since: float = field(default_factory=time.time)

    def become(self, state: SourceState, error: str = "") -> None:
        """Change the state."""
        if state != self.state:
            self.since = time.time()
        self.state, self.error = state, error


class LiveSource:
    """A camera, read in a thread that keeps its newest frame. Use as a context manager.

    Args:
        address: URL, number or ``/dev/video*`` of a local camera, or a video file, which is played at its own pace.
        width: images are reduced to this width, px.
        repeat: whether a file begins again at its end.

    Attributes:
        name: address without user and password.
        status: changed by the thread.

    Raises:
        ConfigError: there is no such kind of address.
        VideoError: the file cannot be used.
    """

    def __init__(self, address: str, *, width: int = 1280, repeat: bool = False) -> None:
        self.name = shown_url(address)
        self.status = SourceStatus()
        self._address, self._width, self._repeat = address, width, repeat
        self._device = f"/dev/video{address}" if address.isdecimal() else address if address.startswith("/dev/") else ""
        self._file: Path | None = None
        scheme = urlsplit(address).scheme.lower() if "://" in address else ""
        if scheme and scheme not in SCHEMES:
            raise ConfigError(f"There are no cameras of {scheme}://.", f"Use one of {', '.join(SCHEMES)}.")
        if not scheme and "@" in address and not Path(address).exists():  # its password must not be shown
            raise ConfigError("A camera's address has no protocol.", f"Begin it with {'://, '.join(SCHEMES)}://.")
        if not scheme and not self._device:
            self._file = check_file(address)
            probe(self._file)
            self.name = self._file.name
        self._changed = threading.Condition()
        self._frame: Frame | None = None
        self._converting = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"camera {self.name}", daemon=True)

    def __enter__(self) -> LiveSource:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._thread.join(OPEN_S + SILENT_S)

    def stop(self) -> None:
        """End reading, without waiting for it."""
        self._stopped.set()

    def newest(self, after: int, timeout_s: float) -> Frame | None:
        """Return the newest frame.

        Args:
            after: index of the frame that is known; waits for a later one.

        Returns:
            Its ``index`` is its number among all frames that were received, from 1, its ``time`` is
            ``time.monotonic()`` at its arrival; ``None`` if none has come in time, or the source has ended.
        """

        def news() -> bool:
            return self.status.state == "ended" or (self._frame is not None and self._frame.index > after)

        with self._changed:
            self._changed.wait_for(news, timeout_s)
            frame = self._frame if self._frame is not None and self._frame.index > after else None
        if frame is not None:
            with self._converting:  # several may ask for a frame, but FFmpeg's scaler serves one at a time
                _ = frame.image
        return frame

    def _run(self) -> None:
        """Read until the end of a file or until stopped; connect again when the camera is lost."""
        pause = SHORTEST_PAUSE_S
        while not self._stopped.is_set():
            before = self.status.frames
            try:
                for image in self._file_frames() if self._file else self._camera_frames():
                    self._keep(image)
                    if self._stopped.is_set():
                        return
                error = "" if self._file else "It has ended the connection"
            except Exception as failure:  # noqa: BLE001 - whatever it sends; the log and the page say why
                error = _reason(failure)
            if self._file and (error or not self._repeat):
                self._set("ended", error)
                return
            if self.status.frames > before:
                pause = SHORTEST_PAUSE_S
            if error:
                log.warning("%s is lost: %s. Next try in %.1f s.", self.name, error, pause)
                self.status.times_lost += 1
                self._set("lost", error)
                self._stopped.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)

    def _set(self, state: SourceState, error: str = "") -> None:
        with self._changed:
            self.status.become(state, error)
            self._changed.notify_all()

    def _keep(self, image: Callable[[], Image]) -> None:
        with self._changed:
            self.status.frames += 1
            self.status.become("running")
            now = time.monotonic()
            self.status.gaps += self._frame is not None and now - self._frame.time > GAP_S
            self._frame = Frame(self.status.frames, now, image)
            self._changed.notify_all()

    def _file_frames(self) -> Iterator[Callable[[], Image]]:
        """Yield functions that convert the frames of a file, when they are due."""
        assert self._file is not None
        info = probe(self._file)
        began: float | None = None
        for frame in read_frames(self._file, info, size=self._size(info.width, info.height), lazy=True):
            began = time.monotonic() - frame.time if began is None else began
            if self._stopped.wait(max(0.0, began + frame.time - time.monotonic())):
                return
            yield partial(getattr, frame, "image")

    def _camera_frames(self) -> Iterator[Callable[[], Image]]:
        """Yield functions that convert the frames of a camera: those that are dropped are not converted."""
        with _open_camera(self._device, self._address) as container:
            stream = select_stream(self.name, container)
            stream.thread_type = "SLICE"  # threads by frame would keep as many frames back
            decoded = time.monotonic()
            for packet in demux(container, stream):
                try:
                    frames = packet.decode()
                except av.error.EOFError:
                    return
                except av.error.InvalidDataError as error:  # damaged on its way: a later key frame heals it
                    if time.monotonic() - decoded > OPEN_S:
                        raise VideoError("What it sends cannot be decoded.") from error
                    continue
                for frame in frames:
                    decoded = time.monotonic()
                    width, height = self._size(frame.width, frame.height)
                    yield partial(frame.to_ndarray, format="bgr24", width=width, height=height)

    def _size(self, width: int, height: int) -> tuple[int, int]:
        return scaled_size(width, height, min(1.0, self._width / width))


@contextmanager
def _open_camera(device: str, address: str) -> Iterator[Any]:
    if device:
        options: dict[str, Any] = {"format": "v4l2"}
    else:
        wanted = {"protocol_whitelist": _PROTOCOLS, "rtsp_flags": "prefer_tcp", "fflags": "nobuffer"}
        options = {"options": wanted, "timeout": (OPEN_S, SILENT_S), "metadata_errors": "replace"}
    container = av.open(device or address, **options)
    try:
        yield container
    finally:
        container.close()


def _reason(error: Exception) -> str:
    """Return why a camera cannot be read, without its address, which may have a password."""
    if isinstance(error, BackendError):
        return error.message.rstrip(".")
    if isinstance(error, av.error.ExitError):  # FFmpeg's word for our time limit
        return "It does not answer"
    if isinstance(error, av.error.HTTPUnauthorizedError):
        return "It refuses user or password (401)"
    return (getattr(error, "strerror", None) or type(error).__name__).rstrip(".")
