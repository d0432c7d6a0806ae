"""One reader of annotated tasks: a live project, an export file of Label Studio, or a file of predictions.

    source = Source.from_file(Path("export.json"), videos=Path("videos"))
    for part in source.parts():              # light: what a task says of one video
        with part.open() as video:           # its file, with objects that have boxes on decoded frames
            for frame in video.frames(range(0, video.info.frames, 30)):
                ...

Memory holds one task at a time (of a file also its text), and of its boxes those of some hundred frames.
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
from ml_backend.datasets.annotated_video import AnnotatedVideo, TaskVideo, is_of
from ml_backend.datasets.selection import Predictions, Submission, found_controls, inferred_rate, submissions
from ml_backend.datasets.task_files import RawTask, is_prediction_file, read_tasks
from ml_backend.datasets.video_files import FIND_HINT, FileChoice, VideoFacts, VideoFolder, video_name
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.label_config import LabelConfig, parse_label_config
from ml_backend.label_studio.media import MediaStore

log = logging.getLogger(__name__)

#: Opens the file of a media address, of the task with this id.
Find = Callable[[str, int], contextlib.AbstractContextManager[Path]]


@dataclass(frozen=True, slots=True)
class SkippedTask:
    """A task's video that cannot be exported, and why: deleted, damaged, not found.

    Attributes:
        passing: whether it may be there again later: its server does not answer.
    """

    task_id: int
    name: str
    reason: str
    passing: bool = False

    def __str__(self) -> str:
        return f"task {self.task_id}, {self.name}: {self.reason}"


class AnnotationReader:
    """Annotated tasks, from wherever they come.

    Args:
        tasks: called for each pass over the tasks.
        find: opens the file of a media address.
        config: of the project; ``None``: names and frame rates are inferred from the tasks.
        folder: where files are looked for by name, before ``find`` is asked.
        predictions: whether predictions are read: ``"none"``, ``"missing"`` (of tasks that nobody has annotated),
            ``"only"`` (instead of annotations).
        all_annotators: every submitted annotation of a task, instead of the one that counts.
        only: ids of the tasks wanted; all where empty.
        model_version: of the predictions wanted; the newest where empty.
        url: of Label Studio, for a live project; else empty.

    Attributes:
        skipped: what could not be exported so far; scripts list it and end with exit code 3.
    """

    def __init__(
        self,
        tasks: Callable[[], Iterator[RawTask]],
        find: Find,
        config: LabelConfig | None = None,
        *,
        folder: VideoFolder | None = None,
        predictions: Predictions = "none",
        all_annotators: bool = False,
        only: Collection[int] = (),
        model_version: str = "",
        url: str = "",
    ) -> None:
        self._tasks, self._find, self._folder, self.config = tasks, find, folder, config
        self._predictions, self.all_annotators, self._version = predictions, all_annotators, model_version
        self._only = frozenset(only)
        self.skipped: list[SkippedTask] = []
        self.url = url

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
        """Read Label Studio's JSON or JSON_MIN export, or a prediction of ``scripts/predict_video.py``.

        Args:
            videos: folder with the videos, or a single one; by default the export's own folder and the folders of
                uploads and local files that ``settings`` name.
            video_map: see :func:`~ml_backend.datasets.video_files.read_video_map`.
            options: as of the class.

        Raises:
            ConfigError, MediaError: file or folder cannot be read.
        """
        folder = VideoFolder.of(videos, video_map, beside=path)
        if is_prediction_file(path):
            options["predictions"] = "only"
        store = MediaStore(settings, _NoServer()) if settings else None

        @contextlib.contextmanager
        def find(uri: str, task_id: int) -> Iterator[Path]:
            found = store.local_path(uri) if store and uri else None
            if found is None:
                named = video_name(uri) if uri else "the video of the prediction"
                raise MediaError(f"{named} is not in {folder.folder.absolute()}.", FIND_HINT)
            yield found

        return cls(lambda: read_tasks(path), find, config, folder=folder, **options)

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
            videos: folder that is looked into before a video is fetched from Label Studio.
            video_map: see :meth:`from_file`.
            should_stop: asked during downloads.
            options: as of the class.

        Raises:
            LabelStudioError: the project cannot be read.
            ConfigError: its label config has no video.
        """
        config = parse_label_config(client.get_project(project_id).label_config)
        folder = VideoFolder.of(videos, video_map, video_map or Path()) if videos or video_map else None
        store = MediaStore(settings, client, should_stop)
        tasks = _spooled(lambda: client.list_full_tasks(project_id))
        return cls(tasks, store.open, config, folder=folder, url=client.url, **options)

    def parts(self) -> Iterator[TaskVideo]:
        """Everything to export, task by task. Nothing of the videos is read yet."""
        for task in self._tasks():
            if self._only and task["id"] not in self._only:
                continue
            chosen = submissions(task, self._predictions, self.all_annotators, self._version)
            for submission in chosen:
                yield from self._parts(task, submission)

    def videos(self) -> Iterator[AnnotatedVideo]:
        """Every video, opened one after the other; those that cannot be used are in :attr:`skipped` afterwards.

        Raises:
            LabelStudioUnavailable, StorageError: none of the further ones can succeed.
        """
        for part in self.parts():
            with contextlib.ExitStack() as stack:
                try:
                    video = stack.enter_context(part.open())
                except BackendError as error:
                    self.skip(part, error)
                    continue
                yield video

    @contextlib.contextmanager
    def _file(self, part: TaskVideo) -> Iterator[Path]:
        named = self._folder.look_up(part.uri, part.known, part.task_id) if self._folder else FileChoice()
        if named.path:
            yield named.path
            return
        with contextlib.ExitStack() as stack:
            try:
                path = stack.enter_context(self._find(part.uri, part.task_id))
            except MediaError as error:
                if not named.reason:
                    raise
                raise MediaError(named.reason, FIND_HINT) from error
            yield path

    def file_stem(self, part: TaskVideo) -> str:
        """What the files of a part are called, where that name is free.

        With every annotator's version each says whose it is, also where there is one only: when a second one comes,
        the files of the first keep their names.
        """
        return f"{part.stem}-by-{part.submission.annotator or 'unknown'}" if self.all_annotators else part.stem

    def skip(self, part: TaskVideo, error: BackendError, note: str = "") -> None:
        """Note that a part cannot be exported; raises ``error`` itself where no other part can either.

        Args:
            note: more to be said about it.
        """
        if isinstance(error, LabelStudioUnavailable | StorageError):
            raise error
        log.info("Task %d is skipped", part.task_id, exc_info=error)
        self._note(SkippedTask(part.task_id, part.name, f"{error} {note}".strip(), error.retryable))

    @property
    def away(self) -> list[SkippedTask]:
        """What of :attr:`skipped` may be there again later."""
        return [item for item in self.skipped if item.passing]

    def _note(self, item: SkippedTask) -> None:
        if item not in self.skipped:  # each pass over the tasks finds the same
            self.skipped.append(item)

    def _parts(self, task: RawTask, submission: Submission) -> Iterator[TaskVideo]:
        data: Mapping[str, Any] = task["data"]
        try:
            controls = self.config.video_controls if self.config else found_controls(data, submission.result)
        except ConfigError as error:
            self._note(SkippedTask(task["id"], "its video", str(error)))
            return
        for control in controls:
            uri = control.media(data)
            if uri is None and data:
                if any(is_of(region, control) for region in submission.result):
                    reason = f'The task has no field "{control.value_key}" with a video.'
                    self._note(SkippedTask(task["id"], control.to_name, reason))
                continue
            regions = [region for region in submission.result if is_of(region, control)]
            if self.config and data:
                rate: float | None = control.frame_rate_for(data)
            else:
                rate = inferred_rate(data, regions)
            only = self._folder.only() if self._folder and not uri else None
            name = video_name(uri) if uri else only.name if only else "video"
            # A task's own facts are those of its first video.
            known = VideoFacts.of_task(data if control == controls[0] else {}, regions)
            yield TaskVideo(task["id"], name, uri or "", control, rate, submission, known, self._file)


def _spooled(fetch: Callable[[], Iterator[RawTask]]) -> Callable[[], Iterator[RawTask]]:
    """Tasks that are asked for once and kept on disk: all passes see the same, whatever people do meanwhile."""

    @lru_cache(maxsize=1)
    def kept() -> Any:
        file = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed with the last reference to it
        # Dates become text here, as they are in an export file.
        file.writelines(json.dumps(task, default=str) + "\n" for task in fetch())
        return file

    def tasks() -> Iterator[RawTask]:
        file, at = kept(), 0
        while True:
            file.seek(at)  # another pass may stand elsewhere
            line = file.readline()
            if not line:
                return
            at = file.tell()
            yield json.loads(line)

    return tasks


class _NoServer:
    """Label Studio that is never asked: only files that are visible from here are found."""

    url = ""

    def auth_headers(self) -> dict[str, str]:
        raise ConfigError("There is no Label Studio to ask.")
