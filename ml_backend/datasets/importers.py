"""Import datasets of other formats: boxes to tracks, and tracks to Label Studio tasks with results."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import numpy as np
import numpy.typing as npt

from ml_backend.core.errors import BackendError, ConfigError, VideoError
from ml_backend.core.keyframes import interpolate
from ml_backend.core.types import Float64Array, IntArray, Track
from ml_backend.datasets.annotation_reader import SkippedTask
from ml_backend.datasets.video_files import FIND_HINT, NO_FACTS, FileChoice, VideoFacts, VideoFolder, parse_count
from ml_backend.label_studio.label_config import VideoControl
from ml_backend.label_studio.media import CLOUD_SCHEMES
from ml_backend.label_studio.regions import make_prediction, track_to_region
from ml_backend.label_studio.timeline import video_facts, video_timeline
from ml_backend.video.probe import probe, stored_size

log = logging.getLogger(__name__)

ResultKind = Literal["predictions", "annotations"]

#: Minimum IoU of keyframe simplification: manual boxes stay almost unchanged.
_MIN_IOU = 0.995

_UNTRACKED = "Boxes without a track, left out"
_OUTSIDE = "Boxes on frames that the video does not have, left out"
_ASSUMED = "Boxes on frames taken to count from {0} (if they count from {1}, use --first-frame {1})"
_UNEVEN = "Tracks interpolated between unevenly spaced frames, where gaps cannot be told"

#: More than any video has (46 hours at 60 fps): damaged numbers must not exhaust memory.
MAX_FRAME = 10_000_000


def frame_number(value: str | float) -> int:
    """Parse a frame number from 0 to :data:`MAX_FRAME`, possibly written as ``1.0``.

    Raises:
        ValueError: it is not a frame number.
    """
    try:
        number = float(value)
    except OverflowError:  # an int too large for a float
        number = np.inf
    if not 0 <= number <= MAX_FRAME or number != int(number):
        raise ValueError(f"{str(value)[:40]} is not a frame number")
    return int(number)


def finite(values: Iterable[Any]) -> list[float]:
    """Convert numbers to floats.

    Raises:
        ValueError, TypeError: one is not a finite number.
    """
    try:
        numbers = [float(value) for value in values]
    except OverflowError as error:
        raise ValueError("a number is too large") from error
    if not np.isfinite(numbers).all():
        raise ValueError("a number is not finite")
    return numbers


def stated_stride(head: Mapping[str, Any]) -> int | None:
    """Read the field ``stride`` of our own exports; 0 if there is none, ``None`` if frames are uneven."""
    return parse_count(head["stride"]) or None if "stride" in head else 0


@dataclass(frozen=True, slots=True)
class ImportedTrack:
    """One object of an imported file: ascending decoded ``frames`` ``(n,)`` and ``xyxy`` ``(n, 4)`` in pixels."""

    track_id: int
    label: str
    frames: IntArray
    xyxy: Float64Array


@dataclass(frozen=True, slots=True)
class ImportedBoxes:
    """The tracks of one video, and the frames that were annotated.

    Attributes:
        samples: ``(m,)`` ascending decoded frames. A track on two consecutive samples is visible between them; one
            that misses a sample is hidden there. ``None``: all frames were annotated.
        stride: frames from a sample to the next. Where samples are twice as far apart, one is missing, and tracks are
            hidden in between. ``None``: samples are uneven, so that missing ones cannot be told.
        left_out: number of objects that were left out or changed, by reason.
    """

    tracks: tuple[ImportedTrack, ...]
    samples: IntArray | None = None
    stride: float | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def from_rows(
        cls,
        rows: Sequence[tuple[int, int, str]],
        xyxy: npt.ArrayLike,
        samples: Iterable[int],
        stride: float | None = 0,
        source: str | Path = "The dataset",
    ) -> ImportedBoxes:
        """Group boxes, in any order, into tracks.

        Args:
            rows: ``n`` tuples of (decoded frame, track, label). Boxes without a track, a negative one, are left out.
                If a track and label has several boxes on one frame, the first is used.
            xyxy: ``(n, 4)`` pixels.
            samples: frames that were annotated.
            stride: see :class:`ImportedBoxes`; 0 if it is to be told from the samples.
            source: where the boxes were read, for the error.

        Raises:
            ConfigError: there are boxes, but none has a track.
        """
        boxes = np.asarray(xyxy, np.float64).reshape(-1, 4)
        groups: dict[tuple[int, str], list[int]] = {}
        for index, (_, track, label) in enumerate(rows):
            if track >= 0:
                groups.setdefault((track, label), []).append(index)
        if rows and not groups:
            raise ConfigError(
                f"{source}: none of {len(rows)} boxes has a track number. They are detections, not tracks.",
                "Run a tracker on the detections, and import what it writes.",
            )
        tracks = []
        for (track, label), members in groups.items():
            frames, first = np.unique([rows[index][0] for index in members], return_index=True)
            tracks.append(ImportedTrack(track, label, frames.astype(np.int64), boxes[np.array(members)[first]]))
        sampled = np.unique(np.fromiter(samples, np.int64))
        if stride == 0:
            stride = _usual_distance(sampled)
        uneven = 0 if stride else sum(_skips_frames(track.frames, sampled) for track in tracks)
        untracked = len(rows) - sum(map(len, groups.values()))
        return cls(tuple(tracks), sampled, stride, +Counter({_UNEVEN: uneven, _UNTRACKED: untracked}))

    def counted_from(self, first: int | None, frame_count: int, assumed: int = 0) -> ImportedBoxes:
        """Return the boxes of a file that numbers frames from ``first``, with frames from 0.

        Args:
            first: 0 or 1; ``None`` if unknown, and there is no frame 0: then it is 1 if the last number is the number
                of frames, else ``assumed``, which is noted.
            frame_count: of the video.
        """
        if self.samples is None or not len(self.samples):
            return self
        left_out = Counter(self.left_out)
        if first is None:
            first = 1 if self.samples[-1] >= frame_count else assumed
            if self.samples[-1] < frame_count:
                left_out[_ASSUMED.format(first, 1 - first)] = sum(len(track.frames) for track in self.tracks)
        tracks = tuple(replace(track, frames=track.frames - first) for track in self.tracks)
        return replace(self, tracks=tracks, samples=self.samples - first, left_out=+left_out)

    def interpolated(self, track: ImportedTrack, frame_count: int = MAX_FRAME + 1) -> ImportedTrack:
        """Interpolate a track between consecutive samples.

        Args:
            frame_count: of the video; frames beyond it are not filled in.
        """
        if self.samples is None or len(track.frames) < 2:
            return track
        positions = np.searchsorted(self.samples, track.frames)
        hidden = np.diff(positions) > 1
        if self.stride:
            hidden |= np.diff(track.frames) >= 2 * self.stride
        spans = np.split(np.arange(len(track.frames)), np.flatnonzero(hidden) + 1)
        frames = [np.arange(track.frames[s[0]], min(int(track.frames[s[-1]]) + 1, frame_count)) for s in spans]
        boxes = [interpolate(track.frames[s], track.xyxy[s], to) for s, to in zip(spans, frames, strict=True)]
        return ImportedTrack(track.track_id, track.label, np.concatenate(frames), np.concatenate(boxes))


def _usual_distance(samples: IntArray) -> float | None:
    """Return the distance of at least half of the samples from the next, give or take a frame; ``None`` if uneven."""
    distances = np.diff(samples)
    if not len(distances):
        return None
    usual = float(np.median(distances))
    return usual if np.mean(np.abs(distances - usual) <= 1) >= 0.5 else None


def _skips_frames(frames: IntArray, samples: IntArray) -> bool:
    """Return whether a track is on two consecutive samples that are not consecutive frames."""
    return bool(((np.diff(frames) > 1) & (np.diff(np.searchsorted(samples, frames)) == 1)).any())


@dataclass(frozen=True, slots=True)
class ImportedVideo:
    """One video of an imported dataset.

    Attributes:
        name: file name, with or without suffix, and with or without folders.
        read: reads its boxes; called with the width and height in pixels and the number of frames. Frames
            beyond these need not be interpolated, since damaged numbers could exhaust memory.
        facts: what the dataset states about the video.
    """

    name: str
    read: Callable[..., ImportedBoxes]
    facts: VideoFacts = NO_FACTS

    @classmethod
    def unreadable(cls, name: str, error: ConfigError) -> ImportedVideo:
        """Return a video whose ``read`` raises an error, so that the others of its dataset are imported."""

        def read(*_: object) -> ImportedBoxes:
            raise error

        return cls(name, read)


@dataclass(slots=True)
class ImportResult:
    """Summary of :func:`to_tasks`: counts, and the videos that were not found or not usable."""

    tasks: int = 0
    regions: int = 0
    keyframes: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    skipped: list[SkippedTask] = field(default_factory=list)


def to_tasks(
    videos: Iterable[ImportedVideo],
    folder: VideoFolder,
    control: VideoControl,
    result: ImportResult,
    *,
    kind: ResultKind = "predictions",
    url_prefix: str = "",
) -> Iterator[dict[str, Any]]:
    """Yield a Label Studio task for each video.

    Args:
        folder: with the video files, which are probed for size and frame times. A single file is the only video's,
            whatever its name is, unless it contradicts the facts.
        control: names of the regions, and the frame rate of Label Studio's timeline.
        result: counts are added to it.
        kind: import the regions as predictions (to be reviewed) or as annotations.
        url_prefix: prepended to the video's path in ``folder``, such as ``/data/local-files/?d=videos/``.
    """
    videos = list(videos)
    for video in videos:
        try:
            choice = folder.look_up(video.name, video.facts)
            if choice == FileChoice() and folder.single and len(videos) == 1:
                choice = folder.look_up("", video.facts)
            if choice.path is None:
                reason = choice.reason or f"There is no video of this name in {folder.folder.absolute()}."
                raise VideoError(reason, FIND_HINT)
            data = _data(choice.path, folder, control, url_prefix)
            regions, left_out = _regions(video, choice.path, control, control.frame_rate_for(data))
        except BackendError as error:
            log.info("%s is skipped", video.name, exc_info=error)
            result.skipped.append(SkippedTask(0, video.name, str(error)))
            continue
        result.tasks += 1
        result.regions += len(regions)
        result.keyframes += sum(len(region["value"]["sequence"]) for region in regions)
        result.labels.update(region["value"]["labels"][0] for region in regions)
        result.left_out.update(left_out)
        yield {"data": data} | _results(regions, kind)


def _data(path: Path, folder: VideoFolder, control: VideoControl, url_prefix: str) -> dict[str, Any]:
    """Return a task's data, as ``import_videos.py`` fills it in."""
    facts = video_facts(path)
    data: dict[str, Any] = dict(facts)
    if rate_field := control.rate_field:
        data[rate_field] = facts["fps"]
    inside = path.is_relative_to(folder.folder) and not folder.single
    relative = path.relative_to(folder.folder).as_posix() if inside else path.name
    # Keys of cloud storages are not quoted; without a prefix it is not a URL.
    is_url = url_prefix and urlsplit(url_prefix).scheme not in CLOUD_SCHEMES
    data[control.value_key] = url_prefix + (quote(relative) if is_url else relative)
    return data


