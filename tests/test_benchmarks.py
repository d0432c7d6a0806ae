"""Benchmarks run, and say what the page about performance is made of. How fast anything is is not tested."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import symtable
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import pipeline, scaling, strides
from benchmarks.measuring import last_json
from benchmarks.report import PARTS, page, run_part, write
from benchmarks.report_parts import VIDEO, Part
from benchmarks.strides import Remembering, agreement
from ml_backend.models.motion import MotionDetector
from ml_backend.types import Track
from tests.builders import ROOT, make_clip, make_tiny_yolo

FRAMES = 40
FACTS = {
    "date": "2030-01-31",
    "command": "python benchmarks/x.py people.mp4",
    "minutes": 1.5,
    "quick": False,
    "others": 0.01,
    "machine": {
        "processor": "A processor",
        "instructions": ["avx2"],
        "cores": 2,
        "memory_gb": 24,
        "system": "An OS",
        "gpu": "",
        "python": "3.12.0",
        "packages": {"torch": "2.0"},
    },
    "clip": {"width": 1920, "height": 1080, "fps": 30.0, "frames": 302, "duration": 10.07, "codec": "h264"},
}
ENGINES = {
    "engines": [
        {
            "engine": "torch",
            "precision": "fp32",
            "frames_per_s": 1234.56,
            "memory_mb": 12,
            "made_s": 0.0,
            "matched": 1.0,
            "conf_difference": 0.0,
        },
        {"engine": "coreml", "note": "coreml needs mps | cpu"},
    ]
}
STRIDE = {"stride": 2, "engine": "torch", "default": True, "looked_at": 0.5, "tracks": 7, "HOTA": 0.987, "DetA": 1.0}
STRIDES = {"rate": 20.0, "longest_s": 0.1, "rows": [STRIDE | {"AssA": 1.0, "IDF1": 1.0, "IDSW": 0.0}]}

EMBEDDING = {"crops": 32, "rows": {"small, random weights": {"ours": 9.0, "bare": 10.0, "ratio": 0.9, "device": "cpu"}}}
DRAWN = {"frames": 302, "seconds": 3.0, "cpu_s": 6.0, "peak_mb": 250.0, "fps": 100.0}
RENDER = {"rows": {"decode + encode": DRAWN, "rendered": DRAWN}, "speed_ratio": 0.8, "cpu_ratio": 0.5}
ASKED = {"answers": 80, "per_second": 10.0, "median_ms": 2.5, "p99_ms": 9.5, "worst_ms": 12.0, "errors": {"503": 2}}
STEP = {"bytes": 123_456, "requests": 17, "first_byte_ms": 10, "painted_ms": 60, "interactive_ms": 90}
START = {"times": {"first /health": {"best_s": 0.5, "median_s": 0.75, "worst_s": 1.0}}}
API = {"clients": 50, "answers": {"/health": ASKED}, "page": {"label": STEP, "learn": STEP | {"interactive_ms": 1234}}}


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a clip, a detector, and a page of which one part is known."""
    folder = tmp_path_factory.mktemp("footage")
    make_clip(folder / "clip.mp4", frames=FRAMES)
    make_tiny_yolo(folder / "tiny.pt", {0: "person", 1: "bicycle"})
    write(folder / "page.md", {"strides": {**FACTS, "result": STRIDES}})
    return folder


