"""Parse the extra parameters of a model connection in Label Studio."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def read_extra_params(value: Any) -> Mapping[str, Any]:
    """Parse the extra parameters that Label Studio sends with every call: an object or its JSON; else empty."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, Mapping) else {}
