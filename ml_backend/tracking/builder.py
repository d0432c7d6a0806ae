"""Build a video's track set from its frame features."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence

from ml_backend.core.settings import Settings
from ml_backend.core.types import FrameFeatures, Track, VideoInfo
from ml_backend.embeddings.crop_selection import CROPS_PER_TRACK, candidate_crops
from ml_backend.label_studio.regions import track_to_value
from ml_backend.label_studio.timeline import Timeline
from ml_backend.tracking.assembly import TrackAssembler
from ml_backend.tracking.track_record import TrackRecord, TrackSet
from ml_backend.tracking.tracker import Tracker


class TrackBuilder:
    """Track the objects of one video. Needs no images and takes little time compared with detection.

    Args:
        info, timeline: of the video.
        names: class name by class id of the detections.
        motion: whether the detections come from the motion detector.
        on_track: called with each finished track, with its boxes on every frame.
    """

    def __init__(
        self,
        info: VideoInfo,
        timeline: Timeline,
        settings: Settings,
        names: Mapping[int, str],
        *,
        motion: bool = False,
        on_track: Callable[[Track], None] | None = None,
    ) -> None:
        self._info, self._timeline, self._settings, self._names = info, timeline, settings, names
        self._motion, self._on_track = motion, on_track
        self._tracker = Tracker(settings.tracker, info.fps, motion=motion)
        self._assembler = TrackAssembler(
            info.fps, names, info.width, info.height, settings, motion=motion, keep_dropped=True
        )
        self._records: list[TrackRecord] = []
        self._dropped: list[TrackRecord] = []
        self.frames = 0

    def push(self, features: FrameFeatures) -> None:
        """Add one frame; in order, some may be missing."""
        self.frames += 1
        self._keep(self._assembler.push(features.index, self._tracker.update(features)))

    def snapshot(self, started: float) -> TrackSet:
        """Return what :meth:`close` would if the video ended here; more frames may follow."""
        unfinished = (self._record(track) for track in copy.deepcopy(self._assembler).close())
        return self._track_set([*self._records, *filter(None, unfinished)], started)

    def close(self, started: float) -> TrackSet:
        """Finish all tracks and return them.

        Args:
            started: ``time.perf_counter()`` at the start of the work, for the recorded duration.
        """
        self._keep(self._assembler.close())
        return self._track_set(self._records, started)

    def _track_set(self, records: Sequence[TrackRecord], started: float) -> TrackSet:
        ordered = sorted(records, key=lambda record: (record.first, record.track_id))
        names = tuple(self._names.values())
        seconds = time.perf_counter() - started
        info = self._info
        return TrackSet(
            tuple(ordered), names, self._motion, info.width, info.height, self.frames, seconds, tuple(self._dropped)
        )

    def _keep(self, tracks: Sequence[Track]) -> None:
        """Keep finished tracks, and those that the assembler has dropped meanwhile."""
        for track in tracks:
            if (record := self._record(track)) is not None:
                self._records.append(record)
                if self._on_track:
                    self._on_track(track)
        self._dropped += filter(None, map(self._record, self._assembler.take_dropped()))

    def _record(self, track: Track) -> TrackRecord | None:
        info = self._info
        value = track_to_value(track, self._timeline, info, self._settings.keyframe_iou)
        if value is None:
            return None
        return TrackRecord(
            track.track_id,
            int(track.frames[0]),
            len(track),
            float(track.score),
            dict(track.class_scores),
            value,
            tuple(candidate_crops(track.frames, track.xyxy, track.conf, info.width, info.height, CROPS_PER_TRACK)),
        )
