"""Requests made from the OpenAPI document, right and wrong: no answer that it does not describe, and no crash."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ml_backend.web.control import ROUTES
from ml_backend.web.routing import Route
from tests.web.control import Room

#: Streams do not end by themselves; they have tests of their own.
ASKED = [route for route in ROUTES if route.path != "/events"]

any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
#: No more than a few projects and tasks, so that requests meet.
small = st.integers(1, 3)


def of_schema(schema: dict[str, Any], components: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a schema allows."""
    if "$ref" in schema:
        return of_schema(components[schema["$ref"].rsplit("/", 1)[-1]], components)
    if "anyOf" in schema:
        return st.one_of(*(of_schema(each, components) for each in schema["anyOf"]))
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "const" in schema:
        return st.just(schema["const"])
    kind = schema.get("type")
    if kind == "null":
        return st.none()
    if kind == "boolean":
        return st.booleans()
    if kind == "integer":
        least, most = schema.get("minimum", 0), schema.get("maximum", schema.get("exclusiveMaximum", 1000) - 1)
        return st.integers(least, most) | st.integers(least, min(most, 3))
    if kind == "string":
        if "pattern" in schema:
            return st.from_regex(schema["pattern"], fullmatch=True)
        return st.text(min_size=schema.get("minLength", 0), max_size=min(schema.get("maxLength", 20), 20))
    if kind == "array":
        return st.lists(of_schema(schema["items"], components), min_size=schema.get("minItems", 0), max_size=4)
    if kind == "object":
        properties = {name: of_schema(each, components) for name, each in schema.get("properties", {}).items()}
        needed = set(schema.get("required", ()))
        return st.fixed_dictionaries(
            {name: value for name, value in properties.items() if name in needed},
            optional={name: value for name, value in properties.items() if name not in needed},
        )
    raise AssertionError(f"no idea how to make {schema}")


def text_of(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@pytest.fixture
def quiet(room: Room) -> Room:
    """Nothing is asked of Redis' list of jobs twice a second only: each request sees what the last one did."""
    room.app.extensions["pulse"].jobs._fresh_s = 0.0
    return room


@pytest.mark.parametrize("route", ASKED, ids=lambda route: f"{route.method} {route.path}")
@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_is_sent_is_answered_as_described(quiet: Room, route: Route, data: st.DataObject) -> None:
    room = quiet
    path = "/api" + route.path.replace("<", "{").replace(">", "}")
    operation = room.document["paths"][path][route.method.lower()]
    components = room.document["components"]["schemas"]
    query: dict[str, str] = {}
    values: dict[str, Any] = {}
    right = data.draw(st.booleans())
    for parameter in operation["parameters"]:
        if parameter["in"] == "path":
            given_value = data.draw(of_schema(parameter["schema"], components) if right else st.text(min_size=1))
            path = path.replace("{" + parameter["name"] + "}", quote(given_value, safe=""))
        elif parameter["in"] == "query" and (parameter["required"] or data.draw(st.booleans())):
            strategy = of_schema(parameter["schema"], components) if right else any_json
            value = data.draw(strategy)
            if value is not None:
                query[parameter["name"]] = text_of(value)
    if "requestBody" in operation:
        ((media, content),) = operation["requestBody"]["content"].items()
        if media == "application/json":
            body = data.draw(of_schema(content["schema"], components) if right else any_json)
            values = {"data": json.dumps(body), "content_type": media}
        else:
            fields = data.draw(st.dictionaries(st.sampled_from(["project", "file", "x"]), st.text(max_size=5)))
            values = {"data": fields, "content_type": media}
    answer = room.client.open(path, method=route.method, query_string=query, **values)
    assert answer.status_code < 500 or route.path == "/projects", answer.get_data(as_text=True)
    pattern = path if "{" not in "/api" + route.path else "/api" + route.path
    if answer.status_code == 404 and answer.is_json and route.path_schemas and "/" in path.removeprefix("/api/"):
        assert answer.content_type == "application/problem+json"
        return
    if answer.status_code in (308, 405) and not right:
        return  # another path altogether
    room.check(route.method, pattern, answer)
    if right and route.body:
        assert answer.status_code != 400 or route.path == "/switch_model", answer.get_data(as_text=True)
    answer.close()


def test_what_the_document_says_of_bodies_is_what_is_checked(room: Room) -> None:
    """The schemas refuse unknown fields, as the API does."""
    for route in ROUTES:
        if route.body is not None:
            assert room.document["components"]["schemas"][route.body.__name__]["additionalProperties"] is False