@pytest.fixture(scope="module")
def printed(footage: Path) -> dict[str, Any]:
    """The last line of each benchmark; they run at the same time, since nobody looks at how long they take."""
    clip, weights = str(footage / "clip.mp4"), str(footage / "tiny.pt")
    on_clip = [clip, "--weights", weights]
    page_of = ["--data", ".", "--video", "clip.mp4", "--weights", "tiny.pt", "--out", "page.md"]
    children = {
        "scaling": [*on_clip, "--times", "2"],
        "workers": [*on_clip, "--times", "6", "--segment-s", "4"],
        "report": ["--only", "render", "--quick", *page_of],
    }
    # Those that run each thing once need no process of their own, in which PyTorch would be imported again.
    here = {
        "plain": (pipeline.main, [*on_clip, "--variant", "plain loop"]),
        "ours": (pipeline.main, [*on_clip, "--variant", "ours, exact"]),
        "strides": (strides.main, [*on_clip, "--strides", "1,2", "--speed"]),
    }
    running: dict[str, subprocess.Popen[str]] = {}
    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"ENGINE": "torch", "IMGSZ": "96", "OMP_NUM_THREADS": "1"}.items():
            patch.setenv(name, value)
        # PyTorch takes ten seconds to compile: once is enough.
        patch.setenv("PYTHONPYCACHEPREFIX", str(footage / "compiled"))
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
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
    plain = pipeline.complete({"frames": 100, "seconds": 10.0, "cpu_s": 15.0})
    assert plain == {"frames": 100, "seconds": 10.0, "cpu_s": 15.0, "fps": 10, "fps_ratio": 1, "cpu_ms_per_frame": 150}
    ours = pipeline.complete({"frames": 100, "seconds": 4.0, "cpu_s": 6.0}, plain)
    assert (ours["fps"], ours["fps_ratio"], ours["cpu_ms_per_frame"]) == (25, 2.5, 60)


def test_lengths(printed: dict[str, Any]) -> None:
    rows = printed["scaling"]["rows"]
    assert {name: row["frames"] for name, row in rows.items()} == {"2x": 2 * FRAMES}
    assert rows["2x"]["memory_ratio"] == rows["2x"]["fps_ratio"] == 1
    longer = scaling.beside(
        {"frames": 80, "seconds": 4.0, "cpu_s": 8.0, "peak_mb": 550.0}, {"fps": 25, "peak_mb": 500.0}
    )
    assert (longer["fps"], longer["fps_ratio"], longer["cpu_ms_per_frame"], longer["memory_ratio"]) == (
        20,
        0.8,
        100,
        1.1,
    )


def test_two_processes_find_what_one_finds(printed: dict[str, Any]) -> None:
    found = printed["workers"]
    assert found["identical"] is True
    one_pass, segments, two = found["rows"].values()
    assert [row["frames"] for row in (one_pass, segments, two)] == [6 * FRAMES] * 3
    assert (one_pass["segments"], segments["segments"], two["segments"]) == (1, 3, 3)
    assert one_pass["tracks"] > 0
    assert one_pass["cpu_ratio"] == 1
    assert 0 < two["helped_with"] < 3


def test_strides_beside_the_exact_result(printed: dict[str, Any]) -> None:
    exact, other = printed["strides"]["rows"]
    assert (exact["stride"], exact["looked_at"], exact["HOTA"], exact["IDSW"]) == (1, 1, 1, 0)
    assert (other["stride"], other["default"]) == (2, True)
    assert 0 < other["looked_at"] <= 1
    assert 0 <= other["HOTA"] <= 1
    assert min(exact["fps"], other["fps"]) > 0


def test_what_is_measured_anew_joins_what_is_known(printed: dict[str, Any], footage: Path) -> None:
    assert printed["report"] == {"parts": ["strides", "render"], "failed": []}
    parts = json.loads((footage / "page.json").read_text())["parts"]
    assert parts["strides"] == {**FACTS, "result": STRIDES}
    assert parts["render"]["quick"] is True
    assert parts["render"]["clip"]["frames"] == FRAMES
    assert parts["render"]["command"].startswith("python benchmarks/render.py clip.mp4 ")
    text = (footage / "page.md").read_text()
    assert all(f"## {PARTS[name].title}" in text for name in parts)
    assert "A quick run" in text
    for secret in (str(footage), str(ROOT), os.uname().nodename):
        assert secret not in text + (footage / "page.json").read_text()


def test_the_page_has_what_benchmarks_print(printed: dict[str, Any]) -> None:
    plain = pipeline.complete(printed["plain"])
    rows = {"rows": {"plain loop": plain, "ours": pipeline.complete(printed["ours"], plain)}}
    results = {"pipeline": rows, **{name: printed[name] for name in ("scaling", "workers", "strides")}}
    text = page({name: {**FACTS, "result": result} for name, result in results.items()})
    assert text.count("\n## ") == 1 + len(results)
    assert "| plain loop |" in text
    assert "| one process, one pass |" in text
    assert "of all rows are identical" in text


def test_a_page_without_figures() -> None:
    assert "Nothing has been measured yet." in page({})