def _regions(
    video: ImportedVideo, path: Path, control: VideoControl, frame_rate: float
) -> tuple[list[dict[str, Any]], Mapping[str, int]]:
    info, timeline = probe(path), video_timeline(path, frame_rate)
    if not video.facts.has_size(info.width, info.height):
        # Programs that state no size, or this one, count the stored pixels, even if they are not square.
        width, height = stored_size(path)
        info = replace(info, width=width, height=height)
    imported = video.read(info.width, info.height, info.frames)
    regions = []
    left_out = Counter(imported.left_out)
    for number, track in enumerate(sorted(imported.tracks, key=lambda t: (int(t.frames[0]), t.track_id)), start=1):
        left_out[_OUTSIDE] += int(((track.frames < 0) | (track.frames >= info.frames)).sum())
        interpolated = imported.interpolated(track, info.frames)
        inside = (interpolated.frames >= 0) & (interpolated.frames < info.frames)
        region = track_to_region(
            Track(
                number,
                interpolated.frames[inside],
                interpolated.xyxy[inside].astype(np.float32),
                np.ones(int(inside.sum()), np.float32),
                {interpolated.label: 1.0},
                interpolated.label,
                1.0,
            ),
            timeline,
            control,
            info,
            _MIN_IOU,
        )
        if region is not None:
            regions.append(region)
    return regions, +left_out


def _results(regions: list[dict[str, Any]], kind: ResultKind) -> dict[str, Any]:
    if kind == "predictions":
        return {"predictions": [make_prediction(regions, "imported")]}
    keys = ("id", "from_name", "to_name", "type", "value")
    return {"annotations": [{"result": [{key: r[key] for key in keys} | {"origin": "manual"} for r in regions]}]}
