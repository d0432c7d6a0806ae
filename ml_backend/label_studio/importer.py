"""Import video files as Label Studio tasks: transcode if needed, upload or serve in place, create the task."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from ml_backend.core.errors import (
    BackendError,
    ConfigError,
    Interrupted,
    LabelStudioUnavailable,
    MediaError,
    StorageError,
)
from ml_backend.core.files import file_sha256, files_below, is_video_name
from ml_backend.core.outputs import PLAYABLE_FOLDER
from ml_backend.core.settings import Settings
from ml_backend.core.types import Progress
from ml_backend.label_studio.client import LabelStudioClient, Project
from ml_backend.label_studio.label_config import VideoControl, parse_label_config
from ml_backend.label_studio.timeline import video_facts
from ml_backend.video.transcode import plan_transcode, transcode

log = logging.getLogger(__name__)

#: Task field with the digest of the original file, so that it is not imported twice.
SOURCE_FIELD = "source_sha256"

_COPY_AGAIN = "Check the disk, or copy the file again."
_CONVERT = "Convert it, e.g. `ffmpeg -i INPUT -c:v libx264 OUTPUT.mp4`, and import the copy; report what the log says."

Status = Literal["imported", "skipped", "failed"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of importing one file: a new task, skipped because it was imported before, or failed.

    Attributes:
        error: of a failure; tells whether a retry may help.
    """

    path: Path
    status: Status
    detail: str
    task_id: int | None = None
    error: BackendError | None = None


def find_videos(paths: Iterable[Path]) -> list[Path]:
    """Return the given files, which need not exist, and all videos below given folders, except hidden ones, without
    duplicates."""
    videos: dict[Path, None] = {}
    for path in paths:
        below = (file for file in files_below(path.absolute()) if is_video_name(file.name))
        videos.update(dict.fromkeys(below if os.path.isdir(path) else [path.absolute()]))
    return list(videos)


class Importer:
    """Creates tasks in one project.

    Args:
        local_files: serve files in place through a local-files storage instead of uploading them. They must be below
            ``settings.local_files_root``, as are playable copies.
        dry_run: report what would be done without changing anything.

    Raises:
        ConfigError: the project's label config has no video; ``local_files`` without a root.
        LabelStudioError: the project cannot be read.
    """

    def __init__(
        self,
        client: LabelStudioClient,
        project_id: int,
        settings: Settings,
        *,
        local_files: bool = False,
        dry_run: bool = False,
    ) -> None:
        self._client, self._project_id, self._settings = client, project_id, settings
        self._local, self._dry_run = local_files, dry_run
        if local_files and settings.local_files_root is None:
            raise ConfigError(
                "Serving files in place requires Label Studio's LOCAL_FILES_DOCUMENT_ROOT.",
                "Set LOCAL_FILES_ROOT to that folder's path on this machine.",
            )
        self._control = _first_control(client.get_project(project_id))
        self._task_ids = {
            str(state.data[SOURCE_FIELD]): state.id
            for state in client.list_task_states(project_id)
            if state.data.get(SOURCE_FIELD)
        }

    def run(self, paths: Sequence[Path], progress: Progress | None = None) -> Iterator[Outcome]:
        """Import one file after the other; a bad file does not stop the others.

        Args:
            progress: called with frames done and in total while a file is transcoded.

        Raises:
            LabelStudioUnavailable: Label Studio does not answer, whatever it is asked, so no other file can succeed.
            Interrupted: raised by ``progress``.
        """
        for path in paths:
            try:
                yield self._import(path, progress)
            except Interrupted:
                raise
            except LabelStudioUnavailable as error:
                self._client.get_project(self._project_id)  # or is it only this file that it fails at?
                yield _failed(path, error)
            except BackendError as error:
                yield _failed(path, error)
            except OSError as error:
                yield _failed(path, StorageError(f"It cannot be read: {error.strerror or error}.", _COPY_AGAIN))
            except Exception as error:  # noqa: BLE001 - it is listed, and logged with its traceback
                cause = f"{error.__class__.__name__}: {error}".rstrip(": ")
                yield _failed(path, BackendError(f"It cannot be imported ({cause}).", _CONVERT), logging.WARNING)

    def _import(self, path: Path, progress: Progress | None) -> Outcome:
        reason = plan_transcode(path).reason  # first, since it rejects files that are not videos
        digest = file_sha256(path)
        if digest in self._task_ids:
            return Outcome(path, "skipped", f"already task {self._task_ids[digest]}", self._task_ids[digest])
        if self._local:
            self._served_path(path if not reason else self._copy_path(path, digest))
        if self._dry_run:
            self._task_ids[digest] = 0
            return Outcome(path, "imported", f"would be imported{_copy_note(reason)}")
        playable = path
        if reason:
            playable = self._copy_path(path, digest)
            if playable.exists():
                os.utime(playable)  # left by an earlier attempt: protect it from cleanup
            transcode(path, playable, progress)
        url = self._serve(playable) if self._local else self._client.upload_file(self._project_id, playable)
        facts = video_facts(playable)
        data: dict[str, Any] = {**facts, "source": path.name, SOURCE_FIELD: digest}
        if field := self._control.rate_field:
            data[field] = facts["fps"]
        data[self._control.value_key] = url
        task_id = self._client.create_task(self._project_id, data)
        self._task_ids[digest] = task_id
        if reason and not self._local:
            self._remove_copy(playable)
        return Outcome(path, "imported", f"task {task_id}{_copy_note(reason)}", task_id)

    def _copy_path(self, path: Path, digest: str) -> Path:
        root = self._settings.local_files_root if self._local else None
        # A folder for each digest, so that the copy keeps a readable name.
        return (root or self._settings.data_dir) / PLAYABLE_FOLDER / digest[:16] / f"{path.stem}.mp4"

    def _remove_copy(self, copy: Path) -> None:
        try:
            copy.unlink()
            copy.parent.rmdir()
        except OSError as error:
            log.warning("The copy %s cannot be removed: %s", copy, error)

    # -- local files

    def _served_path(self, path: Path) -> Path:
        """Return the path relative to Label Studio's document root.

        Raises:
            MediaError: Label Studio cannot serve the file.
        """
        root = (self._settings.local_files_root or Path()).resolve()
        target = path.resolve()
        if not target.is_relative_to(root):
            raise MediaError(f"{path} is outside {root}, so Label Studio cannot serve it.", "Move or link it there.")
        relative = target.relative_to(root)
        if len(relative.parts) < 2:
            raise MediaError(
                f"{path} is directly in {root}, but Label Studio serves only subfolders.", "Move it into one."
            )
        return relative

    def _serve(self, path: Path) -> str:
        relative = self._served_path(path)
        root = self._settings.local_files_root or Path()
        try:
            self._client.ensure_local_files_storage(self._project_id, root / relative.parts[0])
        except OSError as error:
            raise StorageError(f"{root} cannot be used: {error}.") from error
        return "/data/local-files/?d=" + quote(relative.as_posix())


def _failed(path: Path, error: BackendError, level: int = logging.INFO) -> Outcome:
    log.log(level, "%s was not imported", path, exc_info=True)
    return Outcome(path, "failed", str(error), error=error)


def _first_control(project: Project) -> VideoControl:
    controls = parse_label_config(project.label_config).video_controls
    fields = sorted({control.value_key for control in controls})
    if len(fields) > 1:
        log.warning(
            "Project %s has several video fields (%s); only %s is filled.", project.id, fields, controls[0].value_key
        )
    return controls[0]


def _copy_note(reason: str) -> str:
    return f", as a playable copy, since {reason}" if reason else ""
