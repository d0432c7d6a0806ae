"""Moments that databases and queues give without a time zone."""

from __future__ import annotations

from datetime import datetime, timezone


def ensure_utc(moment: datetime) -> datetime:
    """With a time zone: SQLite keeps none, and RQ does not always say one. What has none is in UTC."""
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
