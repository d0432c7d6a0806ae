"""Files of a worker, in a process of its own: the mask is the process's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.builders import ROOT

CODE = """
import sys
from pathlib import Path
from ml_backend.core.files import write_bytes, write_text
from ml_backend.core.private_files import keep_files_private
from ml_backend.db.storage import Storage
folder = Path(sys.argv[1])
keep_files_private(folder)
write_text(folder / "new" / "token", "secret")
write_bytes(folder / "new" / "frames", b"")
Storage(f"sqlite:///{folder / 'backend.sqlite3'}")
"""


def test_only_this_user_reads_what_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)  # of an earlier release
    subprocess.run([sys.executable, "-c", CODE, str(folder)], cwd=ROOT, check=True, timeout=900)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (folder, *folder.rglob("*"))}
    assert modes.pop("data") == modes.pop("new") == "0o700"
    assert {"token", "frames", "backend.sqlite3"} <= set(modes)
    assert set(modes.values()) == {"0o600"}
