"""The page at ``/``, its parts, and what its buttons do.

``GET /`` is the whole page for whoever takes HTML, and a program's health check for everybody else.
``GET /ui/part/NAME`` is one part of it; ``POST /ui/do/NAME`` is a button.
"""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from flask import Blueprint, Response, jsonify, redirect, render_template, request, url_for
from markupsafe import Markup

from ml_backend.core.errors import BackendError
from ml_backend.jobs.api_queue import STRIDE
from ml_backend.server.dashboard import forms, texts
from ml_backend.server.dashboard.parts import PARTS, marks
from ml_backend.server.dashboard.state import STEPS, THEMES, PageState, read_state
from ml_backend.server.dashboard.texts import LANGUAGES, named, translator
from ml_backend.server.origin_checks import refuse_unproven, takes_html
from ml_backend.server.problems import CrossSite, ForeignName, Unknown, as_backend_error
from ml_backend.server.protocol import health, services

_STATIC = Path(__file__).parent / "static"
blueprint = Blueprint(
    "page", __name__, template_folder="templates", static_folder=_STATIC, static_url_path="/ui/static"
)

#: No script or style within the page, nothing from elsewhere; pictures of objects come within it.
POLICY = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
_YEAR = 365 * 24 * 3600


@blueprint.after_request
def harden(response: Response) -> Response:
    """The page runs only its own script, is shown in nobody's frame, and tells nobody where it is."""
    response.headers["Content-Security-Policy"] = POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "same-origin"
    # A file's address changes with its content; that there is none may change.
    if request.endpoint == "page.static" and response.status_code in (200, 206, 304):
        response.headers["Cache-Control"] = f"private, max-age={_YEAR}, immutable"
    elif request.endpoint == "page.live":
        response.headers["Cache-Control"] = "private, no-cache"  # kept, and asked for again by its ETag
    else:
        response.headers["Cache-Control"] = "no-store"
        response.vary.add("Accept")
    return response


@cache
def _digest(name: str) -> str:
    return sha256((_STATIC / name).read_bytes()).hexdigest()[:12]


@blueprint.get("/")
def home() -> Response:
    """The page; health, as JSON, for programs."""
    if not takes_html():
        return health()
    chosen = {"lang": LANGUAGES, "theme": (*THEMES, "auto")}
    wanted = {name: request.args[name] for name, known in chosen.items() if request.args.get(name) in known}
    if wanted:  # remembered, and gone from the address
        kept = {name: value for name, value in request.args.items() if name not in chosen}
        answer = redirect(f"/?{urlencode(kept)}" if kept else "/", 303)
        for name, value in wanted.items():
            answer.set_cookie(name, value, max_age=_YEAR, samesite="Lax", httponly=True)
        return Response(answer.get_data(), answer.status_code, answer.headers)
    return _page(read_state(whole=True))


def _page(state: PageState, notice: Markup | None = None, status: int = 200) -> Response:
    try:  # first: what happens while the parts are drawn shows as a change
        known = marks(state.project)
    except BackendError:
        known = {}
    return Response(_rendered("page/index.html", notice=notice or "", marks=known, **_context(state)), status)


@blueprint.get("/ui/live")
def live() -> Response:
    """What the page asks for every two seconds: by its marks it knows which of its parts to draw anew."""
    answer = jsonify(marks(read_state(whole=False).project))
    answer.add_etag()
    answer.make_conditional(request)
    return answer


@blueprint.get("/ui/part/<name>")
def part(name: str) -> Response:
    """A part by itself. Pages of other sites cannot have one drawn that starts work."""
    if name not in PARTS:
        raise Unknown("There is no such part of the page.")
    if PARTS[name].starts:
        refuse_unproven()
    state = read_state(whole=False)
    return Response(_draw(name, state, _context(state)))


@blueprint.post("/ui/do/<name>")
def do(name: str) -> Response:
    """A button. With scripts the answer is a notice; without, the whole page with one."""
    answer = forms.perform(name)
    state = read_state(whole="HX-Request" not in request.headers)
    notice = _rendered("page/notice.html", answer=answer, button=name, **_context(state))
    if "HX-Request" not in request.headers:
        return _page(state, notice)
    found = Response(notice)
    found.headers["HX-Trigger"] = "changed"  # the page asks at once what has
    return found


@blueprint.errorhandler(Exception)
def failed(error: Exception) -> Response:
    """What is wrong and the hint, where the notice would be."""
    said, status = as_backend_error(error)
    notice = _rendered("page/problem.html", error=said)
    # A foreign page may read nothing of this server's, and what fails may be the page itself.
    alone = isinstance(error, (CrossSite, ForeignName)) or "HX-Request" in request.headers
    if alone or status == 500 or (status > 500 and request.endpoint == "page.home"):
        return Response(notice, status)
    return _page(read_state(whole=True), notice, status)


def _rendered(template: str, **values: Any) -> Markup:
    """What a template gives: it has escaped all that it was given."""
    return Markup(render_template(template, **values))  # noqa: S704


def _draw(name: str, state: PageState, context: dict[str, Any]) -> Markup:
    """A part, or what is wrong with it: one that fails takes no other with it."""
    try:
        return _rendered(f"page/parts/{name}.html", **PARTS[name].facts(state), **context)
    except Exception as error:  # noqa: BLE001 -- told() logs it
        return _rendered("page/problem.html", error=as_backend_error(error)[0], **context)


def _context(state: PageState) -> dict[str, Any]:
    """What every template may use."""
    t = translator(state.lang)
    here: dict[str, Any] = {"project": state.project, "step": state.step}
    context: dict[str, Any] = {
        "s": state,
        "t": t,
        "steps": STEPS,
        "stride": STRIDE,
        "languages": LANGUAGES,
        "address": lambda **changes: url_for("page.home", **(here | changes)),
        "action": lambda name: url_for("page.do", name=name, **here),
        "part_address": lambda name, **values: url_for("page.part", name=name, **(here | values)),
        "static": lambda name: url_for("page.static", filename=name, v=_digest(name)),
        "amount": texts.amount,
        "percent": texts.percent,
        "figure": texts.figure,
        "moment": texts.moment,
        "duration": lambda seconds: texts.duration(t, seconds),
        "ls_url": services().settings.label_studio_links,
        "named": lambda group, name: named(state.lang, group, name),
    }

    def shown(name: str, **values: str) -> Markup:
        """A part within the page, which is drawn anew when something about it changes."""
        found = PARTS[name]
        if state.project is None and not found.everywhere:
            return Markup("")
        kept = {key: state.values[key] for key in ("label", "a", "b", f"page-{name}") if key in state.values} | values
        waits = found.starts and state.foreign
        events = [f"live-{item} from:body" for item in found.on] + (["load"] if waits else [])
        content = "" if waits else _draw(name, state, context)
        source = context["part_address"](name, **kept)
        return _rendered(
            "page/part.html", name=name, source=source, events=", ".join(events), content=content, **context
        )

    context["part"] = shown
    return context
