"""Detect, track and label what a camera shows, frame by frame, as fast as the machine can."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import cv2
import numpy as np
import supervision as sv

from ml_backend.core.settings import Settings
from ml_backend.core.types import UNLABELLED, FloatArray, Frame, Image
from ml_backend.detectors.yolo import Detector
from ml_backend.label_studio.label_config import VideoControl
from ml_backend.labeling.label_assignment import DetectorLabels, LabelScores, decide_label
from ml_backend.live.failures import reason_of
from ml_backend.live.labels import TrackCrops, TrackLabeller
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
#: Frames a second that trackers are told, whatever the machine's speed: a lost track is kept for as many.
TRACKER_FPS = 15.0
#: Frames over which latency and speed are measured.
MEASURED_FRAMES = 600
#: Score below which a track is uncertain, and its age in seconds from which that counts: until then few crops tell.
UNCERTAIN, SURE_AFTER_S = 0.5, 1.0
JPEG_QUALITY = 80
#: Seconds in which it is noticed that the camera, or the person, has ended.
POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class LiveModels:
    """What the cameras of one process share.

    Attributes:
        detector: returns the detector of one camera: YOLO is shared, the motion detector learns one background each.
        lock: held while the detector runs.
        labeller: ``None``: labels are the detector's.
    """

    settings: Settings
    control: VideoControl
    motion: bool
    detector: Callable[[], Detector]
    labels: DetectorLabels
    labeller: TrackLabeller | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(slots=True)
class LiveTrack:
    """A track so far.

    Attributes:
        began, seen: ``time.monotonic()`` at its first and newest detection.
        box: ``(4,)`` pixels, the newest.
        last_frame: number of its newest frame among the processed ones.
        conf: of its newest detections.
        class_scores: sum of confidence per detector class.
        label: that it had last; ``None`` if it has none.
        unknown: whether the pattern bank has no label for it.
        label_score: certainty of the track and its label, 0..1.
    """

    track_id: int
    began: float
    seen: float
    box: FloatArray
    last_frame: int = 0
    conf: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    class_scores: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    hits: int = 0
    crops: TrackCrops = field(default_factory=TrackCrops)
    label: str | None = None
    unknown: bool = False
    label_score: float = 1.0

    @property
    def score(self) -> float:
        """Certainty of its existence and class, 0..1; as :func:`ml_backend.tracking.credibility.track_score`."""
        share = max(self.class_scores.values()) / max(sum(self.class_scores.values()), 1e-9)
        return min(1.0, strength(np.array(self.conf, np.float32)) * share)


class LiveSession:
    """What is found in one camera. :meth:`run` it in a thread.

    Args:
        number: of the camera, from 1.

    Attributes:
        error: why it has ended before its source; empty if it has not.
        frames_processed: frames in which objects were looked for.
    """

    def __init__(self, number: int, source: LiveSource, models: LiveModels) -> None:
        self.number, self.source, self._models = number, source, models
        self.error, self._failed_at, self.frames_processed = "", 0.0, 0
        self._waiting = 0  # requests for a picture
        self._tracks: dict[int, LiveTrack] = {}
        self._ended: Counter[str] = Counter()
        self._latencies: deque[float] = deque(maxlen=MEASURED_FRAMES)
        self._finished_at: deque[float] = deque(maxlen=MEASURED_FRAMES)
        self._changed = threading.Condition()
        self._pictures, self._jpeg = 0, b""
        self._labels = [*(label.value for label in models.control.labels), UNLABELLED]
        self._colours = label_colours(self._labels, {label.value: label.background for label in models.control.labels})
        self._painter: tuple[tuple[int, ...], FramePainter] | None = None

    @property
    def finished(self) -> bool:
        """Whether no more frames will be processed."""
        return bool(self.error) or self.source.status.state == "ended"

    def run(self, stopped: threading.Event) -> None:
        """Process the newest frame again and again, until the source ends or until stopped."""
        try:
            self._process_frames(self._models.detector(), stopped)
        except Exception as error:
            log.warning("%s is not looked at any more: %s", self.source.name, reason_of(error), exc_info=True)
            self.error, self._failed_at = reason_of(error), time.time()

    def next_picture(self, timeout_s: float) -> bytes:
        """Return the next picture as JPEG; empty if none comes in time."""
        with self._changed:
            number = self._pictures
            self._waiting += 1
            made = self._changed.wait_for(lambda: self._pictures > number, timeout_s)
            self._waiting -= 1
            return self._jpeg if made else b""

    def recording_reasons(self) -> tuple[frozenset[str], frozenset[str]]:
        """Return what is worth recording in the newest picture.

        Returns:
            ``new`` if the pattern bank has no label for a track, ``uncertain`` if a track that has been seen for
            ``SURE_AFTER_S`` has a score below ``UNCERTAIN``; and the labels of all tracks.
        """
        tracks = self._visible()
        old = [track for track in tracks if track.seen - track.began >= SURE_AFTER_S]
        kinds = {"new": any(track.unknown for track in old), "uncertain": any(t.label_score < UNCERTAIN for t in old)}
        return frozenset(kind for kind, found in kinds.items() if found), frozenset(str(t.label) for t in tracks)

    def summary(self) -> dict[str, Any]:
        """Return facts for people: state and since when, frames, speed, latency in seconds, objects by label."""
        source, finished_at = self.source.status, list(self._finished_at)
        latencies = sorted(self._latencies) or [0.0]
        seconds = finished_at[-1] - finished_at[0] if len(finished_at) > 1 else 0.0
        labelled = Counter(track.label for track in list(self._tracks.values()) if track.label is not None)
        labeller = self._models.labeller
        return {
            "camera": self.source.name,
            "state": "ended" if self.finished else source.state,
            "since": datetime.fromtimestamp(self._failed_at or source.since, timezone.utc).isoformat(),
            "error": self.error or source.error,
            "note": labeller.error if labeller else "",
            "received": source.frames,
            "processed": self.frames_processed,
            "dropped": max(0, source.frames - self.frames_processed),
            "fps": round((len(finished_at) - 1) / seconds, 2) if seconds else 0.0,
            "latency_s": round(latencies[len(latencies) // 2], 3),
            "latency_p99_s": round(latencies[int(0.99 * (len(latencies) - 1))], 3),
            "times_lost": source.times_lost,
            "now": dict(Counter(track.label for track in self._visible())),
            "seen": dict(self._ended.copy() + labelled),
        }

    def _visible(self) -> list[LiveTrack]:
        """Return the tracks with a label on the newest picture."""
        found = list(self._tracks.values())
        return [track for track in found if track.label is not None and track.last_frame >= self.frames_processed - 1]

    def _process_frames(self, detector: Detector, stopped: threading.Event) -> None:
        stream, index = None, 0
        tracker, extractor = self._new_tracker(), FrameFeatureExtractor()
        while not stopped.is_set():
            frame = self.source.newest(index, POLL_S)
            if frame is None:
                if self.source.status.state == "ended":
                    return
                continue
            index, shape = frame.index, frame.image.shape
            if stream != (self.source.status.gaps, shape):  # what was seen before says nothing of this picture
                stream = self.source.status.gaps, shape
                tracker, extractor = self._new_tracker(), FrameFeatureExtractor()
                self._forget(list(self._tracks.values()))
                self._latencies.clear()
                self._finished_at.clear()
            with self._models.lock:
                (found,) = detector.detect([frame.image])
            features = extractor.extract(index, found, shrink_frame(frame.image), (shape[1], shape[0]))
            self._update(frame, tracker.update(features), detector.names)
            if self._waiting:  # nobody else sees it
                self._publish(frame)
            now = time.monotonic()
            self.frames_processed += 1
            self._latencies.append(now - frame.time)
            self._finished_at.append(now)

    def _new_tracker(self) -> Tracker:
        return Tracker(self._models.settings.tracker, TRACKER_FPS, motion=self._models.motion)

    def _update(self, frame: Frame, boxes: list[TrackedBox], names: Mapping[int, str]) -> None:
        for box in boxes:
            track = self._tracks.get(box.track_id)
            if track is None:
                track = LiveTrack(box.track_id, frame.time, frame.time, box.xyxy)
                self._tracks[box.track_id] = track
            track.seen, track.box, track.last_frame = frame.time, box.xyxy, self.frames_processed
            track.conf.append(box.conf)
            track.class_scores[names[box.class_id]] += box.conf
            track.hits += 1
            if track.hits >= SHOWN_FROM:
                self._label(track, frame)
        # As long as the tracker continues them.
        kept = BUFFER_S * TRACKER_FPS
        self._forget([t for t in self._tracks.values() if self.frames_processed - t.last_frame > kept])

    def _label(self, track: LiveTrack, frame: Frame) -> None:
        models = self._models
        if models.labeller:
            age = track.seen - track.began
            track.crops.offer(age, frame.index, track.box, track.conf[-1], frame.image)
            if track.crops.has_new(age):
                models.labeller.request(track.crops, track.class_scores)
        score = track.score
        if not models.motion and score < MIN_STRENGTH and track.label is None:
            return
        scores = track.crops.scores or LabelScores()
        record = TrackRecord(track.track_id, 0, track.hits, score, track.class_scores, {}, ())
        label = models.labels(track.class_scores)
        share = models.labels.shares(track.class_scores).get(label, 0.0) if label is not None else 0.0
        decision = decide_label(record, label, scores, share)
        track.label, track.label_score = (decision.label, decision.score) if decision else (None, 1.0)
        track.unknown = scores.patterns is not None and scores.patterns.label is None

    def _forget(self, tracks: Sequence[LiveTrack]) -> None:
        """Drop tracks that are over, and count them."""
        for track in tracks:
            del self._tracks[track.track_id]
            if track.label is not None:
                self._ended[track.label] += 1

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
            self._pictures, self._jpeg = self._pictures + 1, bytes(jpeg)
            self._changed.notify_all()

    def _painter_of(self, image: Image) -> FramePainter:
        height, width = image.shape[:2]
        if self._painter is None or self._painter[0] != (width, height):
            style = BoxStyle(legend=True)
            painter = FramePainter(
                self._labels, self._colours, (width, height), TRACKER_FPS, style, Fonts(), kinds=(False,)
            )
            self._painter = (width, height), painter
        return self._painter[1]
