"""Videos from the browser: streamed to disk within a limit, then left to a job that probes and imports them."""

from __future__ import annotations

import secrets
import shutil
import unicodedata
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any

from flask import request
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.formparser import FormDataParser

from ml_backend.core.errors import StorageError
from ml_backend.core.files import VIDEO_SUFFIXES, file_sha256
from ml_backend.core.outputs import GB, UPLOAD_PREFIX
from ml_backend.server.api import requests as bodies
from ml_backend.server.api import responses as answers
from ml_backend.server.api.handlers import requested
from ml_backend.server.api.routing import naming_errors, route
from ml_backend.server.problems import Invalid, WrongType
from ml_backend.server.protocol import services

#: Longest file name in bytes, with room for what Label Studio puts before it; file systems take 255.
NAME_BYTES = 150
#: Bytes of form fields, and their number: there is one, and the file. Werkzeug reads 64 kB at once.
_FIELD_BYTES, _FIELDS = 200_000, 10
#: Bytes that are left free on the disk.
_SPARE = 512 << 20


@route("POST", "/upload_video", "Label", 202, form=bodies.Upload)
def upload_video() -> answers.JobAnswer:
    """Upload a video.

    Streamed to disk up to UPLOAD_MAX_GB; a job makes it playable where it is not, and a task of the project. A file
    that the project has already makes no second task.
    """
    found = services()
    if request.mimetype != "multipart/form-data":
        raise WrongType("The body must be of the type multipart/form-data.", "Send the fields 'project' and 'file'.")
    limit, uploads = int(found.settings.upload_max_gb * GB), found.settings.uploads_dir
    folder = uploads / f"{UPLOAD_PREFIX}{secrets.token_hex(8)}"
    try:
        folder.mkdir(parents=True)
        wanted = min(request.content_length or 0, limit)  # what is larger is refused below
        if wanted + _SPARE > shutil.disk_usage(folder).free:
            raise StorageError(f"There is no room for {wanted / 1e9:.1f} GB.", "Free disk space.")
        project, name = _receive(folder, limit)
        # Of its content and project: the same upload is the same job.
        known = f"{project}-{file_sha256(folder / 'video')[:16]}"
        (uploads / known).mkdir(exist_ok=True)
        (folder / "video").replace(uploads / known / name)
    except OSError as error:
        raise StorageError(
            f"The upload cannot be kept: {error.strerror}.", "Free disk space, or set DATA_DIR elsewhere."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return requested(found.control.import_video(project, known, name))


def _receive(folder: Path, limit: int) -> tuple[int, str]:
    """Read the body to its end, the file to the disk as ``video``; project, and the file's name."""
    path, hint = folder / "video", "Send the fields 'project' and 'file'."
    most = request.max_content_length = limit + _FIELD_BYTES * _FIELDS

    def receiver(*_args: Any, **_more: Any) -> Any:
        if path.exists():
            raise Invalid("There is more than one file.", "Upload one at a time.")
        return opened.enter_context(path.open("xb"))

    parser = FormDataParser(receiver, _FIELD_BYTES, most, silent=False, max_form_parts=_FIELDS)
    try:
        with ExitStack() as opened:
            _, fields, files = parser.parse(
                request.stream, request.mimetype, request.content_length, dict(request.mimetype_params)
            )
        if path.exists() and path.stat().st_size > limit:
            raise RequestEntityTooLarge
    except RequestEntityTooLarge as error:
        raise RequestEntityTooLarge(
            f"The file is larger than {limit / GB:g} GB, which UPLOAD_MAX_GB allows."
        ) from error
    except ValueError as error:
        raise Invalid(f"The body is no form: {error}.", "Send it as a browser's form does.") from error
    with naming_errors("field", hint):
        named = {name: item.filename or "" for name, item in files.items()}
        form = bodies.Upload.model_validate_strings(fields.to_dict() | named, strict=False)
    if set(files) != {"file"}:
        raise Invalid("The field 'file' must be a file, and no other.", hint)
    name = safe_name(form.file)
    if Path(name).suffix.lower() not in VIDEO_SUFFIXES:
        raise WrongType(
            f"{name!r} is not named like a video.", f"The names of videos end with {', '.join(sorted(VIDEO_SUFFIXES))}."
        )
    if not path.stat().st_size:
        raise Invalid("The file is empty.", "Choose another.")
    return form.project, name


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
