"""One reader of annotated tasks: a live project, an export file of Label Studio, or a file of predictions.

    source = Source.from_file(Path("export.json"), videos=Path("videos"))
    for part in source.parts():              # light: what a task says of one video
        with part.open() as video:           # its file, with objects that have boxes on decoded frames
            for frame in video.frames(range(0, video.info.frames, 30)):
                ...

Memory holds one task at a time, and of its boxes those of some hundred frames.
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ml_backend.errors import BackendError, ConfigError, LabelStudioUnavailable, MediaError, StorageError
from ml_backend.export.control import found_controls, inferred_rate
from ml_backend.export.known import Choice, Known, choose
from ml_backend.export.locate import VideoFolder, video_name
from ml_backend.export.select import Predictions, Submission, region_labels, submissions
from ml_backend.export.tasks import RawTask, is_prediction_file, read_tasks
from ml_backend.export.video import AnnotatedVideo
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.media import MediaStore
from ml_backend.label_studio.schema import LabelConfig, VideoControl, parse_label_config
from ml_backend.settings import Settings

log = logging.getLogger(__name__)

#: Said of a video that has disappeared and had been exported before.
KEPT = "What was exported of it before is kept."

#: Opens the file of a media address, of the task with this id.
Find = Callable[[str, int], contextlib.AbstractContextManager[Path]]


@dataclass(frozen=True, slots=True)
class Skipped:
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


@dataclass(frozen=True, slots=True)
class Part:
    """One video of a task with one person's (or a model's) regions on it; the file is not touched yet.

    Attributes:
        name: the video's file name, without Label Studio's upload prefix.
        uri: its address in the task; empty for a prediction file.
        control: names and labels; without a label config what the regions themselves tell.
        frame_rate: of Label Studio's timeline; ``None``: the one that suits the file, as ``import_videos.py`` sets it.
        submission: regions, who made them and when.
        known: what the task says of the video beside its address.
    """

    task_id: int
    name: str
    uri: str
    control: VideoControl
    frame_rate: float | None
    submission: Submission
    data: Mapping[str, Any]
    known: Known = field(repr=False)
    _file: Callable[[Part], contextlib.AbstractContextManager[Path]] = field(repr=False)

    @property
    def stem(self) -> str:
        """The name without its suffix; what image files are named after."""
        return Path(self.name).stem or "video"

    @property
    def regions(self) -> list[Mapping[str, Any]]:
        """The ``videorectangle`` results on this video."""
        return [region for region in self.submission.result if _is_of(region, self.control)]

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the config, then those that only regions carry (of a label that was renamed since)."""
        found = (label for region in self.regions for label in region_labels(region))
        return tuple(dict.fromkeys((*(label.value for label in self.control.labels), *found)))

    @contextlib.contextmanager
    def open(self) -> Iterator[AnnotatedVideo]:
        """The video file with the objects on it; the file stays in place as long as the context is open.

        Raises:
            MediaError: the file is not found, deleted or not to be had, or another video than the task's.
            VideoError: it cannot be used.
            ConfigError: the task's frame rate is absurd.
        """
        with self._file(self) as path:
            yield AnnotatedVideo.make(self, path)


