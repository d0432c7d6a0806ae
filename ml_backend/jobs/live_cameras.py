"""Cameras that run, for the control room: who looks at one announces it in Redis, and sends pictures to who asks.

Nothing connects to a camera, or to the process that looks at it, because of a request. Pictures are messages between
subscribers, so that Redis stores none.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from ml_backend.core.errors import BackendError, QueueUnavailable

if TYPE_CHECKING:
    from ml_backend.jobs.queue import JobQueue

log = logging.getLogger(__name__)

#: Seconds between two reports about a camera.
REPORT_S = 1.0
#: Seconds without one after which its process is said to be silent, and after which it is forgotten.
SILENT_S, KEPT_S = 15.0, 300
#: Seconds from one try to reach Redis to the next.
RETRY_S = 5.0
#: Seconds for which a camera's next picture is waited for, and for which a request waits: slow machines make few.
NEXT_S, PICTURE_S = 4.0, 5.0
#: Cameras that are listed, characters of a text, and bytes of a report and of a picture: others than our own processes
#: may write there.
_MAX_CAMERAS, _MAX_TEXT, _MAX_REPORT, _MAX_PICTURE = 100, 500, 256 << 10, 8 << 20
_PREFIX = "video:camera:"
#: Pattern of the keys of reports.
_KEYS = _PREFIX + 16 * "[0-9a-f]"

CameraState = Literal["connecting", "running", "lost", "ended", "silent"]
_Text = Annotated[str, AfterValidator(lambda text: text[:_MAX_TEXT])]
_Count = Annotated[int, Field(ge=0, lt=1 << 53)]
_Amount = Annotated[float, Field(ge=0, lt=1e12)]
_Counts = Annotated[dict[_Text, _Count], Field(max_length=1000)]


class NoPicture(BackendError):
    """A camera shows nothing at the moment."""

    http_status = 503
    expected = True  # such as after a camera was lost: a page asks for the next one every few seconds


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Recording(_Facts):
    """What was recorded of a camera."""

    videos: _Count
    seconds: _Amount
    today_s: Annotated[_Amount, Field(description="Seconds of today, in UTC.")]
    budget_s: Annotated[_Amount, Field(description="Seconds that are allowed a day.")]
    paused_because: Annotated[_Text, Field(description="Why nothing is recorded though it is wanted; else empty.")]


class LiveCamera(_Facts):
    """What a process has last told about a camera."""

    id: Annotated[str, Field(pattern="^[0-9a-f]{16}$", description="New with each start of its process.")]
    name: Annotated[_Text, Field(description="Address without user and password, or name of a file.")]
    host: Annotated[_Text, Field(description="Of its process.")]
    project: Annotated[int, Field(ge=1, lt=1 << 31, description="Of its recordings; null: it was given none.")] | None
    state: Annotated[CameraState, Field(description="silent: its process has told nothing for a while.")]
    since: Annotated[AwareDatetime, Field(description="When the state began.")]
    error: Annotated[_Text, Field(description="Why it is lost, or not looked at any more; else empty.")]
    note: Annotated[_Text, Field(description="Why its labels are the detector's only; else empty.")]
    received: Annotated[_Count, Field(description="Frames.")]
    processed: Annotated[_Count, Field(description="Frames in which objects were looked for.")]
    dropped: Annotated[_Count, Field(description="Frames that were not processed.")]
    times_lost: Annotated[_Count, Field(description="How often the connection was lost, or could not be made.")]
    fps: Annotated[_Amount, Field(description="Processed frames a second.")]
    latency_s: Annotated[_Amount, Field(description="Median from a frame's arrival to its picture.")]
    latency_p99_s: Annotated[_Amount, Field(description="The same of the slowest of 100 frames.")]
    now: Annotated[_Counts, Field(description="Objects on the newest picture, by label.")]
    seen: Annotated[_Counts, Field(description="Objects since the start, by label.")]
    recorded: Annotated[Recording | None, Field(description="null: it is not recorded.")] = None
    tasks: Annotated[
        list[Annotated[int, Field(ge=1, lt=1 << 53)]],
        Field(max_length=100, description="That its newest recordings became, newest last."),
    ]


class LiveCameras:
    """The cameras that are announced. All methods raise QueueUnavailable without Redis."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue

    def cameras(self) -> list[LiveCamera]:
        """Return the cameras by name; one whose process is silent has the state ``silent``."""
        redis = self._queue.connection
        with self._queue.guard():
            keys = list(islice(redis.scan_iter(_KEYS, count=1000, _type="STRING"), _MAX_CAMERAS))
            pipeline = redis.pipeline(transaction=False)
            for key in keys:
                pipeline.getrange(key, 0, _MAX_REPORT)
                pipeline.pttl(key)
            told = pipeline.execute() if keys else []
        found = [self._parse(key.decode(), *told[2 * n : 2 * n + 2]) for n, key in enumerate(keys)]
        return sorted(filter(None, found), key=lambda camera: (camera.name, camera.id))

    def next_picture(self, camera_id: str) -> bytes:
        """Return a camera's next picture, a JPEG with boxes and labels.

        Raises:
            NoPicture: none has come.
        """
        redis, end = self._queue.connection, time.monotonic() + PICTURE_S
        with self._queue.guard(), redis.pubsub() as pictures:
            pictures.subscribe(f"{_PREFIX}{camera_id}:picture")
            asked = False
            while (left := end - time.monotonic()) > 0:
                message: dict[str, Any] | None = pictures.get_message(timeout=left)
                if message and message["type"] == "subscribe" and not asked:  # from now on, none is missed
                    asked = True
                    if not redis.publish(f"{_PREFIX}{camera_id}:wanted", b""):
                        break
                elif message and message["type"] == "message":
                    data = bytes(message["data"])
                    if data.startswith(b"\xff\xd8") and len(data) <= _MAX_PICTURE:
                        return data
        raise NoPicture("The camera shows nothing at the moment.", "Ask again in a few seconds.")

    def _parse(self, key: str, report: bytes, ttl_ms: int) -> LiveCamera | None:
        if not report:  # forgotten meanwhile
            return None
        try:
            camera = LiveCamera.model_validate_json(report)
        except ValidationError as error:
            log.warning("What Redis has at %s is no camera: %s", key, error.errors(include_input=False)[0]["msg"])
            return None
        if key != _PREFIX + camera.id:
            return None
        silent_s = KEPT_S - ttl_ms / 1000  # by Redis' clock
        if silent_s < SILENT_S:
            return camera
        since = datetime.now(timezone.utc) - timedelta(seconds=silent_s)
        return camera.model_copy(update={"state": "silent", "since": since})


