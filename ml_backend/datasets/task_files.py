"""Tasks with annotations and predictions, in one shape: from a Label Studio export file or a file of predictions.

The shape is that of Label Studio's JSON export: ``{"id", "data", "annotations", "predictions"}``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from ml_backend.core.errors import ConfigError

RawTask = dict[str, Any]

_BETWEEN = re.compile(r"[\s,]*")
#: Fields that JSON_MIN adds to a task's own.
_MIN_FIELDS = frozenset({"id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement"})
_HINT = "Export the project from Label Studio as JSON, or write predictions with scripts/predict_video.py."


def read_tasks(path: Path) -> Iterator[RawTask]:
    """Tasks of a file, of which one at a time is more than text.

    Args:
        path: Label Studio's JSON or JSON_MIN export (a list of tasks), a single task, or a prediction as
            ``scripts/predict_video.py`` writes it. The task of such a prediction has the id 0 and no data.

    Raises:
        ConfigError: not readable, not JSON, or none of these.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.", "Check the path.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error.reason}.", _HINT) from error
    for _, rows in groupby(_items(text, path), key=_group):
        yield from _one_shape(rows, path)


def is_prediction_file(path: Path) -> bool:
    """Whether a file holds a single prediction, which names no video."""
    try:
        task = next(iter(read_tasks(path)), None)
    except ConfigError:
        return False
    return task is not None and task["id"] == 0 and not task["data"]


def _group(item: Any) -> tuple[str, Any]:
    """JSON_MIN has a row for each annotation; those of one task follow each other."""
    if isinstance(item, Mapping) and "data" not in item and item.get("id") is not None:
        return "min", item["id"]
    return "task", id(item)


def _one_shape(rows: Iterable[Any], path: Path) -> Iterator[RawTask]:
    first, *others = list(rows)
    if not isinstance(first, Mapping):
        raise ConfigError(f"{path} holds {type(first).__name__} where a task is expected.", _HINT)
    if isinstance(first.get("data"), Mapping):
        for row in (first, *others):
            yield {
                "id": row.get("id") or 0,
                "data": dict(row["data"]),
                # "completions" is what Label Studio called them before 1.0.
                "annotations": _mappings(row.get("annotations") or row.get("completions")),
                "predictions": _mappings(row.get("predictions")),
            }
    elif isinstance(first.get("result"), list):
        yield {"id": 0, "data": {}, "annotations": [], "predictions": [dict(first)]}
    elif first.get("id") is not None:
        yield _from_min([first, *others])
    else:
        raise ConfigError(f"{path} is neither an export of Label Studio nor a prediction.", _HINT)


def _from_min(rows: list[Mapping[str, Any]]) -> RawTask:
    """A task from its rows of JSON_MIN, which keeps only the values of regions."""
    data = {k: v for k, v in rows[0].items() if k not in _MIN_FIELDS and not _is_regions(v)}
    annotations = []
    for row in rows:
        if row.get("annotation_id") is None:
            continue
        result = [
            # Without ids and origins: everything in an annotation counts as a person's.
            {"id": f"{row['annotation_id']}-{name}-{n}", "type": "videorectangle", "from_name": name, "value": value}
            for name, values in row.items()
            if _is_regions(values)
            for n, value in enumerate(values)
        ]
        annotations.append(
            {
                "id": row["annotation_id"],
                "completed_by": row.get("annotator"),
                "created_at": row.get("created_at"),
                "updated_at": row.get("updated_at"),
                "result": result,
            }
        )
    return {"id": rows[0]["id"], "data": data, "annotations": annotations, "predictions": []}


def _is_regions(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, Mapping) and isinstance(item.get("sequence"), list) for item in value)
    )


def _mappings(items: Any) -> list[dict[str, Any]]:
    # Some exports list predictions by their ids only.
    return [dict(item) for item in items if isinstance(item, Mapping)] if isinstance(items, list) else []


def _items(text: str, path: Path) -> Iterator[Any]:
    """The elements of the outer list, or the only object, decoded one after the other."""
    decoder, at = json.JSONDecoder(), len(text) - len(text.lstrip())
    several = text.startswith("[", at)
    at += several
    try:
        while True:
            at = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]
            if several and text.startswith("]", at):
                return
            item, at = decoder.raw_decode(text, at)
            yield item
            if not several:
                return
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not JSON, or was cut off: {error}.", _HINT) from error
    except (RecursionError, ValueError) as error:  # brackets or digits without end
        raise ConfigError(f"{path} cannot be read: {type(error).__name__}.", _HINT) from error
