"""Which file of a folder is a task's video: by name, with or without what Label Studio puts before uploads."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

from ml_backend.errors import MediaError
from ml_backend.export.known import NOTHING, Choice, Known, choose
from ml_backend.export.names import safe_name
from ml_backend.label_studio.media import canonical_uri
from ml_backend.label_studio.suffixes import VIDEO_SUFFIXES

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
            return _names(unquote(_without_query(address)))
        split = urlsplit(address)
    except (MediaError, ValueError):
        return ()
    if split.path.rstrip("/") == "/data/local-files":
        return _names(parse_qs(split.query).get("d", [""])[0])
    return _names(unquote(split.path))


def _is_url(address: str) -> bool:
    """Else it is a path: a file may be called ``a:b.mp4``."""
    return "://" in address or address.startswith("/")


def _without_query(path: str) -> str:
    """A path up to ``?`` or ``#``, unless they are in the name of a video: ``cam#1.mp4``."""
    cut = re.split("[?#]", path, maxsplit=1)[0]
    return path if _is_video(path) and not _is_video(cut) else cut


def _is_video(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES


def _names(path: str) -> tuple[str, ...]:
    names = PurePosixPath(path.replace("\\", "/")).parts
    return tuple(name for name in names if name not in ("/", "..", ".") and "\0" not in name)


def video_name(uri: str) -> str:
    """File name of a media address; of an upload (``/data/upload/1/35deac95-a.mp4``) without the prefix: ``a.mp4``."""
    names = media_parts(uri)
    if not names:
        return "video"
    return _UPLOAD_PREFIX.sub("", names[-1]) if _is_upload(names) else names[-1]


def _is_upload(names: tuple[str, ...]) -> bool:
    return ("data", "upload") in pairwise(names[:-1])  # a server may have a path of its own before it


def _without_prefix(name: str) -> str:
    return name if _DAY.match(name) else _UPLOAD_PREFIX.sub("", name)


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _key(name: str) -> str:
    """Names that Label Studio makes one of: blanks become ``_`` and most punctuation goes when a file is uploaded."""
    return re.sub(r"[^-\w.]", "", _nfc(name).strip().replace(" ", "_"))


class VideoFolder:
    """The files of a folder and its subfolders, found by name. Names never become paths: nothing outside is found.

    Args:
        folder: a folder, or a single file.
        recursive: whether subfolders are looked into.

    Raises:
        MediaError: it is not there.
    """

    def __init__(self, folder: Path, *, recursive: bool = True) -> None:
        if not folder.exists():
            raise MediaError(f"{folder} does not exist.", "Give the folder with the videos as --videos.")
        self.folder = folder
        self.single = folder if folder.is_file() else None
        self._by_key: dict[str, list[Path]] = {}
        self._prefixed: dict[str, list[Path]] = {}
        for path in [folder] if self.single else _files(folder, recursive):
            self._by_key.setdefault(_key(path.name), []).append(path)
            if (rest := _without_prefix(path.name)) != path.name:
                self._prefixed.setdefault(_key(rest), []).append(path)

    def only(self) -> Path | None:
        """The file itself, or the only video of the folder."""
        paths = [self.single] if self.single else self._videos()
        return paths[0] if len(paths) == 1 else None

    def _videos(self) -> list[Path]:
        return [path for paths in self._by_key.values() for path in paths if path.suffix.lower() in VIDEO_SUFFIXES]

    def find(self, uri: str, known: Known = NOTHING) -> Path | None:
        """The file of a media address, or ``None``; see :meth:`look_up`."""
        return self.look_up(uri, known).path

    def look_up(self, uri: str, known: Known = NOTHING) -> Choice:
        """The file of a media address.

        The exact name comes first, then one that Label Studio would make the same, then the name without Label
        Studio's prefix; last, for an address without prefix, a file that has one. Of several with one name those count
        whose folders fit best, and of these the one that is as it is known to be.

        Args:
            known: of the video. A file that is otherwise is not taken, whatever its name.
        """
        return choose(self._by_address(uri), known)

    def look_up_name(self, name: str, known: Known = NOTHING) -> Choice:
        """The video of a name in a foreign dataset: of a file, with folders before it or not, an address, or a stem."""
        return choose(chain(self._by_path(_names(name)), self._by_address(name), self._by_stem(name)), known)

    def find_stem(self, stem: str, known: Known = NOTHING) -> Path | None:
        """The video whose name without its suffix this is; Label Studio's prefix does not matter."""
        return choose(self._by_stem(stem), known).path

    def _by_address(self, uri: str) -> Iterator[Sequence[Path]]:
        if not _is_url(uri.strip()):
            yield from self._by_path(_names(uri))  # as it is written: what looks quoted may be a file's own name
        names = media_parts(uri)
        if not names:
            return
        yield from self._by_path(names)
        name, bare = names[-1], video_name(uri)
        # Also copies of the upload folder behind other addresses.
        bare = bare if bare != name else _without_prefix(name)
        yield self._alike(name)
        if bare != name:
            # The folders of an upload are Label Studio's own, and say nothing of those from which it came.
            yield from self._by_path((bare,) if _is_upload(names) else (*names[:-1], bare))
            yield self._alike(bare)
        else:
            # A file with another prefix than the address has would be another upload.
            yield self._prefixed.get(_key(name), [])

    def _by_path(self, names: Sequence[str]) -> Iterator[Sequence[Path]]:
        """Files of exactly this name: those whose folders fit best, then all."""
        if not names:
            return
        found = [path for path in self._by_key.get(_key(names[-1]), []) if _nfc(path.name) == _nfc(names[-1])]
        tails = [_common_tail(path.parts, names) for path in found]
        yield [path for path, tail in zip(found, tails, strict=True) if tail == max(tails)]
        yield found

    def _alike(self, name: str) -> list[Path]:
        """Files that Label Studio would call so, or that are called as it would call this one."""
        key, plain = _key(name), _nfc(name)
        return [path for path in self._by_key.get(key, []) if _key(path.name) == plain or _nfc(path.name) == key]

    def _by_stem(self, stem: str) -> Iterator[Sequence[Path]]:
        videos = [(path, path.stem) for path in self._videos()]
        bare = [(path, _without_prefix(name)) for path, name in videos]
        for wanted in dict.fromkeys((stem, _without_prefix(stem))):
            key, plain = _key(wanted), _nfc(wanted)
            for names in (videos, bare):
                yield [path for path, name in names if _nfc(name) == plain]
                # As exports name what they write, and as Label Studio names uploads.
                yield [path for path, name in names if safe_name(name) == plain]
                yield [path for path, name in names if _key(name) == plain or _nfc(name) == key]


def _files(folder: Path, recursive: bool) -> list[Path]:
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if recursive and not name.startswith("."))
        found += [Path(root, name) for name in sorted(names) if not name.startswith(".")]
    return found


def _common_tail(a: Sequence[str], b: Sequence[str]) -> int:
    """How many folders of two paths agree, counted from the file upwards; the files' own names are not compared."""
    count = 0
    for one, other in zip(reversed(a[:-1]), reversed(b[:-1]), strict=False):
        if one != other:
            break
        count += 1
    return count
