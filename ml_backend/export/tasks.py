"""Tasks with annotations and predictions, in one shape: from a Label Studio export file or a file of predictions.

The shape is that of Label Studio's JSON export: ``{"id", "data", "annotations", "predictions"}``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, groupby
from pathlib import Path
from typing import IO, Any

from ml_backend.errors import ConfigError

RawTask = dict[str, Any]

#: Characters that are read at first; a task that is longer doubles it, so that each is parsed a few times at most.
_CHUNK = 1 << 18
_BETWEEN = re.compile(r"[\s,]*")
#: Fields that JSON_MIN adds to a task's own.
_MIN_FIELDS = frozenset({"id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement"})
_CURE = "Export the project from Label Studio as JSON, or write predictions with scripts/predict_video.py."


def read_tasks(path: Path) -> Iterator[RawTask]:
    """Tasks of a file, one in memory at a time.

    Args:
        path: Label Studio's JSON or JSON_MIN export (a list of tasks), a single task, or a prediction as
            ``scripts/predict_video.py`` writes it. The task of such a prediction has the id 0 and no data.

    Raises:
        ConfigError: not readable, not JSON, or none of these.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            for _, rows in groupby(_items(file, path), key=_group):
                yield from _one_shape(rows, path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.", "Check the path.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error.reason}.", _CURE) from error


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
        raise ConfigError(f"{path} holds {type(first).__name__} where a task is expected.", _CURE)
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
        raise ConfigError(f"{path} is neither an export of Label Studio nor a prediction.", _CURE)


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


def _items(file: IO[str], path: Path) -> Iterator[Any]:
    """The elements of a file's outer list, or its only object."""
    text = file.read(_CHUNK).lstrip()
    if text.startswith("["):
        yield from _elements(file, text[1:], path)
        return
    try:
        yield json.loads("".join(chain([text], iter(lambda: file.read(_CHUNK), ""))))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not JSON: {error}.", _CURE) from error
    except (RecursionError, ValueError) as error:  # brackets or digits without end
        raise ConfigError(f"{path} cannot be read: {type(error).__name__}.", _CURE) from error


def _elements(file: IO[str], text: str, path: Path) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    at, ended = 0, False
    while True:
        at = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]
        if text.startswith("]", at):
            return
        try:
            item, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            if ended:
                raise ConfigError(f"{path} is not JSON, or was cut off: {error.msg}.", _CURE) from error
            more = file.read(max(_CHUNK, len(text) - at))
            text, at, ended = text[at:] + more, 0, not more
            continue
        except (RecursionError, ValueError) as error:  # brackets or digits without end
            raise ConfigError(f"{path} cannot be read: {type(error).__name__}.", _CURE) from error
        yield item
