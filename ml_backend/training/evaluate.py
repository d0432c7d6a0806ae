"""Evaluate detectors on held-out parts of annotated videos, and compare them on others; a training subprocess does it.

Each model runs on every frame, in PyTorch, with the tracker and track assembly of predictions. Frames are streamed:
memory does not grow with the length of the parts.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ml_backend.core.errors import BackendError, VideoError
from ml_backend.core.prefetch import prefetch
from ml_backend.core.settings import Settings, get_settings
from ml_backend.core.types import Detections, FrameFeatures, IntArray, Track, VideoInfo
from ml_backend.detectors.average_precision import AveragePrecision
from ml_backend.detectors.loading import use_detector
from ml_backend.detectors.nms import suppress_duplicates
from ml_backend.detectors.weights import MOTION
from ml_backend.detectors.yolo import Detector, YoloDetector
from ml_backend.inference.detection_stream import detection_stream
from ml_backend.label_studio.label_config import LabelMapper, VideoControl, parse_label_config
from ml_backend.labeling.label_assignment import DetectorLabels
from ml_backend.tracking.assembly import TrackAssembler
from ml_backend.tracking.metrics import Counts, Rows, count
from ml_backend.tracking.tracker import Tracker
from ml_backend.training.comparison import (
    Moment,
    OtherVideo,
    TrackComparison,
    TracksOfModel,
    VideoPart,
    annotated_as,
    find_renames,
    moments_to_show,
    sample_parts,
    with_clip,
)
from ml_backend.video.probe import probe

log = logging.getLogger(__name__)

Emit = Callable[..., None]

#: Confidence threshold for average precision, which needs the weak detections too.
CONF = 0.01
#: Seconds before a part from which the motion detector learns the background, as it would in a prediction.
RUN_UP_S = 5.0
#: Seconds between two progress events.
REPORT_S = 0.5
#: Length of a clip of a change on another video, in seconds, and the largest that is kept, in bytes.
CLIP_S, CLIP_BYTES = 2.0, 4 << 20


@dataclass(frozen=True, slots=True)
class MeasuredModel:
    """A model to evaluate.

    Attributes:
        name: key in the results.
        kind: kind of detector.
        path: checkpoint, for ``"yolo"``.
        default: label of the motion detector's detections; empty: none, so that only its tracks are evaluated.
        label_config: says, for ``"yolo"``, which label a class belongs to; other classes are left out.
        trained: its classes are labels of the project; the label config is then mapped as for predictions.
        title: shown above its half of a clip.
        held_out: whether it is also measured on the held-out parts, not only compared on other videos.
    """

    name: str
    kind: Literal["yolo", "motion"]
    path: str | None
    default: str = ""
    label_config: str = ""
    trained: bool = False
    title: str = ""
    held_out: bool = True

    def labels_of(self, names: Iterable[str]) -> Mapping[str, str]:
        """Return class name -> label for a detector with these classes.

        Raises:
            ConfigError: the label config cannot be read.
        """
        names = tuple(names)
        if self.kind == "motion":
            return dict.fromkeys(names, self.default)
        return LabelMapper(self._control().labels, names, trained=self.trained).table

    def track_labels(self, names: Iterable[str]) -> DetectorLabels:
        """Return what labels the tracks of a YOLO detector with these classes, as in predictions."""
        return DetectorLabels(self._control(), tuple(names), False, trained=self.trained)

    def _control(self) -> VideoControl:
        """Return the config's control, with the labels of all of them."""
        controls = parse_label_config(self.label_config).video_controls
        return replace(controls[0], labels=tuple(label for control in controls for label in control.labels))


