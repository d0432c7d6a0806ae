"""Benchmarks run, and say what the page about performance is made of. How fast anything is is not tested."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import symtable
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import gate, pipeline, tracking
from benchmarks.measuring import last_json
from benchmarks.report import BENCHMARKS, EARLIER, Benchmark, page, run_benchmark, write
from ml_backend.core.types import Track
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


def made_track(number: int, label: str) -> Track:
    frames = np.arange(3000)
    xyxy = np.tile(np.array([100, 100, 140, 220], np.float32), (3000, 1))
    return Track(number, frames, xyxy, np.full(3000, 0.9, np.float32), {label: 1.0}, label)


def test_annotations_are_spoiled_as_is_said() -> None:
    one, other = Path("one.mp4"), Path("other.mp4")
    right = {
        one: [made_track(1, "person"), made_track(2, "bus")],
        other: [made_track(3, "person"), made_track(4, "bus")],
    }

    def spoiled(how: str) -> dict[Path, list[Track]]:
        return {clip: list(tracks) for clip, tracks in gate.spoil(right, how, np.random.default_rng(0)).items()}

    def labels(found: dict[Path, list[Track]]) -> list[list[str | None]]:
        return [[track.label for track in found[clip]] for clip in (one, other)]

    moved = spoiled("shifted")
    assert labels(moved) == labels(spoiled("one video")) == [["person", "bus"]] * 2
    for clip, tracks in right.items():
        for old, new in zip(tracks, moved[clip], strict=True):
            by = new.xyxy - old.xyxy
            assert 0.3 < (by != 0).any(axis=1).mean() < 0.37, "a third of the boxes"
            assert set(np.abs(by[(by != 0).any(axis=1)]).ravel()) == {20.0, 60.0}, "by half their size"
            assert (new.xyxy[:, 2:] - new.xyxy[:, :2] == (40, 120)).all()
    assert labels(spoiled("swapped")) == [["bus", "person"]] * 2
    assert labels(spoiled("left out")) in [[["person", "bus"], [label]] for label in ("person", "bus")]


def test_annotations_of_few_labels_are_spoiled_too() -> None:
    one = {Path("one.mp4"): [made_track(1, "bus")], Path("other.mp4"): [made_track(2, "bus")]}
    none: dict[Path, list[Track]] = {clip: [] for clip in one}

    def labels(right: dict[Path, list[Track]], how: str) -> list[list[str | None]]:
        return [
            [track.label for track in tracks] for tracks in gate.spoil(right, how, np.random.default_rng(0)).values()
        ]

    assert labels(one, "swapped") == [["person"], ["person"]]
    assert labels(one, "left out") == [["bus"], []]
    assert [labels(none, how) for how in gate.SPOILED] == [[[], []]] * len(gate.SPOILED)


def test_decisions_of_the_gate_are_counted_and_kept(tmp_path: Path) -> None:
    facts: dict[str, Any] = {
        "reason": "",
        "held_out": {},
        "map50": (0.1, 0.2),
        "others": {},
        "lost": {},
        "minutes": 1.0,
    }
    results = [
        gate.Result(case=0, spoiled="clean", state="promoted", kept=98, of=100, **facts),
        gate.Result(case=1, spoiled="swapped", state="promoted", kept=96, of=100, **facts),
        gate.Result(case=2, spoiled="swapped", state="refused", kept=20, of=100, **facts),
    ]
    counts = gate.summarize(results)
    assert counts["clean"] == {
        **{"trainings": 1, "promoted": 1, "proposed": 0, "refused": 0},
        **{"losing": 0, "losing, promoted": 0},
    }
    assert counts["swapped"]["losing"] == 2
    assert counts["swapped"]["losing, promoted"] == 1
    out = tmp_path / "gate.jsonl"
    out.write_text("".join(json.dumps(asdict(result)) + "\n" for result in results))
    nothing = tmp_path / "no.mp4"
    again = list(gate.measure(nothing, nothing, tmp_path / "folder", 3, out, {}))
    assert [asdict(result) for result in again] == json.loads(json.dumps([asdict(result) for result in results]))


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
