"""Names and frame rates where there is no label config: from the tasks of an export themselves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from ml_backend.export.locate import media_parts
from ml_backend.label_studio.schema import DEFAULT_FRAME_RATE, VideoControl
from ml_backend.label_studio.suffixes import VIDEO_SUFFIXES

#: Fields in which projects keep the frame rate of a video.
_RATE_FIELDS = ("fps", "frame_rate", "frameRate", "framerate")
_USUAL = (DEFAULT_FRAME_RATE, 25.0, 30.0, 29.97, 23.976, 50.0, 60.0, 59.94, 15.0, 12.5, 10.0)


def found_controls(data: Mapping[str, Any], result: Iterable[Mapping[str, Any]]) -> tuple[VideoControl, ...]:
    """The video controls that a task's regions name; one for its video where there are no regions.

    Args:
        data: of the task.
        result: of an annotation or a prediction.
    """
    names: dict[str, str] = {}
    for region in result:
        if region.get("type") == "videorectangle":
            from_name = str(region.get("from_name") or "box")
            names.setdefault(str(region.get("to_name") or f"?{from_name}"), from_name)
    fields = [key for key, value in data.items() if _is_video(value)]
    if not names:
        names = dict.fromkeys(fields[:1], "box") or {"video": "box"}
    return tuple(
        VideoControl(from_name, to_name, _field(to_name, number, fields), "label", ())
        for number, (to_name, from_name) in enumerate(names.items())
    )


def _field(to_name: str, number: int, fields: Sequence[str]) -> str:
    if to_name in fields or not fields:
        return to_name
    return fields[min(number, len(fields) - 1)]


def _is_video(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    names = media_parts(value)
    return bool(names) and PurePosixPath(names[-1]).suffix.lower() in VIDEO_SUFFIXES


def inferred_rate(data: Mapping[str, Any], regions: Iterable[Mapping[str, Any]]) -> float | None:
    """Frames per second of the timeline on which regions were drawn.

    ``framesCount`` is ``duration`` times the frame rate, rounded: what the task's own fields say is believed if it
    agrees, then a usual rate that does, then the quotient itself.

    Returns:
        ``None`` where neither regions nor fields say anything.
    """
    stated = [rate for field in _RATE_FIELDS if (rate := _number(data.get(field))) > 0]
    for region in regions:
        value = region.get("value")
        if not isinstance(value, Mapping):
            continue
        duration, count = _number(value.get("duration")), _number(value.get("framesCount"))
        if not (duration > 0 and count > 0):
            continue
        for rate in (*stated, *_USUAL):
            if math.floor(duration * rate + 0.5) == count:
                return rate
        return count / duration
    return stated[0] if stated else None


def _number(value: Any) -> float:
    if isinstance(value, bool):
        return 0.0
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return number if math.isfinite(number) else 0.0