@dataclass(frozen=True, slots=True)
class HeldOutVideo:
    """Held-out parts of a video.

    Attributes:
        name: key of the local file.
        spans: first and last decoded frame of each part.
        precision_frames: frames on which average precision is computed.
        boxes: ``(n, 7)``: frame, track id, label index, x1, y1, x2, y2 in pixels; on every frame of the parts.
    """

    name: str
    spans: tuple[tuple[int, int], ...]
    precision_frames: frozenset[int]
    boxes: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """Models and the held-out parts to evaluate them on.

    Attributes:
        classes: the project's labels.
        videos: held-out parts.
        files: local file of each video, by name.
        models: each is evaluated on all parts; ``candidate``, ``incumbent`` and any ``base`` are compared on others.
        settings: settings of predictions.
        others: videos that nobody has annotated.
        clips: folder for clips of what differs on them; ``None`` for none.
    """

    classes: tuple[str, ...]
    videos: tuple[HeldOutVideo, ...]
    files: Mapping[str, Path]
    models: tuple[MeasuredModel, ...]
    settings: Settings = field(default_factory=get_settings)
    others: tuple[OtherVideo, ...] = ()
    clips: Path | None = None

    @classmethod
    def from_json(cls, plan: Mapping[str, Any]) -> EvaluationPlan:
        """Parse the subprocess' plan. Videos without a file are left out."""
        held = json.loads(Path(plan["held_out"]).read_text(encoding="utf-8"))
        videos = tuple(_video(video) for video in held["videos"])
        files = {name: Path(path) for name, path in plan["videos"].items()}
        if missing := sorted({video.name for video in videos} - set(files)):
            log.warning("%s: not evaluated, since the video file is missing.", ", ".join(missing))
            videos = tuple(video for video in videos if video.name in files)
        models = tuple(MeasuredModel(**model) for model in plan["models"])
        others = tuple(OtherVideo(int(item["task"]), Path(item["path"])) for item in plan.get("others", ()))
        clips = Path(plan["clips"]) if plan.get("clips") else None
        return cls(tuple(held["classes"]), videos, files, models, others=others, clips=clips)

    @property
    def measured_labels(self) -> frozenset[str]:
        """The labels with boxes in the held-out parts."""
        indices = {int(index) for video in self.videos for index in np.unique(video.boxes[:, 2])}
        return frozenset(self.classes[index] for index in indices)


def _video(video: Mapping[str, Any]) -> HeldOutVideo:
    return HeldOutVideo(
        str(video["name"]),
        tuple((int(first), int(last)) for first, last in video["spans"]),
        frozenset(int(frame) for frame in video["pictures"]),
        np.array(video["boxes"], np.float64).reshape(-1, 7),
    )


