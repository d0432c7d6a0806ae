"""Which file is a task's video: by its name, and by what else is known of it, since names alone are not unique."""

from __future__ import annotations

import csv
import logging
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from ml_backend.core.errors import BackendError, ConfigError, MediaError
from ml_backend.core.files import file_sha256, files_below, is_video_name, safe_name
from ml_backend.label_studio.media import canonical_uri
from ml_backend.video.probe import playback_duration, probe

log = logging.getLogger(__name__)

#: What to do where no file is found, or not the right one.
FIND_HINT = "Put the right one there, give another --videos, or name the file in a --video-map."

#: Frames by which programs differ that count those of one file.
_FRAMES = 2
#: Pixels by which a playable copy may be larger: H.264 wants even sizes.
_PIXELS = 2
#: Seconds by which the sound of a copy may be longer: its last packet is filled up.
_SOUND_S = 0.05


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """Facts that a task or a foreign dataset states of its video; what it does not state is ``None`` or empty.

    Attributes:
        size: displayed width and height in pixels.
        frames: fewest and most frames; ``None`` as the most: there may be any number more.
        durations: seconds that were stated, of which one has to be right.
    """

    size: tuple[int, int] | None = None
    frames: tuple[int, int | None] | None = None
    durations: tuple[float, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.size or self.frames or self.durations)

    @classmethod
    def of_task(cls, data: Mapping[str, Any], regions: Iterable[Mapping[str, Any]]) -> VideoFacts:
        """What ``import_videos.py`` has written into a task, and what Label Studio says of a video in its regions.

        Args:
            data: of the task; empty where it is of another video.
        """
        values = [value for region in regions if isinstance(value := region.get("value"), Mapping)]
        durations = tuple(dict.fromkeys(d for value in values if (d := number(value.get("duration"))) > 0))
        stated = number(data.get("duration"))
        if stated > 0 and durations and not any(abs(stated - d) <= max(1, 0.02 * d) for d in durations):
            # The people who drew saw another video, or the field means something else.
            return cls(durations=durations)
        width, height, frames = (whole(data.get(name)) for name in ("width", "height", "frames"))
        return cls(
            (width, height) if width and height else None,
            (frames, frames) if frames else None,
            durations or ((stated,) if stated > 0 else ()),
        )

    def difference(self, path: Path) -> str:
        """How a file differs from what is known, for people; empty where it does not.

        Raises:
            VideoError: it cannot be used.
        """
        if not self:
            return ""
        info = probe(path)
        size = info.width, info.height
        if self.size and any(abs(stated - real) > _PIXELS for stated, real in zip(self.size, size, strict=True)):
            return f"its pictures have {info.width}x{info.height} pixels instead of {self.size[0]}x{self.size[1]}"
        tolerance = _FRAMES / info.fps + _SOUND_S
        lengths = info.duration, playback_duration(path)  # browsers go by the longest stream
        lasts = any(abs(known - length) <= tolerance for known in self.durations for length in lengths)
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


#: Of a video of which only the name is known.
NOTHING = VideoFacts()


@dataclass(frozen=True, slots=True)
class FileChoice:
    """A file, or why there is none: empty where none has the name."""

    path: Path | None = None
    reason: str = ""


def choose_file(groups: Iterable[Sequence[Path]], known: VideoFacts = NOTHING) -> FileChoice:
    """Choose the file that is meant.

    Args:
        groups: files whose names fit, the best fitting first. A later group counts where what is known of the video
            contradicts all files of the earlier ones.

    Returns:
        No file where several different ones are left: which of them is meant, nobody knows.
    """
    reason = ""
    for group in groups:
        paths = list(dict.fromkeys(group))
        faults = {path: _fault(path, known, alone=len(paths) == 1) for path in paths}
        fitting = [path for path in paths if not faults[path]]
        if len(fitting) > 1:  # copies of one file are one
            fitting = list({_content(path): path for path in reversed(fitting)}.values())[::-1]
        if len(fitting) == 1:
            return FileChoice(fitting[0])
        if fitting:
            listed = ", ".join(map(str, fitting))
            log.warning("%d files could be meant, so none is taken: %s", len(fitting), listed)
            return FileChoice(None, f"{len(fitting)} files could be meant: {listed}.")
        reason = reason or " ".join(f"{path} is another video: {fault}." for path, fault in faults.items())
    return FileChoice(None, reason)


