"""Protection against CSRF and DNS rebinding."""

from __future__ import annotations

import ipaddress
import re
import socket
from urllib.parse import urlsplit

from flask import Flask, request
from werkzeug.sansio.utils import host_is_trusted

from ml_backend.core.settings import Settings
from ml_backend.server.problems import CrossSite, ForeignName

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
