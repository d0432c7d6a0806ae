"""Find the file of a task's video by its name and by facts such as its duration, since names are not unique."""

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
from ml_backend.video.probe import playback_duration, probe, stored_size

log = logging.getLogger(__name__)

#: Hint if no file is found, or not the right one.
FIND_HINT = "Put the right file there, use another --videos, or name the file in a --video-map."

#: Tolerance in frames: programs count the frames of one file differently.
_FRAME_TOLERANCE = 2
#: Tolerance in pixels: playable copies have even sizes for H.264.
_PIXEL_TOLERANCE = 2
#: Tolerance in seconds: the last audio packet of a copy is padded.
_AUDIO_TOLERANCE_S = 0.05


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """Facts that a task or an imported dataset states about its video; ``None`` or empty if unknown.

    Attributes:
        size: displayed width and height in pixels, or those that are stored if pixels are not square.
        frames: minimum and maximum number of frames; the maximum may be ``None``.
        durations: stated seconds, of which one has to be right.
    """

    size: tuple[int, int] | None = None
    frames: tuple[int, int | None] | None = None
    durations: tuple[float, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.size or self.frames or self.durations)

    @classmethod
    def of_task(cls, data: Mapping[str, Any], regions: Iterable[Mapping[str, Any]]) -> VideoFacts:
        """Read the facts that ``import_videos.py`` writes into a task and Label Studio into its regions.

        Args:
            data: of the task; empty if it describes another video.
        """
        values = [value for region in regions if isinstance(value := region.get("value"), Mapping)]
        durations = tuple(dict.fromkeys(d for value in values if (d := parse_number(value.get("duration"))) > 0))
        stated = parse_number(data.get("duration"))
        if stated > 0 and durations and not any(abs(stated - d) <= max(1, 0.02 * d) for d in durations):
            # The regions were drawn on another video, or the field means something else.
            return cls(durations=durations)
        width, height, frames = (parse_count(data.get(name)) for name in ("width", "height", "frames"))
        return cls(
            (width, height) if width and height else None,
            (frames, frames) if frames else None,
            durations or ((stated,) if stated > 0 else ()),
        )

    def has_size(self, *size: int) -> bool:
        """Return whether this is the stated width and height."""
        return self.size is not None and all(
            abs(stated - real) <= _PIXEL_TOLERANCE for stated, real in zip(self.size, size, strict=True)
        )

    def difference(self, path: Path) -> str:
        """Describe how a file differs from the facts; empty if it does not.

        Raises:
            VideoError: the file cannot be decoded.
        """
        if not self:
            return ""
        info = probe(path)
        if self.size and not (self.has_size(info.width, info.height) or self.has_size(*stored_size(path))):
            return f"it has {info.width}x{info.height} pixels instead of {self.size[0]}x{self.size[1]}"
        tolerance = _FRAME_TOLERANCE / info.fps + _AUDIO_TOLERANCE_S
        lengths = info.duration, playback_duration(path)  # browsers report the longest stream
        lasts = any(abs(stated - length) <= tolerance for stated in self.durations for length in lengths)
        if self.frames:
            least, most = self.frames
            fits = least - _FRAME_TOLERANCE <= info.frames and (most is None or info.frames <= most + _FRAME_TOLERANCE)
            # A playable copy of a video with variable frame rate has another number of frames in the same time.
            if not fits and not (info.variable_frame_rate and lasts):
                expected = f"at least {least}" if most is None else str(most)
                return f"it has {info.frames} frames instead of {expected}"
        elif self.durations and not lasts:
            return f"it lasts {info.duration:.3f} s instead of {self.durations[0]:.3f} s"
        return ""


#: For a video of which only the name is known.
NO_FACTS = VideoFacts()


@dataclass(frozen=True, slots=True)
class FileChoice:
    """A file, or the reason why there is none; no reason if no file has the name."""

    path: Path | None = None
    reason: str = ""


