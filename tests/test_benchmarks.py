"""Benchmarks run, and say what the page about performance is made of. How fast anything is is not tested."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import symtable
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from benchmarks import pipeline, tracking
from benchmarks.measuring import last_json
from benchmarks.report import BENCHMARKS, EARLIER, Benchmark, page, run_benchmark, write
from tests.builders import ROOT, make_clip, make_tiny_yolo

pytestmark = pytest.mark.slow

FRAMES = 30
FACTS = {
    "date": "2030-01-31",
    "command": "python benchmarks/x.py people.mp4",
    "minutes": 1.5,
    "quick": False,
    "machine": "A processor, 2 cores, no GPU",
    "clip": "1920 × 1080, h264, 302 frames, 30 a second",
    "output": "rendered | 302 frames",
    "result": {"speed_ratio": 0.8},
}


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a clip, a detector, and a page of which one part is known."""
    folder = tmp_path_factory.mktemp("footage")
    make_clip(folder / "clip.mp4", frames=FRAMES)
    make_tiny_yolo(folder / "tiny.pt", {0: "person", 1: "bicycle"})
    (folder / "page.md").write_text(f"old\n{EARLIER}\n\nBy hand.\n")
    write(folder / "page.md", {"few_shot": FACTS})
    return folder


@pytest.fixture(scope="module")
def printed(footage: Path) -> dict[str, Any]:
    """The last line of each benchmark; they run at the same time, since nobody looks at how long they take."""
    clip, weights = str(footage / "clip.mp4"), str(footage / "tiny.pt")
    on_clip = [clip, "--weights", weights]
    page_of = ["--data", ".", "--video", "clip.mp4", "--weights", "tiny.pt", "--out", "page.md"]
    children = {
        "report": ["--only", "render", "--quick", *page_of],
    }
    # Those that run each thing once need no process of their own, in which PyTorch would be imported again.
    here = {
        "plain": (pipeline.main, [*on_clip, "--variant", "plain loop"]),
        "ours": (pipeline.main, [*on_clip, "--variant", "ours, exact"]),
        "tracking": (tracking.main, [*on_clip, "--class-name", "", "--objects", "10"]),
        "strides": (tracking.main, [*on_clip, "--class-name", "", "--strides", "1,2"]),
    }
    running: dict[str, subprocess.Popen[str]] = {}
    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"ENGINE": "torch", "IMGSZ": "96", "OMP_NUM_THREADS": "1"}.items():
            patch.setenv(name, value)
        try:
            for name, arguments in children.items():
                command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *arguments]
                pipe = subprocess.PIPE
                running[name] = subprocess.Popen(command, cwd=footage, text=True, stdout=pipe, stderr=pipe)
            for name, (main, arguments) in here.items():
                result = CliRunner().invoke(main, arguments, catch_exceptions=False)
                assert result.exit_code == 0, f"{name}: {result.output}"
                found[name] = last_json(result.stdout)
            for name, process in running.items():
                out, err = process.communicate(timeout=600)
                assert process.returncode == 0, f"{name}: {err[-2000:]}"
                found[name] = last_json(out)
        finally:
            for process in running.values():
                process.kill()
                process.wait()
    return found


def test_a_prediction_beside_a_plain_loop(printed: dict[str, Any]) -> None:
    plain, ours = printed["plain"], printed["ours"]
    for row in (plain, ours):
        assert row["frames"] == FRAMES
        assert row["tracks"] > 0
        assert row["cpu_s"] > 0
        assert row["peak_mb"] > 50
    assert plain["keyframes"] == plain["boxes"]
    assert ours["keyframes"] < ours["boxes"]
    assert ours["lowest_iou"] > 0.89
    assert ours["engine"] == "torch"


def test_rows_are_compared_with_the_plain_loop() -> None:
    plain = pipeline.with_ratios({"frames": 100, "seconds": 10.0, "cpu_s": 15.0})
    assert plain == {"frames": 100, "seconds": 10.0, "cpu_s": 15.0, "fps": 10, "fps_ratio": 1, "cpu_ms_per_frame": 150}
    ours = pipeline.with_ratios({"frames": 100, "seconds": 4.0, "cpu_s": 6.0}, plain)
    assert (ours["fps"], ours["fps_ratio"], ours["cpu_ms_per_frame"]) == (25, 2.5, 60)


def test_tracking_beside_plain_loops_and_strides_beside_the_exact_result(printed: dict[str, Any]) -> None:
    assert printed["tracking"]["results"].keys() >= {"YOLO.track, botsort", "ours", "ours, motion detector"}
    assert all(row["tracks"] > 0 and row["fps"] > 0 for row in printed["tracking"]["results"].values())
    exact, other = printed["strides"]["results"].values()
    assert (exact["HOTA"], exact["IDF1"], exact["IDSW"]) == (1, 1, 0)
    assert 0 <= other["HOTA"] <= 1
    assert min(exact["fps"], other["fps"]) > 0


def test_what_is_measured_anew_joins_what_is_known(printed: dict[str, Any], footage: Path) -> None:
    assert printed["report"] == {"parts": ["few_shot", "render"], "failed": []}
    parts = json.loads((footage / "page.json").read_text())["parts"]
    assert parts["few_shot"] == FACTS
    assert parts["render"]["result"]["rows"]["rendered"]["frames"] == FRAMES
    assert parts["render"]["quick"] is True
    assert f"{FRAMES} frames" in parts["render"]["clip"]
    assert parts["render"]["command"].startswith("python benchmarks/render.py clip.mp4 ")
    text = (footage / "page.md").read_text()
    assert all(f"## {BENCHMARKS[name].title}" in text for name in parts)
    assert f"\n```text\n{parts['render']['output']}\n```\n" in text
    assert parts["render"]["output"].startswith("decode + encode ")
    assert "A quick run" in text
    assert text.endswith(f"\n{EARLIER}\n\nBy hand.\n")
    assert "old" not in text
    for secret in (str(footage), str(ROOT), os.uname().nodename):
        assert secret not in text + (footage / "page.json").read_text()


def test_a_page_without_figures() -> None:
    assert "Nothing has been measured yet." in page({})


def test_figures_of_two_machines_are_told_apart() -> None:
    text = page({"export": FACTS, "render": FACTS, "api": {**FACTS, "machine": "Another"}})
    assert text.count("Machine: A processor, 2 cores, no GPU. The clip: 1920 × 1080") == 1
    assert text.count("2030-01-31, 1.5 minutes.") == 3
    assert text.index("## Export") < text.index("Machine: A processor") < text.index("## API") < text.index("Another")


def test_a_benchmark_that_fails_gives_no_figures(footage: Path) -> None:
    part = Benchmark("", ("VIDEO", "--nonsense"), ())
    with pytest.raises(click.ClickException, match=r"export\.py has failed"):
        run_benchmark("export", part, footage / "clip.mp4", footage / "tiny.pt", quick=False)


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_what_benchmarks_import_is_there(path: Path) -> None:
    """Most of them run for minutes, on no test: what was renamed would be noticed late."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] not in (
            "ml_backend",
            "benchmarks",
        ):
            continue
        folder = ROOT.joinpath(*str(node.module).split("."))
        file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
        source = file.read_text(encoding="utf-8") if file.exists() else ""  # benchmarks are no package
        there = set(symtable.symtable(source, file.name, "exec").get_identifiers())
        there |= {module.stem for module in folder.glob("*.py")}
        assert {alias.name for alias in node.names} <= there, f"line {node.lineno}"
