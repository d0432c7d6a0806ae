"""Runs the benchmarks one after the other and writes ``docs/performance.md`` from what they print.

    python benchmarks/report.py [--only NAME ...] [--quick] [--data FOLDER] [--out docs/performance.md]

Figures are kept beside the page as JSON; ``--only`` makes some parts anew and leaves the others as they are, and
``--render`` writes the page without running anything. A part that was never run is left out of the page, one that fails
stays as it was. Run it on a machine with nothing else to do.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import last_json, own_place  # noqa: E402

PACKAGES = ("torch", "openvino", "ultralytics", "av", "opencv-python-headless", "numpy")
#: From this line on the page is written by hand.
EARLIER = "## Earlier measurements"
#: What is put in the place of these words of a command.
VIDEO, WEIGHTS, DATA = "VIDEO", "WEIGHTS", "DATA"


@dataclass(frozen=True, slots=True)
class Part:
    """One benchmark: ``benchmarks/<name>.py``. What it measures, its docstring says.

    Attributes:
        arguments: of its command; ``quick`` ones are added for a rough run, and win.
    """

    title: str
    arguments: tuple[str, ...]
    quick: tuple[str, ...]


_ON_VIDEO = (VIDEO, "--weights", WEIGHTS)

#: In the order of the page.
PARTS = {
    "pipeline": Part("A prediction beside a plain loop", (*_ON_VIDEO, "--precision", "int8"), ("--repeat", "2")),
    "tracking": Part(
        "Tracks of each stride beside those of stride 1",
        (*_ON_VIDEO, "--strides", "1,2,3", "--precision", "int8"),
        ("--strides", "1,3"),
    ),
    "few_shot": Part("Labels from few examples", ("--data", DATA), ("--draws", "5")),
    "retraining": Part(
        "Retraining, and serving meanwhile", _ON_VIDEO, ("--epochs", "2", "--events", "100", "--seconds", "2")
    ),
    "export": Part("Export", (VIDEO,), ("--rounds", "1", "--repeat", "2", "--no-hour")),
    "render": Part("Rendering", (VIDEO,), ("--rounds", "1", "--repeat", "2")),
    "api": Part("API latency", _ON_VIDEO, ("--clients", "10", "--seconds", "3")),
}


def machine() -> str:
    """What the figures depend on; nothing that names the machine."""
    import psutil

    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = models[0] if models else processor
    gpu = "no GPU"
    if tool := shutil.which("nvidia-smi"):
        command = [tool, "--query-gpu=name", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        gpu = ", ".join(done.stdout.splitlines()) or gpu
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    memory = round(psutil.virtual_memory().total / 2**30)
    return (
        f"{processor}, {os.cpu_count()} cores, {memory} GB of memory, {gpu}; {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}, {packages}"
    )


def clip_of(video: Path) -> str:
    from ml_backend.video.probe import probe

    info = probe(video)
    return f"{info.width} × {info.height}, {info.codec}, {info.frames} frames, {info.fps:g} a second"


def run_part(name: str, part: Part, video: Path, weights: Path, quick: bool) -> dict[str, Any]:
    """Run it; its output is seen as it comes.

    Raises:
        ClickException: it has failed.
    """
    places = {VIDEO: video, WEIGHTS: weights, DATA: video.parent}
    arguments = (*part.arguments, *(part.quick if quick else ()))
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *(str(places.get(a, a)) for a in arguments)]
    started, load = time.perf_counter(), os.getloadavg()[0]
    lines: list[str] = []
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as process:
        assert process.stdout
        for line in process.stdout:
            lines.append(line)
            if not line.startswith("{"):
                click.echo(f"  {line.rstrip()}", err=True)
    if process.returncode:
        raise click.ClickException(f"{name}.py has failed.")
    shown = (places[a].name if a in places else a for a in arguments)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "command": " ".join(["python", f"benchmarks/{name}.py", *shown]),
        "minutes": round((time.perf_counter() - started) / 60, 1),
        "load": round(load, 1),
        "quick": quick,
        "machine": machine(),
        "clip": clip_of(video),
        "output": "".join(lines[:-1]).strip("\n"),
        "result": last_json(lines[-1] if lines else ""),
    }


# -- the page


def page(parts: Mapping[str, Mapping[str, Any]], earlier: str = "") -> str:
    """docs/performance.md of the parts that there are, and what was written by hand."""
    lines = [
        "# Performance",
        "",
        f"Written by `python benchmarks/report.py` as far as “{EARLIER.strip('# ')}”; the figures themselves are in",
        "[performance.json](performance.json). What each benchmark measures is said at the top of its file. To measure",
        "on your machine, with nothing else running:",
        "",
        "```bash",
        "python benchmarks/report.py --data FOLDER   # with people.mp4 and yolo11n.pt in it",
        "```",
        "",
    ]
    if not parts:
        lines += ["Nothing has been measured yet.", ""]
    before = ""
    for name, found in ((name, parts[name]) for name in PARTS if name in parts):
        lines += [f"## {PARTS[name].title}", "", f"    {found['command']}", "", "```text", found["output"], "```", ""]
        load = f", begun at a load of {found['load']:g}" if "load" in found else ""
        rough = " **A quick run: rough figures.**" if found["quick"] else ""
        lines += [f"{found['date']}, {found['minutes']:g} minutes{load}.{rough}", ""]
        if (where := f"Machine: {found['machine']}. The clip: {found['clip']}.") != before:
            lines += [where, ""]
        before = where
    return "\n".join(lines) + (f"\n{earlier}" if earlier else "")


def known(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))["parts"]) if path.is_file() else {}


def write(out: Path, parts: Mapping[str, Any]) -> None:
    """The page and its figures."""
    before = out.read_text(encoding="utf-8") if out.is_file() else ""
    earlier = EARLIER + before.partition(EARLIER)[2] if f"\n{EARLIER}" in before else ""
    kept = {name: parts[name] for name in PARTS if name in parts}
    out.with_suffix(".json").write_text(json.dumps({"parts": kept}, indent=1) + "\n", encoding="utf-8")
    out.write_text(page(parts, earlier), encoding="utf-8")


@click.command(help=__doc__)
@click.option("--only", multiple=True, type=click.Choice(list(PARTS)), help="A part; may be given several times.")
@click.option("--quick", is_flag=True, help="Rough figures, to see whether everything runs.")
@click.option("--render", is_flag=True, help="Run nothing.")
@click.option("--data", default=ROOT.parent / "shared" / "data", type=click.Path(path_type=Path), help="Two files.")
@click.option("--video", default="people.mp4", show_default=True, help="Its clip.")
@click.option("--weights", default="yolo11n.pt", show_default=True, help="Its detector.")
@click.option("--out", default=ROOT / "docs" / "performance.md", type=click.Path(dir_okay=False, path_type=Path))
def main(only: tuple[str, ...], quick: bool, render: bool, data: Path, video: str, weights: str, out: Path) -> None:
    parts = known(out.with_suffix(".json"))
    failed: list[str] = []
    if not render:
        files = [(data / name).absolute() for name in (video, weights)]
        for path in files:
            if not path.is_file():
                raise click.ClickException(f"{path} is not there; give the folder that holds it with --data.")
        with own_place():
            for name in only or PARTS:
                click.echo(f"{name} ...", err=True)
                try:
                    parts[name] = run_part(name, PARTS[name], *files, quick)
                except (click.ClickException, ValueError) as error:
                    click.echo(f"  {error}", err=True)
                    failed.append(name)
                    continue
                write(out, parts)  # hours of work are not lost with the last part
    write(out, parts)
    print(json.dumps({"parts": [name for name in PARTS if name in parts], "failed": failed}))
    if failed:
        raise click.ClickException(f"Without new figures: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
