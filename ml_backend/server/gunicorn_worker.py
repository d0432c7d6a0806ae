"""A worker of gunicorn whose threads do not wait for slow clients."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections import deque
from concurrent.futures import Future
from functools import partial
from selectors import EVENT_READ
from typing import Any
from weakref import WeakKeyDictionary

from gunicorn.util import write_error
from gunicorn.workers.gthread import TConn, ThreadWorker

from ml_backend.server.slow_clients import BUFFERED_BYTES, STALL_S, may_be_slow, paced

#: Seconds until the head of a request has to be there, and a body of up to ``BUFFERED_BYTES``.
REQUEST_S = 30.0
#: Maximum bytes of a head.
HEAD_BYTES = 64 << 10
#: Seconds for which a closed connection is read, so that the client gets the end of the answer, and maximum bytes.
LINGER_S, LINGER_BYTES = 2.0, 256 << 10
_READ_BYTES = 64 << 10
_CONTENT_LENGTH = re.compile(rb"^content-length:[ \t]*0*([0-9]{1,15})[ \t]*\r?$", re.I | re.M)
_BODY_LATER = re.compile(rb"^(?:transfer-encoding|expect):", re.I | re.M)


class BufferingWorker(ThreadWorker):  # type: ignore[misc]
    """Reads heads and short bodies in the main thread, for all connections at once; threads get whole requests.

    gunicorn's own gives a connection to a thread once there is a first byte. Longer bodies are read by threads, see
    :mod:`ml_backend.server.slow_clients`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._incoming: WeakKeyDictionary[TConn, _IncomingRequest] = WeakKeyDictionary()
        self._lingering: deque[tuple[float, TConn]] = deque()
        self._drained: dict[TConn, int] = {}

    def enqueue_req(self, conn: TConn) -> None:
        """Wait until the request of a connection has been received, instead of occupying a thread."""
        if self.cfg.is_ssl:
            super().enqueue_req(conn)
            return
        # What a client has sent together with the request before.
        incoming = self._incoming[conn] = _IncomingRequest()
        incoming.add(conn.parser.unreader.take_buffered() if conn.parser else b"")
        if incoming.is_whole:
            self._submit(conn)
            return
        conn.sock.setblocking(False)
        conn.timeout = time.monotonic() + REQUEST_S
        self.pending_conns.append(conn)
        self.poller.register(conn.sock, EVENT_READ, partial(self.on_pending_socket_readable, conn))

    def on_pending_socket_readable(self, conn: TConn, client: socket.socket) -> None:
        """Receive a part of a request."""
        if self.cfg.is_ssl:
            super().on_pending_socket_readable(conn, client)
            return
        try:
            part = client.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            part = b""
        incoming = self._incoming[conn]
        incoming.add(part)
        if part and not incoming.is_whole and not incoming.is_too_long:
            return
        self.poller.unregister(client)
        self.pending_conns.remove(conn)
        if incoming.is_too_long:
            with contextlib.suppress(OSError):
                write_error(client, 431, "Request Header Fields Too Large", "")
            self._linger(conn)
        elif incoming.received:
            self._submit(conn)
        else:
            self._close(conn)

    def _submit(self, conn: TConn) -> None:
        conn.init()
        conn.parser.unreader.unread(bytes(self._incoming.pop(conn).received))
        conn.data_ready = True
        super().enqueue_req(conn)

    def handle_request(self, req: Any, conn: TConn) -> bool:
        """Answer a request, in a thread. A client that neither sends nor receives for a while is given up."""
        conn.sock.settimeout(STALL_S)
        headers = {name.upper(): value for name, value in req.headers}
        if may_be_slow(headers.get("CONTENT-LENGTH"), headers.get("TRANSFER-ENCODING"), headers.get("EXPECT")):
            req.force_close()  # else this thread would wait for the rest of a body that was refused
            conn.parser.unreader.chunk = paced(conn.parser.unreader.chunk)
        try:
            return bool(super().handle_request(req, conn))
        except TimeoutError:
            self.log.info("%s has read nothing of %s for %d s; given up.", conn.client, req.path, STALL_S)
            return False

    def finish_request(self, conn: TConn, fs: Future[Any]) -> None:
        """Keep a connection, or close it without blocking the other connections meanwhile, as gunicorn does."""
        if not fs.cancelled() and fs.exception() is None and not fs.result():
            self._linger(conn)
        else:
            super().finish_request(conn, fs)

    def _linger(self, conn: TConn) -> None:
        try:
            conn.sock.shutdown(socket.SHUT_WR)
            conn.sock.setblocking(False)
            self.poller.register(conn.sock, EVENT_READ, partial(self._drain, conn))
        except (OSError, ValueError):  # the client has closed it
            self._close(conn)
            return
        self._drained[conn] = 0
        self._lingering.append((time.monotonic() + LINGER_S, conn))

    def _drain(self, conn: TConn, client: socket.socket) -> None:
        part = b""
        with contextlib.suppress(OSError):
            part = client.recv(_READ_BYTES)
        self._drained[conn] += len(part)
        if not part or self._drained[conn] > LINGER_BYTES:
            self.poller.unregister(client)
            self._close(conn)

    def murder_pending(self) -> None:
        """Close connections whose requests did not arrive in time, and those that have lingered."""
        super().murder_pending()
        while self._lingering and self._lingering[0][0] <= time.monotonic():
            _, conn = self._lingering.popleft()
            if conn in self._drained:
                self.poller.unregister(conn.sock)
                self._close(conn)

    def _close(self, conn: TConn) -> None:
        self._drained.pop(conn, None)
        self.nr_conns -= 1
        conn.close()


class _IncomingRequest:
    """What has been received of a request."""

    def __init__(self) -> None:
        self.received = bytearray()
        self._searched, self._needed = 0, 0  # bytes; needed is 0 until the head is there

    def add(self, part: bytes) -> None:
        self.received += part
        if not self._needed and (end := self.received.find(b"\r\n\r\n", max(self._searched - 3, 0))) >= 0:
            self._needed = end + 4 + _short_body(self.received[:end])
        self._searched = len(self.received)

    @property
    def is_whole(self) -> bool:
        """Whether a thread can answer without waiting: the head is there, and the body if it is short."""
        return 0 < self._needed <= len(self.received)

    @property
    def is_too_long(self) -> bool:
        """Whether there are more bytes than a head may have, and no end of it."""
        return not self._needed and len(self.received) > HEAD_BYTES


def _short_body(head: bytes | bytearray) -> int:
    """Return the length of a request's body if it is to be received before a thread begins, else 0."""
    length = _CONTENT_LENGTH.search(head)
    if length is None or _BODY_LATER.search(head) or int(length[1]) > BUFFERED_BYTES:
        return 0
    return int(length[1])
