"""Files that only this user may read."""

from __future__ import annotations

import logging
import os
import stat
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)


def keep_files_private(data_dir: Path) -> None:
    """Make new files of this process, and its children, private (600, folders 700), and the data folder too.

    It has videos, annotations and tokens.
    """
    os.umask(0o077)
    with suppress(OSError):  # of another user, or not there: whatever writes next says what is wrong
        data_dir.mkdir(parents=True, exist_ok=True)
        mode = stat.S_IMODE(data_dir.stat().st_mode)
        if mode & 0o077:
            data_dir.chmod(mode & 0o700)
            log.info("%s is closed to other users now.", data_dir)
