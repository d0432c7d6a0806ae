"""The parts of docs/performance.md: which benchmark makes each, and how its figures are told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Rows = list[list[str]]
#: What is put in the place of these words of a command.
VIDEO, WEIGHTS = "VIDEO", "WEIGHTS"


@dataclass(frozen=True, slots=True)
class Part:
    """One benchmark.

    Attributes:
        script: in ``benchmarks``.
        arguments: of its command; ``quick`` ones are added for a rough run, and win.
        method: what is in the measure, and what is not.
        limits: what the figures do not say.
        table: header and rows, from what the benchmark has printed last.
        remark: a sentence with further figures.
        whole: all its processes are children that are waited for, so that other work can be told from its own.
    """

    title: str
    script: str
    arguments: tuple[str, ...]
    quick: tuple[str, ...]
    method: str
    limits: str
    table: Callable[[Mapping[str, Any]], Rows]
    remark: Callable[[Mapping[str, Any]], str] = lambda _: ""
    whole: bool = True


def number(value: float | None, digits: int = 0) -> str:
    """With commas between thousands; nothing for ``None``."""
    return "" if value is None else f"{value:,.{digits}f}"


def times(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}×"


def percent(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{100 * value:.{digits}f} %"


def _pipeline(found: Mapping[str, Any]) -> Rows:
    rows = [["", "frames/s", "to the plain loop", "CPU ms a frame", "peak MB", "tracks", "keyframes", "of boxes"]]
    rows[0] += ["lowest IoU", "engine"]
    for name, row in found["rows"].items():
        rows.append(
            [
                name,
                number(row["fps"], 1),
                times(row["fps_ratio"]),
                number(row["cpu_ms_per_frame"], 1),
                number(row["peak_mb"]),
                number(row["tracks"]),
                number(row["keyframes"]),
                percent(row["keyframes"] / max(row["boxes"], 1)),
                number(row.get("lowest_iou"), 3),
                row.get("engine", "torch fp32"),
            ]
        )
    return rows


def _scaling(found: Mapping[str, Any]) -> Rows:
    rows = [["length", "frames", "frames/s", "to the shortest", "CPU ms a frame", "peak MB", "to the shortest"]]
    for name, row in found["rows"].items():
        rows.append(
            [
                name.replace("x", "×"),
                number(row["frames"]),
                number(row["fps"], 1),
                times(row["fps_ratio"]),
                number(row["cpu_ms_per_frame"], 1),
                number(row["peak_mb"]),
                times(row["memory_ratio"]),
            ]
        )
    return rows


def _workers(found: Mapping[str, Any]) -> Rows:
    rows = [["", "seconds", "frames/s", "to one pass", "CPU s", "to one pass", "segments", "done by the helper"]]
    rows[0].append("peak MB of one")
    for name, row in found["rows"].items():
        rows.append(
            [
                name,
                number(row["seconds"], 1),
                number(row["fps"], 1),
                times(row["fps_ratio"]),
                number(row["cpu_s"], 1),
                times(row["cpu_ratio"]),
                number(row["segments"]),
                number(row.get("helped_with")),
                number(row["peak_mb"]),
            ]
        )
    return rows


def _workers_remark(found: Mapping[str, Any]) -> str:
    same = "are identical" if found["identical"] else "are **not** identical"
    row = next(iter(found["rows"].values()))
    return (
        f"{number(row['frames'])} frames on {found['cores']} cores, in segments of {found['segment_s']:g} s. "
        f"The {number(row['tracks'])} tracks of all rows {same}."
    )


def _engines(found: Mapping[str, Any]) -> Rows:
    rows = [["engine", "precision", "frames/s", "matched", "difference of confidence", "memory MB", "made in"]]
    rows[0].append("remark")
    for row in found["engines"]:
        made = row.get("made_s")
        rows.append(
            [
                row["engine"],
                row.get("precision", ""),
                number(row.get("frames_per_s"), 1),
                percent(row.get("matched")),
                number(row.get("conf_difference"), 4),
                number(row.get("memory_mb")),
                "" if made is None else f"{made:g} s",
                row.get("note", ""),
            ]
        )
    return rows


def _strides(found: Mapping[str, Any]) -> Rows:
    speed = any("fps" in row for row in found["rows"])
    rows = [["STRIDE", "engine", "frames looked at", "frames/s", "tracks", "HOTA", "DetA", "AssA", "IDF1", "switches"]]
    for row in found["rows"]:
        rows.append(
            [
                f"**{row['stride']}** (default)" if row["default"] else str(row["stride"]),
                row["engine"],
                percent(row["looked_at"]),
                number(row.get("fps"), 1),
                number(row["tracks"]),
                *(number(row[name], 3) for name in ("HOTA", "DetA", "AssA", "IDF1")),
                number(row["IDSW"]),
            ]
        )
    return rows if speed else [row[:3] + row[4:] for row in rows]


def _strides_remark(found: Mapping[str, Any]) -> str:
    longest = found["longest_s"]
    return (
        f"A prediction takes no stride of more than {longest:g} s, {round(longest * found['rate'])} frames here, "
        "whatever `STRIDE` says: longer ones are forced, to show why."
    )


def _embedding(found: Mapping[str, Any]) -> Rows:
    rows = [["embedder", "crops/s", "bare network, crops/s", "ours to the bare network", "device"]]
    for name, row in found["rows"].items():
        rows.append([name, number(row["ours"], 1), number(row["bare"], 1), times(row["ratio"]), row["device"]])
    return rows


_EXPORTS = {"limit": "decode + JPEG", "yolo": "YOLO dataset", "annotations": "annotations.json"}


def _export(found: Mapping[str, Any]) -> Rows:
    rows = [["", "frames", "boxes", "seconds", "frames/s", "peak MB"]]
    for name, row in found["rows"].items():
        kind, _, length = name.partition(" ")
        title = _EXPORTS.get(kind, kind) + (f", {length}" if length else "")
        rate = row["frames"] / row["seconds"]
        cells = number(row["frames"]), number(row.get("boxes")), number(row["seconds"], 2), number(rate, 1)
        rows.append([title, *cells, number(row["mb"])])
    return rows


def _render(found: Mapping[str, Any]) -> Rows:
    rows = [["", "frames", "frames/s", "CPU s", "peak MB"]]
    for name, row in found["rows"].items():
        cells = number(row["frames"]), number(row["fps"], 1), number(row["cpu_s"], 1), number(row["peak_mb"])
        rows.append([name, *cells])
    return rows


def _api(found: Mapping[str, Any]) -> Rows:
    rows = [["", "answers a second", "median ms", "p99 ms", "worst ms", "errors"]]
    for name, row in found["answers"].items():
        cells = [number(row[key], 1) for key in ("per_second", "median_ms", "p99_ms", "worst_ms")]
        rows.append([f"`{name}`" if name.startswith("/") else name, *cells, number(sum(row["errors"].values()))])
    return rows


def _api_remark(found: Mapping[str, Any]) -> str:
    pages = found["page"]
    heaviest = max(row["bytes"] for row in pages.values())
    slowest = max(row["interactive_ms"] for row in pages.values())
    return (
        f"{found['clients']} clients. The control room weighs {number(heaviest / 1000)} kB at most in "
        f"{number(max(row['requests'] for row in pages.values()))} requests, and can be used after "
        f"{number(slowest)} ms at most, with an empty cache."
    )


def _start(found: Mapping[str, Any]) -> Rows:
    rows = [["", "best s", "median s", "worst s"]]
    for name, row in found["times"].items():
        rows.append([name, *(number(row[key], 2) for key in ("best_s", "median_s", "worst_s"))])
    return rows


_ON_VIDEO = (VIDEO, "--weights", WEIGHTS)

#: In the order of the page.
PARTS: dict[str, Part] = {
    "pipeline": Part(
        "A prediction beside a plain loop",
        "pipeline.py",
        (*_ON_VIDEO, "--precision", "int8"),
        ("--repeat", "2"),
        'The plain loop is `YOLO.track(stream=True, tracker="botsort.yaml")` of the ultralytics package, with a box '
        "per track and frame. Ours is all of a prediction: decoding, detection, tracking, management of tracks, labels "
        'and keyframes; "exact" with `STRIDE=1`. Each row is a process of its own, and counts from the first frame to '
        "the last region: models are loaded, have seen a frame, and the engine was made before. CPU time is user and "
        "system time of all threads, memory the peak of the whole process, Python and libraries included.",
        "One clip of one kind, each row once. The plain loop runs on PyTorch at the same input size. int8 was made "
        "with pictures of this clip, as it is with a project's own videos. Repetitions of the clip look alike, and the "
        "last row keeps all boxes of all tracks for the comparison: for memory see the next table.",
        _pipeline,
    ),
    "scaling": Part(
        "Length",
        "scaling.py",
        _ON_VIDEO,
        ("--times", "1,3"),
        "The clip is repeated by copying packets. Each length is predicted by a process of its own, as by a worker, "
        "with the default settings; what counts is as above.",
        "The videos are as crowded all along as the clip is.",
        _scaling,
    ),
    "workers": Part(
        "Workers",
        "workers.py",
        _ON_VIDEO,
        ("--times", "2", "--segment-s", "5"),
        "One long video by one process in one pass, by one in segments, and by two that share the segments through a "
        "real Redis and a folder, as workers do. Label Studio and the queue's jobs are left out, and so is loading "
        "models. CPU time is that of both processes.",
        "The processes share the machine: where one keeps all cores busy, two are not faster. What counts then is the "
        "CPU time that segments and sharing add; 1.10× is the aim.",
        _workers,
        _workers_remark,
    ),
    "engines": Part(
        "Engines",
        "engines.py",
        _ON_VIDEO,
        ("--frames", "16", "--rounds", "1"),
        "Every engine sees the same decoded frames, spread over the clip and reduced as in a prediction, in its own "
        "process; they take turns, and the fastest round counts. Detection alone: neither decoding nor tracking. "
        '"Matched" is the share of PyTorch\'s boxes, down to the lowest confidence that reaches the tracker, that are '
        "found too at an IoU of 0.9.",
        "An engine that this machine does not have is listed with the reason.",
        _engines,
    ),
    "strides": Part(
        "Strides",
        "strides.py",
        (*_ON_VIDEO, "--precision", "int8", "--speed"),
        ("--strides", "1,3"),
        "Our tracks of each `STRIDE` beside our own tracks of stride 1 on the default engine, which take the place of "
        'ground truth: HOTA, DetA, AssA and IDF1 as TrackEval computes them, summed over the classes. "Looked at" is '
        "the share of frames that went through the network. Frames per second are of a second run of each, in which "
        "nothing is remembered.",
        "This says how far a stride's tracks are from the exact ones, not how good either is.",
        _strides,
        _strides_remark,
    ),
    "embedding": Part(
        "Embedding",
        "embedding.py",
        ("--video", VIDEO),
        ("--crops", "8", "--rounds", "1"),
        "Crops of 60 to 400 pixels' height, cut from the clip. The bare network gets tensors that are ready; ours "
        "scales, pads, normalises, pools and checks besides. Both take turns, and the best round of each counts.",
        "Networks with random weights have the real size, and are as fast as trained ones.",
        _embedding,
        lambda found: f"{found['crops']} crops.",
    ),
    "export": Part(
        "Export",
        "export.py",
        (VIDEO,),
        ("--rounds", "1", "--repeat", "2", "--no-hour"),
        "A YOLO dataset of every frame, with 25 synthetic objects at any time, beside its limit: decoding the clip and "
        "encoding each frame as a JPEG, with nothing written. Each in a process of its own, in turn; medians. "
        "`annotations.json` has every frame's boxes. The hour takes every 30th frame.",
        "The disk is the machine's own, and its cache is warm.",
        _export,
        lambda found: f"The export reaches {percent(found['share_of_limit'])} of its limit's speed.",
    ),
    "render": Part(
        "Rendering",
        "render.py",
        (VIDEO,),
        ("--rounds", "1", "--repeat", "2"),
        "The clip with 24 objects, trails and a legend drawn on it, beside decoding and encoding it alone. Each in a "
        "process of its own, in turn; the best of each counts. The start of Python is left out.",
        "H.264 on the processor; no hardware encoder is used.",
        _render,
        lambda found: (
            f"Drawing included, it reaches {percent(found['speed_ratio'])} of the speed, and takes "
            f"{times(1 / found['cpu_ratio'])} the CPU time."
        ),
    ),
    "api": Part(
        "API latency",
        "api.py",
        _ON_VIDEO,
        ("--clients", "10", "--seconds", "3", "--loads", "1"),
        "A whole local stack, with copies of the clip being predicted and a training under way all the while. Each "
        "client has a connection of its own and asks again without a pause; times are until the body's first byte.",
        "Clients, servers, prediction and training share the machine.",
        _api,
        _api_remark,
        whole=False,
    ),
    "start": Part(
        "Start",
        "start.py",
        ("--weights", WEIGHTS),
        ("--runs", "1"),
        "The web process under gunicorn, with a database that it has to make first. `/health` counts from the start of "
        "the process to its first answer; each other request is the first of a process, sent right after that, while "
        "what will be needed is still being loaded. A first run, which fills the disk cache, does not count.",
        "Python's compiled files are there; without them, as after a fresh installation, the first start takes longer.",
        _start,
        whole=False,
    ),
}