class CameraAnnouncer:
    """Announces one camera and sends its pictures. :meth:`run` it in a thread.

    Args:
        summary: returns what :class:`LiveCamera` has, but its id.
        next_picture: returns the next picture as JPEG, empty if none comes within the seconds that it is given.
    """

    def __init__(
        self, queue: JobQueue, summary: Callable[[], Mapping[str, Any]], next_picture: Callable[[float], bytes]
    ) -> None:
        self._queue, self._summary, self._next_picture = queue, summary, next_picture
        self._id = secrets.token_hex(8)
        self._key = _PREFIX + self._id

    def run(self, stopped: threading.Event) -> None:
        """Announce the camera until stopped; where Redis is away, again when it is back."""
        said = False
        while not stopped.is_set():
            try:
                with self._queue.guard():
                    for _ in self._reports(stopped):
                        said = False
            except QueueUnavailable as error:
                if not said:
                    log.warning("The control room does not see the cameras at the moment: %s", error)
                said = True
                stopped.wait(RETRY_S)
        with suppress(QueueUnavailable), self._queue.guard():
            self._queue.connection.delete(self._key)

    def _reports(self, stopped: threading.Event) -> Iterator[None]:
        """Yield after each report; send pictures between them."""
        redis, due = self._queue.connection, 0.0
        with redis.pubsub(ignore_subscribe_messages=True) as requests:
            requests.subscribe(f"{self._key}:wanted")
            while not stopped.is_set():
                if time.monotonic() >= due:
                    due = time.monotonic() + REPORT_S
                    redis.set(self._key, self._report(), ex=KEPT_S)
                    yield
                if requests.get_message(timeout=max(0.0, due - time.monotonic())) is None:
                    continue
                while requests.get_message() is not None:  # one picture is for all who have asked
                    pass
                if jpeg := self._next_picture(NEXT_S):
                    redis.publish(f"{self._key}:picture", jpeg)

    def _report(self) -> str:
        return json.dumps({**self._summary(), "id": self._id})


@contextmanager
def announcing(announcers: Sequence[CameraAnnouncer]) -> Iterator[None]:
    """Announce cameras until the context ends."""
    stopped = threading.Event()
    threads = [threading.Thread(target=item.run, args=(stopped,), name="announcer", daemon=True) for item in announcers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopped.set()
        for thread in threads:
            thread.join()
