"""Load detectors, or take them from the model cache. Imports torch only with the first model."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from ml_backend.core.errors import VideoError
from ml_backend.core.files import file_sha256
from ml_backend.core.settings import Settings
from ml_backend.core.types import Image, VideoInfo
from ml_backend.detectors.weights import ResolvedDetector
from ml_backend.video.reader import read_frames

if TYPE_CHECKING:
    from ml_backend.detectors.yolo import Detector, YoloDetector

log = logging.getLogger(__name__)

PRIMING_S = 60.0  # beginning of a video from which the motion detector learns the background
PRIMING_FRAMES = 20


@contextmanager
def use_detector(resolved: ResolvedDetector, settings: Settings, info: VideoInfo) -> Iterator[Detector]:
    """Load the detector for one video; YOLO models stay loaded for the next while memory allows.

    Raises:
        WeightsError: the checkpoint cannot be loaded.
    """
    if resolved.kind == "motion":
        from ml_backend.detectors.motion import MotionDetector

        motion = MotionDetector(info.fps)  # not cached: it models the background of this video
        motion.prime(_early_frames(info))
        yield motion
        return
    with yolo_detector(resolved, settings, info.path) as detector:
        detector.warm_up(info.width, info.height)
        yield detector


@contextmanager
def yolo_detector(resolved: ResolvedDetector, settings: Settings, video: str | None = None) -> Iterator[YoloDetector]:
    """Load a YOLO detector, or take it from the model cache.

    Args:
        video: local file with frames for int8 calibration.

    Raises:
        WeightsError: the checkpoint cannot be loaded.
    """
    from ml_backend.core.model_cache import get_model_cache
    from ml_backend.detectors.engines.calibration import CalibrationSource
    from ml_backend.detectors.engines.exports import EnginePlan, choose_engine, engine_note
    from ml_backend.detectors.yolo import YoloDetector

    if resolved.path is None:
        raise ValueError(f"expected a YOLO checkpoint with a path, got {resolved}")
    path, sha256 = resolved.path, resolved.sha256 or file_sha256(resolved.path)
    calibration = CalibrationSource(resolved.project, video)
    engine = choose_engine(path, sha256, settings, calibration=calibration)
    options = (settings.device, settings.imgsz, settings.conf, settings.batch, settings.precision)
    key = ("yolo", str(path), resolved.sha256, *options, engine.key)
    note = partial(engine_note, EnginePlan(path, sha256, settings, calibration))
    load = partial(YoloDetector, path, settings, engine.export, note)
    with get_model_cache(settings).use(key, load, name=resolved.name) as detector:
        yield detector


def _early_frames(info: VideoInfo) -> Iterator[Image]:
    """Yield frames spread over the beginning, from which the motion detector learns the background.

    Later frames are left out, as the background model follows changing light.
    """
    last = min(info.frames, round(PRIMING_S * info.fps))
    for index in range(0, last, max(1, last // PRIMING_FRAMES)):
        try:
            yield next(read_frames(info.path, info, start=index)).image
        except VideoError as error:  # a broken tail: the frames before it can still be searched
            log.info("%s: the background is learned from fewer frames: %s", info.path, error)
            return
