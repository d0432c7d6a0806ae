"""URLs in messages."""

from __future__ import annotations

import pytest

from ml_backend.core.urls import shown_url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:secret@host:6379/0", "redis://host:6379/0"),
        ("redis://me:se@cret@host/0?password=secret", "redis://host/0"),
        ("postgresql://me:se/cret@host:port/db", "postgresql://host:port/db"),
        ("simplecache::s3://key:secret@bucket/folder", "simplecache::s3://bucket/folder"),
        ("https://host/a.mp4?X-Amz-Signature=secret", "https://host/a.mp4"),
        ("unix:///run/redis.sock?password=secret", "unix:///run/redis.sock"),
        ("/srv/shared folder", "/srv/shared folder"),
    ],
)
def test_no_secret_is_shown(url: str, shown: str) -> None:
    assert shown_url(url) == shown
