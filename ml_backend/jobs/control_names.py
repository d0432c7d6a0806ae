"""What the control room and its jobs share: names, so that the same request has the same one; pictures within JSON."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

#: Of datasets that are trained on, every so many pictures: two a second at usual rates. Neighbours hardly differ, and
#: an hour of them all takes 50 GB.
STRIDE = 15


def digest(*values: Any) -> str:
    """16 hex digits over plain JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def stats_name(project_id: int) -> str:
    return f"stats-{project_id}"


def patterns_name(project_id: int) -> str:
    return f"patterns-{project_id}"


def similar_name(project_id: int, label: str, limit: int, safe: bool) -> str:
    return f"similar-{project_id}-{digest(label, limit, safe)}"


def data_url(jpeg: bytes) -> str | None:
    """A picture as an address that holds it; ``None`` where there is none."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode() if jpeg else None