def choose_file(groups: Iterable[Sequence[Path]], facts: VideoFacts = NO_FACTS) -> FileChoice:
    """Choose the file of a video among candidates.

    Args:
        groups: files with matching names, best matches first. A later group is used if the facts contradict all files
            of the earlier ones.
        facts: of the video.

    Returns:
        No file if several different ones match.
    """
    reason = ""
    for group in groups:
        paths = list(dict.fromkeys(group))
        mismatches = {path: _mismatch(path, facts, only=len(paths) == 1) for path in paths}
        matches = [path for path in paths if not mismatches[path]]
        if len(matches) > 1:  # copies of one file count once
            matches = list({_content_key(path): path for path in reversed(matches)}.values())[::-1]
        if len(matches) == 1:
            return FileChoice(matches[0])
        if matches:
            listed = ", ".join(map(str, matches))
            log.warning("%d files match, so none is used: %s", len(matches), listed)
            return FileChoice(None, f"{len(matches)} files match: {listed}.")
        reason = reason or " ".join(f"{path} is another video: {text}." for path, text in mismatches.items())
    return FileChoice(None, reason)


def _mismatch(path: Path, facts: VideoFacts, only: bool) -> str:
    try:
        return facts.difference(path)
    except BackendError as error:
        # The only candidate is used: opening it raises the error.
        return "" if only else error.message


def _content_key(path: Path) -> object:
    try:
        return file_sha256(path)
    except OSError:
        return path


def parse_number(value: Any) -> float:
    """Convert a number or text to a finite float; 0 for anything else."""
    if isinstance(value, bool):
        return 0.0
    try:
        result = float(value)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return result if math.isfinite(result) else 0.0


def parse_count(value: Any) -> int:
    """Convert a number or text to a positive int; 0 for anything else."""
    result = parse_number(value)
    return int(result) if result > 0 and result == int(result) else 0


_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-(?=.)")
#: Eight digits before a name that are a date rather than an upload prefix.
_DATE = re.compile(r"^(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])-")


