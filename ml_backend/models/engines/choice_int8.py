"""Whether a network runs in int8 here and now: where it was made with the project's pictures, and found sound."""

from __future__ import annotations

import logging
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ml_backend.errors import BackendError
from ml_backend.models.engines import background
from ml_backend.models.engines.cache import Export, ExportKey, Exports
from ml_backend.models.engines.calibration import Footage, Pool
from ml_backend.models.engines.child import export_elsewhere
from ml_backend.settings import Settings

log = logging.getLogger(__name__)

#: Package that quantises; it is not needed to run what it has made.
PACKAGE = "nncf"


def choose_int8(
    fp32: ExportKey, path: Path, settings: Settings, footage: Footage, *, wait: bool
) -> tuple[Export | None, str]:
    """What to run in int8, or why nothing.

    Whatever the pool of pictures lacks, also another video where int8 is in use, is taken and made on the way.

    Args:
        fp32: the network's export in fp32, which need not be there yet.
        path: its checkpoint.
        footage: whose pictures it is made with.
        wait: make it now, half a minute; else a thread does.
    """
    exports, pool = Exports(settings), Pool(settings, footage.project)
    note = "int8 waits for a first video, whose pictures it is made with: fp32 is used until then."
    if _is_due(exports, fp32, pool, footage):
        note = _make(exports, fp32, pool, path, settings, footage, wait)
    # Where the pool has grown, what was made with fewer pictures serves until there is another.
    for generation in range(pool.generation, 0, -1):
        key = pool.key(fp32, generation)
        if reason := exports.refusal(key):
            return None, _not_used(reason)
        if export := exports.find(key):
            return export, ""
    return None, note


def _is_due(exports: Exports, fp32: ExportKey, pool: Pool, footage: Footage) -> bool:
    if footage.video is not None and pool.wants(footage.video):
        return True
    key = pool.key(fp32)
    return pool.generation > 0 and not exports.refusal(key) and not exports.find(key)


def _make(
    exports: Exports, fp32: ExportKey, pool: Pool, path: Path, settings: Settings, footage: Footage, wait: bool
) -> str:
    """Take pictures and make int8 with them, or begin to; why it cannot be used yet."""
    if not _installed():
        return _not_used(f"the package {PACKAGE} is not installed (pip install {PACKAGE})")
    target = exports.folder(pool.key(fp32, 0))  # of any generation: collecting makes the next one
    if reason := background.recently_failed(target):
        return _not_used(reason)

    def work() -> None:
        started, before = time.monotonic(), pool.key(fp32)
        export_elsewhere(fp32, path, settings, footage)
        key = pool.key(fp32)
        if (key != before or wait) and (export := exports.find(key)):
            seconds = time.monotonic() - started
            log.info("%s runs in int8 from the next video on (made in %.1f s: %s)", path.name, seconds, export.check)

    if not wait:
        background.make_beside(target, f"{path.name} cannot run in int8", work)
        return "int8 is being prepared from this project's pictures: fp32 is used until then."
    try:
        background.make(target, work)
    except BackendError as error:
        return _not_used(error.message)
    return _not_used("nothing was made")


def _not_used(reason: str) -> str:
    return f"int8 is not used: {reason.rstrip('.')}. fp32 is."


def _installed() -> bool:
    try:
        version(PACKAGE)
    except PackageNotFoundError:
        return False
    return True
