"""What a request to the page is about: project, step, language, theme."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flask import request

from ml_backend.core.errors import BackendError
from ml_backend.server.api import handlers as control_room
from ml_backend.server.api import responses as answers
from ml_backend.server.dashboard.texts import LANGUAGES
from ml_backend.server.origin_checks import refuse_unproven
from ml_backend.server.problems import CrossSite, as_backend_error

STEPS = ("label", "learn", "auto", "review")
THEMES = ("light", "dark")


@dataclass(frozen=True, slots=True)
class PageState:
    """A request.

    Attributes:
        theme: empty: the system's.
        projects: all there are; empty where ``problem`` says why they are not known.
        foreign: another site led here, or may have; that starts no work.
        values: further parameters.
    """

    step: str
    lang: str
    theme: str
    projects: list[answers.Project] = field(default_factory=list)
    problem: BackendError | None = None
    foreign: bool = False
    values: Mapping[str, str] = field(default_factory=dict)

    @property
    def project(self) -> int | None:
        """Id of the one that is named, else of the first; ``None`` where there is none."""
        return self.number("project", 0) or (self.projects[0]["id"] if self.projects else None)

    @property
    def chosen(self) -> answers.Project | None:
        return next((item for item in self.projects if item["id"] == self.project), None)

    def number(self, name: str, default: int = 1) -> int:
        """A parameter that is a positive number."""
        text = self.values.get(name, "")
        known = len(text) <= 10 and text.isascii() and text.isdecimal() and 0 < int(text) < 1 << 31
        return int(text) if known else default


def read_state(*, whole: bool) -> PageState:
    """The present request's.

    Args:
        whole: the whole page is asked for, which lists projects and takes the first where none is named.
    """
    values = {name: value for name, value in request.args.items() if len(value) <= 1000}
    projects: list[answers.Project] = []
    problem: BackendError | None = None
    if whole:
        try:
            projects = control_room.projects()["projects"]
        except Exception as error:  # noqa: BLE001 -- told() logs it
            problem, _ = as_backend_error(error)
    try:
        refuse_unproven()
        foreign = False
    except CrossSite:
        foreign = True
    step, theme, lang = values.get("step", ""), request.cookies.get("theme", ""), request.cookies.get("lang", "")
    if lang not in LANGUAGES:
        lang = request.accept_languages.best_match(list(LANGUAGES)) or "en"
    step, theme = step if step in STEPS else STEPS[0], theme if theme in THEMES else ""
    return PageState(step, lang, theme, projects, problem, foreign, values)
