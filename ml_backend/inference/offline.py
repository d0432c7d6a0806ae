"""Pre-annotate video files without Label Studio."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_backend.core.files import atomic_text_writer, file_sha256
from ml_backend.core.settings import Settings
from ml_backend.core.types import Progress, Track
from ml_backend.detectors.engines.calibration import CalibrationSource
from ml_backend.detectors.engines.exports import choose_engine
from ml_backend.detectors.weights import resolve_detector
from ml_backend.inference.pipeline import predict_video
from ml_backend.label_studio.label_config import prompts_digest, read_label_config
from ml_backend.label_studio.regions import make_prediction
from ml_backend.label_studio.timeline import video_timeline
from ml_backend.labeling.model_version import model_version, text_search_part
from ml_backend.labeling.modes import classifier_models, mode_part, require_embedder

if TYPE_CHECKING:
    from ml_backend.labeling.few_shot.pattern_bank import PatternBank
    from ml_backend.labeling.few_shot.pattern_store import ExemplarOrigin
    from ml_backend.labeling.track_classifier import TrackClassifier


def predict_file(
    video: Path,
    out: Path,
    config: Path,
    settings: Settings,
    *,
    frame_rate: float | None = None,
    tracks_out: Path | None = None,
    patterns: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Pre-annotate one file and write ``{"result", "score", "model_version"}``.

    Args:
        config: label config file; its first video control is used.
        frame_rate: of Label Studio's timeline; by default that of the config or, if the config names a field of the
            task, the value that ``import_videos.py`` would write there.
        tracks_out: file for the tracks' boxes on every frame in MOT format: 1-based decoded frame, track, left, top,
            width, height in pixels, confidence (the track's where the box is interpolated), -1, -1, -1.
        patterns: pattern bank exported from a project; see :mod:`ml_backend.labeling.few_shot.bank_file`.

    Returns:
        Summary: frames, seconds, fps, tracks, boxes, keyframes, keyframe_share, model_version, detector, engine
        (``None`` for the motion detector), labels (number of tracks by label), note.

    Raises:
        VideoError, ConfigError, WeightsError, StorageError: an input or output file or a model cannot be used.
    """
    parsed = read_label_config(config)
    control = parsed.video_controls[0]
    if frame_rate is None and not control.frame_rate.startswith("$"):
        frame_rate = control.frame_rate_for({})
    rate = video_timeline(video, frame_rate).frame_rate  # fails on a wrong file before a model is loaded
    resolved = resolve_detector(settings, download=True)
    engine = None
    if resolved.path is not None:  # wait for an export that takes seconds: no later video could use it
        sha256 = resolved.sha256 or file_sha256(resolved.path)
        engine = choose_engine(
            resolved.path, sha256, settings, wait=True, calibration=CalibrationSource(video=str(video))
        )
    prompts = prompts_digest(parsed)
    classifier, mode_version, notes = load_classifier(settings, patterns, prompts)
    text_detector = classifier_models(settings, settings.mode).text_detector
    search = text_search_part(settings, text_detector, prompts)
    version = model_version(settings, resolved, mode_version, text_search=search)
    with (
        atomic_text_writer(out) as target,
        atomic_text_writer(tracks_out) if tracks_out else contextlib.nullcontext() as mot,
    ):
        number = 0

        def write_track(track: Track) -> None:
            nonlocal number
            number += 1
            if mot is not None:
                for frame, (x1, y1, x2, y2), conf in zip(track.frames, track.xyxy, track.conf, strict=True):
                    mot.write(
                        f"{frame + 1},{number},{x1:.3f},{y1:.3f},{x2 - x1:.3f},{y2 - y1:.3f},"
                        # MOT readers ignore boxes with a confidence of 0.
                        f"{conf or track.score:.4f},-1,-1,-1\n"
                    )

        result = predict_video(
            video,
            control,
            rate,
            settings,
            resolved=resolved,
            classifier=classifier,
            text_detector=text_detector,
            progress=progress,
            on_track=write_track,
        )
        json.dump(make_prediction(result.regions, version), target, ensure_ascii=False)
        target.write("\n")
    return {
        "frames": result.frames,
        "seconds": round(result.seconds, 3),
        "fps": round(result.frames / result.seconds, 2) if result.seconds else 0.0,
        "tracks": len(result.regions),
        "boxes": result.boxes,
        "keyframes": result.keyframes,
        "keyframe_share": round(result.keyframes / result.boxes, 4) if result.boxes else 0.0,
        "model_version": version,
        "detector": resolved.name,
        "engine": engine and engine.name,
        "labels": dict(Counter(decision.label for _, decision in result.labelled.kept)),
        "note": " ".join(filter(None, (resolved.note, engine.note if engine else "", *notes))),
    }


def load_classifier(
    settings: Settings, patterns: Path | None, prompts: str
) -> tuple[TrackClassifier | None, str, tuple[str, ...]]:
    """Return the track classifier, its part of the model version, and notes for people.

    Args:
        patterns: pattern bank exported from a project.
        prompts: digest of the label config's prompts.

    Raises:
        WeightsError, ConfigError: a model or the bank cannot be used.
    """
    models = classifier_models(settings, settings.mode, download=True)
    bank: PatternBank | None = None
    origins: dict[int, ExemplarOrigin] = {}
    digests: dict[str, str | None] = {}
    if patterns is not None:
        from ml_backend.embeddings.loading import use_embedder
        from ml_backend.labeling.few_shot.bank_file import check_dimension, read_bank
        from ml_backend.labeling.few_shot.pattern_bank import PatternBank

        model_id = require_embedder(models).model_id
        file = read_bank(patterns, model_id)
        with use_embedder(require_embedder(models), settings) as model:
            check_dimension(file, patterns, model.dim)
        exemplars, origins = file.exemplars()
        bank = PatternBank.fit(exemplars)
        digests[model_id] = file.origin
    notes = models.notes
    if bank is None and models.embedder and not models.clip:
        others = [note for note in models.notes if note != models.embedder.note]
        notes = (*others, "Labels are the detector's, as no pattern bank is given (--patterns).")
    classifier: TrackClassifier | None = None
    if bank or models.clip:
        from ml_backend.labeling.track_classifier import TrackClassifier  # SciPy takes half a second to import

        classifier = TrackClassifier(settings, models, bank, origins)
    return classifier, mode_part(models, digests, prompts), notes
