"""Detect, track and label what a camera shows, frame by frame, as fast as the machine can."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import supervision as sv

from ml_backend.core.errors import BackendError
from ml_backend.core.settings import Settings
from ml_backend.core.types import UNLABELLED, FloatArray, Frame, Image
from ml_backend.detectors.yolo import Detector
from ml_backend.label_studio.label_config import VideoControl
from ml_backend.labeling.label_assignment import DetectorLabels, LabelScores, decide_label
from ml_backend.live.labels import LabelRequest, TrackCrops, TrackLabeller
from ml_backend.live.source import LiveSource
from ml_backend.rendering.draw import BoxStyle, FramePainter, label_colours
from ml_backend.rendering.text import Fonts
from ml_backend.tracking.assembly import MIN_STRENGTH
from ml_backend.tracking.credibility import strength
from ml_backend.tracking.frame_features import FrameFeatureExtractor, shrink_frame
from ml_backend.tracking.track_record import TrackRecord
from ml_backend.tracking.tracker import BUFFER_S, TrackedBox, Tracker

log = logging.getLogger(__name__)

#: Detections from which a track is shown: fewer are flicker.
SHOWN_FROM = 3
#: Newest detections of a track whose confidence counts.
RECENT = 60
#: Frames that are looked at in a second, for the tracker, until the speed is known.
ASSUMED_FPS = 15.0
#: Frames over which latency and speed are measured.
MEASURED_FRAMES = 600
JPEG_QUALITY = 80
#: Score below which a track is uncertain, from which age on, in seconds: until then few crops tell its label.
UNCERTAIN, SURE_AFTER_S = 0.5, 1.0
#: Seconds in which it is noticed that the camera, or the person, has ended.
POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class LiveModels:
    """What the cameras of one process share.

    Attributes:
        detector: opens the detector of one camera: YOLO is shared, the motion detector learns one background each.
        lock: held while the detector runs.
        labeller: ``None``: labels are the detector's.
    """

    settings: Settings
    control: VideoControl
    motion: bool
    detector: Callable[[], AbstractContextManager[Detector]]
    labels: DetectorLabels
    labeller: TrackLabeller | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(slots=True)
class LiveTrack:
    """A track so far.

    Attributes:
        began, seen: ``time.monotonic()`` at its first and newest detection.
        looked_at: frames that had been looked at before the newest.
        box: ``(4,)`` pixels, the newest.
        conf: of its newest detections.
        class_scores: sum of confidence per detector class.
        label: that it had last; ``None`` if it has none.
        unknown: whether the pattern bank has no label for it.
        certainty: of its label, 0..1.
    """

    track_id: int
    began: float
    seen: float
    box: FloatArray
    looked_at: int = 0
    conf: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    class_scores: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    hits: int = 0
    crops: TrackCrops = field(default_factory=TrackCrops)
    label: str | None = None
    unknown: bool = False
    certainty: float = 1.0

    @property
    def score(self) -> float:
        """Certainty of its existence and class, 0..1; as :func:`ml_backend.tracking.credibility.track_score`."""
        share = max(self.class_scores.values()) / max(sum(self.class_scores.values()), 1e-9)
        return min(1.0, strength(np.array(self.conf, np.float32)) * share)


class LiveSession:
    """What is found in one camera. :meth:`run` it in a thread.

    Args:
        number: of the camera, from 0.
    """

    def __init__(self, number: int, source: LiveSource, models: LiveModels) -> None:
        self.number, self.source, self._models = number, source, models
        #: Why it has ended before its source; empty if it has not.
        self.error = ""
        #: Frames in which objects were looked for.
        self.looked_at = 0
        #: People who watch: pictures are only made for them.
        self.viewers = 0
        self._tracks: dict[int, LiveTrack] = {}
        self._ended: Counter[str] = Counter()
        self._latencies: deque[float] = deque(maxlen=MEASURED_FRAMES)
        self._finished: deque[float] = deque(maxlen=MEASURED_FRAMES)
        self._changed = threading.Condition()
        self._jpeg: tuple[int, bytes] = (0, b"")
        self._labels = [*(label.value for label in models.control.labels), UNLABELLED]
        self._colours = label_colours(self._labels, {label.value: label.background for label in models.control.labels})
        self._painter: tuple[tuple[int, ...], FramePainter] | None = None

    @property
    def over(self) -> bool:
        """Whether nothing will be looked at any more."""
        return bool(self.error) or self.source.status.state == "ended"

    def run(self, stopped: threading.Event) -> None:
        """Look at the newest frame again and again, until the source ends or until stopped."""
        try:
            with self._models.detector() as detector:
                self._look(detector, stopped)
        except BackendError as error:
            log.warning("%s is not looked at any more: %s", self.source.name, error)
            self.error = str(error)
        with self._changed:
            self._changed.notify_all()

    def picture(self, after: int, timeout_s: float) -> tuple[int, bytes]:
        """Return the number and JPEG of the newest picture; waits for one after ``after``, in vain if none comes."""
        with self._changed:
            self._changed.wait_for(lambda: self._jpeg[0] > after, timeout_s)
            return self._jpeg

    def noteworthy(self) -> tuple[frozenset[str], frozenset[str]]:
        """Return what is worth recording in the newest picture.

        Returns:
            ``new`` if the pattern bank has no label for a track, ``uncertain`` if a track that has been seen for
            ``SURE_AFTER_S`` has a score below ``UNCERTAIN``; and the labels of all tracks.
        """
        tracks = self._visible()
        old = [track for track in tracks if track.seen - track.began >= SURE_AFTER_S]
        kinds = {"new": any(track.unknown for track in old), "uncertain": any(t.certainty < UNCERTAIN for t in old)}
        return frozenset(kind for kind, found in kinds.items() if found), frozenset(str(t.label) for t in tracks)

    def _visible(self) -> list[LiveTrack]:
        """Return the tracks with a label on the newest picture."""
        found = list(self._tracks.values())
        return [track for track in found if track.label is not None and track.looked_at >= self.looked_at - 1]

    def summary(self) -> dict[str, Any]:
        """Return facts for people: state, frames, speed, latency in seconds, objects by label."""
        source, finished = self.source.status, list(self._finished)
        latencies = sorted(self._latencies) or [0.0]
        seconds = finished[-1] - finished[0] if len(finished) > 1 else 0.0
        tracks = [track for track in list(self._tracks.values()) if track.label is not None]
        shown = Counter(track.label for track in self._visible())
        seen = self._ended + Counter(track.label for track in tracks)
        return {
            "camera": self.source.name,
            "state": "ended" if self.over else source.state,
            "error": self.error or source.error,
            "received": source.frames,
            "looked_at": self.looked_at,
            "dropped": max(0, source.frames - self.looked_at),
            "fps": round((len(finished) - 1) / seconds, 2) if seconds else 0.0,
            "latency_s": round(latencies[len(latencies) // 2], 3),
            "latency_p99_s": round(latencies[int(0.99 * (len(latencies) - 1))], 3),
            "lost": source.lost,
            "now": dict(shown),
            "seen": dict(seen),
        }

    def _look(self, detector: Detector, stopped: threading.Event) -> None:
        stream, tracker, extractor, number = None, self._new_tracker(), FrameFeatureExtractor(), 0
        while not stopped.is_set():
            frame = self.source.newest(number, POLL_S)
            if frame is None:
                if self.source.status.state == "ended":
                    return
                continue
            number, shape = frame.index, frame.image.shape
            if stream != (self.source.status.lost, shape):  # what was seen before says nothing of this picture
                stream, tracker, extractor = (
                    (self.source.status.lost, shape),
                    self._new_tracker(),
                    FrameFeatureExtractor(),
                )
                self._forget(list(self._tracks.values()))
            with self._models.lock:
                (found,) = detector.detect([frame.image])
            features = extractor.extract(number, found, shrink_frame(frame.image), (shape[1], shape[0]))
            self._update(frame, tracker.update(features), detector.names)
            if self.viewers:
                self._publish(frame)
            now = time.monotonic()
            self.looked_at += 1
            self._latencies.append(now - frame.time)
            self._finished.append(now)

    def _new_tracker(self) -> Tracker:
        return Tracker(self._models.settings.tracker, ASSUMED_FPS, motion=self._models.motion)

    def _update(self, frame: Frame, boxes: list[TrackedBox], names: Mapping[int, str]) -> None:
        for box in boxes:
            track = self._tracks.get(box.track_id)
            if track is None:
                track = LiveTrack(box.track_id, frame.time, frame.time, box.xyxy)
                self._tracks[box.track_id] = track
            track.seen, track.box, track.looked_at = frame.time, box.xyxy, self.looked_at
            track.conf.append(box.conf)
            track.class_scores[names[box.class_id]] += box.conf
            track.hits += 1
            if track.hits >= SHOWN_FROM:
                self._label(track, frame)
        # As long as the tracker continues them.
        kept = BUFFER_S * ASSUMED_FPS
        self._forget([t for t in self._tracks.values() if self.looked_at - t.looked_at > kept])

    def _label(self, track: LiveTrack, frame: Frame) -> None:
        models, key = self._models, (self.number, track.track_id)
        scores: LabelScores | None = None
        if models.labeller:
            age = track.seen - track.began
            track.crops.look(age, frame.index, track.box, track.conf[-1], frame.image)
            if track.crops.due(age):
                track.crops.labelled = len(track.crops.images)
                models.labeller.request(LabelRequest(key, dict(track.class_scores), list(track.crops.images)))
            scores = models.labeller.scores(key)
        score = track.score
        if not models.motion and score < MIN_STRENGTH and track.label is None:
            return
        record = TrackRecord(track.track_id, 0, track.hits, score, track.class_scores, {}, ())
        label = models.labels(track.class_scores)
        share = models.labels.shares(track.class_scores).get(label, 0.0) if label is not None else 0.0
        decision = decide_label(record, label, scores or LabelScores(), share)
        track.label, track.certainty = (decision.label, decision.score) if decision else (None, 1.0)
        track.unknown = scores is not None and scores.patterns is not None and scores.patterns.label is None

    def _forget(self, tracks: Sequence[LiveTrack]) -> None:
        """Drop tracks that are over, and count them."""
        for track in tracks:
            del self._tracks[track.track_id]
            if track.label is not None:
                self._ended[track.label] += 1
            if self._models.labeller:
                self._models.labeller.forget((self.number, track.track_id))

    def _publish(self, frame: Frame) -> None:
        """Draw the tracks of a frame and keep it as the newest picture."""
        image = frame.image.copy()  # recordings have no boxes
        tracks = [t for t in self._tracks.values() if t.seen == frame.time and t.label is not None]
        self._painter_of(image).paint(
            image,
            sv.Detections(
                xyxy=np.array([track.box for track in tracks], np.float64).reshape(-1, 4),
                class_id=np.array([self._labels.index(str(track.label)) for track in tracks], np.int64),
                tracker_id=np.array([track.track_id for track in tracks], np.int64),
                confidence=np.array([track.score for track in tracks], np.float64),
                data={"manual": np.zeros(len(tracks), bool)},
            ),
        )
        _, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        with self._changed:
            self._jpeg = frame.index, bytes(jpeg)
            self._changed.notify_all()

    def _painter_of(self, image: Image) -> FramePainter:
        height, width = image.shape[:2]
        if self._painter is None or self._painter[0] != (width, height):
            style = BoxStyle(legend=True)
            painter = FramePainter(
                self._labels, self._colours, (width, height), ASSUMED_FPS, style, Fonts(), kinds=(False,)
            )
            self._painter = (width, height), painter
        return self._painter[1]
