"""Who may ask: programs, and pages of this very server, with credentials where some are set.

Pages of other sites may not, whatever name they come by.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import socket
from urllib.parse import urlsplit

from flask import Flask, Response, request
from werkzeug.sansio.utils import host_is_trusted

from ml_backend.core.settings import Settings
from ml_backend.server.problems import CrossSite, ForeignName, is_api, problem

#: What Sec-Fetch-Site says of pages of this server, and of what a person typed.
_OWN = ("same-origin", "none")
#: What browsers add, and a page cannot leave out. The first two are missing where it reads unencrypted what it takes
#: for its own server; programs seldom say a language.
_OF_BROWSERS = ("Origin", "Sec-Fetch-Site", "Accept-Language")
_HINT = "Open the control room itself. Behind a proxy, let it pass the header Host on unchanged."


def refuse_other_sites() -> None:
    """Only pages of this very server, and programs, may change anything.

    Browsers say truly where a request comes from; what says nothing is no browser, or one that is too old to be
    made to send JSON by a foreign page without asking first, or a GET without encryption by a page that hides its
    address: browsers tell only encrypted servers, and this very machine, what kind of page asks.

    Raises:
        CrossSite: a page of another site sent it.
    """
    site = request.headers.get("Sec-Fetch-Site")
    told = (request.headers.get("Origin"), request.headers.get("Referer"))
    if any(address is not None and not _is_own(address) for address in told) or site not in (None, *_OWN):
        raise CrossSite("A page of another site sent this request.", _HINT)


def refuse_foreign_changes() -> None:
    """Label Studio's requests say nothing of an origin; a form on a page of another site cannot hide its."""
    if request.method not in ("GET", "HEAD", "OPTIONS"):
        refuse_other_sites()


def refuse_unproven() -> None:
    """Only what is surely no other site's doing may start work by being looked at.

    The proof is what a foreign page cannot have a browser send without asking first: a header of HTMX's, or that the
    request comes from here, or from a person.

    Raises:
        CrossSite: a page of another site sent it, or may have.
    """
    refuse_other_sites()
    headers = request.headers
    proven = "HX-Request" in headers or "Origin" in headers or "Referer" in headers
    if not (proven or headers.get("Sec-Fetch-Site") in _OWN):
        raise CrossSite("A page of another site may have sent this request.", _HINT)


def takes_html() -> bool:
    """Whether a person is to read the answer; programs take anything, or name JSON first."""
    return request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html"


def refuse_foreign_names(app: Flask, settings: Settings) -> None:
    """Answer only to names that are this server's own, as a defence against DNS rebinding.

    A hostile page may have its own name point to this machine; to the browser the two are one site then, and the only
    thing that differs is the header Host. It cannot be an address, ``localhost``, a name without a dot (which no public
    DNS answers) or this machine's name; others are to be listed. With Basic auth the check is needless: a browser
    sends credentials only to the name that they were entered for.

    The Label Studio protocol, and health at ``/``, take any name from programs, which may know this server by one of
    a company's DNS; browsers, which are known by their headers, are checked there too.
    """
    if settings.basic_auth_user and settings.basic_auth_pass.get_secret_value():
        return
    allowed = [*settings.allowed_hosts, socket.gethostname().lower()]
    if "*" in allowed:
        return

    @app.before_request
    def check() -> None:
        browser = any(name in request.headers for name in _OF_BROWSERS)
        health = request.endpoint == "page.home" and not takes_html()
        if (request.blueprint == "protocol" or health) and not browser:
            return
        name = _name(request.host)
        if not (host_is_trusted(name, allowed) or _is_local(name)):
            raise ForeignName(
                f"This server does not know itself by the name {name[:80]!r}.",
                "Use its address, or add the name to ALLOWED_HOSTS.",
            )


def require_basic_auth(app: Flask, settings: Settings) -> None:
    """Answer 401 to requests without the configured credentials, on every route but /health, as label-studio-ml does.

    Whatever watches over the service asks for its health, and need not know a secret for that; the answer holds none.
    """
    user, password = settings.basic_auth_user, settings.basic_auth_pass.get_secret_value()
    if not (user and password):
        return

    @app.before_request
    def check() -> Response | None:
        if request.path == "/health":
            return None
        auth = request.authorization
        given = f"{auth.username}:{auth.password}" if auth and auth.type == "basic" else ""
        # Bytes: compare_digest refuses text outside ASCII. It takes as long for right as for wrong credentials.
        if hmac.compare_digest(given.encode(), f"{user}:{password}".encode()):
            return None
        answer = Response("Unauthorized", 401)
        if is_api():
            answer = problem(401, "The credentials are missing or wrong.", "Send BASIC_AUTH_USER and BASIC_AUTH_PASS.")
        answer.headers["WWW-Authenticate"] = 'Basic realm="Login required"'
        return answer


def _is_own(address: str) -> bool:
    try:
        parts = urlsplit(address)
    except ValueError:  # brackets that hold no address
        return False
    return parts.scheme in ("http", "https") and parts.netloc == request.host


def _name(host: str) -> str:
    """A Host header without its port, lower case, an IPv6 address without its brackets."""
    try:
        return (urlsplit(f"//{host}").hostname or "").removesuffix(".")
    except ValueError:  # brackets that hold no address
        return host


def _is_local(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return bool(re.fullmatch(r"[a-z0-9_-]+|.+\.localhost", name))
    return True
