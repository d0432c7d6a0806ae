"""Routes of the page.

``GET /`` is the whole page for clients that accept HTML, and a health check for programs.
``GET /ui/part/NAME`` is one part of it; ``POST /ui/do/NAME`` is a button.
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote, urlencode

from flask import Blueprint, Response, current_app, jsonify, render_template, request, url_for
from markupsafe import Markup

from ml_backend.core.errors import BackendError
from ml_backend.label_studio.client import TokenRefused
from ml_backend.server.access import COOKIE, LIFETIME, NOBODY, TRIES_S, FailedTries, person, record, sign_in_first
from ml_backend.server.api import handlers
from ml_backend.server.api.requests import ExportFormat
from ml_backend.server.dashboard import forms, texts
from ml_backend.server.dashboard.notices import add_dismissed, add_requested, set_dismissed, set_requested
from ml_backend.server.dashboard.parts import PARTS, TIMELINE_VALUES, change_digests
from ml_backend.server.dashboard.state import REVIEWER, STEPS, THEMES, PageState, read_state
from ml_backend.server.dashboard.texts import LANGUAGES, named, translator
from ml_backend.server.origin_checks import accepts_html, require_same_site
from ml_backend.server.problems import CrossSite, ForeignName, SignedOut, Unknown, as_backend_error
from ml_backend.server.protocol import health, services

log = logging.getLogger(__name__)

_STATIC = Path(__file__).parent / "static"
blueprint = Blueprint(
    "page", __name__, template_folder="templates", static_folder=_STATIC, static_url_path="/ui/static"
)

#: No inline scripts or styles, nothing from other sites; thumbnails are data URLs.
POLICY = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
_YEAR = 365 * 24 * 3600


@blueprint.after_request
def harden(response: Response) -> Response:
    """Forbid foreign scripts, framing and referrers to other sites, and set cache headers."""
    response.headers["Content-Security-Policy"] = POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "same-origin"
    # Static URLs carry a content digest; a 404 may become a 200.
    if request.endpoint == "page.static" and response.status_code in (200, 206, 304):
        response.headers["Cache-Control"] = f"private, max-age={_YEAR}, immutable"
    elif request.endpoint == "page.live":
        response.headers["Cache-Control"] = "private, no-cache"  # revalidated by its ETag
    else:
        response.headers["Cache-Control"] = "no-store"
        response.vary.add("Accept")
    return response


@cache
def _digest(name: str) -> str:
    return sha256((_STATIC / name).read_bytes()).hexdigest()[:12]


@blueprint.get("/")
def home() -> Response:
    """Return the page, or health as JSON for programs."""
    if not accepts_html():
        return health()
    if chosen := _chosen():
        return chosen
    state = read_state(whole=True)
    if isinstance(state.problem, SignedOut):
        raise state.problem
    return _page(state)


def _chosen() -> Response | None:
    """Move language, theme and reviewer from the URL to cookies; return where to go on, unless it has none of them."""
    preferences = {"lang": LANGUAGES, "theme": (*THEMES, "auto")}
    chosen = {name: request.args[name] for name, values in preferences.items() if request.args.get(name) in values}
    if REVIEWER in request.args:
        chosen[REVIEWER] = quote(request.args[REVIEWER].strip())
    if not chosen:
        return None
    query = {name: value for name, value in request.args.items() if name not in {*preferences, REVIEWER}}
    response = Response(status=303, headers={"Location": f"{request.path}{'?' * bool(query)}{urlencode(query)}"})
    for name, value in chosen.items():
        response.set_cookie(name, value, max_age=_YEAR, samesite="Lax", httponly=True)
    return response


def _page(state: PageState, said: Markup | None = None, status: int = 200) -> Response:
    try:  # first, so that what changes while the parts are rendered triggers a refresh
        digests = change_digests(state.project)
    except BackendError:
        digests = {}
    return Response(_render("page/index.html", said=said or "", marks=digests, **_context(state)), status)


@blueprint.get("/sign-in")
def sign_in() -> Response:
    """Return the page on which people enter a token of their Label Studio account."""
    if not services().settings.sign_in:
        return Response(headers={"Location": "/"}, status=303)
    return _chosen() or _sign_in_page()


def _sign_in_page(problem: BackendError | None = None, status: int = 200) -> Response:
    context = _context(read_state(whole=False)) | {"error": problem, "after": _next()}
    context["refused"] = isinstance(problem, TokenRefused)
    response = Response(_render("page/sign_in.html", **context), status)
    if status == 429:
        response.headers["Retry-After"] = str(round(TRIES_S))
    return response


def _next() -> str:
    """Return where a browser goes after signing in: a view of the page, whatever a link says."""
    after = request.values.get("next", "")
    return after if re.fullmatch(r"/\?[^\x00-\x20\\]*", after) else "/"


@blueprint.post("/sign-in")
def enter() -> Response:
    """Sign in. Refused tokens are counted as wrong passwords are."""
    container, address = services(), request.remote_addr or ""
    if not container.settings.sign_in:
        raise Unknown("People do not sign in here.", "SIGN_IN=true switches it on.")
    failures: FailedTries = current_app.extensions["failed_tries"]
    if wait_s := failures.wait_s(address):
        return _sign_in_page(BackendError("Wrong tokens were sent too often.", f"Try again in {wait_s} s."), 429)
    try:
        session, cookie = container.people.sign_in(request.form.get("token", "").strip())
    except BackendError as error:
        log.warning("Nobody signed in from %s: %s", address, error.message)
        if not isinstance(error, TokenRefused):
            return _sign_in_page(error, error.http_status)
        failures.note(address)
        return _sign_in_page(error, 403)
    container.audit.record(session.name, "sign_in", detail=address)
    if before := request.cookies.get(COOKIE):
        container.people.leave(before)
    response = Response(status=303, headers={"Location": _next()})
    options: dict[str, Any] = {"httponly": True, "samesite": "Lax", "max_age": LIFETIME}
    # A proxy says that it was reached by TLS; who claims so without one only keeps the cookie from itself.
    secure = request.is_secure or request.headers.get("X-Forwarded-Proto") == "https"
    response.set_cookie(COOKIE, cookie, secure=secure, **options)
    return response


@blueprint.post("/sign-out")
def sign_out() -> Response:
    """End the session."""
    if person().session_id:
        services().people.sign_out(person().session_id)
        record("sign_out")
    # The browser also forgets the frames and clips that it was shown.
    response = Response(status=303, headers={"Location": "/sign-in", "Clear-Site-Data": '"cache"'})
    response.delete_cookie(COOKIE)
    return response


@blueprint.get("/ui/live")
def live() -> Response:
    """Return the digests that the page polls every two seconds to see which parts to reload."""
    response = jsonify(change_digests(_of_known_project().project))
    response.add_etag()
    response.make_conditional(request)
    return response


@blueprint.get("/ui/part/<name>")
def part(name: str) -> Response:
    """Return one part. Cross-site requests for parts that may start a job are rejected."""
    if name not in PARTS:
        raise Unknown("There is no such part of the page.")
    if PARTS[name].starts_job:
        require_same_site()
    state = _of_known_project()
    return Response(_render_part(name, state, _context(state)))


def _of_known_project() -> PageState:
    """Return the state of a request for something of a project.

    Raises:
        BackendError: the person may not see the project, or it is not known whether they may.
    """
    state = read_state(whole=False)
    if state.problem:
        raise state.problem
    if state.unknown_project:
        person().require_project(state.unknown_project)
    return state


@blueprint.post("/ui/do/<name>")
def do(name: str) -> Response:
    """Perform a button's action. HTMX gets what to say; browsers without scripts get the whole page with it."""
    answer = forms.perform(name)
    jobs = forms.jobs_of(answer)
    scripted = "HX-Request" in request.headers
    state = read_state(whole=not scripted)
    if jobs:
        requested = add_requested(handlers.all_jobs(services()), state.requested, jobs)
        state = replace(state, requested=requested)
    said = _render("page/said.html", answer=answer, button=name, **_context(state))
    response = Response(said) if scripted else _page(state, said)
    if scripted:
        # The page polls at once, and reloads the parts that show what this button changes.
        response.headers["HX-Trigger"] = f"changed, live-states, live-{name}"
    if jobs:
        set_requested(response, state.requested)
    return response


