"""Who asks, and what they may do: Basic auth and project tokens for programs, roles for people who have signed in."""

from __future__ import annotations

import hmac
import logging
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, partial
from typing import Any, Literal
from urllib.parse import urlencode

from flask import Flask, Response, g, request

from ml_backend.core.errors import BackendError, StorageError
from ml_backend.core.settings import Settings
from ml_backend.server.origin_checks import accepts_html
from ml_backend.server.problems import Forbidden, Unknown, is_api, problem
from ml_backend.server.protocol import project_id, services

log = logging.getLogger(__name__)

#: Wrong credentials that an address may send within :data:`TRIES_S` seconds.
MAX_TRIES, TRIES_S = 10, 60.0
_MAX_ADDRESSES = 10_000
#: Cookie of a session, and the time after which people sign in again, whatever they did meanwhile.
COOKIE, LIFETIME = "session", timedelta(hours=12)
Role = Literal["viewer", "annotator", "trainer", "admin"]
#: Each may do what those before it may.
ROLES: tuple[Role, ...] = ("viewer", "annotator", "trainer", "admin")
#: Endpoints that Label Studio calls.
_OF_LABEL_STUDIO = ("protocol.setup", "protocol.predict", "protocol.webhook", "protocol.versions")
#: Endpoints for people who have not signed in yet.
_OPEN = ("page.sign_in", "page.enter", "page.static")


@dataclass(frozen=True, slots=True)
class Person:
    """Who sent the current request.

    Attributes:
        name: for records.
        projects: returns the projects that the person may see; ``None``: all.
        session_id: of the session; empty for those who have not signed in.
    """

    name: str
    role: Role = "admin"
    projects: Callable[[], frozenset[int]] | None = None
    session_id: str = ""

    def may(self, role: Role) -> bool:
        """Return whether the person may do what needs a role."""
        return ROLES.index(self.role) >= ROLES.index(role)

    def require(self, role: Role) -> None:
        """Raise Forbidden unless the person may do what needs a role; SignedOut if Label Studio refuses the person."""
        if role != "viewer" and self.projects is not None:
            self.projects()
        if not self.may(role):
            raise Forbidden(
                f"This needs the role {role}; yours is {self.role}.", "An admin gives roles in the control room."
            )

    def sees(self, project: int | None) -> bool:
        """Return whether the person may see a project; what is of no project is for all."""
        return project is None or self.projects is None or project in self.projects()

    def require_project(self, project: int) -> None:
        """Raise Unknown for a project that the person may not see, as for one that does not exist."""
        if not self.sees(project):
            raise Unknown(f"Project {project} was not found.", "Check the number in its address.")


#: Where neither credentials nor signing in are asked for.
ANYONE = Person("control room")
#: Until it is known who asks.
NOBODY = Person("nobody", "viewer", frozenset)


def person() -> Person:
    """Return who sent the current request."""
    found: Person = g.get("person", ANYONE)
    return found


def record(action: str, project: int | None = None, detail: str = "", *, once: bool = False) -> None:
    """Record what the current person has done.

    Args:
        once: not again within some minutes.
    """
    kept = services().audit
    try:
        (kept.record_once if once else kept.record)(person().name, action, project, detail)
    except StorageError as error:  # it is done: the answer must not say otherwise
        log.error("Not recorded: %s has done %s in project %s (%s). %s", person().name, action, project, detail, error)


def record_fields(action: str, fields: Mapping[str, Any]) -> None:
    """Record an action by the fields of its request."""
    told = {name: value for name, value in fields.items() if name != "project" and value not in (None, False)}
    record(action, fields.get("project"), ", ".join(f"{name} {value}" for name, value in told.items()))


