"""Old work on its way into Label Studio: boxes of other formats to tracks, and tracks to tasks with results."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import numpy as np
import numpy.typing as npt

from ml_backend.core.boxes import Float64Array
from ml_backend.core.errors import BackendError, VideoError
from ml_backend.core.keyframes import interpolate
from ml_backend.core.types import IntArray, Track
from ml_backend.datasets.annotation_reader import SkippedTask
from ml_backend.datasets.video_files import FIND_HINT, NOTHING, VideoFacts, VideoFolder
from ml_backend.label_studio.label_config import VideoControl
from ml_backend.label_studio.media import CLOUD_SCHEMES
from ml_backend.label_studio.regions import make_prediction, track_to_region
from ml_backend.label_studio.timeline import video_facts, video_timeline
from ml_backend.video.probe import probe

log = logging.getLogger(__name__)

ResultKind = Literal["predictions", "annotations"]

#: Bound of the keyframe simplification: what people have drawn comes back all but unchanged.
_MIN_IOU = 0.995

#: Beyond any video (46 hours at 60 frames a second): larger numbers are damage that would cost memory without end.
MAX_FRAME = 10_000_000


def frame_number(value: str | float) -> int:
    """A whole number from 0 to :data:`MAX_FRAME`; some write it as ``1.0``.

    Raises:
        ValueError: it is none.
    """
    try:
        number = float(value)
    except OverflowError:  # an int beyond any float
        number = np.inf
    if not 0 <= number <= MAX_FRAME or number != int(number):
        raise ValueError(f"{str(value)[:40]} is no frame number")
    return int(number)


def finite(values: Iterable[Any]) -> list[float]:
    """Numbers as floats.

    Raises:
        ValueError, TypeError: one is no number, or infinite.
    """
    try:
        numbers = [float(value) for value in values]
    except OverflowError as error:
        raise ValueError("a number is beyond any picture") from error
    if not np.isfinite(numbers).all():
        raise ValueError("a number is not finite")
    return numbers


@dataclass(frozen=True, slots=True)
class ImportedTrack:
    """One object of a foreign file: ascending decoded ``frames`` ``(n,)`` and ``xyxy`` ``(n, 4)`` in pixels."""

    track_id: int
    label: str
    frames: IntArray
    xyxy: Float64Array


@dataclass(frozen=True, slots=True)
class ImportedBoxes:
    """The tracks of one video, and the pictures that were looked at.

    Attributes:
        samples: ``(m,)`` ascending decoded pictures. Between two that follow each other, a track that is on both is
            there too; one that misses a sample is hidden. ``None``: all pictures were looked at.
        left_out: how many objects have what cannot become boxes, by its name; or are boxes that were changed.
    """

    tracks: tuple[ImportedTrack, ...]
    samples: IntArray | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def make(
        cls, rows: Sequence[tuple[int, int, str]], xyxy: npt.ArrayLike, samples: Iterable[int] | None
    ) -> ImportedBoxes:
        """From boxes in any order.

        Args:
            rows: ``n`` times (decoded picture, track, label). Of several boxes of one track and label on one picture
                the first counts.
            xyxy: ``(n, 4)`` pixels.
            samples: pictures that were looked at.
        """
        boxes = np.asarray(xyxy, np.float64).reshape(-1, 4)
        groups: dict[tuple[int, str], list[int]] = {}
        for index, (_, track, label) in enumerate(rows):
            groups.setdefault((track, label), []).append(index)
        tracks = []
        for (track, label), members in groups.items():
            frames, first = np.unique([rows[index][0] for index in members], return_index=True)
            tracks.append(ImportedTrack(track, label, frames.astype(np.int64), boxes[np.array(members)[first]]))
        looked = None if samples is None else np.unique(np.fromiter(samples, np.int64))
        return cls(tuple(tracks), looked)

    def dense(self, track: ImportedTrack, pictures: int = MAX_FRAME + 1) -> ImportedTrack:
        """The track on every picture between samples on which it is, interpolated.

        Args:
            pictures: of the video; numbers beyond it are not filled in.
        """
        if self.samples is None or len(track.frames) < 2:
            return track
        place = np.searchsorted(self.samples, track.frames)
        parts = np.split(np.arange(len(track.frames)), np.flatnonzero(np.diff(place) > 1) + 1)
        frames = [np.arange(track.frames[part[0]], min(int(track.frames[part[-1]]) + 1, pictures)) for part in parts]
        boxes = [interpolate(track.frames[part], track.xyxy[part], at) for part, at in zip(parts, frames, strict=True)]
        return ImportedTrack(track.track_id, track.label, np.concatenate(frames), np.concatenate(boxes))


@dataclass(frozen=True, slots=True)
class ImportedVideo:
    """One video of a foreign dataset.

    Attributes:
        name: its file name, with or without suffix, and with or without folders.
        read: gives its boxes, called with what its file says: width and height in pixels as displayed, and pictures.
            Boxes beyond these need not be filled in: a damaged number could fill the memory.
        known: what the dataset says of the video.
    """

    name: str
    read: Callable[..., ImportedBoxes]
    known: VideoFacts = NOTHING


@dataclass(slots=True)
class ImportResult:
    """What :func:`to_tasks` did: counts, and the videos that were not found or not usable."""

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
    """Label Studio tasks, one a video, to be imported.

    Args:
        folder: where the videos are: size and frame times are theirs.
        control: names of the regions, and the frame rate at which Label Studio will count.
        result: is added to.
        kind: whether the regions are predictions (to be reviewed) or an annotation (as good as drawn by hand).
        url_prefix: put before the video's path in ``folder``, such as ``/data/local-files/?d=videos/``.
    """
    for each in videos:
        try:
            found = folder.look_up(each.name, each.known)
            if found.path is None:
                reason = found.reason or f"There is no video of this name in {folder.folder.absolute()}."
                raise VideoError(reason, FIND_HINT)
            data = _data(found.path, folder, control, url_prefix)
            regions, left_out = _regions(each, found.path, control, control.frame_rate_for(data))
        except BackendError as error:
            log.info("%s is skipped", each.name, exc_info=error)
            result.skipped.append(SkippedTask(0, each.name, str(error)))
            continue
        result.tasks += 1
        result.regions += len(regions)
        result.keyframes += sum(len(region["value"]["sequence"]) for region in regions)
        result.labels.update(region["value"]["labels"][0] for region in regions)
        result.left_out.update(left_out)
        yield {"data": data} | _results(regions, kind)


def _data(path: Path, folder: VideoFolder, control: VideoControl, url_prefix: str) -> dict[str, Any]:
    """Data of a task, as ``import_videos.py`` would fill it in."""
    facts = video_facts(path)
    data: dict[str, Any] = dict(facts)
    if rate_field := control.rate_field:
        data[rate_field] = facts["fps"]
    inside = path.is_relative_to(folder.folder) and not folder.single
    place = path.relative_to(folder.folder).as_posix() if inside else path.name
    # Keys of cloud storages are taken as they are, and without a prefix it is no address yet.
    is_url = url_prefix and urlsplit(url_prefix).scheme not in CLOUD_SCHEMES
    data[control.value_key] = url_prefix + (quote(place) if is_url else place)
    return data


def _regions(
    each: ImportedVideo, path: Path, control: VideoControl, frame_rate: float
) -> tuple[list[dict[str, Any]], Mapping[str, int]]:
    info, timeline = probe(path), video_timeline(path, frame_rate)
    read = each.read(info.width, info.height, info.frames)
    regions = []
    for number, track in enumerate(sorted(read.tracks, key=lambda t: (int(t.frames[0]), t.track_id)), start=1):
        dense = read.dense(track, info.frames)
        inside = (dense.frames >= 0) & (dense.frames < info.frames)
        region = track_to_region(
            Track(
                number,
                dense.frames[inside],
                dense.xyxy[inside].astype(np.float32),
                np.ones(int(inside.sum()), np.float32),
                {dense.label: 1.0},
                dense.label,
                1.0,
            ),
            timeline,
            control,
            info,
            _MIN_IOU,
        )
        if region is not None:
            regions.append(region)
    return regions, read.left_out


def _results(regions: list[dict[str, Any]], kind: ResultKind) -> dict[str, Any]:
    if kind == "predictions":
        return {"predictions": [make_prediction(regions, "imported")]}
    kept = ("id", "from_name", "to_name", "type", "value")
    return {"annotations": [{"result": [{name: r[name] for name in kept} | {"origin": "manual"} for r in regions]}]}
