"""Refuse to serve other machines without credentials."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import suppress

from ml_backend.core.errors import ConfigError
from ml_backend.core.settings import Settings

log = logging.getLogger(__name__)


def check_exposure(settings: Settings) -> None:
    """Check that nobody but this machine is served without credentials, unless the settings allow it.

    Raises:
        ConfigError: this process listens at an address that other machines reach, and no credentials are set.
    """
    if settings.basic_auth or (settings.sign_in and settings.project_tokens):
        return
    exposed = sorted({address for address in _listening_addresses() if not _is_loopback(address)})
    if not exposed:
        return
    danger = (
        f"The backend listens at {', '.join(exposed)} without credentials: whoever reaches it can see and change "
        "everything, with the rights of its Label Studio token."
    )
    if not settings.allow_anonymous:
        raise ConfigError(
            danger,
            "Set BASIC_AUTH_USER and BASIC_AUTH_PASS (or SIGN_IN and PROJECT_TOKENS), or bind it to 127.0.0.1. If "
            "something else keeps strangers away, set ALLOW_ANONYMOUS=true.",
        )
    log.warning("%s ALLOW_ANONYMOUS permits it.", danger)


def _listening_addresses() -> Iterator[str]:
    """Yield the IP addresses at which this process listens: its server has opened the sockets, or inherited them."""
    with suppress(OSError):  # no such folder
        for number in map(int, os.listdir("/dev/fd")):
            with suppress(OSError):  # closed meanwhile
                if stat.S_ISSOCK(os.fstat(number).st_mode):
                    with socket.socket(fileno=os.dup(number)) as found:
                        is_ip = found.family in (socket.AF_INET, socket.AF_INET6)
                        if is_ip and found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                            yield str(found.getsockname()[0])


def _is_loopback(address: str) -> bool:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(parsed, "ipv4_mapped", None)
    return bool((mapped or parsed).is_loopback)
