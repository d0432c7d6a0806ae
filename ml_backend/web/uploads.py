"""Videos from the browser: streamed to disk within a limit, then left to a job that probes and imports them."""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
import shutil
import unicodedata
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from flask import request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge
from werkzeug.formparser import FormDataParser

from ml_backend.errors import StorageError
from ml_backend.label_studio.suffixes import VIDEO_SUFFIXES
from ml_backend.web import answers
from ml_backend.web.api import route
from ml_backend.web.control_room import requested
from ml_backend.web.problems import Invalid, WrongType
from ml_backend.web.protocol import services

if TYPE_CHECKING:
    from ml_backend.services import Services

log = logging.getLogger(__name__)

GB = 1 << 30
#: Longest file name in bytes, with room for what Label Studio puts before it; file systems take 255.
NAME_BYTES = 150
#: Bytes of form fields, and their number: there is one, and the file. Werkzeug reads 64 kB at once.
_FIELD_BYTES, _FIELDS = 200_000, 10
#: Bytes that are left free on the disk.
_SPARE = 512 << 20

FORM: dict[str, Any] = {
    "type": "object",
    "required": ["project", "file"],
    "additionalProperties": False,
    "properties": {
        "project": {"type": "string", "pattern": "^[1-9][0-9]{0,9}$", "description": "Id of the project."},
        "file": {"type": "string", "contentMediaType": "application/octet-stream", "description": "A video."},
    },
}


class _Received:
    """A file that is being received; it knows the digest of its content at the end."""

    def __init__(self, path: Path, limit: int) -> None:
        self.path = path
        self._limit, self._left = limit, limit
        self._file: IO[bytes] = path.open("xb")
        self._digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._left -= len(data)
        if self._left < 0:
            raise RequestEntityTooLarge(_too_large(self._limit))
        self._digest.update(data)
        return self._file.write(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def read(self, size: int = -1) -> bytes:
        return b""  # what was received is on the disk, and is read there

    def close(self) -> None:
        self._file.close()

    def sha256(self) -> str:
        return self._digest.hexdigest()


@route(
    "POST",
    "/upload_video",
    "Label",
    202,
    requestBody={"required": True, "content": {"multipart/form-data": {"schema": FORM}}},
)
def upload_video() -> answers.JobAnswer:
    """Upload a video.

    Streamed to disk up to UPLOAD_MAX_GB; a job makes it playable where it is not, and a task of the project. A file
    that the project has already makes no second task.
    """
    found = services()
    if request.mimetype != "multipart/form-data":
        raise WrongType("The body must be of the type multipart/form-data.", "Send the fields 'project' and 'file'.")
    limit = int(found.settings.upload_max_gb * GB)
    _check_room(found, request.content_length or 0)
    folder = found.settings.uploads_dir / f"part-{secrets.token_hex(8)}"
    try:
        folder.mkdir(parents=True)
        project, name, digest, path = _receive(folder, limit)
        # Of its content and project: the same upload is the same job.
        known = f"{project}-{digest[:16]}"
        target = found.settings.uploads_dir / known / name
        target.parent.mkdir(exist_ok=True)
        path.replace(target)
    except OSError as error:
        raise StorageError(
            f"The upload cannot be kept: {error.strerror}.", "Free disk space, or set DATA_DIR elsewhere."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return requested(found.control.import_video(project, known, name))


def _check_room(found: Services, wanted: int) -> None:
    limit = int(found.settings.upload_max_gb * GB)
    if wanted > limit + _FIELD_BYTES * _FIELDS:
        raise RequestEntityTooLarge(_too_large(limit))
    try:
        found.settings.uploads_dir.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(found.settings.uploads_dir).free
    except OSError as error:
        raise StorageError(
            f"{found.settings.uploads_dir} cannot be used: {error.strerror}.", "Set DATA_DIR elsewhere."
        ) from error
    if wanted + _SPARE > free:
        raise StorageError(f"There is no room for {wanted / 1e9:.1f} GB.", "Free disk space.")


def _too_large(limit: int) -> str:
    return f"The file is larger than {limit / GB:g} GB, which UPLOAD_MAX_GB allows."


def _receive(folder: Path, limit: int) -> tuple[int, str, str, Path]:
    """Read the body to its end, the file to the disk; project, the file's name and digest, and where it is."""
    received: list[_Received] = []

    def receiver(*_args: Any, **_more: Any) -> Any:
        if received:
            raise Invalid("There is more than one file.", "Upload one at a time.", [_wrong("file", "given twice")])
        received.append(_Received(folder / "video", limit))
        return received[-1]

    parser = FormDataParser(
        receiver,
        max_form_memory_size=_FIELD_BYTES,
        max_content_length=limit + _FIELD_BYTES * _FIELDS,
        max_form_parts=_FIELDS,
        silent=False,
    )
    request.max_content_length = limit + _FIELD_BYTES * _FIELDS
    try:
        _, fields, files = parser.parse(
            request.stream, request.mimetype, request.content_length, dict(request.mimetype_params)
        )
    except RequestEntityTooLarge as error:
        raise RequestEntityTooLarge(_too_large(limit)) from error
    except HTTPException:
        raise
    except ValueError as error:
        raise Invalid(f"The body is no form: {error}.", "Send it as a browser's form does.") from error
    finally:
        for item in received:
            item.close()
    errors = [_wrong(name, "unknown") for name in {*fields, *files} - {"project", "file"}]
    errors += [_wrong(name, "missing") for name, given in (("project", fields), ("file", files)) if name not in given]
    if not errors and not re.fullmatch(FORM["properties"]["project"]["pattern"].strip("^$"), fields["project"]):
        errors.append(_wrong("project", "not the id of a project"))
    if not errors and not 0 < int(fields["project"]) < 1 << 31:
        errors.append(_wrong("project", "not the id of a project"))
    if errors:
        detail = " ".join(f"The field '{item['field']}' is {item['message']}." for item in errors)
        raise Invalid(detail, "Send the fields 'project' and 'file'.", errors)
    name = safe_name(files["file"].filename or "")
    if Path(name).suffix.lower() not in VIDEO_SUFFIXES:
        raise WrongType(
            f"{name!r} is not named like a video.", f"The names of videos end with {', '.join(sorted(VIDEO_SUFFIXES))}."
        )
    if not received[0].path.stat().st_size:
        raise Invalid("The file is empty.", "Choose another.", [_wrong("file", "empty")])
    return int(fields["project"]), name, received[0].sha256(), received[0].path


def _wrong(field: str, message: str) -> dict[str, str]:
    return {"field": field[:80], "message": message}


def safe_name(given: str) -> str:
    """A file name that is one everywhere: the last part, without control characters and what shells or Windows mind.

    Letters of every script stay. ``..\\..\\évil\\x.mp4`` becomes ``x.mp4``.
    """
    last = PurePosixPath(unicodedata.normalize("NFC", given).replace("\\", "/")).name
    kept = "".join("_" if c in '<>:"|?*/\\' or unicodedata.category(c).startswith("C") else c for c in last)
    stem, suffix = Path(kept).stem.strip(" ."), Path(kept).suffix.strip()
    while len(stem.encode()) > NAME_BYTES:
        stem = stem[:-1]
    return f"{stem or 'video'}{suffix[:20]}"
