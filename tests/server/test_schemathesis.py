"""Schemathesis makes requests from the OpenAPI document, right, wrong and at every limit: answers are as it says."""

from __future__ import annotations

import schemathesis
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from schemathesis import Case
from schemathesis.checks import CheckFunction, positive_data_acceptance
from schemathesis.config import ChecksConfig, PositiveDataAcceptanceConfig, ProjectConfig, ProjectsConfig

from ml_backend.server.api import handlers
from ml_backend.server.api.routing import ROUTES, document
from tests.server.control import Room

# 422: understood, but there is no such version or label, which no schema can tell.
_ACCEPTED = PositiveDataAcceptanceConfig(expected_statuses=["2xx", "404", "409", "422"])
_PROJECT = ProjectConfig(checks=ChecksConfig(positive_data_acceptance=_ACCEPTED))
_CONFIG = schemathesis.Config(projects=ProjectsConfig(default=_PROJECT))
#: Checks that cannot hold, by path. All others do, that no answer is undocumented (as 500 is) among them.
_LEFT_OUT: dict[str, list[CheckFunction]] = {
    "/api/upload_video": [positive_data_acceptance],  # no schema tells how a file is to be named: 415
}

schema = schemathesis.openapi.from_dict(document(auth=False), config=_CONFIG)


@schema.parametrize()
@hypothesis_settings(
    max_examples=8, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
def test_answers_are_as_described(case: Case, room: Room) -> None:
    handlers.all_jobs.cache_clear()  # each request sees what the last one did
    case.call_and_validate(app=room.app, excluded_checks=_LEFT_OUT.get(case.path, []))


def test_every_route_is_asked() -> None:
    asked = {operation.ok().label for operation in schema.get_all_operations()}
    told = {f"{route.method} /api{route.path.replace('<', '{').replace('>', '}')}" for route in ROUTES}
    assert asked == told


def test_what_the_document_says_of_bodies_is_what_is_checked(room: Room) -> None:
    """The schemas refuse unknown fields, as the API does."""
    for route in ROUTES:
        if route.body is not None:
            assert room.document["components"]["schemas"][route.body.__name__]["additionalProperties"] is False
