"""Videos from the browser: streamed to disk within a limit, then left to a job that probes and imports them."""

from __future__ import annotations

import hashlib
import io
import secrets
import shutil
import unicodedata
from pathlib import Path, PurePosixPath
from typing import Any

from flask import request
from pydantic import ValidationError
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge
from werkzeug.formparser import FormDataParser

from ml_backend.errors import StorageError
from ml_backend.files import VIDEO_SUFFIXES
from ml_backend.web import answers, bodies
from ml_backend.web.api import invalid, route
from ml_backend.web.control_room import requested
from ml_backend.web.problems import Invalid, WrongType
from ml_backend.web.protocol import services

GB = 1 << 30
#: Longest file name in bytes, with room for what Label Studio puts before it; file systems take 255.
NAME_BYTES = 150
#: Bytes of form fields, and their number: there is one, and the file. Werkzeug reads 64 kB at once.
_FIELD_BYTES, _FIELDS = 200_000, 10
#: Bytes that are left free on the disk.
_SPARE = 512 << 20


class _Received(io.BufferedWriter):
    """A file that is being received; it knows the digest of its content at the end."""

    def __init__(self, path: Path, limit: int) -> None:
        super().__init__(io.FileIO(path, "xb"))
        self._limit, self._left = limit, limit
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._left -= len(data)
        if self._left < 0:
            raise RequestEntityTooLarge(_too_large(self._limit))
        self.digest.update(data)
        return super().write(data)


@route("POST", "/upload_video", "Label", 202, form=bodies.Upload)
def upload_video() -> answers.JobAnswer:
    """Upload a video.

    Streamed to disk up to UPLOAD_MAX_GB; a job makes it playable where it is not, and a task of the project. A file
    that the project has already makes no second task.
    """
    found = services()
    if request.mimetype != "multipart/form-data":
        raise WrongType("The body must be of the type multipart/form-data.", "Send the fields 'project' and 'file'.")
    limit = int(found.settings.upload_max_gb * GB)
    _check_room(found.settings.uploads_dir, request.content_length or 0, limit)
    folder = found.settings.uploads_dir / f"part-{secrets.token_hex(8)}"
    try:
        folder.mkdir(parents=True)
        project, name, digest = _receive(folder / "video", limit)
        # Of its content and project: the same upload is the same job.
        known = f"{project}-{digest[:16]}"
        target = found.settings.uploads_dir / known / name
        target.parent.mkdir(exist_ok=True)
        (folder / "video").replace(target)
    except OSError as error:
        raise StorageError(
            f"The upload cannot be kept: {error.strerror}.", "Free disk space, or set DATA_DIR elsewhere."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return requested(found.control.import_video(project, known, name))


def _check_room(folder: Path, wanted: int, limit: int) -> None:
    if wanted > limit + _FIELD_BYTES * _FIELDS:
        raise RequestEntityTooLarge(_too_large(limit))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise StorageError(f"{folder} cannot be used: {error.strerror}.", "Set DATA_DIR elsewhere.") from error
    if wanted + _SPARE > free:
        raise StorageError(f"There is no room for {wanted / 1e9:.1f} GB.", "Free disk space.")


def _too_large(limit: int) -> str:
    return f"The file is larger than {limit / GB:g} GB, which UPLOAD_MAX_GB allows."


def _receive(path: Path, limit: int) -> tuple[int, str, str]:
    """Read the body to its end, the file to the disk; project, and the file's name and digest."""
    received: list[_Received] = []

    def receiver(*_args: Any, **_more: Any) -> Any:
        if received:
            raise Invalid("There is more than one file.", "Upload one at a time.")
        received.append(_Received(path, limit))
        return received[-1]

    most = request.max_content_length = limit + _FIELD_BYTES * _FIELDS
    parser = FormDataParser(receiver, _FIELD_BYTES, most, silent=False, max_form_parts=_FIELDS)
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
    cure = "Send the fields 'project' and 'file'."
    try:
        named = {name: item.filename or "" for name, item in files.items()}
        form = bodies.Upload.model_validate_strings(fields.to_dict() | named, strict=False)
    except ValidationError as error:
        raise invalid(error, "field", cure) from error
    if set(files) != {"file"}:
        raise Invalid("The field 'file' must be a file, and no other.", cure)
    name = safe_name(form.file)
    if Path(name).suffix.lower() not in VIDEO_SUFFIXES:
        raise WrongType(
            f"{name!r} is not named like a video.", f"The names of videos end with {', '.join(sorted(VIDEO_SUFFIXES))}."
        )
    if not path.stat().st_size:
        raise Invalid("The file is empty.", "Choose another.")
    return form.project, name, received[0].digest.hexdigest()


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
