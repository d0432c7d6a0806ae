"""Ports that are free, or not."""

from __future__ import annotations

import socket

import pytest

from ml_backend.cli.dev_stack.preflight import StartError, check_port, free_port, port_is_free


def listen(family: socket.AddressFamily, host: str) -> socket.socket:
    server = socket.socket(family)
    try:
        server.bind((host, 0))
    except OSError:
        server.close()
        pytest.skip(f"this machine has no {host}")
    server.listen()
    return server


@pytest.mark.parametrize(
    ("family", "host"),
    [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::1"), (socket.AF_INET6, "::")],
)
def test_a_port_is_busy_whichever_local_address_it_is_taken_on(family: socket.AddressFamily, host: str) -> None:
    with listen(family, host) as server:
        port = server.getsockname()[1]
        assert not port_is_free(port)
        with pytest.raises(StartError, match=f"Port {port}, needed by it, is in use"):
            check_port(port, "it", "--port", "PORT")
    assert port_is_free(port)


def test_a_machine_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket

    class NoIPv6(real):  # type: ignore[misc,valid-type]
        def __init__(self, family: int = socket.AF_INET, *args: int) -> None:
            if family == socket.AF_INET6:
                raise OSError(97, "Address family not supported by protocol")
            super().__init__(family, *args)

    monkeypatch.setattr(socket, "socket", NoIPv6)
    assert port_is_free(free_port())
