"""Clients that send or read slowly, by real sockets at a real server; nothing depends on how fast the machine is."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from ml_backend.cli.dev_stack.preflight import free_port
from ml_backend.cli.dev_stack.processes import BackendServer
from ml_backend.core.outputs import Outputs
from ml_backend.core.settings import Settings
from ml_backend.jobs.queue import JobQueue
from ml_backend.server import slow_clients
from ml_backend.server.access import ANYONE, Person
from ml_backend.server.pending_jobs import MAX_PENDING, MAX_PENDING_OTHERS, PendingJobs, TooMany
from ml_backend.server.slow_clients import BODIES, BUFFERED_BYTES, DOWNLOADS, THREADS, UPLOADS
from tests.builders import environment, wait_for
from tests.server.control import Room

#: More than there are threads.
MANY = THREADS + 16
EVENT = {"action": "TASKS_CREATED", "project": {"id": 7}, "tasks": [{"id": 1}]}
UPLOAD = (
    b"POST /api/upload_video HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    b"Content-Length: 10000000\r\n\r\n--b\r\n"
)
BIG = (
    b"POST /webhook HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 10000000\r\n\r\n{"
)


@pytest.fixture
def backend(settings: Callable[..., Settings], redis_url: str, tmp_path: Path) -> Iterator[BackendServer]:
    """The backend as the local stack runs it."""
    values = settings(redis_url=redis_url, detector="motion")
    server = BackendServer(port=free_port(), log_dir=tmp_path, environment=environment(values))
    server.start()
    try:
        server.wait_ready(900)
        yield server
    finally:
        server.stop(grace=0)


@contextmanager
def connections(server: BackendServer, count: int, sent: bytes) -> Iterator[list[socket.socket]]:
    """Connections that have sent something, and send nothing more."""
    with ExitStack() as stack:
        opened = []
        for _ in range(count):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=900))
            connection.sendall(sent)
            opened.append(connection)
        yield opened


def answered(opened: Sequence[socket.socket]) -> list[socket.socket]:
    poll = select.poll()  # unlike select, for any number of descriptors
    for connection in opened:
        poll.register(connection, select.POLLIN)
    ready = {number for number, _ in poll.poll(0)}
    return [connection for connection in opened if connection.fileno() in ready]


def head_of(connection: socket.socket) -> bytes:
    return connection.recv(4096).partition(b"\r\n\r\n")[0]


def check_that_others_are_served(server: BackendServer) -> None:
    with httpx.Client(base_url=server.url, timeout=900, trust_env=False) as client:
        assert client.get("/health").status_code == 200
        assert client.post("/webhook", json=EVENT).status_code == 201
        assert client.get("/ready").status_code == 200


def test_unfinished_requests_occupy_no_thread(backend: BackendServer) -> None:
    heads = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
    bodies = b"POST /webhook HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{"
    zeros = bodies.replace(b"1000", 20 * b"0" + b"1000")
    with (
        connections(backend, MANY, heads) as slow,
        connections(backend, MANY, bodies) as slower,
        connections(backend, MANY, zeros) as slowest,
    ):
        check_that_others_are_served(backend)
        for connection in (*slow, *slower, *slowest):
            assert connection.recv(1) == b"", "they are given up"
    with connections(backend, 1, heads) as (connection,), connections(backend, 1, bodies) as (other,):
        connection.sendall(b"\r\n")
        other.sendall(b" " * 998 + b"}")
        assert head_of(connection).startswith(b"HTTP/1.1 200"), "slow, but not too slow"
        assert head_of(other).startswith(b"HTTP/1.1 400"), "the event lacks its action"


def test_long_bodies_leave_threads(backend: BackendServer) -> None:
    with connections(backend, MANY, UPLOAD) as uploads, connections(backend, MANY, BIG) as others:
        for slow, let_in in ((uploads, UPLOADS), (others, BODIES)):
            wait_for(lambda slow=slow, let_in=let_in: len(answered(slow)) >= MANY - let_in)
            refused = answered(slow)
            heads = [head_of(connection) for connection in refused]
            told = [head for head in heads if head.startswith(b"HTTP/1.1 503")]
            assert len(told) >= MANY - let_in
            assert all(b"\r\nRetry-After: 5" in head for head in told)
        check_that_others_are_served(backend)
    body = {"data": {"project": "x"}, "files": {"file": ("a.mp4", bytes(2 * BUFFERED_BYTES))}}

    def upload() -> int:
        return httpx.post(f"{backend.url}/api/upload_video", timeout=900, trust_env=False, **body).status_code

    wait_for(lambda: upload() == 400, what="the slots of those that are gone are free")


def test_slow_readers_leave_threads(backend: BackendServer, settings: Callable[..., Settings]) -> None:
    made = Outputs(settings()).new("project", 7, "task", 1, suffix="mp4")
    with made.open("wb") as file:
        file.truncate(256 << 20)  # more than what systems buffer
    ask = f"GET /api/download/{made.name} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    with connections(backend, DOWNLOADS, ask) as slow:
        assert all(head_of(connection).startswith(b"HTTP/1.1 200") for connection in slow)
        with connections(backend, 1, ask) as (refused,):
            assert head_of(refused).startswith(b"HTTP/1.1 503")
        check_that_others_are_served(backend)
    part = ask[:-2] + b"Range: bytes=0-9\r\n\r\n"

    def read() -> bytes:
        with connections(backend, 1, part) as (connection,):
            return head_of(connection)

    wait_for(lambda: read().startswith(b"HTTP/1.1 206"), what="the slots of those that are gone are free")


def test_a_connection_is_used_again(backend: BackendServer) -> None:
    ask = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with connections(backend, 1, 3 * ask + ask[:-2] + b"Connection: close\r\n\r\n") as (connection,):
        text = b""
        while part := connection.recv(4096):
            text += part
        assert text.count(b"HTTP/1.1 200") == 4
    with connections(backend, 1, b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000) as (connection,):
        assert head_of(connection).startswith(b"HTTP/1.1 431")
    with connections(
        backend, 1, b"POST /webhook HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    ) as (connection,):
        assert connection.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"{}")
        assert head_of(connection).startswith(b"HTTP/1.1 400")


class Stalled:
    """A body of which nothing arrives."""

    def read(self, size: int = -1) -> bytes:
        raise TimeoutError


def test_a_body_that_does_not_arrive_in_time_is_given_up(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    long: dict[str, Any] = {"data": b" " * (BUFFERED_BYTES + 1), "content_type": "application/json"}
    assert room.client.post("/webhook", **long).status_code == 400
    stalled = room.client.post("/webhook", environ_overrides={"wsgi.input": Stalled()}, **long)
    assert stalled.status_code == 408
    for _ in range(BODIES + 1):  # each gives its slot back
        again = room.client.post("/webhook", environ_overrides={"wsgi.input": Stalled()}, **long)
        assert again.status_code == 408
    receive = slow_clients.paced(lambda size: b"x")
    assert receive() == b"x"
    monkeypatch.setattr(slow_clients, "GRACE_S", -1.0)
    with pytest.raises(TimeoutError):
        receive(1)


def test_the_threads_suffice_for_all_that_is_slow() -> None:
    assert sum((UPLOADS, BODIES, DOWNLOADS, slow_clients.WAITS, slow_clients.DRAWINGS, slow_clients.PICTURES)) < THREADS


# -- jobs that are started by looking at something


def test_a_person_waits_for_few_jobs_at_once(settings: Callable[..., Settings], redis_url: str) -> None:
    queue = JobQueue(settings(redis_url=redis_url))
    pending = PendingJobs(queue)

    def look(who: Person, number: int) -> bool:
        def request() -> None:
            queue.request("control", "init_models", [number], f"init-{number}", "api_jobs")

        return pending.wait_for(who, f"init-{number}", request, 0.1)[0]

    anna, ben = (Person(name, "viewer", session_id=name) for name in ("anna", "ben"))
    with ThreadPoolExecutor(MAX_PENDING) as pool:
        assert list(pool.map(lambda number: look(anna, number), range(MAX_PENDING))) == [False] * MAX_PENDING
    with pytest.raises(TooMany, match="still being read"):
        look(anna, 100)
    assert queue.depths()["control"]["queued"] == MAX_PENDING
    assert look(anna, 0) is False, "what is asked for again is no further job"
    assert look(ben, 200) is False
    with ThreadPoolExecutor(MAX_PENDING_OTHERS) as pool:
        list(pool.map(lambda number: look(ANYONE, number), range(300, 300 + MAX_PENDING_OTHERS)))
    with pytest.raises(TooMany):
        look(ANYONE, 400)
    with queue.guard():
        job = queue.fetch("init-1")
        assert job is not None
        queue.take_back(job)
    assert look(anna, 100) is False, "one of the others has ended"
