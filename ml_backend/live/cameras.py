"""Run several cameras with shared models."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_backend.core.errors import ConfigError
from ml_backend.core.files import file_sha256
from ml_backend.core.settings import Settings
from ml_backend.detectors.weights import ResolvedDetector, resolve_detector
from ml_backend.detectors.yolo import Detector
from ml_backend.inference.offline import load_classifier
from ml_backend.label_studio.label_config import VideoControl, prompts_digest, read_label_config
from ml_backend.labeling.label_assignment import DetectorLabels
from ml_backend.live.labels import TrackLabeller
from ml_backend.live.recorder import Recorder, RecordOptions
from ml_backend.live.session import LiveModels, LiveSession
from ml_backend.live.source import LiveSource


@dataclass(frozen=True, slots=True)
class Cameras:
    """Cameras whose frames are processed.

    Attributes:
        note: what people should know about the models; may be empty.
        recorders: of the sessions, if they are recorded.
    """

    sessions: tuple[LiveSession, ...]
    recorders: tuple[Recorder, ...]
    note: str
    _threads: tuple[threading.Thread, ...]

    @property
    def running(self) -> bool:
        """Whether a camera is still looked at, or recorded."""
        return any(thread.is_alive() for thread in self._threads)

    def summaries(self) -> list[dict[str, Any]]:
        """Return facts about each camera."""
        return [self.summary(number) for number in range(len(self.sessions))]

    def summary(self, number: int) -> dict[str, Any]:
        """Return facts about a camera, from 0: those of :meth:`LiveSession.summary`, and ``recorded`` if it is."""
        recorded = {"recorded": self.recorders[number].summary()} if self.recorders else {}
        return self.sessions[number].summary() | recorded


@contextmanager
def open_cameras(
    sources: Sequence[LiveSource],
    config: Path,
    settings: Settings,
    patterns: Path | None = None,
    record: RecordOptions | None = None,
    on_video: Callable[[Path], None] = lambda path: None,
) -> Iterator[Cameras]:
    """Process the frames of cameras until the context ends.

    Args:
        config: label config file; its first video control is used.
        patterns: pattern bank exported from a project.
        record: ``None``: nothing is recorded.
        on_video: called with each recorded file, in a thread of its camera.

    Raises:
        ConfigError, WeightsError: the config, the bank, a label to record, or a model cannot be used.
    """
    parsed = read_label_config(config)
    control = parsed.video_controls[0]
    notes = _check_recording(record, control, patterns)
    resolved = resolve_detector(settings, download=True)
    classifier, _, classifier_notes = load_classifier(settings, patterns, prompts_digest(parsed))
    stopped = threading.Event()
    with ExitStack() as stack:
        motion = resolved.kind == "motion"
        if motion:
            from ml_backend.detectors.motion import MotionDetector

            class_names: tuple[str, ...] = ()
            labels = DetectorLabels(control, tuple(MotionDetector().names.values()), class_agnostic=True)
            detector: Callable[[], Detector] = MotionDetector
        else:
            shared, note = _shared_yolo(stack, resolved, settings)
            notes.append(note)
            class_names = tuple(shared.names.values())
            labels = DetectorLabels(control, class_names, class_agnostic=False)
            detector = lambda: shared  # noqa: E731
        labeller = None
        if classifier is not None:
            labeller = stack.enter_context(TrackLabeller(classifier, settings, control, labels, class_names))
        models = LiveModels(settings, control, motion, detector, labels, labeller)
        sessions = tuple(LiveSession(number, source, models) for number, source in enumerate(sources, 1))
        recorders = tuple(Recorder(session, record, on_video) for session in sessions) if record else ()
        for source in sources:
            stack.enter_context(source)
        for source in sources:
            stack.callback(source.stop)  # all at once, before the first is waited for
        threads = tuple(threading.Thread(target=runs.run, args=(stopped,)) for runs in (*sessions, *recorders))
        stack.callback(_stop, stopped, threads)
        for thread in threads:
            thread.start()
        yield Cameras(sessions, recorders, " ".join(filter(None, (resolved.note, *notes, *classifier_notes))), threads)


def _check_recording(record: RecordOptions | None, control: VideoControl, patterns: Path | None) -> list[str]:
    """Return what people should know about what is recorded.

    Raises:
        ConfigError: a label is not in the config.
    """
    if record is None:
        return []
    labels = {label.value for label in control.labels}
    if unknown := sorted(record.labels - labels):
        raise ConfigError(
            f"The label config has no label {unknown[0]!r} to record.", f"Its labels are: {', '.join(sorted(labels))}."
        )
    return ["Nothing is new without patterns (--patterns)."] if "new" in record.when and patterns is None else []


def _shared_yolo(stack: ExitStack, resolved: ResolvedDetector, settings: Settings) -> tuple[Detector, str]:
    """Load the detector that all cameras share; return it and what people should know about its engine."""
    from ml_backend.detectors.engines.exports import choose_engine
    from ml_backend.detectors.loading import yolo_detector

    assert resolved.path is not None
    note = ""
    if settings.precision == "int8":
        settings, note = settings.model_copy(update={"precision": "fp32"}), "int8 needs a video's frames: fp32 is used."
    # Waits for an export, which takes seconds.
    engine = choose_engine(resolved.path, resolved.sha256 or file_sha256(resolved.path), settings, wait=True)
    return stack.enter_context(yolo_detector(resolved, settings)), f"{note} {engine.note}".strip()


def _stop(stopped: threading.Event, threads: Sequence[threading.Thread]) -> None:
    stopped.set()
    for thread in threads:
        thread.join()