@blueprint.post("/ui/dismiss")
def dismiss() -> Response:
    """Dismiss a notice. HTMX gets the remaining ones; browsers without scripts are sent back to the page."""
    state = read_state(whole=False)
    dismissed = add_dismissed(state.dismissed, request.form.get("key", ""), request.form.get("at", ""))
    state = replace(state, dismissed=dismissed)
    context = _context(state)
    if "HX-Request" in request.headers:
        response = Response(_render_part("notices", state, context))
    else:
        response = Response(status=303, headers={"Location": context["address"]()})
    set_dismissed(response, dismissed)
    return response


@blueprint.errorhandler(Exception)
def handle_error(error: Exception) -> Response:
    """Return the page with the error and its hint, or these alone."""
    failure, status = as_backend_error(error)
    if isinstance(failure, SignedOut):
        return sign_in_first()
    said = _render("page/problem.html", error=failure, closable=True, **_context(read_state(whole=False)))
    # Other sites and strangers must not get the page, and the page itself may be what fails.
    alone = isinstance(error, (CrossSite, ForeignName)) or "HX-Request" in request.headers or person() == NOBODY
    if alone or status == 500 or (status > 500 and request.endpoint == "page.home"):
        return Response(said, status)
    return _page(read_state(whole=True), said, status)


