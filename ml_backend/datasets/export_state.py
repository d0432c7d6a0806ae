"""State of a dataset export, kept in its folder so that an interrupted export can resume."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from ml_backend.core.errors import ConfigError
from ml_backend.core.files import write_text

log = logging.getLogger(__name__)

_FOLDER = ".export"


def state_folder(out: Path) -> Path:
    """Return the folder of the export's state; it may be deleted once the export is complete."""
    return out / _FOLDER


def fingerprint(content: Any) -> str:
    """Return a SHA-256 of JSON content, independent of the order of keys."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class ExportState:
    """Options of a dataset and a record for each exported video.

    Args:
        out: folder of the export.
        options: everything that determines what is written.

    Raises:
        ConfigError: the folder holds other files, or an export with other options.
    """

    def __init__(self, out: Path, options: dict[str, Any]) -> None:
        self._dir = state_folder(out)
        file = self._dir / "options.json"
        previous = _read_json(file)
        options = json.loads(json.dumps(options, default=str))  # as they are read back
        if previous is None:
            if out.exists() and (not out.is_dir() or any(path.name != _FOLDER for path in out.iterdir())):
                raise ConfigError(f"{out} holds other files.", "Choose a new or empty folder as --out.")
            write_text(file, json.dumps(options, indent=1, ensure_ascii=False) + "\n")
        elif previous != options:
            changed = sorted(key for key in {*previous, *options} if previous.get(key) != options.get(key))
            raise ConfigError(
                f"{out} holds an export with other options ({', '.join(changed)}).",
                "Choose another --out, remove that folder, or use the same options to continue.",
            )

    def read(self, name: str) -> dict[str, Any] | None:
        """Return the record of a video, or ``None``."""
        return _read_json(self._path(name))

    def write(self, name: str, record: dict[str, Any]) -> None:
        write_text(self._path(name), json.dumps(record, default=str) + "\n")

    def names(self) -> list[str]:
        """Return the names of all videos that have a record."""
        suffix = ".video.json"
        return sorted(path.name.removesuffix(suffix) for path in self._dir.glob(f"*{suffix}"))

    def remove(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._dir / f"{name}.video.json"


def _read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON object; ``None`` if the file is missing or damaged."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("%s is damaged and ignored: %s", path, error)
        return None
    return record if isinstance(record, dict) else None
