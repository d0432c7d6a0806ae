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

from ml_backend.core.errors import BackendError, VideoError
from ml_backend.core.keyframes import interpolate
from ml_backend.core.types import Float64Array, IntArray, Track
from ml_backend.datasets.annotation_reader import SkippedTask
from ml_backend.datasets.video_files import FIND_HINT, NO_FACTS, VideoFacts, VideoFolder
from ml_backend.label_studio.label_config import VideoControl
from ml_backend.label_studio.media import CLOUD_SCHEMES
from ml_backend.label_studio.regions import make_prediction, track_to_region
from ml_backend.label_studio.timeline import video_facts, video_timeline
from ml_backend.video.probe import probe, stored_size

log = logging.getLogger(__name__)

ResultKind = Literal["predictions", "annotations"]

#: Minimum IoU of keyframe simplification: manual boxes stay almost unchanged.
_MIN_IOU = 0.995

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
        left_out: number of objects that were left out or changed, by reason.
    """

    tracks: tuple[ImportedTrack, ...]
    samples: IntArray | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def from_rows(
        cls, rows: Sequence[tuple[int, int, str]], xyxy: npt.ArrayLike, samples: Iterable[int] | None
    ) -> ImportedBoxes:
        """Group boxes, in any order, into tracks.

        Args:
            rows: ``n`` tuples of (decoded frame, track, label). If a track and label has several boxes on one frame,
                the first is used.
            xyxy: ``(n, 4)`` pixels.
            samples: frames that were annotated.
        """
        boxes = np.asarray(xyxy, np.float64).reshape(-1, 4)
        groups: dict[tuple[int, str], list[int]] = {}
        for index, (_, track, label) in enumerate(rows):
            groups.setdefault((track, label), []).append(index)
        tracks = []
        for (track, label), members in groups.items():
            frames, first = np.unique([rows[index][0] for index in members], return_index=True)
            tracks.append(ImportedTrack(track, label, frames.astype(np.int64), boxes[np.array(members)[first]]))
        sampled = None if samples is None else np.unique(np.fromiter(samples, np.int64))
        return cls(tuple(tracks), sampled)

    def interpolated(self, track: ImportedTrack, frame_count: int = MAX_FRAME + 1) -> ImportedTrack:
        """Interpolate a track between consecutive samples.

        Args:
            frame_count: of the video; frames beyond it are not filled in.
        """
        if self.samples is None or len(track.frames) < 2:
            return track
        positions = np.searchsorted(self.samples, track.frames)
        spans = np.split(np.arange(len(track.frames)), np.flatnonzero(np.diff(positions) > 1) + 1)
        frames = [np.arange(track.frames[s[0]], min(int(track.frames[s[-1]]) + 1, frame_count)) for s in spans]
        boxes = [interpolate(track.frames[s], track.xyxy[s], to) for s, to in zip(spans, frames, strict=True)]
        return ImportedTrack(track.track_id, track.label, np.concatenate(frames), np.concatenate(boxes))


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
        folder: with the video files, which are probed for size and frame times.
        control: names of the regions, and the frame rate of Label Studio's timeline.
        result: counts are added to it.
        kind: import the regions as predictions (to be reviewed) or as annotations.
        url_prefix: prepended to the video's path in ``folder``, such as ``/data/local-files/?d=videos/``.
    """
    for video in videos:
        try:
            choice = folder.look_up(video.name, video.facts)
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
    for number, track in enumerate(sorted(imported.tracks, key=lambda t: (int(t.frames[0]), t.track_id)), start=1):
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
    return regions, imported.left_out


def _results(regions: list[dict[str, Any]], kind: ResultKind) -> dict[str, Any]:
    if kind == "predictions":
        return {"predictions": [make_prediction(regions, "imported")]}
    keys = ("id", "from_name", "to_name", "type", "value")
    return {"annotations": [{"result": [{key: r[key] for key in keys} | {"origin": "manual"} for r in regions]}]}
