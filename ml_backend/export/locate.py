"""Which file of a folder is a task's video: by name, with or without what Label Studio puts before uploads."""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

from ml_backend.errors import MediaError
from ml_backend.importing import VIDEO_SUFFIXES
from ml_backend.label_studio.media import canonical_uri

log = logging.getLogger(__name__)

_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-(?=.)")


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
    """File name of a media address without Label Studio's upload prefix: ``35deac95-a.mp4`` is ``a.mp4``."""
    names = media_parts(uri)
    return _UPLOAD_PREFIX.sub("", names[-1]) if names else "video"


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
        for path in [folder] if self.single else _files(folder, recursive):
            self._by_key.setdefault(_key(path.name), []).append(path)

    def only(self) -> Path | None:
        """The file itself, or the only video of the folder."""
        paths = [self.single] if self.single else self._videos()
        return paths[0] if len(paths) == 1 else None

    def _videos(self) -> list[Path]:
        return [path for paths in self._by_key.values() for path in paths if path.suffix.lower() in VIDEO_SUFFIXES]

    def find(self, uri: str) -> Path | None:
        """The file of a media address, or ``None``. Of several with one name, the one whose folders fit best."""
        names = media_parts(uri)
        if not names:
            return None
        for name in dict.fromkeys((names[-1], _UPLOAD_PREFIX.sub("", names[-1]))):
            found = self._by_key.get(_key(name), [])
            if found:
                best = max(found, key=lambda path: (path.name == name, _common_tail(path.parts, names)))
                if len(found) > 1:
                    log.info("%d files are named %s; %s is taken", len(found), name, best)
                return best
        return None

    def find_stem(self, stem: str) -> Path | None:
        """The video whose name without its suffix this is; Label Studio's prefix does not matter."""
        wanted = _key(stem)
        videos = list(self._videos())
        found = [path for path in videos if _key(path.stem) == wanted]
        found = found or [path for path in videos if _key(_UPLOAD_PREFIX.sub("", path.stem)) == wanted]
        if len(found) > 1:
            log.warning("%d videos are named %s; %s is taken", len(found), stem, found[0])
        return found[0] if found else None


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
