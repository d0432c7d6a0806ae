"""Access control: Basic auth, and protection against CSRF and DNS rebinding."""

from __future__ import annotations

import hmac
import ipaddress
import math
import re
import socket
import threading
import time
from collections import OrderedDict, deque
from urllib.parse import urlsplit

from flask import Flask, Response, request
from werkzeug.sansio.utils import host_is_trusted

from ml_backend.core.settings import Settings
from ml_backend.server.problems import CrossSite, ForeignName, is_api, problem

#: Wrong credentials that an address may send within :data:`TRIES_S` seconds.
MAX_TRIES, TRIES_S = 10, 60.0
_MAX_ADDRESSES = 10_000
#: Values of Sec-Fetch-Site for pages of this server and for addresses that a person typed.
_SAME_SITE = ("same-origin", "none")
#: Headers that browsers add and a page cannot remove. The first two are missing on plain-HTTP requests that look
#: same-origin to the browser, hence the third, which programs seldom send.
_BROWSER_HEADERS = ("Origin", "Sec-Fetch-Site", "Accept-Language")
_HINT = "Open the control room directly. Behind a proxy, forward the Host header unchanged."


def reject_cross_site() -> None:
    """Reject requests that carry evidence of another site's page.

    Requests without any such header pass. They come from programs, from browsers too old to send JSON cross-site
    without a preflight, or are plain-HTTP GETs of a page that hides its referrer: browsers send Sec-Fetch-Site only
    over HTTPS and to localhost.

    Raises:
        CrossSite: a page of another site sent the request.
    """
    site = request.headers.get("Sec-Fetch-Site")
    origins = (request.headers.get("Origin"), request.headers.get("Referer"))
    if any(url is not None and not _is_same_origin(url) for url in origins) or site not in (None, *_SAME_SITE):
        raise CrossSite("A page of another site sent this request.", _HINT)


def reject_cross_site_writes() -> None:
    """Reject state-changing requests of other sites' pages. Label Studio's requests carry no origin and pass."""
    if request.method not in ("GET", "HEAD", "OPTIONS"):
        reject_cross_site()


def require_same_site() -> None:
    """Require proof that no other site's page sent a GET that may start a job.

    Proof is what a foreign page cannot make a browser send without a preflight: an HTMX header, or headers that name
    this server or a person's own navigation.

    Raises:
        CrossSite: a page of another site sent the request, or may have.
    """
    reject_cross_site()
    headers = request.headers
    proven = "HX-Request" in headers or "Origin" in headers or "Referer" in headers
    if not (proven or headers.get("Sec-Fetch-Site") in _SAME_SITE):
        raise CrossSite("A page of another site may have sent this request.", _HINT)


def accepts_html() -> bool:
    """Return whether the client prefers HTML; programs accept anything or name JSON first."""
    return request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html"


def require_known_host(app: Flask, settings: Settings) -> None:
    """Reject requests whose Host header is not a name of this server, as a defence against DNS rebinding.

    A hostile page may resolve its own domain to this machine, which makes the two same-site to the browser; only the
    Host header differs. IP addresses, ``localhost``, names without a dot (which public DNS does not resolve) and this
    machine's hostname are safe; other names must be in ``allowed_hosts``. With Basic auth the check is not needed: a
    browser sends credentials only to the name that they were entered for.

    The Label Studio protocol, and health at ``/``, accept any name from programs, which may use an internal DNS name;
    browsers, recognized by their headers, are checked there too.
    """
    if settings.basic_auth:
        return
    allowed = [*settings.allowed_hosts, socket.gethostname().lower()]
    if "*" in allowed:
        return

    @app.before_request
    def check() -> None:
        is_browser = any(name in request.headers for name in _BROWSER_HEADERS)
        is_health = request.endpoint == "page.home" and not accepts_html()
        if (request.blueprint == "protocol" or is_health) and not is_browser:
            return
        host = _hostname(request.host)
        if not (host_is_trusted(host, allowed) or _is_local(host)):
            raise ForeignName(
                f"The host name {host[:80]!r} is not allowed.",
                "Use the server's IP address, or add the name to ALLOWED_HOSTS.",
            )


def require_basic_auth(app: Flask, settings: Settings) -> None:
    """Answer 401 to requests without the configured credentials, on every route but /health and /ready.

    As with label-studio-ml, health checks need no credentials. Their answers hold no secret. An address that has sent
    :data:`MAX_TRIES` wrong ones within a minute gets 429, whatever it sends, until the first of them is a minute old.
    """
    if settings.basic_auth is None:
        return
    expected = ":".join(settings.basic_auth).encode()
    failures = _Failures()

    @app.before_request
    def check() -> Response | None:
        if request.path in ("/health", "/ready"):
            return None
        auth, address = request.authorization, request.remote_addr or ""
        if auth and (wait_s := failures.wait_s(address)):
            detail = "Wrong credentials were sent too often."
            refused = problem(429, detail, f"Try again in {wait_s} s.") if is_api() else Response(detail, 429)
            refused.headers["Retry-After"] = str(wait_s)
            return refused
        given = f"{auth.username}:{auth.password}" if auth and auth.type == "basic" else ""
        # As bytes, since compare_digest refuses non-ASCII text.
        if hmac.compare_digest(given.encode(), expected):
            return None
        if auth:
            failures.note(address)
        response = Response("Unauthorized", 401)
        if is_api():
            response = problem(
                401, "The credentials are missing or wrong.", "Send BASIC_AUTH_USER and BASIC_AUTH_PASS."
            )
        response.headers["WWW-Authenticate"] = 'Basic realm="Login required"'
        return response


class _Failures:
    """The times of failed logins by address; of the addresses that failed last."""

    def __init__(self) -> None:
        self._times: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def note(self, address: str) -> None:
        with self._lock:
            self._times.setdefault(address, deque(maxlen=MAX_TRIES)).append(time.monotonic())
            self._times.move_to_end(address)
            if len(self._times) > _MAX_ADDRESSES:
                self._times.popitem(last=False)

    def wait_s(self, address: str) -> int:
        """Return the seconds until the next try of an address; 0 if it may try now."""
        with self._lock:
            times = self._times.get(address)
            left = times[0] + TRIES_S - time.monotonic() if times and len(times) == MAX_TRIES else 0.0
        return max(0, math.ceil(left))


def _is_same_origin(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:  # malformed IPv6 brackets
        return False
    return parts.scheme in ("http", "https") and parts.netloc == request.host


def _hostname(host: str) -> str:
    """Return a Host header in lower case, without its port and IPv6 brackets."""
    try:
        return (urlsplit(f"//{host}").hostname or "").removesuffix(".")
    except ValueError:  # malformed IPv6 brackets
        return host


def _is_local(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return bool(re.fullmatch(r"[a-z0-9_-]+|.+\.localhost", host))
    return True