def media_parts(uri: str) -> tuple[str, ...]:
    """Split the path of a media address (upload, local file, cloud object or URL) into names, the file's last.

    ``..`` and other names that could lead out of a folder are dropped.
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
    """Return whether an address is a URL, not a path (a file may be called ``a:b.mp4``)."""
    return "://" in address or address.startswith("/")


def _names(path: str) -> tuple[str, ...]:
    names = PurePosixPath(path.replace("\\", "/")).parts
    return tuple(name for name in names if name not in ("/", "..", ".") and "\0" not in name)


def video_name(uri: str) -> str:
    """Return the file name of a media address; ``a.mp4`` for the upload ``/data/upload/1/35deac95-a.mp4``."""
    names = media_parts(uri)
    if not names:
        return "video"
    return _UPLOAD_PREFIX.sub("", names[-1]) if _is_upload(names) else names[-1]


def _is_upload(names: Sequence[str]) -> bool:
    return ("data", "upload") in pairwise(names[:-1])  # the server may have a path prefix


def _without_prefix(name: str) -> str:
    return name if _DATE.match(name) else _UPLOAD_PREFIX.sub("", name)


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _upload_name(name: str) -> str:
    """Return the name that Label Studio gives an upload: spaces become ``_``, most punctuation is removed."""
    return re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_"))


#: What is left, after the prefix, of an upload's name that Label Studio has cut so that its path has 100 characters.
_CUT_NAME = re.compile(r"([^.]+)_[A-Za-z0-9]{7}(\..*)?")
#: Its length: with a project's number of up to seven digits, with or without its suffix.
_CUT_LENGTHS = range(70, 83)


def _is_cut_from(name: str, whole: str) -> bool:
    """Return whether ``name`` may be an upload of the file ``whole``: its stem cut, and seven random characters."""
    match = _CUT_NAME.fullmatch(name)
    if not match or len(name) not in _CUT_LENGTHS:
        return False
    start, suffixes = match[1], match[2] or ""
    stem, dot, rest = _upload_name(whole).partition(".")
    return stem.startswith(start) and len(stem) > match.end(1) + 8 and (dot + rest).startswith(suffixes)


def read_video_map(path: Path) -> dict[str, Path]:
    """Read a CSV file of ``video,file``, where ``video`` is a task id, or a video's address or file name.

    Args:
        path: of the CSV file. Relative files in it are resolved against its folder.

    Raises:
        ConfigError: the file cannot be read, or a line does not have two fields.
    """
    mapped: dict[str, Path] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for line, row in enumerate(csv.reader(file), start=1):
                if len(row) not in (0, 2):
                    raise ConfigError(
                        f"{path}, line {line}, has {len(row)} fields instead of two.",
                        "Write lines of `video,file`: a task id, or the address or name of a video; and its file.",
                    )
                if row:
                    mapped[_nfc(row[0].strip())] = path.parent / row[1].strip()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} cannot be read: {error}.", "Use a CSV file in UTF-8 as --video-map.") from error
    return mapped


class VideoFolder:
    """Finds video files of a folder by name. Names never become paths, so nothing outside is found except ``mapped``.

    Args:
        folder: a folder, or a single file.
        recursive: whether subfolders are searched.
        mapped: files by video, whatever their names; see :func:`read_video_map`.

    Raises:
        MediaError: the folder does not exist.
    """

    def __init__(self, folder: Path, *, recursive: bool = True, mapped: Mapping[str, Path] | None = None) -> None:
        if not folder.exists():
            raise MediaError(f"{folder} does not exist.", "Use the folder with the videos as --videos.")
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
        """Build from the options ``--videos`` and ``--video-map``.

        Args:
            beside: file whose folder is the default of ``videos``.

        Raises:
            ConfigError, MediaError: one of them cannot be read.
        """
        mapped = read_video_map(video_map) if video_map else {}
        # The default folder could be a home directory, so it is not searched recursively.
        return cls(videos or beside.absolute().parent, recursive=videos is not None, mapped=mapped)

    def only(self) -> Path | None:
        """Return the single file, or the only video of the folder."""
        paths = [self.single] if self.single else self._videos()
        return paths[0] if len(paths) == 1 else None

    def _videos(self) -> list[Path]:
        return [path for paths in self._named.values() for path in paths if is_video_name(path.name)]

    def look_up(self, uri: str, facts: VideoFacts = NO_FACTS, task_id: int = 0) -> FileChoice:
        """Find the file of a media address, or of a name in an imported dataset; if ``uri`` is empty, the only video.

        Tried in this order: ``mapped``, the exact name, the name without Label Studio's upload prefix (or a file that
        has one), the name that Label Studio would give an upload, the name without suffix, the whole name of one that
        Label Studio has cut. Among files of one name, those in the folders of the address come first.

        Args:
            uri: media address or name, which may lack folders and suffix.
            facts: of the video; a file that contradicts them is never used.
        """
        # Also unquoted: a file's own name may look quoted.
        spellings = [media_parts(uri)] if _is_url(uri.strip()) else [_names(uri), media_parts(uri)]
        names = list(dict.fromkeys(names for names in spellings if names))
        keys = [str(task_id), uri, *(each[-1] for each in names), video_name(uri)] if uri else [str(task_id)]
        for key in map(_nfc, keys):
            if key in self._mapped:
                return choose_file([[self._mapped[key]]], facts)
        if not uri:
            return choose_file([[path] if (path := self.only()) else []], facts)
        searches = self._by_name, self._by_prefix, self._by_stem, self._by_cut_name
        return choose_file(chain.from_iterable(search(names) for search in searches), facts)

    def _by_name(self, spellings: Sequence[Sequence[str]]) -> Iterator[Sequence[Path]]:
        """Yield the files of this name: those in the folders of the address, then all."""
        for names in spellings:
            paths = self._named.get(_nfc(names[-1]), [])
            yield [path for path in paths if path.parts[-len(names) :] == tuple(names)]
            yield paths

    def _by_prefix(self, spellings: Sequence[Sequence[str]]) -> Iterator[Sequence[Path]]:
        for names in spellings:
            name = _nfc(names[-1])
            # Copies of the upload folder may be served from other addresses.
            bare = _UPLOAD_PREFIX.sub("", name) if _is_upload(names) else _without_prefix(name)
            # A file with another prefix than the address is another upload.
            yield self._named.get(bare, []) if bare != name else self._prefixed.get(name, [])
            yield [path for path in self._videos() if _upload_name(_nfc(path.name)) == bare]

    def _by_stem(self, spellings: Sequence[Sequence[str]]) -> Iterator[Sequence[Path]]:
        videos = [(path, _nfc(path.stem)) for path in self._videos()]
        for names in spellings:
            name = _nfc(names[-1])
            for wanted in dict.fromkeys((name, _without_prefix(name))):
                yield [path for path, stem in videos if stem == wanted]
                # Exports write safe names, of uploads too.
                yield [path for path, stem in videos if wanted in (safe_name(stem), safe_name(_without_prefix(stem)))]
                yield [path for path, stem in videos if wanted == _upload_name(stem)]

    def _by_cut_name(self, spellings: Sequence[Sequence[str]]) -> Iterator[Sequence[Path]]:
        for names in spellings:
            bare = _UPLOAD_PREFIX.sub("", _nfc(names[-1]))
            yield [path for path in self._videos() if _is_cut_from(bare, _nfc(path.name))]
