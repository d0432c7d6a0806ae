"""Run several cameras with shared models."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from ml_backend.core.settings import Settings
from ml_backend.detectors.weights import ResolvedDetector, resolve_detector
from ml_backend.detectors.yolo import Detector
from ml_backend.inference.offline import load_classifier
from ml_backend.label_studio.label_config import prompts_digest, read_label_config
from ml_backend.labeling.label_assignment import DetectorLabels
from ml_backend.live.labels import TrackLabeller
from ml_backend.live.session import LiveModels, LiveSession
from ml_backend.live.source import LiveSource


@dataclass(frozen=True, slots=True)
class Cameras:
    """Cameras that are looked at.

    Attributes:
        note: what people should know about the models; may be empty.
    """

    sessions: tuple[LiveSession, ...]
    note: str
    _threads: tuple[threading.Thread, ...]

    @property
    def running(self) -> bool:
        """Whether a camera is still looked at."""
        return any(thread.is_alive() for thread in self._threads)


@contextmanager
def open_cameras(
    sources: Sequence[LiveSource], config: Path, settings: Settings, patterns: Path | None = None
) -> Iterator[Cameras]:
    """Look at cameras until the context ends.

    Args:
        config: label config file; its first video control is used.
        patterns: pattern bank exported from a project.

    Raises:
        ConfigError, WeightsError: the config, the bank or a model cannot be used.
    """
    parsed = read_label_config(config)
    control = parsed.video_controls[0]
    resolved = resolve_detector(settings, download=True)
    classifier, _, notes = load_classifier(settings, patterns, prompts_digest(parsed))
    stopped = threading.Event()
    with ExitStack() as stack:
        if resolved.kind == "motion":
            labels = DetectorLabels(control, ("object",), class_agnostic=True)
            class_names: tuple[str, ...] = ()
            engine_note = ""
        else:
            shared, engine_note = _shared_yolo(stack, resolved, settings)
            class_names = tuple(shared.names.values())
            labels = DetectorLabels(control, class_names, class_agnostic=False)

        def detector() -> AbstractContextManager[Detector]:
            if resolved.kind == "motion":
                from ml_backend.detectors.motion import MotionDetector

                return nullcontext(MotionDetector())
            return nullcontext(shared)

        labeller = None
        if classifier is not None:
            labeller = TrackLabeller(classifier, settings, control, labels, class_names)
            stack.enter_context(labeller)
        models = LiveModels(settings, control, resolved.kind == "motion", detector, labels, labeller)
        sessions = tuple(LiveSession(number, source, models) for number, source in enumerate(sources))
        threads = tuple(
            threading.Thread(target=session.run, args=(stopped.is_set,), name=session.source.name)
            for session in sessions
        )
        for source in sources:
            stack.enter_context(source)
        stack.callback(_stop, stopped, threads)
        for thread in threads:
            thread.start()
        yield Cameras(sessions, " ".join(filter(None, (resolved.note, engine_note, *notes))), threads)


def _shared_yolo(stack: ExitStack, resolved: ResolvedDetector, settings: Settings) -> tuple[Detector, str]:
    """Load the detector that all cameras share; return it and what people should know about its engine."""
    from ml_backend.core.files import file_sha256
    from ml_backend.detectors.engines.exports import choose_engine
    from ml_backend.detectors.loading import yolo_detector

    assert resolved.path is not None
    # int8 needs frames of the project's videos; waits for an export, which takes seconds.
    exact = settings.model_copy(update={"precision": "fp32"}) if settings.precision == "int8" else settings
    engine = choose_engine(resolved.path, resolved.sha256 or file_sha256(resolved.path), exact, wait=True)
    return stack.enter_context(yolo_detector(resolved, exact)), engine.note


def _stop(stopped: threading.Event, threads: Sequence[threading.Thread]) -> None:
    stopped.set()
    for thread in threads:
        thread.join()
