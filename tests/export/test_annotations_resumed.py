"""annotations.json that was interrupted goes on, and is the same as one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ml_backend.export.annotations as exporting
from ml_backend.export.annotations import Written, export_annotations
from ml_backend.export.source import Source
from tests.builders import wait_for
from tests.export.builders import key, make_annotation, make_region, make_task, write_export
from tests.export.test_annotations import SCRIPT, rows_of, run
from tests.video.builders import make_video

EACH = pytest.mark.parametrize("per_video", [False, True], ids=["one file", "one each"])


@pytest.fixture
def tasks(tmp_path: Path) -> list[dict[str, Any]]:
    """Four videos: the second has no objects, the fourth one that cannot be told by ASCII."""
    made = []
    for n, label in enumerate(["person", "", "car", "läufer"], start=1):
        make_video(tmp_path / f"v{n}.mp4", frames=10)
        regions = [make_region(key(1, 10 * n), key(6, 30), label=label, frames_count=10)] if label else []
        made.append(make_task(f"v{n}.mp4", make_annotation(*regions), task_id=n))
    return made


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the videos whose rows are computed, as it happens."""
    names: list[str] = []
    rows = exporting.annotation_rows

    def counted(video: Any, sample: Any) -> Iterator[Any]:
        names.append(video.name)
        return rows(video, sample)

    monkeypatch.setattr(exporting, "annotation_rows", counted)
    return names


def export(tmp_path: Path, tasks: list[dict[str, Any]], out: str = "out", **options: Any) -> tuple[Written, Source]:
    source = Source.from_file(write_export(tmp_path / "e.json", tasks))
    return export_annotations(source, tmp_path / out, with_video=True, **options), source


def content(out: Path) -> Any:
    """What a person sees of an export."""
    return {path.name: path.read_bytes() for path in out.glob("[!.]*")} if out.is_dir() else out.read_bytes()


def interrupt(number: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == number:
            raise KeyboardInterrupt

    return progress


@EACH
@pytest.mark.parametrize("after", [1, 2, 3])
def test_what_was_interrupted_goes_on(
    tmp_path: Path, tasks: list[dict[str, Any]], computed: list[str], per_video: bool, after: int
) -> None:
    whole, _ = export(tmp_path, tasks, "whole", per_video=per_video)
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path, tasks, per_video=per_video, progress=interrupt(after))
    if not per_video:
        assert not (tmp_path / "out").exists()
    computed.clear()
    written, _ = export(tmp_path, tasks, per_video=per_video)
    assert computed == [f"v{n}.mp4" for n in range(after + 1, 5)]
    assert (written.videos, written.rows) == (whole.videos, whole.rows) == (4, 30)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".part", ".rows")]


@EACH
def test_only_what_has_changed_is_done_again(
    tmp_path: Path, tasks: list[dict[str, Any]], computed: list[str], per_video: bool
) -> None:
    def again(**options: Any) -> list[str]:
        """What is computed by another export, which must be as one from the beginning."""
        computed.clear()
        export(tmp_path, tasks, per_video=per_video, **options)
        done = computed.copy()
        fresh = f"fresh{len(list(tmp_path.iterdir()))}"
        export(tmp_path, tasks, fresh, per_video=per_video, **options)
        assert content(tmp_path / "out") == content(tmp_path / fresh)
        return done

    assert len(again()) == 4
    assert again() == []
    tasks[2]["annotations"][0]["result"][0]["value"]["labels"] = ["truck"]
    assert again() == ["v3.mp4"]
    assert again() == []
    make_video(tmp_path / "v4.mp4", frames=12)
    assert again() == ["v4.mp4"]
    del tasks[0]
    assert again() == []
    assert again(sample="keyframes") == ["v2.mp4", "v3.mp4", "v4.mp4"]
    edited = tmp_path / "out" / "v3.json" if per_video else tmp_path / "out"
    edited.write_text("[]")
    assert again(sample="keyframes") == (["v3.mp4"] if per_video else ["v2.mp4", "v3.mp4", "v4.mp4"])


@EACH
def test_a_video_that_has_disappeared_keeps_its_rows(
    tmp_path: Path, tasks: list[dict[str, Any]], per_video: bool
) -> None:
    export(tmp_path, tasks, per_video=per_video)
    before = content(tmp_path / "out")
    (tmp_path / "v3.mp4").unlink()
    written, source = export(tmp_path, tasks, per_video=per_video)
    assert content(tmp_path / "out") == before
    assert (written.videos, written.rows) == (4, 30)
    assert [str(item) for item in source.skipped if "v3.mp4" in str(item) and "is kept" in str(item)]
    # Nobody could tell where the new boxes are.
    tasks[2]["annotations"][0]["result"][0]["value"]["labels"] = ["truck"]
    written, source = export(tmp_path, tasks, per_video=per_video)
    assert (written.videos, written.rows, len(source.skipped)) == (3, 20, 1)
    assert "is kept" not in str(source.skipped[0])
    rows = [row for path in written.files for row in rows_of(path)]
    assert {row["video"] for row in rows} == {"v1.mp4", "v4.mp4"}


def test_a_script_that_was_killed_goes_on(tmp_path: Path) -> None:
    tasks = []
    for n in range(6):
        make_video(tmp_path / f"v{n}.mp4", frames=4000, size=(32, 32), options={"preset": "ultrafast"})
        regions = [make_region(key(1, x), frames_count=4000, duration=4000 / 30, region_id=f"{x}") for x in range(40)]
        tasks.append(make_task(f"v{n}.mp4", make_annotation(*regions), task_id=n + 1))
    write_export(tmp_path / "e.json", tasks)
    command = [sys.executable, str(SCRIPT), "--from-json", "e.json", "--out", "a.json"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    pieces = tmp_path / ".a.json.export"
    wait_for(lambda: len(list(pieces.glob("*.rows"))) >= 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "a.json").exists()
    before = {path: path.stat().st_mtime_ns for path in pieces.glob("*.video.json")}
    assert run("--from-json", "e.json", "--out", "a.json", cwd=tmp_path).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert run("--from-json", "e.json", "--out", "fresh.json", cwd=tmp_path).returncode == 0
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "fresh.json").read_bytes()
    assert not list(tmp_path.rglob("*.part"))


def test_a_disk_that_takes_no_more(tmp_path: Path, tasks: list[dict[str, Any]]) -> None:
    """The system refuses files past 2,500 bytes: each piece fits, all together do not."""
    write_export(tmp_path / "e.json", tasks)
    code = (
        "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2500, 2500)); sys.argv = sys.argv[1:];"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(SCRIPT), "--from-json", "e.json", "--out", "a.json", "--with-video"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "a.json").exists()
    assert len(list((tmp_path / ".a.json.export").glob("*.rows"))) == 4
    assert not list(tmp_path.rglob("*.part"))
    assert run("--from-json", "e.json", "--out", "a.json", cwd=tmp_path).returncode == 0
    assert len(rows_of(tmp_path / "a.json")) == 30
