"""Runs the benchmarks one after the other and writes ``docs/performance.md`` from what they print.

    python benchmarks/report.py [--only NAME ...] [--quick] [--data FOLDER] [--out docs/performance.md]

Figures are kept beside the page as JSON; ``--only`` makes some parts anew and leaves the others as they are, and
``--render`` writes the page without running anything. A part that was never run, or that fails, is left out of the page
or stays as it was. Run it on a machine with nothing else to do: how much of the processor others had is noted.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import cpu_seconds, last_json, own_place  # noqa: E402
from benchmarks.report_parts import PARTS, VIDEO, WEIGHTS, Part, Rows, number, percent  # noqa: E402

PACKAGES = ("torch", "openvino", "nncf", "ultralytics", "av", "opencv-python-headless", "numpy")
#: What makes low precision fast on a processor.
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
#: From this share of the processor on, others are told of beside the figures.
DISTURBED = 0.05


def machine() -> dict[str, Any]:
    """What the figures depend on; nothing that names the machine."""
    import psutil

    facts: dict[str, Any] = {
        "processor": platform.processor() or platform.machine(),
        "instructions": [],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "gpu": _gpu(),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line.partition(":") for line in cpuinfo.read_text().splitlines()]
        known = {name.strip(): value.strip() for name, _, value in reversed(lines)}
        facts["processor"] = known.get("model name", facts["processor"])
        flags = set(known.get("flags", known.get("Features", "")).split())
        facts["instructions"] = [name for name in INSTRUCTIONS if name in flags]
    if hasattr(platform, "freedesktop_os_release"):
        with contextlib.suppress(OSError, KeyError):  # then without the name of the distribution
            facts["system"] = f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {platform.machine()}"
    return facts


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _gpu() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    command = [tool, "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return ", ".join(done.stdout.split("\n")[:-1]) if done.returncode == 0 else ""


def clip_facts(video: Path) -> dict[str, Any]:
    from ml_backend.video.probe import probe

    info = probe(video)
    return {name: getattr(info, name) for name in ("width", "height", "fps", "frames", "duration", "codec")}


def run_part(part: Part, video: Path, weights: Path, quick: bool) -> dict[str, Any]:
    """Run it; its output is seen as it comes.

    Raises:
        ClickException: it has failed.
    """
    places = {VIDEO: str(video), WEIGHTS: str(weights)}
    arguments = (*part.arguments, *(part.quick if quick else ()))
    command = [sys.executable, str(Path(__file__).with_name(part.script)), *(places.get(a, a) for a in arguments)]
    started, own, busy = time.perf_counter(), cpu_seconds(), _busy_seconds()
    lines: list[str] = []
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as process:
        assert process.stdout
        for line in process.stdout:
            lines.append(line)
            if not line.startswith("{"):
                click.echo(f"  {line.rstrip()}", err=True)
    if process.returncode:
        raise click.ClickException(f"{part.script} has failed.")
    seconds = time.perf_counter() - started
    others = max(0.0, _busy_seconds() - busy - (cpu_seconds() - own)) / (seconds * (os.cpu_count() or 1))
    names = {VIDEO: video.name, WEIGHTS: weights.name}
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "command": " ".join(["python", f"benchmarks/{part.script}", *(names.get(a, a) for a in arguments)]),
        "minutes": round(seconds / 60, 1),
        "quick": quick,
        "others": round(others, 3) if part.whole else None,
        "machine": machine(),
        "clip": clip_facts(video),
        "result": last_json("".join(lines)),
    }


def _busy_seconds() -> float:
    """Of all cores of the machine, by whomever."""
    import psutil

    spent = psutil.cpu_times()
    return sum(getattr(spent, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal"))


# -- the page


def page(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """docs/performance.md of the parts that there are."""
    shown = {name: parts[name] for name in PARTS if name in parts}
    machines = _distinct([found["machine"] for found in shown.values()])
    clips = _distinct([found["clip"] for found in shown.values()])
    lines = [
        "# Performance",
        "",
        *_wrapped(
            "Written by `python benchmarks/report.py`; do not edit. The figures themselves are in "
            "[performance.json](performance.json)."
        ),
    ]
    lines += ["To measure on your machine, with nothing else running:", "", "```bash"]
    lines += ["python benchmarks/report.py --data FOLDER   # with people.mp4 and yolo11n.pt in it", "```", ""]
    if not shown:
        lines += ["Nothing has been measured yet.", ""]
    for number_, facts in enumerate(machines, 1):
        lines += [f"## Machine{f' {number_}' if len(machines) > 1 else ''}", "", *_machine_lines(facts), ""]
    for facts in clips:
        lines += [f"The clip: {_clip_line(facts)}.", ""]
    for name, found in shown.items():
        part = PARTS[name]
        where = f" Machine {machines.index(found['machine']) + 1}." if len(machines) > 1 else ""
        if len(clips) > 1:
            where += f" The clip: {_clip_line(found['clip'])}."
        lines += [f"## {part.title}", "", f"    {found['command']}", "", *_wrapped(part.method)]
        lines += _table(part.table(found["result"]))
        lines += ["", *_wrapped(part.remark(found["result"])), *_wrapped(part.limits)]
        lines += [f"{found['date']}, {found['minutes']:g} minutes.{where}{_doubts(found)}", ""]
    return "\n".join(lines)


def _distinct(values: Sequence[Any]) -> list[Any]:
    kept: list[Any] = []
    for value in values:
        if value not in kept:
            kept.append(value)
    return kept


def _machine_lines(facts: Mapping[str, Any]) -> list[str]:
    flags = f" ({', '.join(facts['instructions'])})" if facts["instructions"] else ""
    packages = ", ".join(f"{name} {found}" for name, found in facts["packages"].items())
    return [
        f"- {facts['processor']}{flags}, {facts['cores']} cores, {facts['memory_gb']} GB of memory, "
        f"{facts['gpu'] or 'no GPU'}",
        f"- {facts['system']}",
        f"- Python {facts['python']}, {packages}",
    ]


def _clip_line(facts: Mapping[str, Any]) -> str:
    return (
        f"{facts['width']} × {facts['height']}, {facts['codec']}, {number(facts['frames'])} frames, "
        f"{facts['fps']:g} a second, {facts['duration']:.1f} s"
    )


def _doubts(found: Mapping[str, Any]) -> str:
    text = " **A quick run: rough figures.**" if found["quick"] else ""
    if (found["others"] or 0) >= DISTURBED:
        text += f" **Other work had {percent(found['others'], 0)} of the processor: do not rely on these figures.**"
    return text


def _wrapped(text: str) -> list[str]:
    """A paragraph, and the empty line after it; nothing for none."""
    return [*textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False), ""] if text else []


def _table(rows: Rows) -> list[str]:
    """Markdown; all columns but the first are aligned to the right where they hold figures."""
    header, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    figures = [all(not row[n] or row[n][0].isdigit() for row in body) for n in range(len(header))]
    rule = ["---:" if right and n else "---" for n, right in enumerate(figures)]
    return [f"| {' | '.join(row)} |" for row in (header, rule, *body)]


# -- the command


def known(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))["parts"]) if path.exists() else {}


def write(out: Path, parts: Mapping[str, Any]) -> None:
    """Page and figures; each appears as a whole."""
    ordered = {name: parts[name] for name in PARTS if name in parts}
    text = json.dumps({"parts": ordered}, indent=1, ensure_ascii=False) + "\n"
    for path, content in ((out.with_suffix(".json"), text), (out, page(ordered))):
        part = path.with_name(f".{path.name}.part")
        part.write_text(content, encoding="utf-8")
        part.replace(path)


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
                    parts[name] = run_part(PARTS[name], *files, quick)
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