def evaluate(plan: EvaluationPlan, emit: Emit, pause: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Evaluate each model, and compare them on the other videos.

    Args:
        plan: models, held-out parts and other videos.
        emit: called with the events ``progress`` and their fields.
        pause: called now and then; returns when the evaluation may go on.

    Returns:
        Fields of the event ``done``: ``results`` by name of a model that is measured on held-out parts, each with
        ``map50``, ``map50_interval`` (95 %), ``map50_95``, ``labels`` (``ap50``, ``ap50_95``, ``boxes`` of each label
        with boxes on the frames), ``hota``, ``idf1``, ``pictures`` and ``frames``, ``videos`` and ``tracks`` that are
        annotated there; metrics without ground truth are ``None``. ``others``: see :meth:`TrackComparison.summary`;
        ``None`` without other videos.

    Raises:
        WeightsError: a model cannot be loaded.
        VideoError: a video with held-out parts cannot be used.
    """
    held_out = sum(last - first + 1 for video in plan.videos for first, last in video.spans)
    # The motion detector knows no labels, and finds whatever moves: there is nothing to compare.
    motion = any(model.kind == "motion" for model in plan.models)
    parts = [] if motion else sample_parts(plan.others, plan.settings.gate_frames)
    results, tracks, renames = {}, {}, frozenset[tuple[str, str]]()
    for model in plan.models:
        measured = _Measurement(model, plan, parts)
        total = held_out * model.held_out + sum(part.frames for part in parts)
        done, reported = 0, -REPORT_S
        for done in measured.run():
            pause()
            now = time.monotonic()
            if now - reported >= REPORT_S or done == total:
                emit("progress", model=model.name, done=done, of=total)
                reported = now
        if done != total:  # frames that cannot be decoded
            emit("progress", model=model.name, done=total, of=total)
        if model.held_out:
            results[model.name] = measured.result()
        if model.name == "incumbent":
            renames = find_renames(measured.annotated_as)
        tracks[model.name] = measured.others
    return {"results": results, "others": _compare(plan, tracks, renames) if parts else None}


def _compare(
    plan: EvaluationPlan, tracks: Mapping[str, TracksOfModel], renames: Collection[tuple[str, str]]
) -> dict[str, Any]:
    models = tracks["candidate"], tracks["incumbent"]
    comparison = TrackComparison(*models, plan.measured_labels, tracks.get("base"), renames)
    moments = comparison.moments
    if plan.clips is not None:
        titles = {model.name: model.title for model in plan.models}
        for clip, number in enumerate(moments_to_show(moments)):
            if _render(moments[number], tracks, titles, plan.clips / f"{clip}.mp4"):
                moments[number] = with_clip(moments[number], clip)
    return comparison.summary(moments)


def _render(moment: Moment, tracks: Mapping[str, TracksOfModel], titles: Mapping[str, str], out: Path) -> bool:
    """Render the middle of a moment, the incumbent beside the candidate; return whether there is a clip."""
    from ml_backend.rendering.clips import ClipPane, render_clip

    part, track = moment.part, moment.track
    length = min(part.frames, round(CLIP_S * part.info.fps))
    middle = int(track.frames[len(track) // 2])
    first = min(max(part.first, middle - length // 2), part.last + 1 - length)
    panes = [ClipPane(titles[name], tracks[name].tracks[part], [track]) for name in ("incumbent", "candidate")]
    try:
        render_clip(part.video.path, part.info, out, panes, first, first + length - 1)
    except BackendError as error:  # the decision does not need it
        log.warning("A change in task %d is not shown: %s", part.video.task, error)
        return False
    return out.stat().st_size <= CLIP_BYTES


class _Measurement:
    """Evaluates one model on all held-out parts, and finds its tracks in parts of other videos.

    Attributes:
        others: the tracks found so far.
        annotated_as: how many tracks of the held-out parts have which label, and which one people gave them.
    """

    def __init__(self, model: MeasuredModel, plan: EvaluationPlan, parts: Iterable[VideoPart]) -> None:
        self._model, self._plan, self._parts = model, plan, tuple(parts)
        self._motion = model.kind == "motion"
        self._settings = plan.settings.model_copy(update={"conf": min(CONF, plan.settings.conf)})
        self._precision = AveragePrecision(plan.classes)
        self._counts = Counts()
        self._done = self._frames = self._precision_frames = 0
        self._truth: set[tuple[str, int]] = set()
        self.others = TracksOfModel(frozenset())
        self.annotated_as: Counter[tuple[str, str]] = Counter()

    def run(self) -> Iterator[int]:
        """Run the evaluation; yields the number of frames done from time to time."""
        path = self._model.path
        yolo = YoloDetector(Path(path), self._settings) if path else None
        for video in self._plan.videos if self._model.held_out else ():
            info = probe(self._plan.files[video.name])
            for span in video.spans:
                if yolo is not None:
                    yield from self._span(yolo, video, info, span)
                else:
                    with use_detector(MOTION, self._settings, info) as detector:
                        yield from self._span(detector, video, info, span)
        if yolo is not None and self._parts:
            yield from self._other_parts(yolo)

    def result(self) -> dict[str, Any]:
        """Return the metrics so far."""
        has_truth = self._counts.truth_boxes > 0
        scores = self._counts.scores()
        return {
            **self._precision.result(),
            "map50_interval": self._precision.interval(),
            "hota": scores["HOTA"] if has_truth else None,
            "idf1": scores["IDF1"] if has_truth else None,
            "pictures": self._precision_frames,
            "frames": self._frames,
            "videos": len({video for video, _ in self._truth}),
            "tracks": len(self._truth),
        }

    def _other_parts(self, detector: YoloDetector) -> Iterator[int]:
        names = tuple(detector.names.values())
        label_of = self._model.track_labels(names)
        self.others = TracksOfModel(frozenset(self._model.labels_of(names).values()))
        for part in self._parts:
            try:
                tracks = yield from self._track(detector, part.info, (part.first, part.last), lambda frame: None)
            except VideoError as error:
                log.warning("A part of task %d is not compared: %s", part.video.task, error)
                continue
            self.others.tracks[part] = _labelled(tracks, label_of)

    def _span(self, detector: Detector, video: HeldOutVideo, info: VideoInfo, span: tuple[int, int]) -> Iterator[int]:
        first, last = span
        if not 0 <= first <= last < info.frames:
            raise VideoError(
                f"{info.path} has {info.frames} frames, but frames {first} to {last} were annotated.",
                "The video has changed since. Start the training again.",
            )
        to_class, to_track = self._class_indices(detector.names)
        truth = video.boxes[(video.boxes[:, 0] >= first) & (video.boxes[:, 0] <= last)]
        decoded: list[int] = []

        def measure(frame: FrameFeatures) -> None:
            index = frame.index
            decoded.append(index)
            if index in video.precision_frames:
                self._precision_frames += 1
                boxes = truth[truth[:, 0] == index]
                self._precision.add(
                    _map_to_labels(frame.detections, to_class),
                    boxes[:, 3:],
                    boxes[:, 2].astype(np.int64),
                    (video.name, int(index // info.fps)),  # frames of one second are nearly identical
                )
            self._frames += 1

        tracks = yield from self._track(detector, info, span, measure)
        predicted_rows = _rows([track for track in tracks if track.top_class in to_track])
        truth_rows = truth[:, [0, 1, 3, 4, 5, 6]]
        self._counts += count(*(rows[np.isin(rows[:, 0], decoded)] for rows in (truth_rows, predicted_rows)))
        if self._model.name == "incumbent" and not self._motion:
            people = [self._annotated(truth[truth[:, 1] == track]) for track in np.unique(truth[:, 1])]
            labelled = _labelled(tracks, self._model.track_labels(tuple(detector.names.values())))
            self.annotated_as += annotated_as(labelled, people)
        self._truth |= {(video.name, int(track)) for track in np.unique(truth[:, 1])}

    def _annotated(self, rows: npt.NDArray[np.float64]) -> Track:
        """Return people's track with these rows of :attr:`HeldOutVideo.boxes`."""
        label = self._plan.classes[int(rows[0, 2])]
        frames, boxes = rows[:, 0].astype(np.int64), rows[:, 3:].astype(np.float32)
        return Track(int(rows[0, 1]), frames, boxes, np.ones(len(rows), np.float32), label=label)

    def _track(
        self, detector: Detector, info: VideoInfo, span: tuple[int, int], on_frame: Callable[[FrameFeatures], None]
    ) -> Generator[int, None, list[Track]]:
        """Return the tracks of a part; yields the number of frames done, and calls ``on_frame`` with each of them."""
        first, last = span
        settings, motion = self._settings, self._motion
        tracker = Tracker(settings.tracker, info.fps, motion=motion)
        assembler = TrackAssembler(info.fps, detector.names, info.width, info.height, settings, motion=motion)
        start = max(0, first - round(RUN_UP_S * info.fps)) if motion else first
        tracks: list[Track] = []
        stream = detection_stream(info.path, info, detector, batch=settings.batch, start=start, end=last)
        with closing(prefetch(stream, settings.batch)) as frames:
            for frame in frames:
                if frame.index < first:
                    continue
                on_frame(frame)
                confident = frame if motion else _filter_confidence(frame, self._plan.settings.conf)
                tracks += assembler.push(frame.index, tracker.update(confident))
                self._done += 1
                if self._done % settings.batch == 0:
                    yield self._done
        return tracks + assembler.close()

    def _class_indices(self, names: Mapping[int, str]) -> tuple[IntArray, set[str]]:
        """Return ``(classes,)`` label index by class id (-1 for none), and the class names whose tracks count."""
        labels = self._model.labels_of(names.values())
        index = {label: i for i, label in enumerate(self._plan.classes)}
        to_class = np.full(max(names, default=-1) + 1, -1, np.int64)
        for class_id, name in names.items():
            to_class[class_id] = index.get(labels.get(name, ""), -1)
        counted = {name for name in names.values() if self._motion or labels.get(name) in index}
        return to_class, counted


def _labelled(tracks: Iterable[Track], label_of: DetectorLabels) -> list[Track]:
    """Give tracks their labels; return those that have one."""
    tracks = [replace(track, label=label_of(track.class_scores)) for track in tracks]
    return [track for track in tracks if track.label is not None]


def _filter_confidence(frame_features: FrameFeatures, conf: float) -> FrameFeatures:
    detections = frame_features.detections
    return replace(frame_features, detections=detections.take(detections.conf >= conf))


def _map_to_labels(detections: Detections, to_class: IntArray) -> Detections:
    """Return detections with label indices as classes, most confident first; those without a label are left out.

    Where several classes map to one label, duplicates are removed by NMS per label, as within one class.
    """
    classes = to_class[detections.class_id]
    kept = np.flatnonzero(classes >= 0)
    kept = kept[np.argsort(-detections.conf[kept], kind="stable")]
    counts = np.bincount(to_class[to_class >= 0])
    if len(kept) and counts.max() > 1:
        kept = kept[suppress_duplicates(detections.xyxy[kept], detections.conf[kept], classes[kept])]
    return Detections(detections.xyxy[kept], detections.conf[kept], classes[kept])


def _rows(tracks: list[Track]) -> Rows:
    """Return ``(n, 6)`` frame, track id, x1, y1, x2, y2 of all boxes."""
    rows = [np.column_stack([t.frames, np.full(len(t), t.track_id), t.xyxy]) for t in tracks]
    return np.concatenate([np.zeros((0, 6)), *rows], dtype=np.float64)