def _fault(path: Path, known: VideoFacts, alone: bool) -> str:
    try:
        return known.difference(path)
    except BackendError as error:
        # Where there is no other, who opens it learns what it lacks.
        return "" if alone else error.message


def _content(path: Path) -> object:
    try:
        return file_sha256(path)
    except OSError:
        return path


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


_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-(?=.)")
#: Eight digits before a name are rather a day than a prefix, where the address does not say that it is an upload.
_DAY = re.compile(r"^(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])-")


def media_parts(uri: str) -> tuple[str, ...]:
    """The path in a media address, as names: of an upload, a local file, a cloud object or a URL.

    ``..`` and what could lead out of a folder are left out; the last name is the file's.
    """
    try:
        address = canonical_uri(uri)
        if not _is_url(address):
            return _names(unquote(address))
        split = urlsplit(address)
    except (MediaError, ValueError):
        return ()
    if split.path.rstrip("/") == "/data/local-files":
        return _names(parse_qs(split.query).get("d", [""])[0])
    return _names(unquote(split.path))


def _is_url(address: str) -> bool:
    """Else it is a path: a file may be called ``a:b.mp4``."""
    return "://" in address or address.startswith("/")


def _names(path: str) -> tuple[str, ...]:
    names = PurePosixPath(path.replace("\\", "/")).parts
    return tuple(name for name in names if name not in ("/", "..", ".") and "\0" not in name)


def video_name(uri: str) -> str:
    """File name of a media address; of an upload (``/data/upload/1/35deac95-a.mp4``) without the prefix: ``a.mp4``."""
    names = media_parts(uri)
    if not names:
        return "video"
    return _UPLOAD_PREFIX.sub("", names[-1]) if _is_upload(names) else names[-1]


def _is_upload(names: Sequence[str]) -> bool:
    return ("data", "upload") in pairwise(names[:-1])  # a server may have a path of its own before it


def _without_prefix(name: str) -> str:
    return name if _DAY.match(name) else _UPLOAD_PREFIX.sub("", name)


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _uploaded(name: str) -> str:
    """The name that Label Studio gives an upload: blanks become ``_`` and most punctuation goes."""
    return re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_"))


def read_video_map(path: Path) -> dict[str, Path]:
    """Read lines of ``video,file``: a task's id, or its video's address or file name; and the file that it is.

    Args:
        path: of the CSV file. Relative names in it start from its folder.

    Raises:
        ConfigError: it cannot be read, or a line has something else.
    """
    found: dict[str, Path] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, row in enumerate(csv.reader(file), start=1):
                if len(row) not in (0, 2):
                    raise ConfigError(
                        f"{path}, line {number}, has {len(row)} fields instead of two.",
                        "Write lines of `video,file`: a task's id, or the address or name of its video; and its file.",
                    )
                if row:
                    found[_nfc(row[0].strip())] = path.parent / row[1].strip()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} cannot be read: {error}.", "Give a CSV file in UTF-8 as --video-map.") from error
    return found


