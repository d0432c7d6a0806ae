"""URLs in messages."""

from __future__ import annotations

import re

#: Extra of this package, with the driver, by an URL's scheme.
_EXTRAS = {"postgresql": "postgres", "s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}


def extra_hint(url: str) -> str:
    """Return how to install the driver that a URL needs; empty if no extra has it."""
    extra = _EXTRAS.get(re.split(r"[+:]", url, maxsplit=1)[0])
    return f"Install the extra [{extra}], from the project's folder: pip install '.[{extra}]'." if extra else ""


#: Some cameras have the password in the path: rtsp://camera/user=admin_password=secret_channel=1.sdp
_SECRET_IN_PATH = re.compile(r"(?i)(user(?:name)?|pass(?:word|wd)?|pwd|token|key)=[^&;/]*")


def shown_url(url: str) -> str:
    """Return a URL for messages: without user, password, and query, which may have a password or signature too."""
    return _SECRET_IN_PATH.sub(r"\1=…", re.sub(r"//.*@", "//", url).partition("?")[0])
