"""URLs in messages."""

from __future__ import annotations

import re


def shown_url(url: str) -> str:
    """Return a URL for messages: without user, password, and query, which may have a password or signature too."""
    return re.sub(r"//.*@", "//", url).partition("?")[0]
