"""What the page of the API shows beside its OpenAPI document: rendered Markdown, types in words, curl examples."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from markupsafe import Markup

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

Schema = Mapping[str, Any]


def docs_context(document: Mapping[str, Any], url: str) -> dict[str, Any]:
    """Return the context of the page's template.

    Args:
        document: OpenAPI document of the API.
        url: of this server, for the examples.
    """
    schemas = document["components"]["schemas"]
    options = ["-u", "USER:PASSWORD"] if document.get("security") else []
    return {
        "document": document,
        "markdown": _render_markdown,
        "type_of": describe_type,
        "curl": lambda path, method, operation: curl_example(path, method, operation, schemas, url, options),
    }


def _render_markdown(text: str) -> Markup:
    """Render Markdown to HTML; HTML in the text is escaped."""
    return Markup(_markdown().renderInline(text))  # noqa: S704


@cache
def _markdown() -> MarkdownIt:
    from markdown_it import MarkdownIt  # start-up does not need it

    return MarkdownIt("commonmark", {"html": False})


def describe_type(schema: Schema) -> str:
    """Return a JSON schema's type and limits in words: ``integer, 1 to 500; default: 100``."""
    variants = schema.get("anyOf")
    if variants:
        words = " or ".join(filter(None, map(describe_type, variants)))
    elif "$ref" in schema:
        words = schema["$ref"].rsplit("/", 1)[-1]
    elif "enum" in schema or "const" in schema:
        words = "one of " + ", ".join(map(str, schema.get("enum", [schema.get("const")])))
    elif schema.get("type") == "array":
        words = f"list of {describe_type(schema.get('items', {}))}"
    else:
        words = str(schema.get("type", "any"))
    low, high = schema.get("minimum"), schema.get("maximum", schema.get("exclusiveMaximum", 0) - 1)
    if low is not None and high >= low:
        words += f", {low} to {high}"
    if schema.get("default") is not None:
        words += f"; default: {json.dumps(schema['default'])}"
    return words


def curl_example(
    path: str, method: str, operation: Mapping[str, Any], schemas: Mapping[str, Schema], url: str, options: list[str]
) -> str:
    """Return a command that calls a route: with required values, and those that have an example."""
    query = {}
    for parameter in operation["parameters"]:
        if parameter["in"] == "path":
            path = path.replace(f"{{{parameter['name']}}}", quote(str(_example(parameter["schema"]))))
        elif parameter["in"] == "query" and (parameter.get("required") or _examples(parameter["schema"])):
            query[parameter["name"]] = _example(parameter["schema"])
    address = f"{url}{path}" + (f"?{urlencode(query)}" if query else "")
    words = ["curl", *options]
    content = operation.get("requestBody", {}).get("content", {})
    if method != "get" and not (method == "post" and content):
        words += ["-X", method.upper()]
    for media_type, body in content.items():
        schema = body["schema"]
        values = _body(schemas[schema["$ref"].rsplit("/", 1)[-1]] if "$ref" in schema else schema)
        if media_type == "application/json":
            words += ["-H", f"Content-Type: {media_type}", "-d", json.dumps(values)]
        else:
            words += [word for name, value in values.items() for word in ("-F", f"{name}={value}")]
    if "application/zip" in operation["responses"].get("200", {}).get("content", {}):
        words.append("-OJ")
    return shlex.join([*words, address])


def _body(schema: Schema) -> dict[str, Any]:
    required = schema.get("required", ())
    properties = schema.get("properties", {}).items()
    return {name: _example(value) for name, value in properties if name in required or _examples(value)}


def _examples(schema: Schema) -> list[Any]:
    return [*schema.get("examples", ()), *(value for item in schema.get("anyOf", ()) for value in _examples(item))]


def _example(schema: Schema) -> Any:
    if found := _examples(schema) or schema.get("enum"):
        return found[0]
    if schema.get("contentMediaType"):
        return "@video.mp4"
    return 1  # an id
