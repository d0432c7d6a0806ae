"""Generate the settings table of the docs: ``python -m ml_backend.core.settings_table docs/configuration.md``."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from ml_backend.core.settings import Settings

START = "<!-- settings: made by `python -m ml_backend.core.settings_table docs/configuration.md` -->"
END = "<!-- /settings -->"


def _default(value: Any) -> str:
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value is None or value in ("", ()):
        return ""
    return f"`{value}`"


def settings_table() -> str:
    """Return a Markdown table with a row per setting, in the order of their declaration."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        rows.append(f"| `{name.upper()}` | {_default(field.default)} | {field.description} |")
    return "\n".join(rows)


def update(path: Path) -> None:
    """Replace the table between the markers of a file.

    Raises:
        ValueError: the file lacks the markers.
    """
    text = path.read_text(encoding="utf-8")
    pattern = re.compile(re.escape(START) + ".*?" + re.escape(END), re.S)
    if not pattern.search(text):
        raise ValueError(f"{path} lacks the lines {START!r} and {END!r}")
    path.write_text(pattern.sub(lambda _: f"{START}\n\n{settings_table()}\n\n{END}", text), encoding="utf-8")


if __name__ == "__main__":
    update(Path(sys.argv[1]))
