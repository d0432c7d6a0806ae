"""One long video by one process in one pass, by one in segments, and by two that share the segments.

    python benchmarks/workers.py VIDEO --weights yolo11n.pt [--times 24] [--segment-s 60]

The clip is repeated. What the jobs of two workers do to a video runs here in processes of their own, with a real Redis
and without Label Studio: one observes and tracks, the other helps with segments from the end. Seconds and CPU time
(user and system, of all threads and both processes) count from when models are loaded, and have seen a frame, to the
last track; what runs the network is made before. The tracks have to be the same, or the benchmark fails. Where a single
process keeps all cores busy a second one cannot make it faster: what counts there is how little CPU time segments and
sharing add. Prints a table and, as the last line, JSON.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import (  # noqa: E402
    cpu_seconds,
    detector_of,
    in_child,
    last_json,
    make_engine,
    own_place,
    peak_mb,
    repeat_video,
    settings_for,
)

if TYPE_CHECKING:
    from ml_backend.jobs.segment_board import Board
    from ml_backend.segments import Look, Segment
    from ml_backend.settings import Settings
    from ml_backend.types import Observation, VideoInfo

READY = "ready"
PATIENCE_S = 600.0


def board_of(settings: Settings, key: str, *, helping: bool = False) -> Board:
    from ml_backend.jobs.queue import JobQueue
    from ml_backend.jobs.segment_board import Board
    from ml_backend.training.artifacts import Artifacts

    return Board(JobQueue(settings), Artifacts(settings), key, helping=helping)


def track(video: Path, settings: Settings, key: str) -> dict[str, Any]:
    """As the job that predicts; with a key in segments, as :class:`ml_backend.jobs.segments.Sharing` does it."""
    from ml_backend.pipeline import detect_tracks, use_detector, video_timeline
    from ml_backend.segments import observe_together
    from ml_backend.video.probe import probe
    from ml_backend.video.reader import read_frames

    resolved, info, rate = detector_of(settings), probe(video), video_timeline(video).frame_rate
    board = board_of(settings, key)
    cut = [1]

    def share(_info: VideoInfo, segments: Sequence[Segment], look: Look) -> Generator[Observation, None, None]:
        def watched(segment: Segment) -> Iterator[Observation]:
            for n, observation in enumerate(look(segment), 1):
                board.tell(segment, n)
                yield observation

        cut[0] = len(segments)
        board.open(len(segments))
        with board.working():
            yield from observe_together(segments, board, watched)

    with use_detector(resolved, settings, info) as detector:  # it stays loaded
        detector.detect([next(read_frames(video, info)).image])
    started, before = time.perf_counter(), cpu_seconds()
    tracks = detect_tracks(video, rate, settings, resolved, share=share if key else None)
    if key:
        board.close(cut[0])
    seconds, cpu = time.perf_counter() - started, cpu_seconds() - before
    found = json.dumps([tracks.tracks], default=_plain, sort_keys=True)
    return {
        "frames": tracks.frames,
        "seconds": seconds,
        "cpu_s": cpu,
        "peak_mb": peak_mb(),
        "segments": cut[0],
        "tracks": len(tracks.tracks),
        "digest": hashlib.sha256(found.encode()).hexdigest()[:16],
    }


def _plain(value: Any) -> Any:
    from dataclasses import asdict

    return asdict(value)


def lend_a_hand(video: Path, settings: Settings, key: str) -> dict[str, Any]:
    """As the job ``help_observe``, from when the video is begun."""
    from ml_backend.errors import Interrupted
    from ml_backend.pipeline import detection_stride, segment_look, segments_of, use_detector
    from ml_backend.segments import observe_some
    from ml_backend.video.probe import probe
    from ml_backend.video.reader import read_frames

    resolved, info, board = detector_of(settings), probe(video), board_of(settings, key, helping=True)
    stride = detection_stride(settings, resolved, info)
    segments = segments_of(video, info, stride, settings)
    done: list[int] = []
    with use_detector(resolved, settings, info) as detector:
        detector.detect([next(read_frames(video, info)).image])
        look = segment_look(video, info, resolved, settings)

        def watched(segment: Segment) -> Iterator[Observation]:
            for n, observation in enumerate(look(segment), 1):
                if board.tell(segment, n) and not board.is_open:
                    raise Interrupted("The video is done.")
                yield observation
            done.append(segment.number)

        print(READY, flush=True)
        deadline = time.monotonic() + PATIENCE_S
        while not board.is_open:
            if time.monotonic() > deadline:
                raise click.ClickException("Nobody has begun.")
            time.sleep(0.05)
        before = cpu_seconds()
        # What it is at when the video is done was not needed; it counts all the same.
        with contextlib.suppress(Interrupted), board.working():
            observe_some(segments, board, watched, lambda: False)
    return {"cpu_s": cpu_seconds() - before, "peak_mb": peak_mb(), "segments": len(done)}


@contextlib.contextmanager
def helping(arguments: Sequence[object], log: Path) -> Iterator[subprocess.Popen[str]]:
    """A helper that waits for the video to be begun."""
    with log.open("w") as errors:
        command = [sys.executable, __file__, *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        assert process.stdout
        if process.stdout.readline().strip() != READY:
            raise click.ClickException(f"The helper did not start:\n{log.read_text()[-3000:]}")
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@click.command()
@click.argument("video", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--weights", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--times", default=24, show_default=True, help="How often the clip is repeated.")
@click.option("--segment-s", default=60.0, show_default=True, help="Seconds of a segment.")
@click.option("--role", type=click.Choice(["track", "help"]), hidden=True)
@click.option("--key", default="", hidden=True)
def main(video: Path, weights: Path, times: int, segment_s: float, role: str | None, key: str) -> None:
    if role:
        settings = settings_for(weights, segment_s=segment_s)
        print(json.dumps((track if role == "track" else lend_a_hand)(video, settings, key)))
        return
    from ml_backend.local.processes import RedisServer

    rows: dict[str, dict[str, Any]] = {}
    with own_place() as folder:
        long = folder / f"long{video.suffix}"
        repeat_video(video, long, times)
        make_engine(video, weights)
        redis = RedisServer(folder / "redis", log_dir=folder, environment=os.environ)
        redis.start()
        try:
            redis.wait_ready(30)
            os.environ["REDIS_URL"] = redis.url
            common = (long, "--weights", weights, "--segment-s", segment_s, "--role")
            rows["one process, one pass"] = in_child(__file__, *common, "track")
            rows["one process, segments"] = in_child(__file__, *common, "track", "--key", uuid.uuid4().hex)
            if rows["one process, segments"]["segments"] < 2:  # nobody would be asked for help
                raise click.ClickException("It is too short: repeat it more often, or take shorter segments than now.")
            key = uuid.uuid4().hex
            with helping((*common, "help", "--key", key), folder / "helper.log") as process:
                row = in_child(__file__, *common, "track", "--key", key)
                rest, _ = process.communicate(timeout=PATIENCE_S)
            if process.returncode:
                raise click.ClickException(f"The helper failed:\n{(folder / 'helper.log').read_text()[-3000:]}")
            helper = last_json(rest)
            row["cpu_s"] += helper["cpu_s"]
            row["peak_mb"] = max(row["peak_mb"], helper["peak_mb"])
            rows["two processes"] = row | {"helped_with": helper["segments"]}
        finally:
            redis.stop()
            os.environ.pop("REDIS_URL", None)
    first = next(iter(rows.values()))
    for name, row in rows.items():
        row["fps"] = round(row["frames"] / row["seconds"], 1)
        row["cpu_ratio"] = round(row["cpu_s"] / first["cpu_s"], 3)
        row["fps_ratio"] = round(row["fps"] / first["fps"], 3)
        print(
            f"{name:22} {row['frames']:6} frames {row['segments']:3} segments {row['seconds']:7.1f} s "
            f"{row['fps']:6.1f} frames/s ({row['fps_ratio']:.2f}x)  "
            f"{row['cpu_s']:7.1f} CPU s ({row['cpu_ratio']:.3f}x) {row['tracks']:4} tracks "
            f"{row['digest']}  peak {row['peak_mb']:.0f} MB"
            + (f"  helped with {row['helped_with']}" if "helped_with" in row else "")
        )
    cores = os.cpu_count()
    identical = len({row["digest"] for row in rows.values()}) == 1
    print(f"{cores} cores; tracks are {'identical' if identical else 'NOT identical'}")
    print(json.dumps({"cores": cores, "segment_s": segment_s, "identical": identical, "rows": rows}))
    if not identical:
        raise click.ClickException("Tracks differ.")


if __name__ == "__main__":
    main()