def _render(template: str, **values: Any) -> Markup:
    """Render a template, which escapes its values."""
    return Markup(render_template(template, **values))  # noqa: S704


def _render_part(name: str, state: PageState, context: dict[str, Any]) -> Markup:
    """Render a part, or its error, so that a failing part does not break the page."""
    try:
        return _render(f"page/parts/{name}.html", **PARTS[name].context(state), **context)
    except Exception as error:  # noqa: BLE001 -- as_backend_error() logs it
        return _render("page/problem.html", error=as_backend_error(error)[0], **context)


def _context(state: PageState) -> dict[str, Any]:
    """Return the context of all templates."""
    t = translator(state.lang)
    location: dict[str, Any] = {"project": state.project, "step": state.step}
    context: dict[str, Any] = {
        "s": state,
        "t": t,
        "steps": STEPS,
        "person": person(),
        "may": forms.may,
        "formats": get_args(ExportFormat),
        "segmenter": services().settings.segmenter,
        "languages": LANGUAGES,
        "address": lambda **changes: url_for("page.home", **(location | changes)),
        "action": lambda name, **values: url_for("page.do", name=name, **(location | values)),
        "part_address": lambda name, **values: url_for("page.part", name=name, **(location | values)),
        "dismissal": url_for("page.dismiss", **location),
        "static": lambda name: url_for("page.static", filename=name, v=_digest(name)),
        "amount": texts.amount,
        "percent": texts.percent,
        "figure": texts.figure,
        "moment": texts.moment,
        "position": texts.position,
        "duration": lambda seconds: texts.duration(t, seconds),
        "ls_url": services().settings.label_studio_links,
        "named": lambda group, name: named(state.lang, group, name),
        "kinds": lambda kinds: ", ".join(named(state.lang, "kind", kind) for kind in kinds),
    }

    def embed(name: str, **values: str) -> Markup:
        """Render a part within the page, which reloads it when it changes."""
        page_part = PARTS[name]
        if state.project is None and page_part.needs_project:
            return Markup("")
        kept = ("label", "exemplar", "a", "b", "kind", "task", "author", "model", "consensus", "amount", "unit")
        kept += ("phrase", "in_tasks", f"page-{name}", *TIMELINE_VALUES)
        query = {key: state.values[key] for key in kept if key in state.values} | values
        deferred = page_part.starts_job and state.cross_site
        events = [f"live-{item} from:body" for item in page_part.reload_on] + (["load"] if deferred else [])
        content = None if deferred else _render_part(name, state, context)
        source = context["part_address"](name, **query)
        return _render("page/part.html", name=name, source=source, events=", ".join(events), content=content, **context)

    context["part"] = embed
    return context