class VideoFolder:
    """The files of a folder and its subfolders, found by name. Names never become paths: nothing outside is found
    but what ``mapped`` names.

    Args:
        folder: a folder, or a single file.
        recursive: whether subfolders are looked into.
        mapped: which file is which video, whatever its name; see :func:`read_video_map`.

    Raises:
        MediaError: it is not there.
    """

    def __init__(self, folder: Path, *, recursive: bool = True, mapped: Mapping[str, Path] | None = None) -> None:
        if not folder.exists():
            raise MediaError(f"{folder} does not exist.", "Give the folder with the videos as --videos.")
        self.folder = folder
        self.single = folder if folder.is_file() else None
        self._mapped = mapped or {}
        self._named: dict[str, list[Path]] = {}
        self._prefixed: dict[str, list[Path]] = {}
        for path in [folder] if self.single else files_below(folder, recursive):
            name = _nfc(path.name)
            self._named.setdefault(name, []).append(path)
            if (bare := _without_prefix(name)) != name:
                self._prefixed.setdefault(bare, []).append(path)

    @classmethod
    def of(cls, videos: Path | None, video_map: Path | None, beside: Path = Path()) -> VideoFolder:
        """What the options ``--videos`` and ``--video-map`` say.

        Args:
            beside: file whose own folder is meant without ``videos``.

        Raises:
            ConfigError, MediaError: one of them cannot be read.
        """
        mapped = read_video_map(video_map) if video_map else {}
        # Below the folder of the file could be anything, a whole home even.
        return cls(videos or beside.absolute().parent, recursive=videos is not None, mapped=mapped)

    def only(self) -> Path | None:
        """The file itself, or the only video of the folder."""
        paths = [self.single] if self.single else self._videos()
        return paths[0] if len(paths) == 1 else None

    def _videos(self) -> list[Path]:
        return [path for paths in self._named.values() for path in paths if is_video_name(path.name)]

    def look_up(self, uri: str, known: VideoFacts = NOTHING, task_id: int = 0) -> FileChoice:
        """The file of a media address or of a name in a foreign dataset, which may lack folders and suffix; without
        either, the only video.

        What ``mapped`` says comes first, then the exact name, then the name without Label Studio's prefix, or for a
        name without prefix a file that has one, then the file that Label Studio would call so; last the name without
        suffix. Of several with one name those count that lie where the address says.

        Args:
            known: of the video. A file that is otherwise is not taken, whatever its name.
        """
        # As it is written, too: what looks quoted may be a file's own name.
        spelled = [media_parts(uri)] if _is_url(uri.strip()) else [_names(uri), media_parts(uri)]
        names = list(dict.fromkeys(names for names in spelled if names))
        keys = [str(task_id), uri, *(each[-1] for each in names), video_name(uri)] if uri else [str(task_id)]
        for key in map(_nfc, keys):
            if key in self._mapped:
                return choose_file([[self._mapped[key]]], known)
        if not uri:
            return choose_file([[path] if (path := self.only()) else []], known)
        return choose_file(chain(self._by_name(names), self._by_prefix(names), self._by_stem(names)), known)

    def _by_name(self, spelled: Sequence[Sequence[str]]) -> Iterator[Sequence[Path]]:
        """Files of this name: those whose folders are the address's, then all."""
        for names in spelled:
            found = self._named.get(_nfc(names[-1]), [])
            yield [path for path in found if path.parts[-len(names) :] == tuple(names)]
            yield found

    def _by_prefix(self, spelled: Sequence[Sequence[str]]) -> Iterator[Sequence[Path]]:
        for names in spelled:
            name = _nfc(names[-1])
            # Also copies of the upload folder behind other addresses.
            bare = _UPLOAD_PREFIX.sub("", name) if _is_upload(names) else _without_prefix(name)
            # A file with another prefix than the address has would be another upload.
            yield self._named.get(bare, []) if bare != name else self._prefixed.get(name, [])
            yield [path for path in self._videos() if _uploaded(_nfc(path.name)) == bare]

    def _by_stem(self, spelled: Sequence[Sequence[str]]) -> Iterator[Sequence[Path]]:
        videos = [(path, _nfc(path.stem)) for path in self._videos()]
        for names in spelled:
            name = _nfc(names[-1])
            for wanted in dict.fromkeys((name, _without_prefix(name))):
                yield [path for path, stem in videos if stem == wanted]
                # As exports name what they write.
                yield [path for path, stem in videos if wanted in (safe_name(stem), safe_name(_without_prefix(stem)))]
