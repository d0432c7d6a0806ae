"""Read tasks with annotations and predictions from a Label Studio export or a prediction file.

All are converted to the shape of Label Studio's JSON export: ``{"id", "data", "annotations", "predictions"}``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from ml_backend.core.errors import ConfigError
from ml_backend.core.files import files_below

RawTask = dict[str, Any]

_SEPARATOR = re.compile(r"[\s,]*")
#: Fields that JSON_MIN adds to the task's data.
_MIN_FIELDS = frozenset({"id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement"})
#: Fields in the value of a ``VideoRectangle``. A per-region control (``TimelineLabels``, ``Choices``) repeats them and
#: adds its own.
_RECTANGLE_FIELDS = frozenset({"framesCount", "duration", "sequence", "labels"})
_HINT = "Export the project from Label Studio as JSON, or write predictions with scripts/predict_video.py."


def read_tasks(path: Path, skip: Callable[[Path, ConfigError], None] | None = None) -> Iterator[RawTask]:
    """Yield the tasks of a file, decoding one at a time, or of a target storage.

    Args:
        path: Label Studio's JSON or JSON_MIN export (a list of tasks), a single task, one or a list of the annotations
            that its target storage writes, a folder of these, or a prediction as ``scripts/predict_video.py`` writes
            it. The task of such a prediction has the id 0 and no data.
        skip: called with each file of a folder that is no annotation; by default the error is raised.

    Raises:
        ConfigError: the file is not readable, not JSON, or none of these; the folder has no such files.
    """
    if path.is_dir():
        yield from _from_annotations(_stored_annotations(path, skip))
        return
    for (shape, _), rows in groupby(_items(path), key=_group):
        if shape == "annotation":
            yield from _from_annotations(rows)
        else:
            yield from _to_tasks(rows, path)


def _stored_annotations(folder: Path, skip: Callable[[Path, ConfigError], None] | None) -> Iterator[Mapping[str, Any]]:
    """Yield the annotations of a target storage, whose files are called by numbers, with or without ``.json``."""
    files = [file for file in files_below(folder) if file.suffix in ("", ".json")]
    if not files:
        raise ConfigError(f"{folder} has no annotations of a target storage.", _HINT)
    for file in files:
        try:
            items = list(_items(file))
            if any(_group(item)[0] != "annotation" for item in items):
                raise ConfigError(f"{file} is no annotation of a target storage.", "Remove it from the folder.")
        except ConfigError as error:
            if skip is None:
                raise
            skip(file, error)
            continue
        yield from items


def is_prediction_file(path: Path) -> bool:
    """Return whether a file holds a single prediction, which names no video."""
    if path.is_dir():
        return False
    try:
        task = next(iter(read_tasks(path)), None)
    except ConfigError:
        return False
    return task is not None and task["id"] == 0 and not task["data"] and not task["annotations"]


def _group(item: Any) -> tuple[str, Any]:
    """Return a key that groups annotations, and the rows of JSON_MIN by task: it has a row for each annotation."""
    if isinstance(item, Mapping) and isinstance(item.get("result"), list) and "completed_by" in item:
        return "annotation", None
    if isinstance(item, Mapping) and "data" not in item and item.get("id") is not None:
        return "min", item["id"]
    return "task", id(item)


def _to_tasks(rows: Iterable[Any], path: Path) -> Iterator[RawTask]:
    first, *others = list(rows)
    if not isinstance(first, Mapping):
        raise ConfigError(f"{path} holds {type(first).__name__} where a task is expected.", _HINT)
    if isinstance(first.get("data"), Mapping):
        for row in (first, *others):
            yield {
                "id": row.get("id") or 0,
                "data": dict(row["data"]),
                # Label Studio before 1.0 called them "completions".
                "annotations": _mappings(row.get("annotations") or row.get("completions")),
                "predictions": _mappings(row.get("predictions")),
            }
    elif isinstance(first.get("result"), list):
        yield {"id": 0, "data": {}, "annotations": [], "predictions": [dict(first)]}
    elif first.get("id") is not None:
        yield _from_min([first, *others])
    else:
        raise ConfigError(f"{path} is neither a Label Studio export nor a prediction.", _HINT)


def _from_annotations(annotations: Iterable[Mapping[str, Any]]) -> Iterator[RawTask]:
    """Build tasks from annotations that name theirs, those of a task in any order: files of Label Studio's storage."""
    by_task: dict[str, list[str]] = {}
    for annotation in annotations:  # kept as text, which is far smaller
        by_task.setdefault(str(_task_of(annotation).get("id")), []).append(json.dumps(annotation))
    for texts in by_task.values():
        rows = [json.loads(text) for text in texts]
        task = _task_of(rows[0])
        data = task.get("data")
        yield {
            "id": task.get("id") or 0,
            "data": dict(data) if isinstance(data, Mapping) else {},
            "annotations": [{key: value for key, value in row.items() if key != "task"} for row in rows],
            "predictions": [],
        }


def _task_of(annotation: Mapping[str, Any]) -> Mapping[str, Any]:
    task = annotation.get("task")
    return task if isinstance(task, Mapping) else {"id": task}  # the API gives its id only


def _from_min(rows: list[Mapping[str, Any]]) -> RawTask:
    """Build a task from its rows of JSON_MIN, which keeps only the values of regions."""
    data = {k: v for k, v in rows[0].items() if k not in _MIN_FIELDS and not _is_regions(v)}
    annotations = []
    for row in rows:
        if row.get("annotation_id") is None:
            continue
        result = [
            # Ids and origins are lost: every region counts as drawn by a person.
            {"id": f"{row['annotation_id']}-{name}-{n}", "type": "videorectangle", "from_name": name, "value": value}
            for name, n, value in _rectangles(row)
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


def _rectangles(row: Mapping[str, Any]) -> list[tuple[str, int, Mapping[str, Any]]]:
    """Return control, number and value of each region in a row of JSON_MIN, without copies by per-region controls."""
    values = [(name, n, value) for name, values in row.items() if _is_regions(values) for n, value in enumerate(values)]
    plain = [value["sequence"] for _, _, value in values if value.keys() <= _RECTANGLE_FIELDS]
    return [item for item in values if item[2].keys() <= _RECTANGLE_FIELDS or item[2]["sequence"] not in plain]


def _is_regions(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, Mapping) and isinstance(item.get("sequence"), list) for item in value)
    )


def _mappings(items: Any) -> list[dict[str, Any]]:
    # Some exports list predictions by id only.
    return [dict(item) for item in items if isinstance(item, Mapping)] if isinstance(items, list) else []


def _items(path: Path) -> Iterator[Any]:
    """Yield the elements of a file's outer list, or the only object, decoding one at a time."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.", "Check the path.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error.reason}.", _HINT) from error
    decoder, position = json.JSONDecoder(), len(text) - len(text.lstrip())
    is_list = text.startswith("[", position)
    position += is_list
    try:
        while True:
            position = _SEPARATOR.match(text, position).end()  # type: ignore[union-attr]
            if is_list and text.startswith("]", position):
                return
            item, position = decoder.raw_decode(text, position)
            yield item
            if not is_list:
                return
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not JSON, or is truncated: {error}.", _HINT) from error
    except (RecursionError, ValueError) as error:  # too deeply nested, or too many digits
        raise ConfigError(f"{path} cannot be read: {type(error).__name__}.", _HINT) from error
