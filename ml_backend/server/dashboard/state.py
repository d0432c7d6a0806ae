"""State of a page request: project, step, language, theme."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import unquote

from flask import request

from ml_backend.core.errors import BackendError
from ml_backend.label_studio.client import NotFound
from ml_backend.server.access import person
from ml_backend.server.api import handlers, responses
from ml_backend.server.dashboard.notices import read_dismissed, read_requested
from ml_backend.server.dashboard.texts import LANGUAGES
from ml_backend.server.origin_checks import require_same_site
from ml_backend.server.problems import CrossSite, as_backend_error
from ml_backend.server.protocol import services

STEPS = ("label", "learn", "auto", "repair", "review", "live")
#: Shown like a step, to admins: people, their roles, and what was done.
ACCESS = "access"
#: Cookie and query parameter of the name under which repairs are recorded.
REVIEWER = "reviewer"
_MAX_NAME = 100
THEMES = ("light", "dark")


@dataclass(frozen=True, slots=True)
class PageState:
    """The state of a page request.

    Attributes:
        theme: empty for the system's.
        projects: all projects; empty if they could not be listed.
        problem: why they could not be listed, or the requested one not be looked up.
        cross_site: whether another site may have sent the request, which then must not start jobs.
        values: query parameters.
        requested: keys of jobs that this browser has requested.
        dismissed: notices that were dismissed: time by key.
        unknown_project: id of the requested project if it does not exist.
        reviewer: name under which repairs are recorded; empty for the user of Basic auth.
    """

    step: str
    lang: str
    theme: str
    projects: list[responses.Project] = field(default_factory=list)
    problem: BackendError | None = None
    cross_site: bool = False
    values: Mapping[str, str] = field(default_factory=dict)
    requested: tuple[str, ...] = ()
    dismissed: Mapping[str, int] = field(default_factory=dict)
    unknown_project: int | None = None
    reviewer: str = ""

    @property
    def project(self) -> int | None:
        """Id of the requested project, else of the first; ``None`` if there is none, or no such one."""
        if self.unknown_project:
            return None
        return self.number("project", 0) or (self.projects[0]["id"] if self.projects else None)

    @property
    def chosen(self) -> responses.Project | None:
        return next((item for item in self.projects if item["id"] == self.project), None)

    def number(self, name: str, default: int = 1) -> int:
        """Return a positive integer parameter, or ``default`` if it is missing or invalid."""
        text = self.values.get(name, "")
        valid = len(text) <= 10 and text.isascii() and text.isdecimal() and 0 < int(text) < 1 << 31
        return int(text) if valid else default


def read_state(*, whole: bool) -> PageState:
    """Read the state of the current request.

    Args:
        whole: whether the whole page is requested, which lists projects and defaults to the first.
    """
    values = {name: value for name, value in request.args.items() if len(value) <= 1000}
    projects: list[responses.Project] = []
    problem: BackendError | None = None
    if whole:
        try:
            projects = handlers.projects()["projects"]
        except Exception as error:  # noqa: BLE001 -- as_backend_error() logs it
            problem, _ = as_backend_error(error)
    try:
        require_same_site()
        cross_site = False
    except CrossSite:
        cross_site = True
    step, theme, lang = values.get("step", ""), request.cookies.get("theme", ""), request.cookies.get("lang", "")
    if lang not in LANGUAGES:
        lang = request.accept_languages.best_match(list(LANGUAGES)) or "en"
    if step not in (*STEPS, *([ACCESS] if person().may("admin") else [])):
        step = STEPS[0]
    theme = theme if theme in THEMES else ""
    state = PageState(
        step,
        lang,
        theme,
        projects,
        problem,
        cross_site,
        values,
        read_requested(request.cookies),
        read_dismissed(request.cookies),
        reviewer=unquote(request.cookies.get(REVIEWER, ""))[:_MAX_NAME],
    )
    try:
        if state.project and not person().sees(state.project):
            return replace(state, unknown_project=state.project)
    except BackendError as error:
        return replace(state, problem=error, unknown_project=state.project)
    if projects and state.project and not state.chosen:
        try:
            services().lister.check(state.project)
        except NotFound:
            return replace(state, unknown_project=state.project)
        except BackendError as error:
            return replace(state, problem=error)
    return state