def test_what_is_missing_is_left_out() -> None:
    text = page({"engines": {**FACTS, "result": ENGINES}})
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings == ["## Machine", "## Engines"]
    assert "- A processor (avx2), 2 cores, 24 GB of memory, no GPU\n- An OS\n- Python 3.12.0, torch 2.0\n" in text
    assert "The clip: 1920 × 1080, h264, 302 frames, 30 a second, 10.1 s." in text
    assert "| torch | fp32 | 1,234.6 | 100.0 % | 0.0000 | 12 | 0 s |  |" in text
    assert "| coreml |  |  |  |  |  |  | coreml needs mps \\| cpu |" in text
    assert "2030-01-31, 1.5 minutes." in text
    assert "do not rely" not in text


def test_each_benchmark_is_told_in_its_own_words() -> None:
    results = {"embedding": EMBEDDING, "render": RENDER, "api": API, "start": START}
    text = page({name: {**FACTS, "result": result} for name, result in results.items()})
    assert "| small, random weights | 9.0 | 10.0 | 0.90× | cpu |" in text
    assert "reaches 80.0 % of the speed, and takes 2.00× the CPU time." in text
    assert "| first /health | 0.50 | 0.75 | 1.00 |" in text
    assert "| `/health` | 10.0 | 2.5 | 9.5 | 12.0 | 2 |" in text
    assert "weighs 123 kB at most in 17 requests, and can be used after 1,234 ms at most" in text


def test_who_disturbed_a_measurement_is_told() -> None:
    text = page({"engines": {**FACTS, "others": 0.4, "result": ENGINES}})
    assert "Other work had 40 % of the processor: do not rely on these figures." in text


def test_figures_of_two_machines_are_told_apart() -> None:
    other = {**FACTS, "machine": {**FACTS["machine"], "processor": "Another"}}
    text = page({"engines": {**FACTS, "result": ENGINES}, "strides": {**other, "result": STRIDES}})
    assert text.index("## Machine 1") < text.index("A processor") < text.index("## Machine 2") < text.index("Another")
    assert text.index("## Engines") < text.index("Machine 1.") < text.index("## Strides") < text.index("Machine 2.")


def test_a_benchmark_that_fails_gives_no_figures(footage: Path) -> None:
    part = Part("", "export.py", (VIDEO, "--nonsense"), (), "", "", lambda _: [])
    with pytest.raises(click.ClickException, match=r"export\.py has failed"):
        run_part(part, footage / "clip.mp4", footage / "tiny.pt", quick=False)


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


# -- strides


def walk(track_id: int, label: str = "person", *, start: int = 0, left: float = 0.0) -> Track:
    frames = np.arange(start, 20)
    xyxy = np.array([[left, 0, left + 10, 10]] * len(frames), np.float32)
    return Track(track_id, frames, xyxy, np.ones(len(frames), np.float32), {label: 1.0})


@pytest.mark.parametrize(
    ("tracks", "right"),
    [
        ([walk(9), walk(8, left=50)], lambda s: s["HOTA"] == s["IDF1"] == 1),
        ([walk(9), walk(8, "bicycle", left=50)], lambda s: 0 < s["HOTA"] < 1),
        ([walk(9, start=10), walk(8, left=50)], lambda s: 0 < s["DetA"] < 1),
        ([], lambda s: s["HOTA"] == 0),
    ],
    ids=["the same", "another class", "late", "nothing"],
)
def test_agreement(tracks: list[Track], right: Callable[[dict[str, float]], bool]) -> None:
    assert right(agreement([walk(1), walk(2, left=50)], tracks))


def test_each_picture_is_looked_at_once() -> None:
    pictures = [np.full((64, 64, 3), value, np.uint8) for value in (10, 20, 10, 30)]  # the third is the first again
    detector = Remembering(MotionDetector(25.0))
    remembering = Remembering(detector)
    first, second, third = remembering.detect(pictures[:3])
    fourth, again = remembering.detect([pictures[3], pictures[0]])
    assert first is third
    assert first is again
    assert len({id(found) for found in (first, second, fourth)}) == 3
    assert remembering.detect([pictures[1]]) == [second]
    assert (remembering.asked, detector.asked) == (6, 3)
