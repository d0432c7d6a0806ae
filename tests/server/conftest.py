"""The control room's API without Label Studio: real Redis, real SQLite."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ml_backend.core.settings import Settings
from ml_backend.server.app import create_app
from tests.server.control import Room


@pytest.fixture
def make_room(settings: Callable[..., Settings], redis_url: str) -> Callable[..., Room]:
    """Factory of a :class:`Room`; keyword arguments are settings."""

    def make(**values: object) -> Room:
        defaults = {"redis_url": redis_url, "detector": "motion", "label_studio_url": "http://127.0.0.1:1"}
        return Room(create_app(settings(**(defaults | values))))

    return make


@pytest.fixture
def room(make_room: Callable[..., Room]) -> Room:
    return make_room()


@pytest.fixture
def auto(make_room: Callable[..., Room]) -> Room:
    """The detector is not forced to be the motion detector, so that versions are used."""
    return make_room(detector="auto")
