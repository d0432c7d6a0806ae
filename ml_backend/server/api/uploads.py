"""Video uploads: streamed to disk within a limit; a job then probes and imports them."""

from __future__ import annotations

import secrets
import shutil
import unicodedata
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any, TypedDict

from flask import request
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.formparser import FormDataParser

from ml_backend.core.errors import BackendError, StorageError
from ml_backend.core.files import SPARE_BYTES, VIDEO_SUFFIXES, file_sha256, free_bytes
from ml_backend.core.outputs import GB, UPLOAD_PREFIX
from ml_backend.server.access import person, record
from ml_backend.server.api import requests, responses
from ml_backend.server.api.handlers import requested
from ml_backend.server.api.routing import route, validation_errors
from ml_backend.server.problems import Invalid, WrongType
from ml_backend.server.protocol import services

#: Maximum bytes of a file name, with room for Label Studio's prefix; file systems allow 255.
MAX_NAME_BYTES = 150
#: Maximum number of files of one form of the page.
MAX_FILES = 50
#: Maximum bytes of form fields, and their number. Werkzeug reads 64 kB at once.
_FIELD_BYTES, _FIELDS = 200_000, 10
_HINT = "Send the fields 'project' and 'file'."


class Upload(TypedDict):
    """What became of an uploaded file: the job that imports it, or why it cannot be imported."""

    name: str
    job: responses.Job | None
    error: BackendError | None


@route("POST", "/upload_video", "Label", 202, form=requests.Upload, role="annotator", audited=False)
def upload_video() -> responses.JobAnswer:
    """Upload a video.

    Up to UPLOAD_MAX_GB. A job transcodes it if browsers cannot play it, and creates a task. A file that the project
    already has creates no second task.
    """
    (upload,) = _upload(1)
    if upload["error"]:
        raise upload["error"]
    return requested(upload["job"])


def upload_videos() -> dict[str, list[Upload]]:
    """Upload the files of the page's form, together up to UPLOAD_MAX_GB. One that is unusable does not stop the others.

    Raises:
        BackendError: the form is invalid, or none of its files is usable.
    """
    uploads = _upload(MAX_FILES)
    if len(uploads) == 1 and (error := uploads[0]["error"]):
        raise error
    return {"uploads": uploads}


def _upload(max_files: int) -> list[Upload]:
    """Store the files of the current request's form, and request a job for each."""
    if request.mimetype != "multipart/form-data":
        raise WrongType("The body must have the media type multipart/form-data.", _HINT)
    settings = services().settings
    limit, uploads = int(settings.upload_max_gb * GB), settings.uploads_dir
    folder = uploads / f"{UPLOAD_PREFIX}{secrets.token_hex(8)}"
    try:
        folder.mkdir(parents=True)
        size = min(request.content_length or 0, limit)  # larger files are rejected below
        if size + SPARE_BYTES > free_bytes(folder):
            raise StorageError(f"There is no room for {size / 1e9:.1f} GB.", "Free some disk space.")
        caller = person()
        caller.require("annotator")  # before the body is read
        project, files = _receive(folder, limit, max_files)
        caller.require_project(project)
        services().lister.check(project)
        return [_import(project, path, safe_name(filename)) for path, filename in files]
    except OSError as error:
        if error.errno is None:  # of the connection, whose end the server reports so
            raise
        raise StorageError(
            f"The upload cannot be stored: {error.strerror}.", "Free some disk space, or set DATA_DIR to another disk."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _import(project: int, path: Path, name: str) -> Upload:
    """Move a received file to where its job finds it, and request the job."""
    if Path(name).suffix.lower() not in VIDEO_SUFFIXES:
        suffixes = ", ".join(sorted(VIDEO_SUFFIXES))
        error: BackendError = WrongType(f"{name} has no supported video extension.", f"Use one of {suffixes}.")
        return {"name": name, "job": None, "error": error}
    if not path.stat().st_size:
        return {"name": name, "job": None, "error": Invalid(f"{name} is empty.", "Choose another file.")}
    # By project and content, so that repeating an upload requests the same job.
    upload_id = f"{project}-{file_sha256(path)[:16]}"
    services().uploads.add(path, upload_id, name)
    job: Any = services().api_queue.import_video(project, upload_id, name)
    record("upload_video", project, name)
    return {"name": name, "job": job, "error": None}


def _receive(folder: Path, limit: int, max_files: int) -> tuple[int, list[tuple[Path, str]]]:
    """Read the body, and write its files into ``folder``; return the project, and path and name of each file."""
    max_size = request.max_content_length = limit + _FIELD_BYTES * _FIELDS
    paths: list[Path] = []

    def open_file(*_args: Any, **_kwargs: Any) -> Any:
        if len(paths) == max_files:
            hint = "Upload one at a time." if max_files == 1 else f"Upload at most {max_files} at once."
            raise Invalid(f"There are more files than {max_files}.", hint)
        paths.append(folder / str(len(paths)))
        return stack.enter_context(paths[-1].open("xb"))

    parser = FormDataParser(open_file, _FIELD_BYTES, max_size, silent=False, max_form_parts=_FIELDS + max_files - 1)
    try:
        with ExitStack() as stack:
            _, fields, files = parser.parse(
                request.stream, request.mimetype, request.content_length, dict(request.mimetype_params)
            )
        if sum(path.stat().st_size for path in paths) > limit:
            raise RequestEntityTooLarge
    except RequestEntityTooLarge as error:
        what = "The file is" if max_files == 1 else "The files are"
        raise RequestEntityTooLarge(f"{what} larger than {limit / GB:g} GB, which UPLOAD_MAX_GB allows.") from error
    except ValueError as error:
        raise Invalid(f"The body is not a valid form: {error}.", "Send it as multipart/form-data.") from error
    with validation_errors("field", _HINT):
        filenames = {name: item.filename or "" for name, item in files.items()}
        form = requests.Upload.model_validate_strings(fields.to_dict() | filenames, strict=False)
    if set(files) != {"file"}:
        raise Invalid("The form must have its files in the field 'file'.", _HINT)
    names = [item.filename or "" for item in files.getlist("file")]
    return form.project, list(zip(paths, names, strict=True))


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
