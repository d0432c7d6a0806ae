"""Record what a camera shows, where it shows something that is wanted, as short videos at a constant rate."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any, Literal, get_args

import cv2
import numpy as np

from ml_backend.core.files import safe_name
from ml_backend.core.types import Image
from ml_backend.live.failures import reason_of
from ml_backend.live.session import LiveSession
from ml_backend.video.writer import VideoWriter

log = logging.getLogger(__name__)

RecordWhen = Literal["all", "new", "uncertain"]
RECORD_WHEN = get_args(RecordWhen)
#: Frames a second of recordings.
RATE = 15
#: Seconds that are recorded before and after what is wanted, and of the longest recording.
PRE_ROLL_S, POST_ROLL_S, LONGEST_S = 3.0, 2.0, 60.0
#: Seconds by which the recorder may be late; after a longer pause of the process, say, a recording begins anew.
LATE_S = 5.0
#: Seconds from one try to record to the next, where the folder is full or cannot be written.
RETRY_S = 10.0
#: Names of the newest recordings that are known.
NEWEST = 20
#: Quality of the frames that wait for their recording.
_WAITING_QUALITY = 95


@dataclass(frozen=True, slots=True)
class RecordOptions:
    """What is recorded, and how much.

    Attributes:
        when: ``all``; ``new``: tracks that the pattern bank knows no label for; ``uncertain``: tracks with a low score.
        labels: tracks with these labels, too.
        seconds_a_day: of one camera, in UTC.
        max_bytes: of the folder.
    """

    folder: Path
    when: frozenset[str] = frozenset()
    labels: frozenset[str] = frozenset()
    seconds_a_day: float = 3600.0
    max_bytes: float = 10e9

    def reason(self, session: LiveSession) -> str:
        """Return why the newest picture is wanted; empty if it is not."""
        if "all" in self.when:
            return "all"
        kinds, labels = session.recording_reasons()
        return ", ".join(sorted((kinds & self.when) | (labels & self.labels)))


@dataclass(slots=True)
class Recorded:
    """What was recorded of a camera.

    Attributes:
        paused_because: why nothing is recorded though it is wanted; empty otherwise.
    """

    videos: int = 0
    seconds: float = 0.0
    paused_because: str = ""


@dataclass(frozen=True, slots=True)
class _Tick:
    """What is recorded at one or more ticks of the clock.

    Attributes:
        image: the newest frame.
        jpeg: the same, compressed.
        count: ticks since the one before: more than 1 if the machine is too slow.
        reason: why it is wanted; empty if it is not.
    """

    image: Image
    jpeg: bytes
    count: int
    reason: str


class Recorder:
    """Records one camera. :meth:`run` it in a thread.

    Args:
        on_video: called with each finished file.

    Attributes:
        recorded: changed by the thread.
        newest: the newest files, changed by the thread.
    """

    def __init__(self, session: LiveSession, options: RecordOptions, on_video: Callable[[Path], None]) -> None:
        self._session, self._options, self._on_video = session, options, on_video
        self.recorded = Recorded()
        self.newest: deque[Path] = deque(maxlen=NEWEST)
        self._pre_roll: deque[bytes] = deque(maxlen=round(PRE_ROLL_S * RATE))
        self._today: tuple[date, float] = (date.min, 0.0)
        self._next_try = float("-inf")

    def summary(self) -> dict[str, Any]:
        """Return facts for people: what was recorded, and the seconds of today and those allowed."""
        day, seconds = self._today
        today_s = seconds if day == _utc_day() else 0.0
        return asdict(self.recorded) | {"today_s": round(today_s, 2), "budget_s": self._options.seconds_a_day}

    def run(self, stopped: threading.Event) -> None:
        """Record until stopped, or until the camera ends."""
        ticks = self._ticks(stopped)
        shape: tuple[int, ...] = ()
        for tick in ticks:
            if tick is None or tick.image.shape != shape:
                shape = () if tick is None else tick.image.shape
                self._pre_roll.clear()
            if tick is None:
                continue
            self._pre_roll.extend([tick.jpeg] * tick.count)
            if not tick.reason or time.monotonic() < self._next_try:
                continue
            try:
                if seconds := self._seconds_left():
                    self._record(tick, ticks, round(seconds * RATE))
            except Exception as error:
                log.warning("%s is not recorded: %s", self._session.source.name, reason_of(error), exc_info=True)
                self.recorded.paused_because = reason_of(error)
            if self.recorded.paused_because:
                self._next_try = time.monotonic() + RETRY_S

    def _ticks(self, stopped: threading.Event) -> Iterator[_Tick | None]:
        """Yield the newest frame ``RATE`` times a second, one that stays again; ``None`` where there is a gap."""
        due, index, jpeg = time.monotonic(), 0, b""
        while not stopped.wait(max(0.0, due - time.monotonic())) and not self._session.finished:
            late = max(0.0, time.monotonic() - due)
            frame = self._session.source.newest(0, 0.0)
            if late > LATE_S or frame is None or self._session.source.status.state != "running":
                due = time.monotonic() + 1 / RATE
                yield None
                continue
            count = 1 + int(late * RATE)
            due += count / RATE
            if frame.index != index:
                index, quality = frame.index, [cv2.IMWRITE_JPEG_QUALITY, _WAITING_QUALITY]
                jpeg = bytes(cv2.imencode(".jpg", frame.image, quality)[1])
            yield _Tick(frame.image, jpeg, count, self._options.reason(self._session))

    def _seconds_left(self) -> float:
        """Return how long the next recording may be; with 0, ``paused_because`` says why."""
        today = _utc_day()
        if self._today[0] != today:
            self._today = today, 0.0
        left = self._options.seconds_a_day - self._today[1]
        self.recorded.paused_because = ""
        if left < PRE_ROLL_S:
            self.recorded.paused_because = "Today's minutes are used."
        elif sum(map(_size, self._options.folder.glob("*.mp4"))) >= self._options.max_bytes:
            folder = self._options.folder
            self.recorded.paused_because = f"{folder} is full. Fix: move recordings away, or raise --record-gb."
        return 0.0 if self.recorded.paused_because else min(left, LONGEST_S)

    def _record(self, first: _Tick, ticks: Iterator[_Tick | None], longest: int) -> None:
        """Write one video: what came before, and further ticks as long as they are wanted, up to ``longest`` frames."""
        name = safe_name(re.sub(r"\W+", "-", self._session.source.name).strip("-")[-40:])
        stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S-%f")[:-3]
        path = self._options.folder / f"{name}-{self._session.number}-{stamp}.mp4"
        height, width = first.image.shape[:2]
        frames = unwanted = 0
        with VideoWriter(path, width, height, RATE, comment=f"Recorded for: {first.reason}") as writer:
            for jpeg in self._pre_roll:
                writer.write(np.asarray(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR), np.uint8))
                frames += 1
            self._pre_roll.clear()
            for tick in ticks:
                if tick is None or tick.image.shape != first.image.shape:
                    break
                count = min(tick.count, longest - frames)
                for _ in range(count):
                    writer.write(tick.image)
                frames += count
                unwanted = 0 if tick.reason else unwanted + count
                if unwanted > POST_ROLL_S * RATE or frames >= longest:
                    break
        self._today = self._today[0], self._today[1] + frames / RATE
        self.recorded.videos += 1
        self.recorded.seconds = round(self.recorded.seconds + frames / RATE, 2)
        self.newest.append(path)
        self._on_video(path)


def _utc_day() -> date:
    return datetime.now(timezone.utc).date()


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:  # finished, or moved away, meanwhile
        return 0
