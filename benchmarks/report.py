"""Run the benchmarks in sequence and write ``docs/performance.md`` from their output.

    python benchmarks/report.py [--only NAME ...] [--quick] [--data FOLDER] [--out docs/performance.md]

Results are kept beside the page as JSON; ``--only`` updates some of them, and ``--render`` writes the page without
running anything. A benchmark that was never run is left out of the page; one that fails keeps its last result. Run it
on an idle machine.
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

from benchmarks.measuring import last_json, temporary_data_dir  # noqa: E402

PACKAGES = ("torch", "openvino", "ultralytics", "av", "opencv-python-headless", "numpy")
#: The page is written by hand from this line on.
EARLIER = "## Earlier measurements"
#: Placeholders in command arguments.
VIDEO, WEIGHTS, DATA = "VIDEO", "WEIGHTS", "DATA"


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark, ``benchmarks/<name>.py``; its docstring describes what it measures.

    Attributes:
        title: heading on the page.
        arguments: command-line arguments.
        quick: arguments that are appended for a rough run, overriding the others.
    """

    title: str
    arguments: tuple[str, ...]
    quick: tuple[str, ...]


_ON_VIDEO = (VIDEO, "--weights", WEIGHTS)

#: By name, in the order of the page.
BENCHMARKS = {
    "pipeline": Benchmark(
        "A prediction beside a plain loop", (*_ON_VIDEO, "--repeat", "60"), ("--rounds", "1", "--repeat", "2")
    ),
    "workers": Benchmark("Queue and workers", _ON_VIDEO, ("--clips", "5")),
    "tracking": Benchmark(
        "Tracks of each stride beside those of stride 1",
        (*_ON_VIDEO, "--strides", "1,2,3", "--precision", "int8"),
        ("--strides", "1,3"),
    ),
    "few_shot": Benchmark("Labels from few examples", ("--data", DATA), ("--draws", "5")),
    "retraining": Benchmark(
        "Retraining, and serving meanwhile",
        _ON_VIDEO,
        ("--epochs", "2", "--events", "100", "--seconds", "2", "--renewals", "2"),
    ),
    "export": Benchmark("Export", (VIDEO,), ("--rounds", "1", "--repeat", "2", "--no-hour")),
    "render": Benchmark("Rendering", (VIDEO,), ("--rounds", "1", "--repeat", "2")),
    "api": Benchmark("API latency", _ON_VIDEO, ("--clients", "10", "--seconds", "3")),
}


def describe_machine() -> str:
    """Describe hardware and packages, without the host name."""
    import psutil

    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = models[0] if models else processor
    gpu = "no GPU"
    if tool := shutil.which("nvidia-smi"):
        command = [tool, "--query-gpu=name", "--format=csv,noheader"]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        gpu = ", ".join(process.stdout.splitlines()) or gpu
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    memory = round(psutil.virtual_memory().total / 2**30)
    return (
        f"{processor}, {os.cpu_count()} cores, {memory} GB of memory, {gpu}; {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}, {packages}"
    )


def describe_clip(video: Path) -> str:
    from ml_backend.video.probe import probe

    info = probe(video)
    return f"{info.width} × {info.height}, {info.codec}, {info.frames} frames, {info.fps:g} a second"


def run_benchmark(name: str, benchmark: Benchmark, video: Path, weights: Path, quick: bool) -> dict[str, Any]:
    """Run a benchmark, streaming its output to stderr; return its result.

    Raises:
        ClickException: the benchmark failed.
    """
    paths = {VIDEO: video, WEIGHTS: weights, DATA: video.parent}
    arguments = (*benchmark.arguments, *(benchmark.quick if quick else ()))
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *(str(paths.get(a, a)) for a in arguments)]
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
    shown = (paths[a].name if a in paths else a for a in arguments)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "command": " ".join(["python", f"benchmarks/{name}.py", *shown]),
        "minutes": round((time.perf_counter() - started) / 60, 1),
        "load": round(load, 1),
        "quick": quick,
        "machine": describe_machine(),
        "clip": describe_clip(video),
        "output": "".join(lines[:-1]).strip("\n"),
        "result": last_json(lines[-1] if lines else ""),
    }


# -- the page


def page(results: Mapping[str, Mapping[str, Any]], earlier: str = "") -> str:
    """Return docs/performance.md for these results, followed by the handwritten ``earlier``."""
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
    if not results:
        lines += ["Nothing has been measured yet.", ""]
    last_setup = ""
    for name, result in ((name, results[name]) for name in BENCHMARKS if name in results):
        lines += [
            f"## {BENCHMARKS[name].title}",
            "",
            f"    {result['command']}",
            "",
            "```text",
            result["output"],
            "```",
            "",
        ]
        load = f", begun at a load of {result['load']:g}" if "load" in result else ""
        rough = " **A quick run: rough figures.**" if result["quick"] else ""
        lines += [f"{result['date']}, {result['minutes']:g} minutes{load}.{rough}", ""]
        if (setup := f"Machine: {result['machine']}. The clip: {result['clip']}.") != last_setup:
            lines += [setup, ""]
        last_setup = setup
    return "\n".join(lines) + (f"\n{earlier}" if earlier else "")


def load_results(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))["parts"]) if path.is_file() else {}


def write(out: Path, results: Mapping[str, Any]) -> None:
    """Write the page and its results."""
    old_page = out.read_text(encoding="utf-8") if out.is_file() else ""
    earlier = EARLIER + old_page.partition(EARLIER)[2] if f"\n{EARLIER}" in old_page else ""
    ordered = {name: results[name] for name in BENCHMARKS if name in results}
    out.with_suffix(".json").write_text(json.dumps({"parts": ordered}, indent=1) + "\n", encoding="utf-8")
    out.write_text(page(results, earlier), encoding="utf-8")


@click.command(help=__doc__)
@click.option(
    "--only", multiple=True, type=click.Choice(list(BENCHMARKS)), help="Run only this benchmark; may be repeated."
)
@click.option("--quick", is_flag=True, help="Rough results, to check that everything runs.")
@click.option("--render", is_flag=True, help="Only write the page.")
@click.option(
    "--data",
    default=ROOT.parent / "shared" / "data",
    type=click.Path(path_type=Path),
    help="Folder of the video and the weights.",
)
@click.option("--video", default="people.mp4", show_default=True, help="File name of the video.")
@click.option("--weights", default="yolo11n.pt", show_default=True, help="File name of the weights.")
@click.option("--out", default=ROOT / "docs" / "performance.md", type=click.Path(dir_okay=False, path_type=Path))
def main(only: tuple[str, ...], quick: bool, render: bool, data: Path, video: str, weights: str, out: Path) -> None:
    results = load_results(out.with_suffix(".json"))
    failed: list[str] = []
    if not render:
        files = [(data / name).absolute() for name in (video, weights)]
        for path in files:
            if not path.is_file():
                raise click.ClickException(f"{path} does not exist; set its folder with --data.")
        with temporary_data_dir():
            for name in only or BENCHMARKS:
                click.echo(f"{name} ...", err=True)
                try:
                    results[name] = run_benchmark(name, BENCHMARKS[name], *files, quick)
                except (click.ClickException, ValueError) as error:
                    click.echo(f"  {error}", err=True)
                    failed.append(name)
                    continue
                write(out, results)  # after each benchmark, since all take hours
    write(out, results)
    print(json.dumps({"parts": [name for name in BENCHMARKS if name in results], "failed": failed}))
    if failed:
        raise click.ClickException(f"No new results of: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
