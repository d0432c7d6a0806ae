"""Names and frame rates where there is no label config: from the tasks of an export themselves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from ml_backend.errors import ConfigError
from ml_backend.export.known import number
from ml_backend.export.locate import media_parts
from ml_backend.importing import SOURCE_FIELD
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

    Raises:
        ConfigError: which field has the video is not known.
    """
    names: dict[str, str] = {}
    for region in result:
        if region.get("type") == "videorectangle":
            from_name = str(region.get("from_name") or "box")
            names.setdefault(str(region.get("to_name") or f"?{from_name}"), from_name)
    fields = [key for key, value in data.items() if _is_video(value) and not _is_note(key, data)]
    if not names:
        # Nothing was drawn, so that it matters to nobody what the control is called.
        names = {_only(fields, "video"): "box"}
    fields_left = [field for field in fields if field not in names]
    return tuple(
        VideoControl(from_name, to_name, to_name if to_name in fields else _only(fields_left, to_name), "label", ())
        for to_name, from_name in names.items()
    )


def _is_note(key: str, data: Mapping[str, Any]) -> bool:
    """Whether a field is what ``import_videos.py`` notes of a video: the name of the file that it was given."""
    return key == "source" and SOURCE_FIELD in data and "/" not in str(data[key])


def _only(fields: Sequence[str], name: str) -> str:
    """The field of a control's video.

    Raises:
        ConfigError: there are several, none of them of the control's name.
    """
    if name in fields or not fields:
        return name
    if len(fields) > 1:
        raise ConfigError(
            f"The task has several fields with a video ({', '.join(fields)}), and which one is meant is not known.",
            "Give the project's label config as --config.",
        )
    return fields[0]


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
    stated = [rate for field in _RATE_FIELDS if (rate := number(data.get(field))) > 0]
    for region in regions:
        value = region.get("value")
        if not isinstance(value, Mapping):
            continue
        duration, count = number(value.get("duration")), number(value.get("framesCount"))
        if not (duration > 0 and count > 0):
            continue
        for rate in (*stated, *_USUAL):
            if math.floor(duration * rate + 0.5) == count:
                return rate
        return count / duration
    return stated[0] if stated else None
