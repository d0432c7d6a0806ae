"""The control room's API beside a web server that answers as Label Studio; real Redis, real SQLite."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from ml_backend.core.settings import Settings
from ml_backend.server.app import create_app
from tests.builders import Outside, outside
from tests.server.control import Room, answer_as_label_studio


@pytest.fixture
def beside() -> Iterator[Outside]:
    """Answers as a Label Studio with the projects 1, 7 and 8, each with tasks 1 to 9."""
    with outside() as site:
        answer_as_label_studio(site, {8: "eight", 7: "seven", 1: "one"}, tasks=9)
        yield site


@pytest.fixture
def make_room(settings: Callable[..., Settings], redis_url: str, beside: Outside) -> Callable[..., Room]:
    """Factory of a :class:`Room`; keyword arguments are settings."""

    def make(**values: object) -> Room:
        defaults = {"redis_url": redis_url, "detector": "motion"}
        defaults |= {"label_studio_url": beside.url, "label_studio_api_key": "token"}
        return Room(create_app(settings(**(defaults | values))))

    return make


@pytest.fixture
def room(make_room: Callable[..., Room]) -> Room:
    return make_room()


@pytest.fixture
def alone(make_room: Callable[..., Room]) -> Room:
    """There is no Label Studio, and no token for one."""
    return make_room(label_studio_url="http://127.0.0.1:1", label_studio_api_key="")


@pytest.fixture
def auto(make_room: Callable[..., Room]) -> Room:
    """The detector is not forced to be the motion detector, so that versions are used."""
    return make_room(detector="auto")