def require_credentials(app: Flask, settings: Settings) -> None:
    """Find out who sends each request, and refuse those who may not: 401, or the page to sign in.

    ``/health`` and ``/ready`` need nothing, as with label-studio-ml; their answers hold no secret. An address that has
    sent :data:`MAX_TRIES` wrong credentials within a minute gets 429, whatever it sends, until the first of them is a
    minute old.
    """
    if not (settings.basic_auth or settings.sign_in or settings.project_tokens):
        return
    expected = ":".join(settings.basic_auth or ()).encode()
    failures = app.extensions["failed_tries"] = FailedTries()

    @app.before_request
    def check() -> Response | None:
        hide_token()
        if request.path in ("/health", "/ready"):
            return None
        g.person = NOBODY
        auth, address, token = request.authorization, request.remote_addr or "", request.args.get("token")
        of_label_studio = request.endpoint in _OF_LABEL_STUDIO
        by_token = of_label_studio and settings.project_tokens
        tries = bool(auth) or (by_token and token is not None)
        if tries and (wait_s := failures.wait_s(address)):
            return too_often(wait_s)
        given = f"{auth.username}:{auth.password}" if auth and auth.type == "basic" else ""
        # As bytes, since compare_digest refuses non-ASCII text.
        if settings.basic_auth and hmac.compare_digest(given.encode(), expected):
            g.person = Person(settings.basic_auth_user)
            return None
        if by_token and _has_project_token(auth.username if auth else None, token or (auth and auth.password) or ""):
            return None
        if tries:
            failures.note(address)
            return _refuse(settings)
        # What Label Studio may do is not bound to the roles of people.
        by_session = settings.sign_in and (not of_label_studio or request.endpoint == "protocol.versions")
        cookie = request.cookies.get(COOKIE) if by_session else None
        if (cookie and _enter(cookie)) or (settings.sign_in and request.endpoint in _OPEN):
            return None
        for_programs = of_label_studio or (request.endpoint == "page.home" and not accepts_html())
        if settings.basic_auth or (by_token if for_programs else settings.sign_in):
            return _refuse(settings)
        g.person = ANYONE
        return None


def hide_token() -> None:
    """Take a token out of what a server writes into its log of requests."""
    if "token" in request.args:  # which reads the address, so that it is not read again
        shown = urlencode({name: "..." if name == "token" else value for name, value in request.args.items()})
        request.environ["QUERY_STRING"] = shown
        for name in ("RAW_URI", "REQUEST_URI"):
            if name in request.environ:
                request.environ[name] = f"{request.environ[name].partition('?')[0]}?{shown}"


def _has_project_token(user: str | None, token: str) -> bool:
    """Return whether a token is that of the project which a request of Label Studio is about."""
    if not token:
        return False
    try:
        body = request.get_json(force=True, silent=True)
    except RecursionError:
        body = None
    value = body.get("project") if isinstance(body, dict) else None
    if value is None and user:  # events of deletions may lack it
        value = user.removeprefix("project-")
    try:
        project = project_id(value.get("id") if isinstance(value, dict) else value)
    except BackendError:
        return False
    name, expected = services().project_credentials(project)
    if user not in (None, name) or not hmac.compare_digest(token.encode(), expected.encode()):
        return False
    g.person = Person(name, "annotator", lambda: frozenset([project]))
    return True


def _enter(cookie: str) -> bool:
    """Let the person of a session in; return whether there is such a session."""
    people = services().people
    session = people.find(cookie)
    if session is None:
        return False
    projects = cache(partial(people.projects, session))  # asked once a request
    g.person = Person(session.name, session.role, projects, session.id)
    return True


def too_often(wait_s: int) -> Response:
    """Return the answer to an address that has sent too many wrong credentials."""
    detail = "Wrong credentials were sent too often."
    refused = problem(429, detail, f"Try again in {wait_s} s.") if is_api() else Response(detail, 429)
    refused.headers["Retry-After"] = str(wait_s)
    return refused


def sign_in_first() -> Response:
    """Send a browser to the page to sign in, and from there back."""
    if "HX-Request" in request.headers:  # a part of a page whose session has ended
        return Response("", 401, {"HX-Redirect": "/sign-in"})
    query = f"?{urlencode({'next': request.full_path})}" if request.endpoint == "page.home" else ""
    return Response(headers={"Location": f"/sign-in{query}"}, status=303)


def _refuse(settings: Settings) -> Response:
    """Return the answer to a request without credentials, or with wrong ones."""
    by_browser = request.endpoint != "page.home" or accepts_html()
    if settings.sign_in and request.blueprint == "page" and by_browser and not request.authorization:
        return sign_in_first()
    response = Response("Unauthorized", 401)
    if is_api():
        hint = "Send BASIC_AUTH_USER and BASIC_AUTH_PASS." if settings.basic_auth else ""
        hint = f"Sign in at /sign-in. {hint}".strip() if settings.sign_in else hint
        response = problem(401, "The credentials are missing or wrong.", hint)
    if not (settings.sign_in and is_api()):  # the page's own browser would ask for a password
        response.headers["WWW-Authenticate"] = 'Basic realm="Login required"'
    return response


class FailedTries:
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
