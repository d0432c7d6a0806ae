"""The extra parameters that people enter where they connect a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def read_extra_params(value: Any) -> Mapping[str, Any]:
    """What Label Studio sends along with every call: an object or its JSON; nothing where it is neither."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, Mapping) else {}
