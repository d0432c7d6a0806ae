"""What is lost by not looking at every frame: tracks of each stride beside those of stride 1, which is exact.

    python benchmarks/strides.py VIDEO --weights yolo11n.pt [--strides 1,2,3,4,6,8] [--precision int8] [--speed]

The detector sees each frame once, and what it has found is given to every stride that looks there; decoding, camera
motion, colours, tracking and the management of tracks run as ever. Scores are TrackEval's, with the exact tracks in the
place of ground truth, per class and summed. With ``--precision int8`` its tracks are compared too, with the exact ones
of the default precision. ``--speed`` runs each stride once more with a detector that remembers nothing, for frames per
second. A prediction takes at most the stride that is a tenth of a second long, whatever STRIDE says: larger ones show
why. Prints a table and, as the last line, JSON.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import detector_of, engine_name, make_engine, numbers, own_place, settings_for  # noqa: E402

if TYPE_CHECKING:
    from ml_backend.models.detector import Detector
    from ml_backend.settings import Settings
    from ml_backend.tracks.metrics import Rows
    from ml_backend.types import Detections, Image, Track

SCORES = ("HOTA", "DetA", "AssA", "IDF1", "IDSW")


class Remembering:
    """A detector that looks at each picture once. Counts what it is asked for."""

    def __init__(self, detector: Detector) -> None:
        self._detector, self.names, self.at_once = detector, detector.names, 1
        self._found: dict[bytes, Detections] = {}
        self.asked = 0

    def working_size(self, width: int, height: int) -> tuple[int, int]:
        return self._detector.working_size(width, height)

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        self.asked += len(images)
        names = [hashlib.blake2b(np.ascontiguousarray(image), digest_size=16).digest() for image in images]
        new = {name: image for name, image in zip(names, images, strict=True) if name not in self._found}
        self._found.update(zip(new, self._detector.detect(list(new.values())), strict=True))
        return [self._found[name] for name in names]


def tracks_of(video: Path, settings: Settings, detector: Detector, stride: int) -> tuple[list[Track], int, float]:
    """Tracks as a prediction has them, the number of frames, and the seconds that it took."""
    from ml_backend.ahead import ahead
    from ml_backend.observe import observe
    from ml_backend.pipeline import video_timeline
    from ml_backend.tracking import TrackBuilder
    from ml_backend.video.probe import probe

    info, tracks = probe(video), []
    builder = TrackBuilder(info, video_timeline(video), settings, detector.names, on_track=tracks.append)
    started = time.perf_counter()
    for observation in ahead(observe(video, info, detector, batch=settings.batch, stride=stride), 2 * settings.batch):
        builder.push(observation)
    builder.close(started)
    return tracks, builder.frames, time.perf_counter() - started


def rows_of(tracks: Sequence[Track], label: str) -> Rows:
    rows = [
        (frame, track.track_id, *xyxy)
        for track in tracks
        if track.top_class == label
        for frame, xyxy in zip(track.frames, track.xyxy, strict=True)
    ]
    return np.array(rows, np.float64).reshape(-1, 6)


def agreement(exact: Sequence[Track], tracks: Sequence[Track]) -> dict[str, float]:
    from ml_backend.tracks.metrics import Counts, count

    total = Counts()
    for label in sorted({track.top_class for track in (*exact, *tracks)}):
        total += count(rows_of(exact, label), rows_of(tracks, label))
    scores = total.scores()
    return {name: round(scores[name], 4) for name in SCORES}


@click.command()
@click.argument("video", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--weights", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--strides", default="1,2,3,4,6,8", show_default=True, callback=numbers)
@click.option("--precision", type=click.Choice(["int8"]), help="Also in it.")
@click.option("--speed", is_flag=True, help="Also frames per second.")
def main(video: Path, weights: Path, strides: list[int], precision: str | None, speed: bool) -> None:
    from ml_backend.pipeline import STRIDE_S, detection_stride, use_detector
    from ml_backend.video.probe import probe

    rows: list[dict[str, Any]] = []
    exact: list[Track] = []
    info = probe(video)
    with own_place():
        for precise in ["", precision] if precision else [""]:
            changes = {"precision": precise} if precise else {}
            make_engine(video, weights, **changes)
            settings = settings_for(weights, **changes)
            resolved = detector_of(settings)
            default = detection_stride(settings, resolved, info)
            with use_detector(resolved, settings, info) as detector:
                remembering = Remembering(detector)
                for stride in dict.fromkeys([1, *strides]):
                    remembering.asked = 0
                    tracks, frames, _ = tracks_of(video, settings, remembering, stride)
                    looked_at = remembering.asked / frames
                    exact = exact or tracks
                    row: dict[str, Any] = {
                        "stride": stride,
                        "engine": engine_name(video, resolved, settings),
                        "default": stride == default and not precise,
                        "looked_at": round(looked_at, 4),
                        "tracks": len(tracks),
                        **agreement(exact, tracks),
                    }
                    if speed:
                        row["fps"] = round(frames / tracks_of(video, settings, detector, stride)[2], 1)
                    rows.append(row)
                    print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    print(json.dumps({"frames": info.frames, "rate": info.fps, "longest_s": STRIDE_S, "rows": rows}))


if __name__ == "__main__":
    main()
