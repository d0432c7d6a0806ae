"""Which file of a folder is a task's video: by name, with or without what Label Studio puts before uploads."""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from itertools import pairwise
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

from ml_backend.errors import MediaError
from ml_backend.label_studio.media import canonical_uri
from ml_backend.label_studio.suffixes import VIDEO_SUFFIXES

log = logging.getLogger(__name__)

_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-(?=.)")
#: Eight digits before a name are rather a day than a prefix, where the address does not say that it is an upload.
_DAY = re.compile(r"^(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])-")


def media_parts(uri: str) -> tuple[str, ...]:
    """The path in a media address, as names: of an upload, a local file, a cloud object or a URL.

    ``..`` and what could lead out of a folder are left out; the last name is the file's.
    """
    try:
        split = urlsplit(canonical_uri(uri))
    except (MediaError, ValueError):
        return ()
    path = unquote(split.path)
    if split.path.rstrip("/") == "/data/local-files":
        path = parse_qs(split.query).get("d", [""])[0]
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


def _key(name: str) -> str:
    """Names that Label Studio makes one of: blanks become ``_`` and most punctuation goes when a file is uploaded."""
    return re.sub(r"[^-\w.]", "", unicodedata.normalize("NFC", name).strip().replace(" ", "_"))


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

    def find(self, uri: str) -> Path | None:
        """The file of a media address, or ``None``.

        The exact name comes first, then the name without Label Studio's prefix; last, for an address without prefix,
        a file that has one. Of several with one name it is that whose folders fit best.
        """
        names = media_parts(uri)
        if not names:
            return None
        name, bare = names[-1], video_name(uri)
        # Also copies of the upload folder behind other addresses.
        bare = bare if bare != name else _without_prefix(name)
        for wanted in dict.fromkeys((name, bare)):
            found = self._by_key.get(_key(wanted), [])
            if found:
                best = max(found, key=lambda path: (path.name == wanted, _common_tail(path.parts, names)))
                if len(found) > 1:
                    log.info("%d files are named %s; %s is taken", len(found), wanted, best)
                return best
        # A file with another prefix than the address has would be another upload.
        return self._only_prefixed(name) if bare == name else None

    def _only_prefixed(self, name: str) -> Path | None:
        found = self._prefixed.get(_key(name), [])
        if len({path.name for path in found}) > 1:
            log.warning("%d uploads were called %s; none is taken: %s", len(found), name, ", ".join(map(str, found)))
            return None
        return found[0] if found else None

    def find_stem(self, stem: str) -> Path | None:
        """The video whose name without its suffix this is; Label Studio's prefix does not matter."""
        videos = list(self._videos())
        for wanted in dict.fromkeys((stem, _without_prefix(stem))):
            key = _key(wanted)
            found = [path for path in videos if _key(path.stem) == key]
            found = found or [path for path in videos if _key(_without_prefix(path.stem)) == key]
            if len(found) > 1:
                log.warning("%d videos are named %s; %s is taken", len(found), stem, found[0])
            if found:
                return found[0]
        return None


def _files(folder: Path, recursive: bool) -> list[Path]:
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if recursive and not name.startswith("."))
        found += [Path(root, name) for name in sorted(names) if not name.startswith(".")]
    return found


def _common_tail(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    """How many folders of two paths agree, counted from the file upwards; the files' own names are not compared."""
    count = 0
    for one, other in zip(reversed(a[:-1]), reversed(b[:-1]), strict=False):
        if one != other:
            break
        count += 1
    return count