class Source:
    """Annotated tasks, from wherever they come.

    Args:
        tasks: called for each pass over the tasks.
        find: opens the file of a media address.
        by_name: looks for the file among some where only its name is known, before ``find`` is asked.
        config: of the project; ``None``: names and frame rates are inferred from the tasks.
        predictions: whether predictions are read: ``"none"``, ``"missing"`` (of tasks that nobody has annotated),
            ``"only"`` (instead of annotations).
        all_annotators: every submitted annotation of a task, instead of the one that counts.
        only: ids of the tasks wanted; all where empty.
        model_version: of the predictions wanted; the newest where empty.
        default_name: of a video whose task has no address for it (a prediction file).

    Attributes:
        all_annotators: as given.
        skipped: what could not be exported so far; scripts list it and end with exit code 3.
        url: of Label Studio, for a live project; else empty.
    """

    def __init__(
        self,
        tasks: Callable[[], Iterator[RawTask]],
        find: Find,
        config: LabelConfig | None = None,
        *,
        predictions: Predictions = "none",
        all_annotators: bool = False,
        only: Collection[int] = (),
        model_version: str = "",
        default_name: str = "video",
        by_name: Callable[[Part], Choice] | None = None,
    ) -> None:
        self._tasks, self._find, self._by_name, self.config = tasks, find, by_name, config
        self._default_name = default_name
        self._predictions, self.all_annotators, self._version = predictions, all_annotators, model_version
        self._only = frozenset(only)
        self.skipped: list[Skipped] = []
        self.url = ""

    @classmethod
    def from_file(
        cls,
        path: Path,
        *,
        videos: Path | None = None,
        config: LabelConfig | None = None,
        settings: Settings | None = None,
        **options: Any,
    ) -> Source:
        """From Label Studio's JSON or JSON_MIN export, or from a prediction of ``scripts/predict_video.py``.

        Args:
            videos: folder with the videos, or a single one; by default the export's own folder and the folders of
                uploads and local files that ``settings`` name.
            options: as of the class.

        Raises:
            ConfigError, MediaError: file or folder cannot be read.
        """
        # Below the export's own folder could be anything, a whole home even.
        folder = VideoFolder(videos) if videos else VideoFolder(path.absolute().parent, recursive=False)
        single = is_prediction_file(path)
        if single:
            options["predictions"] = "only"
            options["default_name"] = getattr(folder.only(), "name", "video")
        store = MediaStore(settings, _NoServer()) if settings else None
        # A single file that is named itself is meant whatever its name, where there is no choice of tasks.
        any_name = single or bool(folder.single and len(options.get("only") or ()) == 1)

        def by_name(part: Part) -> Choice:
            chosen = folder.look_up(part.uri, part.known)
            only = folder.only() if any_name and not (chosen.path or chosen.reason) else None
            return choose([[only]], part.known) if only else chosen

        @contextlib.contextmanager
        def find(uri: str, task_id: int) -> Iterator[Path]:
            found = store.local_path(uri) if store and uri else None
            if found is None:
                named = video_name(uri) if uri else "the video of the prediction"
                raise MediaError(
                    f"{named} is not in {folder.folder.absolute()}.", "Put it there, or give another --videos."
                )
            yield found

        return cls(lambda: read_tasks(path), find, config, by_name=by_name, **options)

    @classmethod
    def from_project(
        cls,
        client: LabelStudioClient,
        project_id: int,
        settings: Settings,
        *,
        videos: Path | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        **options: Any,
    ) -> Source:
        """From a live project, page by page.

        Args:
            videos: folder that is looked into before a video is fetched from Label Studio.
            should_stop: asked during downloads.
            options: as of the class.

        Raises:
            LabelStudioError: the project cannot be read.
            ConfigError: its label config has no video.
        """
        config = parse_label_config(client.get_project(project_id).label_config)
        folder = VideoFolder(videos) if videos else None
        store = MediaStore(settings, client, should_stop)

        source = cls(
            _Spool(lambda: client.list_full_tasks(project_id)),
            store.open,
            config,
            by_name=(lambda part: folder.look_up(part.uri, part.known)) if folder else None,
            **options,
        )
        source.url = client.url
        return source

    def parts(self) -> Iterator[Part]:
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
    def _file(self, part: Part) -> Iterator[Path]:
        named = self._by_name(part) if self._by_name else Choice()
        if named.path:
            yield named.path
            return
        with contextlib.ExitStack() as stack:
            try:
                path = stack.enter_context(self._find(part.uri, part.task_id))
            except MediaError as error:
                if not named.reason:
                    raise
                raise MediaError(named.reason, "Put the right one there, or give another --videos.") from error
            yield path

    def file_stem(self, part: Part) -> str:
        """What the files of a part are called, where that name is free.

        With every annotator's version each says whose it is, also where there is one only: when a second one comes,
        the files of the first keep their names.
        """
        return f"{part.stem}-by-{part.submission.annotator or 'unknown'}" if self.all_annotators else part.stem

    def skip(self, part: Part, error: BackendError, note: str = "") -> None:
        """Note that a part cannot be exported; raises ``error`` itself where no other part can either.

        Args:
            note: more to be said about it.
        """
        if isinstance(error, LabelStudioUnavailable | StorageError):
            raise error
        log.info("Task %d is skipped", part.task_id, exc_info=error)
        self._note(Skipped(part.task_id, part.name, f"{error} {note}".strip(), error.retryable))

    @property
    def away(self) -> list[Skipped]:
        """What of :attr:`skipped` may be there again later."""
        return [item for item in self.skipped if item.passing]

    def _note(self, item: Skipped) -> None:
        if item not in self.skipped:  # each pass over the tasks finds the same
            self.skipped.append(item)

    def _parts(self, task: RawTask, submission: Submission) -> Iterator[Part]:
        data: Mapping[str, Any] = task["data"]
        try:
            controls = self.config.video_controls if self.config else found_controls(data, submission.result)
        except ConfigError as error:
            self._note(Skipped(task["id"], "its video", str(error)))
            return
        for control in controls:
            uri = control.media(data)
            if uri is None and data:
                if any(_is_of(region, control) for region in submission.result):
                    reason = f'The task has no field "{control.value_key}" with a video.'
                    self._note(Skipped(task["id"], control.to_name, reason))
                continue
            regions = [region for region in submission.result if _is_of(region, control)]
            if self.config and data:
                rate: float | None = control.frame_rate_for(data)
            else:
                rate = inferred_rate(data, regions)
            name = video_name(uri) if uri else self._default_name
            # A task's own facts are those of its first video.
            known = Known.of_task(data if control == controls[0] else {}, regions)
            yield Part(task["id"], name, uri or "", control, rate, submission, data, known, self._file)


class _Spool:
    """Passes over tasks of which only the first asks Label Studio; the others read what it has kept on disk.

    So all passes see the same tasks, whatever people do in Label Studio meanwhile.
    """

    def __init__(self, fetch: Callable[[], Iterator[RawTask]]) -> None:
        self._fetch = fetch
        self._file: IO[str] | None = None

    def __call__(self) -> Iterator[RawTask]:
        if self._file is None:
            yield from self._first()
            return
        at = 0
        while True:
            self._file.seek(at)  # another pass may stand elsewhere
            line = self._file.readline()
            if not line:
                return
            at = self._file.tell()
            yield json.loads(line)

    def _first(self) -> Iterator[RawTask]:
        file = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed with the last reference to it
        for task in self._fetch():
            # Dates become text here, as they are in an export file.
            line = json.dumps(task, default=str)
            file.write(line + "\n")
            yield json.loads(line)
        self._file = file


class _NoServer:
    """Label Studio that is never asked: only files that are visible from here are found."""

    url = ""

    def auth_headers(self) -> dict[str, str]:
        raise ConfigError("There is no Label Studio to ask.")


def _is_of(region: Mapping[str, Any], control: VideoControl) -> bool:
    if region.get("type") != "videorectangle":
        return False
    to_name = region.get("to_name")
    return to_name == control.to_name if to_name is not None else region.get("from_name") == control.from_name
