"""Video uploads: streamed to disk within a limit; a job then probes and imports them."""

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
from ml_backend.server.api import requests, responses
from ml_backend.server.api.handlers import requested
from ml_backend.server.api.routing import route, validation_errors
from ml_backend.server.problems import Invalid, WrongType
from ml_backend.server.protocol import services

#: Maximum bytes of a file name, with room for Label Studio's prefix; file systems allow 255.
MAX_NAME_BYTES = 150
#: Maximum bytes of form fields, and their number: one field and the file. Werkzeug reads 64 kB at once.
_FIELD_BYTES, _FIELDS = 200_000, 10
#: Bytes to leave free on the disk.
_RESERVED = 512 << 20


@route("POST", "/upload_video", "Label", 202, form=requests.Upload)
def upload_video() -> responses.JobAnswer:
    """Upload a video.

    Up to UPLOAD_MAX_GB. A job transcodes it if browsers cannot play it, and creates a task. A file that the project
    already has creates no second task.
    """
    container = services()
    if request.mimetype != "multipart/form-data":
        raise WrongType(
            "The body must have the media type multipart/form-data.", "Send the fields 'project' and 'file'."
        )
    limit, uploads = int(container.settings.upload_max_gb * GB), container.settings.uploads_dir
    folder = uploads / f"{UPLOAD_PREFIX}{secrets.token_hex(8)}"
    try:
        folder.mkdir(parents=True)
        size = min(request.content_length or 0, limit)  # larger files are rejected below
        if size + _RESERVED > shutil.disk_usage(folder).free:
            raise StorageError(f"There is no room for {size / 1e9:.1f} GB.", "Free some disk space.")
        project, name = _receive(folder, limit)
        container.lister.check(project)
        # By project and content, so that repeating an upload requests the same job.
        upload_id = f"{project}-{file_sha256(folder / 'video')[:16]}"
        (uploads / upload_id).mkdir(exist_ok=True)
        (folder / "video").replace(uploads / upload_id / name)
    except OSError as error:
        raise StorageError(
            f"The upload cannot be stored: {error.strerror}.", "Free some disk space, or set DATA_DIR to another disk."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return requested(container.api_queue.import_video(project, upload_id, name))


def _receive(folder: Path, limit: int) -> tuple[int, str]:
    """Read the body, and write its file to ``folder / "video"``; return the project and the file name."""
    path, hint = folder / "video", "Send the fields 'project' and 'file'."
    max_size = request.max_content_length = limit + _FIELD_BYTES * _FIELDS

    def open_file(*_args: Any, **_kwargs: Any) -> Any:
        if path.exists():
            raise Invalid("There is more than one file.", "Upload one at a time.")
        return stack.enter_context(path.open("xb"))

    parser = FormDataParser(open_file, _FIELD_BYTES, max_size, silent=False, max_form_parts=_FIELDS)
    try:
        with ExitStack() as stack:
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
        raise Invalid(f"The body is not a valid form: {error}.", "Send it as multipart/form-data.") from error
    with validation_errors("field", hint):
        filenames = {name: item.filename or "" for name, item in files.items()}
        form = requests.Upload.model_validate_strings(fields.to_dict() | filenames, strict=False)
    if set(files) != {"file"}:
        raise Invalid("The form must have exactly one file, in the field 'file'.", hint)
    name = safe_name(form.file)
    if Path(name).suffix.lower() not in VIDEO_SUFFIXES:
        raise WrongType(f"{name} has no supported video extension.", f"Use one of {', '.join(sorted(VIDEO_SUFFIXES))}.")
    if not path.stat().st_size:
        raise Invalid("The file is empty.", "Choose another file.")
    return form.project, name


def safe_name(filename: str) -> str:
    """Return a portable file name: the last path component, without control characters and Windows' reserved ones.

    Letters of every script stay. ``..\\..\\évil\\x.mp4`` becomes ``x.mp4``.
    """
    name = PurePosixPath(unicodedata.normalize("NFC", filename).replace("\\", "/")).name
    name = "".join("_" if c in '<>:"|?*/\\' or unicodedata.category(c).startswith("C") else c for c in name)
    stem, suffix = Path(name).stem.strip(" ."), Path(name).suffix.strip()
    while len(stem.encode()) > MAX_NAME_BYTES:
        stem = stem[:-1]
    return f"{stem or 'video'}{suffix[:20]}"
