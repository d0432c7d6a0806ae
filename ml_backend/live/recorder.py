"""Record what a camera shows, where it shows something that is wanted, as short videos at a constant rate."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Literal, get_args

import cv2
import numpy as np

from ml_backend.core.errors import BackendError
from ml_backend.core.types import Image
from ml_backend.live.session import LiveSession
from ml_backend.video.writer import VideoWriter

log = logging.getLogger(__name__)

RecordWhen = Literal["all", "new", "uncertain"]
RECORD_WHEN = get_args(RecordWhen)
#: Frames a second of recordings.
RATE = 15
#: Seconds that are recorded before and after what is wanted, and of the longest recording.
RUN_UP_S, AFTER_S, LONGEST_S = 3.0, 2.0, 60.0
#: Quality of the frames that wait for their recording.
_WAITING_QUALITY = 95


@dataclass(frozen=True, slots=True)
class RecordOptions:
    """What is recorded, and how much.

    Attributes:
        when: ``all``; ``new``: tracks that the pattern bank knows no label for; ``uncertain``: tracks with a low score.
        labels: tracks with these labels, too.
        seconds_a_day: of one camera.
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
        kinds, labels = session.noteworthy()
        return ", ".join(sorted((kinds & self.when) | (labels & self.labels)))


@dataclass(slots=True)
class Recorded:
    """What was recorded of a camera.

    Attributes:
        note: why nothing is recorded though it is wanted; empty otherwise.
    """

    videos: int = 0
    seconds: float = 0.0
    note: str = ""


@dataclass(frozen=True, slots=True)
class _Tick:
    """What is recorded at one or more ticks of the clock.

    Attributes:
        image: the newest frame; ``None`` without a picture.
        jpeg: the same, compressed.
        count: ticks since the one before: more than 1 if the machine is too slow.
        reason: why it is wanted; empty if it is not.
    """

    image: Image | None
    jpeg: bytes = b""
    count: int = 1
    reason: str = ""


class Recorder:
    """Records one camera. :meth:`run` it in a thread.

    Args:
        on_video: called with each finished file.

    Attributes:
        recorded: changed by the thread.
    """

    def __init__(self, session: LiveSession, options: RecordOptions, on_video: Callable[[Path], None]) -> None:
        self._session, self._options, self._on_video = session, options, on_video
        self.recorded = Recorded()
        self._run_up: deque[bytes] = deque(maxlen=round(RUN_UP_S * RATE))
        self._today: tuple[date, float] = (date.min, 0.0)

    def run(self, stopped: threading.Event) -> None:
        """Record until stopped, until the camera ends, or until nothing can be written."""
        ticks = self._ticks(stopped)
        try:
            for tick in ticks:
                if tick.image is None:
                    self._run_up.clear()
                    continue
                self._run_up.extend([tick.jpeg] * tick.count)
                if tick.reason and self._may_record():
                    self._record(tick.reason, tick.image.shape, ticks)
        except BackendError as error:
            log.warning("%s is not recorded any more: %s", self._session.source.name, error)
            self.recorded.note = str(error)

    def _ticks(self, stopped: threading.Event) -> Iterator[_Tick]:
        """Yield the newest frame ``RATE`` times a second; one that stays is yielded again."""
        due, index, jpeg = time.monotonic(), 0, b""
        while not stopped.wait(max(0.0, due - time.monotonic())) and not self._session.over:
            count = 1 + int(max(0.0, time.monotonic() - due) * RATE)
            due += count / RATE
            frame = self._session.source.newest(0, 0.0)
            if frame is None or self._session.source.status.state != "running":
                yield _Tick(None)
                continue
            if frame.index != index:
                index, quality = frame.index, [cv2.IMWRITE_JPEG_QUALITY, _WAITING_QUALITY]
                jpeg = bytes(cv2.imencode(".jpg", frame.image, quality)[1])
            yield _Tick(frame.image, jpeg, count, self._options.reason(self._session))

    def _may_record(self) -> bool:
        today = date.today()
        if self._today[0] != today:
            self._today = today, 0.0
        used = sum(file.stat().st_size for file in self._options.folder.glob("*.mp4"))
        if self._today[1] >= self._options.seconds_a_day:
            self.recorded.note = "Today's minutes are used."
        elif used >= self._options.max_bytes:
            self.recorded.note = f"{self._options.folder} is full. Fix: move recordings away, or raise --record-gb."
        else:
            self.recorded.note = ""
        return not self.recorded.note

    def _record(self, reason: str, shape: tuple[int, ...], ticks: Iterator[_Tick]) -> None:
        """Write one video: the run-up, and further ticks as long as they are wanted."""
        name = re.sub(r"[^a-z0-9]+", "-", self._session.source.name.lower()).strip("-")[-40:]
        path = self._options.folder / f"{name}-{datetime.now():%Y%m%d-%H%M%S}.mp4"
        height, width = shape[:2]
        with VideoWriter(path, width, height, RATE, comment=f"Recorded for: {reason}") as writer:
            frames = len(self._run_up)
            for jpeg in self._run_up:
                writer.write(np.asarray(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR), np.uint8))
            self._run_up.clear()
            unwanted = 0
            for tick in ticks:
                if tick.image is None or tick.image.shape != shape:
                    break
                for _ in range(tick.count):
                    writer.write(tick.image)
                frames += tick.count
                unwanted = 0 if tick.reason else unwanted + tick.count
                if unwanted > AFTER_S * RATE or frames >= LONGEST_S * RATE:
                    break
        seconds = frames / RATE
        self._today = self._today[0], self._today[1] + seconds
        self.recorded.videos += 1
        self.recorded.seconds = round(self.recorded.seconds + seconds, 2)
        self._on_video(path)
