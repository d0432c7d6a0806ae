"""Time zones of timestamps from databases and queues."""

from __future__ import annotations

from datetime import datetime, timezone


def ensure_utc(time: datetime) -> datetime:
    """Return a timezone-aware datetime; a naive one, as from SQLite and at times RQ, is in UTC."""
    return time if time.tzinfo else time.replace(tzinfo=timezone.utc)
