"""Run several cameras with shared models."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ml_backend.core.settings import Settings
from ml_backend.detectors.weights import ResolvedDetector, resolve_detector
from ml_backend.detectors.yolo import Detector
from ml_backend.inference.offline import load_classifier
from ml_backend.label_studio.label_config import prompts_digest, read_label_config
from ml_backend.labeling.label_assignment import DetectorLabels
from ml_backend.live.labels import TrackLabeller
from ml_backend.live.recorder import Recorder, RecordOptions
from ml_backend.live.session import LiveModels, LiveSession
from ml_backend.live.source import LiveSource


@dataclass(frozen=True, slots=True)
class Cameras:
    """Cameras that are looked at.

    Attributes:
        note: what people should know about the models; may be empty.
        recorders: of the sessions, if they are recorded.
    """

    sessions: tuple[LiveSession, ...]
    note: str
    recorders: tuple[Recorder, ...]
    _threads: tuple[threading.Thread, ...]

    @property
    def running(self) -> bool:
        """Whether a camera is still looked at, or recorded."""
        return any(thread.is_alive() for thread in self._threads)

    def summaries(self) -> list[dict[str, Any]]:
        """Return facts about each camera; see :meth:`LiveSession.summary`."""
        found = [session.summary() for session in self.sessions]
        for summary, recorder in zip(found, self.recorders, strict=False):
            summary["recorded"] = asdict(recorder.recorded)
        return found


@contextmanager
def open_cameras(
    sources: Sequence[LiveSource],
    config: Path,
    settings: Settings,
    patterns: Path | None = None,
    record: RecordOptions | None = None,
    on_video: Callable[[Path], None] = lambda path: None,
) -> Iterator[Cameras]:
    """Look at cameras until the context ends.

    Args:
        config: label config file; its first video control is used.
        patterns: pattern bank exported from a project.
        record: ``None``: nothing is recorded.
        on_video: called with each recorded file, in a thread of its camera.

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
        recorders = tuple(Recorder(session, record, on_video) for session in sessions) if record else ()
        for source in sources:
            stack.enter_context(source)
        runs = [runner.run for runner in (*sessions, *recorders)]
        threads = tuple(threading.Thread(target=run, args=(stopped,)) for run in runs)
        stack.callback(_stop, stopped, threads)
        for thread in threads:
            thread.start()
        yield Cameras(sessions, " ".join(filter(None, (resolved.note, engine_note, *notes))), recorders, threads)


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
