"""What is known of a video beside its name, and which of several files it can be: names alone are not unique."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ml_backend.errors import BackendError
from ml_backend.files import file_sha256
from ml_backend.types import VideoInfo
from ml_backend.video.probe import playback_duration, probe

log = logging.getLogger(__name__)

#: Frames by which programs differ that count those of one file.
_FRAMES = 2
#: Pixels by which a playable copy may be larger: H.264 wants even sizes.
_PIXELS = 2
#: Seconds by which the sound of a copy may be longer: its last packet is filled up.
_SOUND_S = 0.05


@dataclass(frozen=True, slots=True)
class Known:
    """Facts that a task or a foreign dataset states of its video; what it does not state is ``None`` or empty.

    Attributes:
        size: displayed width and height in pixels.
        frames: fewest and most frames; ``None`` as the most: there may be any number more.
        durations: seconds that were stated, of which one has to be right.
        scalable: boxes are shares of the picture, so that another size of the same shape will do where the length is
            right: what was annotated on small copies is worth as much on the originals.
    """

    size: tuple[int, int] | None = None
    frames: tuple[int, int | None] | None = None
    durations: tuple[float, ...] = ()
    scalable: bool = field(default=False, compare=False)

    def __bool__(self) -> bool:
        return bool(self.size or self.frames or self.durations)

    @classmethod
    def of_task(cls, data: Mapping[str, Any], regions: Iterable[Mapping[str, Any]]) -> Known:
        """What ``import_videos.py`` has written into a task, and what Label Studio says of a video in its regions.

        Args:
            data: of the task; empty where it is of another video.
        """
        values = [value for region in regions if isinstance(value := region.get("value"), Mapping)]
        durations = tuple(dict.fromkeys(d for value in values if (d := number(value.get("duration"))) > 0))
        stated = number(data.get("duration"))
        if stated > 0 and durations and not any(abs(stated - d) <= max(1, 0.02 * d) for d in durations):
            # The people who drew saw another video, or the field means something else.
            return cls(durations=durations, scalable=True)
        width, height, frames = (whole(data.get(name)) for name in ("width", "height", "frames"))
        return cls(
            (width, height) if width and height else None,
            (frames, frames) if frames else None,
            durations or ((stated,) if stated > 0 else ()),
            scalable=True,
        )

    def difference(self, path: Path) -> str:
        """How a file differs from what is known, for people; empty where it does not.

        Raises:
            VideoError: it cannot be used.
        """
        if not self:
            return ""
        info = probe(path)
        if self.size and not self._has_size(info.width, info.height):
            return f"its pictures have {info.width}x{info.height} pixels instead of {self.size[0]}x{self.size[1]}"
        lasts = self._lasts(path, info, _FRAMES / info.fps + _SOUND_S)
        if self.frames:
            least, most = self.frames
            fits = least - _FRAMES <= info.frames and (most is None or info.frames <= most + _FRAMES)
            # The playable copy of a video whose frame rate varies has another number of frames, over the same time.
            if not fits and not (info.variable_frame_rate and lasts):
                wanted = f"at least {least}" if most is None else str(most)
                return f"it has {info.frames} frames instead of {wanted}"
        elif self.durations and not lasts:
            return f"it lasts {info.duration:.3f} s instead of {self.durations[0]:.3f} s"
        return ""

    def exactly(self, path: Path) -> bool:
        """Whether there is no difference at all."""
        info = probe(path)
        if self.size and self.size != (info.width, info.height):
            return False
        if self.frames:
            least, most = self.frames
            return least <= info.frames and (most is None or info.frames <= most)
        return not self.durations or self._lasts(path, info, 0.5 / info.fps)

    def _has_size(self, width: int, height: int) -> bool:
        stated_width, stated_height = self.size or (width, height)
        if not (self.scalable and (self.frames or self.durations)):
            return abs(stated_width - width) <= _PIXELS and abs(stated_height - height) <= _PIXELS
        # By how much the heights differ, in pixels of the smaller picture, once the widths are equal.
        apart = abs(stated_width * height - stated_height * width) / max(stated_width, width)
        return apart <= _PIXELS

    def _lasts(self, path: Path, info: VideoInfo, tolerance: float) -> bool:
        # Browsers go by the longest stream.
        lengths = (info.duration, playback_duration(path))
        return any(abs(known - length) <= tolerance for known in self.durations for length in lengths)


#: Of a video of which only the name is known.
NOTHING = Known()


@dataclass(frozen=True, slots=True)
class Choice:
    """A file, or why there is none: empty where none has the name."""

    path: Path | None = None
    reason: str = ""


def choose(groups: Iterable[Sequence[Path]], known: Known = NOTHING) -> Choice:
    """The file that is meant.

    Args:
        groups: files whose names fit, the best fitting first. A later group counts where what is known of the video
            contradicts all files of the earlier ones.

    Returns:
        No file where several are left: which of them is meant, nobody knows.
    """
    reason = ""
    for group in groups:
        paths = list(dict.fromkeys(group))
        faults = {path: _fault(path, known, alone=len(paths) == 1) for path in paths}
        fitting = [path for path in paths if not faults[path]]
        if len(fitting) > 1 and known:
            fitting = [path for path in fitting if known.exactly(path)] or fitting
        fitting = _distinct(fitting)
        if len(fitting) == 1:
            return Choice(fitting[0])
        if fitting:
            listed = ", ".join(map(str, fitting))
            log.warning("%d files could be meant, so none is taken: %s", len(fitting), listed)
            return Choice(None, f"{len(fitting)} files could be meant: {listed}.")
        reason = reason or " ".join(f"{path} is another video: {fault}." for path, fault in faults.items())
    return Choice(None, reason)


def _fault(path: Path, known: Known, alone: bool) -> str:
    try:
        return known.difference(path)
    except BackendError as error:
        # Where there is no other, who opens it learns what it lacks.
        return "" if alone else error.message


def _distinct(paths: Sequence[Path]) -> list[Path]:
    """Copies of one file are one."""
    if len(paths) < 2:
        return list(paths)
    once: dict[object, Path] = {}
    for path in paths:
        try:
            once.setdefault(file_sha256(path) if path.stat().st_size else path, path)
        except OSError:
            once.setdefault(path, path)
    return list(once.values())


def number(value: Any) -> float:
    """A finite number, also from text; 0 for anything else."""
    if isinstance(value, bool):
        return 0.0
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return found if math.isfinite(found) else 0.0


def whole(value: Any) -> int:
    """A whole number above 0, also from text; 0 for anything else."""
    found = number(value)
    return int(found) if found > 0 and found == int(found) else 0
