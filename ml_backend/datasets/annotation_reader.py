"""Read annotated tasks from a live project, a Label Studio export file, or a prediction file.

    reader = AnnotationReader.from_file(Path("export.json"), videos=Path("videos"))
    for task_video in reader.task_videos():  # cheap: nothing of the video is read yet
        with task_video.open() as video:     # the file, with objects that have boxes on decoded frames
            for frame in video.frames(range(0, video.info.frames, 30)):
                ...

Memory holds one task at a time (plus the text of an export file), and the boxes of about a thousand frames.
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ml_backend.core.errors import BackendError, ConfigError, LabelStudioUnavailable, MediaError, StorageError
from ml_backend.core.settings import Settings
from ml_backend.datasets.annotated_video import AnnotatedVideo, TaskVideo, belongs_to
from ml_backend.datasets.selection import Predictions, Submission, infer_controls, infer_frame_rate, submissions
from ml_backend.datasets.task_files import RawTask, is_prediction_file, read_tasks
from ml_backend.datasets.video_files import FIND_HINT, FileChoice, VideoFacts, VideoFolder, video_name
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.label_config import LabelConfig, parse_label_config
from ml_backend.label_studio.media import MediaStore

log = logging.getLogger(__name__)

#: Opens the file of a media address; also takes the task id.
OpenMedia = Callable[[str, int], contextlib.AbstractContextManager[Path]]


@dataclass(frozen=True, slots=True)
class SkippedTask:
    """A task's video that cannot be exported, with the reason: deleted, damaged, not found.

    Attributes:
        retryable: whether it may be available later, for example if its server did not answer.
    """

    task_id: int
    name: str
    reason: str
    retryable: bool = False

    def __str__(self) -> str:
        task = f"task {self.task_id}, " if self.task_id else ""  # files have none
        return f"{task}{self.name}: {self.reason}"


class AnnotationReader:
    """Reads annotated tasks of a project or a file.

    Args:
        tasks: called for each pass over the tasks.
        open_media: opens the file of a media address.
        config: of the project; if ``None``, names and frame rates are inferred from the tasks.
        folder: searched for files by name before ``open_media`` is called.
        predictions: ``"none"``, ``"missing"`` (for tasks without annotation) or ``"only"`` (instead of annotations).
        all_annotators: read every submitted annotation of a task, not only the ground truth or latest.
        only: task ids to read; all if empty.
        model_version: of the predictions; the newest if empty.
        url: of Label Studio, for a live project; else empty.

    Attributes:
        skipped: what could not be exported so far; scripts list it and end with exit code 3.
    """

    def __init__(
        self,
        tasks: Callable[[], Iterator[RawTask]],
        open_media: OpenMedia,
        config: LabelConfig | None = None,
        *,
        folder: VideoFolder | None = None,
        predictions: Predictions = "none",
        all_annotators: bool = False,
        only: Collection[int] = (),
        model_version: str = "",
        url: str = "",
    ) -> None:
        self._tasks, self._open_media, self._folder, self.config = tasks, open_media, folder, config
        self._predictions, self.all_annotators, self._version = predictions, all_annotators, model_version
        self._only = frozenset(only)
        self.skipped: list[SkippedTask] = []
        self.url = url

    @classmethod
    def of_task(
        cls, task: RawTask, open_media: OpenMedia, config: LabelConfig, predictions: Predictions
    ) -> AnnotationReader:
        """Return a reader of a single task."""
        return cls(lambda: iter([task]), open_media, config, predictions=predictions)

    @classmethod
    def from_file(
        cls,
        path: Path,
        *,
        videos: Path | None = None,
        video_map: Path | None = None,
        config: LabelConfig | None = None,
        settings: Settings | None = None,
        **options: Any,
    ) -> AnnotationReader:
        """Read Label Studio's JSON or JSON_MIN export, or what else :func:`~.task_files.read_tasks` reads.

        Args:
            videos: folder with the videos, or a single one; by default the export's own folder and the folders of
                uploads and local files that ``settings`` name.
            video_map: see :func:`~ml_backend.datasets.video_files.read_video_map`.
            options: of the class.

        Raises:
            ConfigError, MediaError: file or folder cannot be read.
        """
        folder = VideoFolder.of(videos, video_map, beside=path / "annotation" if path.is_dir() else path)
        if is_prediction_file(path):
            options["predictions"] = "only"
        store = MediaStore(settings, _NoServer()) if settings else None

        @contextlib.contextmanager
        def open_media(uri: str, task_id: int) -> Iterator[Path]:
            local_path = store.local_path(uri) if store and uri else None
            if local_path is None:
                name = video_name(uri) if uri else "the video of the prediction"
                raise MediaError(f"{name} is not in {folder.folder.absolute()}.", FIND_HINT)
            yield local_path

        def skip(file: Path, error: ConfigError) -> None:
            reader._record_skipped(SkippedTask(0, file.name, str(error)))

        reader = cls(lambda: read_tasks(path, skip), open_media, config, folder=folder, **options)
        return reader

    @classmethod
    def from_project(
        cls,
        client: LabelStudioClient,
        project_id: int,
        settings: Settings,
        *,
        videos: Path | None = None,
        video_map: Path | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        **options: Any,
    ) -> AnnotationReader:
        """Read a live project, page by page.

        Args:
            videos: folder searched before a video is downloaded from Label Studio.
            video_map: see :meth:`from_file`.
            should_stop: polled during downloads.
            options: of the class.

        Raises:
            LabelStudioError: the project cannot be read.
            ConfigError: its label config has no video.
        """
        config = parse_label_config(client.get_project(project_id).label_config)
        folder = VideoFolder.of(videos, video_map, video_map or Path()) if videos or video_map else None
        store = MediaStore(settings, client, should_stop)
        tasks = _spool(lambda: client.list_full_tasks(project_id))
        return cls(tasks, store.opener(project_id), config, folder=folder, url=client.url, **options)

    def task_videos(self) -> Iterator[TaskVideo]:
        """Yield everything to export, task by task; video files are not opened."""
        for task in self._tasks():
            if self._only and task["id"] not in self._only:
                continue
            for submission in submissions(task, self._predictions, self.all_annotators, self._version):
                yield from self._videos_of(task, submission)

    def unannotated_videos(self) -> Iterator[TaskVideo]:
        """Yield the videos of tasks that nobody has annotated, without regions."""
        for task in self._tasks():
            if not submissions(task):
                yield from self._videos_of(task, Submission([], {}, "", True))

    def videos(self) -> Iterator[AnnotatedVideo]:
        """Open and yield every video, one at a time; unusable ones are added to :attr:`skipped`.

        Raises:
            LabelStudioUnavailable, StorageError: no other video can succeed either.
        """
        for task_video in self.task_videos():
            with contextlib.ExitStack() as stack:
                try:
                    video = stack.enter_context(task_video.open())
                except BackendError as error:
                    self.skip(task_video, error)
                    continue
                yield video

    @contextlib.contextmanager
    def _file(self, task_video: TaskVideo) -> Iterator[Path]:
        facts, task_id = task_video.facts, task_video.task_id
        choice = self._folder.look_up(task_video.uri, facts, task_id) if self._folder else FileChoice()
        if choice.path:
            yield choice.path
            return
        with contextlib.ExitStack() as stack:
            try:
                path = stack.enter_context(self._open_media(task_video.uri, task_id))
            except MediaError as error:
                if not choice.reason:
                    raise
                raise MediaError(choice.reason, FIND_HINT) from error
            yield path

    def file_stem(self, task_video: TaskVideo) -> str:
        """Return the preferred name of a video's files, without suffix.

        With ``all_annotators`` that of an annotation always ends in the annotator, so that names stay the same when a
        second one submits.
        """
        stem, submission = task_video.stem, task_video.submission
        named = self.all_annotators and not submission.is_prediction
        return f"{stem}-by-{submission.annotator or 'unknown'}" if named else stem

    def skip(self, task_video: TaskVideo, error: BackendError, note: str = "") -> None:
        """Record that a video cannot be exported.

        Args:
            note: appended to the reason.

        Raises:
            LabelStudioUnavailable, StorageError: ``error``, if no other video can be exported either.
        """
        if isinstance(error, LabelStudioUnavailable | StorageError):
            raise error
        log.info("Task %d is skipped", task_video.task_id, exc_info=error)
        reason = f"{error} {note}".strip()
        self._record_skipped(SkippedTask(task_video.task_id, task_video.name, reason, error.retryable))

    @property
    def unavailable(self) -> list[SkippedTask]:
        """Entries of :attr:`skipped` that may be available later."""
        return [item for item in self.skipped if item.retryable]

    def _record_skipped(self, item: SkippedTask) -> None:
        if item not in self.skipped:  # each pass over the tasks finds the same
            self.skipped.append(item)

    def _videos_of(self, task: RawTask, submission: Submission) -> Iterator[TaskVideo]:
        data: Mapping[str, Any] = task["data"]
        try:
            controls = self.config.video_controls if self.config else infer_controls(data, submission.result)
        except ConfigError as error:
            self._record_skipped(SkippedTask(task["id"], "its video", str(error)))
            return
        for control in controls:
            uri = control.media_uri(data)
            if uri is None and data:
                if any(belongs_to(region, control) for region in submission.result):
                    reason = f'The task has no video in its field "{control.value_key}".'
                    self._record_skipped(SkippedTask(task["id"], control.to_name, reason))
                continue
            regions = [region for region in submission.result if belongs_to(region, control)]
            known = self.config is not None and bool(data)
            rate = control.frame_rate_for(data) if known else infer_frame_rate(data, regions)
            only = self._folder.only() if self._folder and not uri else None
            name = video_name(uri) if uri else only.name if only else "video"
            # The task's fields (fps, frames, ...) describe its first video.
            facts = VideoFacts.of_task(data if control == controls[0] else {}, regions)
            rate_fields = None if known else data
            yield TaskVideo(task["id"], name, uri or "", control, rate, submission, facts, rate_fields, self._file)


def _spool(fetch: Callable[[], Iterator[RawTask]]) -> Callable[[], Iterator[RawTask]]:
    """Fetch tasks once and keep them on disk, so that all passes see the same even if the project changes."""

    @lru_cache(maxsize=1)
    def spool_file() -> Any:
        file = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed with the last reference to it
        # Dates become text, as in an export file.
        file.writelines(json.dumps(task, default=str) + "\n" for task in fetch())
        return file

    def tasks() -> Iterator[RawTask]:
        file, position = spool_file(), 0
        while True:
            file.seek(position)  # another pass may have moved it
            line = file.readline()
            if not line:
                return
            position = file.tell()
            yield json.loads(line)

    return tasks


class _NoServer:
    """Stands in for the API client where only local files are used."""

    url = ""

    def auth_headers(self) -> dict[str, str]:
        raise ConfigError("No Label Studio is configured.")

    def local_files_folders(self, project_id: int) -> list[str]:
        raise ConfigError("No Label Studio is configured.")
