"""Bounds of what slow clients may occupy: threads that receive long bodies, send files, or wait for jobs."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from flask import Flask, Response, g, request

from ml_backend.core.errors import BackendError

#: Threads of the web process.
THREADS = 104
#: Of these, as many at most receive uploads, receive other long bodies, send files, wait for jobs, for drawn boxes, and
#: for the next picture of a camera, which they send, too.
#: The others are for requests that need milliseconds, such as webhooks, for which Label Studio waits a second.
UPLOADS, BODIES, DOWNLOADS, WAITS, DRAWINGS, PICTURES = 8, 8, 24, 16, 16, 16
#: Bodies of up to so many bytes are received before a thread begins with their request.
BUFFERED_BYTES = 256 << 10
#: Seconds after which a client that neither sends nor receives is given up.
STALL_S = 120.0
#: Bytes a second that a client has to send on average, and the seconds at the beginning for which it may be slower.
MIN_RATE, GRACE_S = 16 << 10, 60.0


class Busy(BackendError):
    """Too many requests of this kind are in progress."""

    http_status = 503


class TooSlow(BackendError):
    """The client sends its request too slowly."""

    http_status = 408


class Slots:
    """A number of requests of one kind that may be in progress at once."""

    def __init__(self, count: int, what: str) -> None:
        self._free, self._what = threading.BoundedSemaphore(count), what

    def take(self) -> None:
        """Take a slot.

        Raises:
            Busy: none is free.
        """
        if not self._free.acquire(blocking=False):
            raise Busy(f"There are too many {self._what} at the moment.", "Try again in a few seconds.")

    def release(self) -> None:
        self._free.release()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Take a slot for the block; raises as :meth:`take`."""
        self.take()
        try:
            yield
        finally:
            self.release()


def may_be_slow(length: str | None, encoding: str | None, expect: str | None) -> bool:
    """Return whether a thread may have to wait for a request's body, by the values of its headers.

    Args:
        length: Content-Length.
        encoding: Transfer-Encoding.
        expect: Expect.
    """
    size = (length or "").strip()
    return bool(encoding or expect) or (size.isdecimal() and int(size) > BUFFERED_BYTES)


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def paced(receive: Callable[..., bytes]) -> Callable[..., bytes]:
    """Return a function that receives a body part by part, and raises TimeoutError below :data:`MIN_RATE`."""
    begin, received = time.monotonic(), 0

    def chunk(size_hint: int | None = None) -> bytes:
        nonlocal received
        part = receive(size_hint)
        received += len(part)
        if time.monotonic() - begin > GRACE_S + received / MIN_RATE:
            raise TimeoutError
        return part

    return chunk


class BoundedBody(io.RawIOBase):
    """The body of a request, whose reading ends with :class:`TooSlow` where the server gives it up."""

    def __init__(self, body: _Readable) -> None:
        self._body = body

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Read into ``buffer``.

        Raises:
            TooSlow: the body does not arrive in time.
        """
        try:
            part = self._body.read(len(buffer))
        except TimeoutError as error:
            raise TooSlow(
                f"Nothing was received for {STALL_S:.0f} s, or less than {MIN_RATE >> 10} kB/s.",
                "Send it by a faster connection.",
            ) from error
        buffer[: len(part)] = part
        return len(part)


def bound_bodies(app: Flask) -> None:
    """Let only some requests with long bodies in at once, and give up those that are too slow."""
    slots = {True: Slots(UPLOADS, "uploads"), False: Slots(BODIES, "requests with long bodies")}

    @app.before_request
    def take() -> None:
        headers = request.headers
        names = ("Content-Length", "Transfer-Encoding", "Expect")
        if may_be_slow(*(headers.get(name) for name in names)):
            kind = slots[request.mimetype == "multipart/form-data"]
            kind.take()
            g.body_slots = kind
            request.environ["wsgi.input"] = BoundedBody(request.environ["wsgi.input"])

    @app.teardown_request
    def release(_error: BaseException | None) -> None:
        if (kind := g.pop("body_slots", None)) is not None:
            kind.release()


def send(slots: Slots, make: Callable[[], Response]) -> Response:
    """Return an answer that is made, and sent, with a slot: until the server closes it, so if its client is gone.

    Raises:
        Busy: no slot is free.
    """
    slots.take()
    try:
        response = make()
    except BaseException:
        slots.release()
        raise
    released = threading.Event()

    def release() -> None:
        if not released.is_set():
            released.set()
            slots.release()

    if not response.direct_passthrough:
        response.call_on_close(release)
        return response
    file: Any = response.response  # of such an answer the server closes only this
    close = file.close

    def close_and_release() -> None:
        close()
        release()

    file.close = close_and_release
    return response
