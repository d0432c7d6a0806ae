"""The job that retrains a project's detector, from its annotations to the gate. Running it twice does no harm."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import psutil
from rq import get_current_job

from ml_backend.core.errors import (
    BackendError,
    ConfigError,
    Interrupted,
    MediaError,
    QueueUnavailable,
    TrainingFailed,
    VideoError,
    WeightsError,
)
from ml_backend.core.files import file_sha256
from ml_backend.core.settings import Settings
from ml_backend.jobs.announce import announce
from ml_backend.jobs.container import Container, job
from ml_backend.jobs.job_list import CANCELLED
from ml_backend.jobs.progress import report_progress
from ml_backend.jobs.training_inputs import labels_found_by_text, training_settings_digest
from ml_backend.jobs.training_queue import unread_before
from ml_backend.label_studio.client import NotFound
from ml_backend.label_studio.label_config import classes_for, parse_label_config
from ml_backend.label_studio.media import MediaStore, canonical_uri
from ml_backend.labeling.model_version import BASE
from ml_backend.training.checkpoints import keep_checkpoints, kept_checkpoint, restore_checkpoints
from ml_backend.training.comparison import CLIPS, VIDEOS
from ml_backend.training.gate import decide_promotion
from ml_backend.training.process import TrainingProcess
from ml_backend.training.registry import MEASURED, RUNNING, RunLost, Version
from ml_backend.training.retention import remove_old_weights
from ml_backend.training.review_store import ReviewStore

if TYPE_CHECKING:
    from redis.lock import Lock

    from ml_backend.datasets.annotation_reader import AnnotationReader
    from ml_backend.training.dataset import TrainingDataset
    from ml_backend.training.replay import Replay

log = logging.getLogger(__name__)

#: Seconds between two copies of the checkpoint to the artifact store, from which other workers resume.
CHECKPOINT_INTERVAL_S = 30.0
#: Largest number of gate runs, repeated if the project switches versions meanwhile.
MAX_GATE_RUNS = 3
#: Seconds between two checks whether the training was cancelled, or should pause.
_POLL_S = 1.0
#: Seconds of each minute for which a training on a CPU pauses while other workers of the machine are busy. Not all of
#: them: the predictions of a whole library take hours.
PAUSED_S = 50.0


class TrainingWatcher:
    """A thread that renews a training's lock and notices when it is cancelled; use as a context manager.

    Attributes:
        cancelled: the training was cancelled.
        lost: the lock has expired and may belong to another worker.
        paused: people wait for other work of this machine.
    """

    def __init__(self, container: Container, project_id: int, lock: Lock) -> None:
        self._container, self._project, self._lock = container, project_id, lock
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="training-watch", daemon=True)
        self.cancelled = False
        self.lost = self.paused = False

    def __enter__(self) -> TrainingWatcher:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join(timeout=10)

    def should_stop(self) -> bool:
        """Return whether to stop now: the process stops, the training was cancelled, or the lock is lost."""
        return self.cancelled or self.lost or self._container.stop.is_set()

    def _is_needed_elsewhere(self) -> bool:
        """Return whether this machine's CPU is needed for what people wait for: predictions, labels, drawn boxes."""
        if not _trains_on_cpu(self._container.settings) or time.monotonic() % 60 >= PAUSED_S:
            return False
        return any(
            # Trainings do not wait for each other; a worker that was killed stays listed for a while.
            worker.job_id
            and not worker.job_id.startswith("train-")
            and worker.hostname == socket.gethostname()
            and psutil.pid_exists(worker.pid)
            for worker in self._container.queue.workers()
        )

    def check(self) -> None:
        """Raise Interrupted if the training has to stop now."""
        if self.should_stop():
            raise Interrupted("The training was stopped.", "Wait: it resumes unless it was cancelled.")

    def _run(self) -> None:
        from redis.exceptions import LockError, RedisError

        renew_s = self._container.settings.job_lease_s / 3
        waited = renew_s
        while True:
            try:
                if waited >= renew_s:
                    self._lock.reacquire()
                    waited = 0.0
                self.cancelled |= self._container.training_queue.is_cancelled(self._project)
                self.paused = self._is_needed_elsewhere()
            except LockError:
                log.warning("The lock on the training was lost: another worker continues it.")
                self.lost = True
                return
            except (QueueUnavailable, RedisError) as error:  # it may come back before the lock expires
                self.paused = False
                log.debug("The lock was not renewed: %s", error)
            if self._done.wait(_POLL_S):
                return
            waited += _POLL_S


@job
def train(container: Container, project_id: int, trigger: str) -> dict[str, Any] | None:
    """Retrain a project's detector if there are new annotations; activate the result if it passes the gate."""
    with container.training_queue.lock(project_id) as lock:
        training = TrainingRun(container, project_id, trigger, lock)
        training.run()
        return training.outcome()


class EpochRecorder:
    """Records each epoch of a run in the registry, with the digests of the checkpoints from which it can resume.

    Call it with the events of the training process.
    """

    def __init__(self, container: Container, version: Version) -> None:
        self._registry, self._artifacts, self._version = container.registry, container.artifacts, version
        self._history = list(version.history)
        self._checkpoint: Mapping[str, Any] = version.lineage.get("checkpoint") or {}
        self._stored_at = time.monotonic()

    def __call__(self, event: Mapping[str, Any]) -> None:
        if event.get("event") != "epoch":
            return
        facts = {name: value for name, value in event.items() if name not in ("event", "checkpoint")}
        self._history = [item for item in self._history if item.get("epoch", 0) < facts.get("epoch", 0)] + [facts]
        weights = Path(event["checkpoint"]).parent
        self._record(self._keep(weights))
        report_progress(get_current_job(), stage="training", **facts)
        if "slot" in self._checkpoint and time.monotonic() - self._stored_at >= CHECKPOINT_INTERVAL_S:
            self._stored_at = time.monotonic()
            self._record(self._store(kept_checkpoint(weights, self._checkpoint["slot"])))

    def _record(self, changed: Mapping[str, Any]) -> None:
        checkpoint = {**self._checkpoint, **changed}
        try:
            lineage = {**self._version.lineage, "checkpoint": checkpoint}
            self._registry.advance(self._version, history=self._history, lineage=lineage)
        except RunLost:
            raise
        except BackendError as error:  # the next one may succeed, and keeps the files that are recorded
            log.warning("The epoch was not recorded: %s", error)
        else:
            self._checkpoint = checkpoint

    def _keep(self, weights: Path) -> dict[str, Any]:
        slot = 1 - self._checkpoint.get("slot", 1)
        try:
            return {"slot": slot, "files": keep_checkpoints(weights, slot)}
        except OSError as error:  # it only saves time if this worker dies
            log.warning("The checkpoint was not kept: %s", error)
            return {}

    def _store(self, path: Path) -> dict[str, Any]:
        """Store a checkpoint under the name that is not recorded, for other workers."""
        recorded = (self._checkpoint.get("stored") or {}).get("name")
        name = next(name for name in checkpoint_names(self._version) if name != recorded)
        try:
            return {"stored": {"name": name, "sha256": self._artifacts.put(path, name)}}
        except BackendError as error:  # as above
            log.warning("The checkpoint was not copied: %s", error)
            return {}


class TrainingRun:
    """One training run, new or taken over from a worker that died."""

    def __init__(self, container: Container, project_id: int, trigger: str, lock: Lock) -> None:
        self._container, self._project, self._trigger, self._lock = container, project_id, trigger, lock
        self._settings, self._registry = container.settings, container.registry
        self._owner = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"[:64]
        self._folder = container.settings.data_dir / "training" / f"project-{project_id}"
        self._watcher = TrainingWatcher(container, project_id, lock)
        self._process = TrainingProcess()
        self._force = False
        self._seen: dict[str, str] | None = None
        self._version_id: int | None = None

    def run(self) -> None:
        version = self._begin()
        if version is None:
            return
        try:
            with self._watcher, self._process:
                self._run_stages(version)
        except RunLost:
            log.warning("Project %s: another worker has taken over %s.", self._project, version.name)
        except Interrupted:
            if not self._watcher.cancelled:
                self._hand_back(version)
                raise
            self._end(version, "cancelled", "Cancelled on request.")
        except BackendError as error:
            if error.retryable and _retries_left():
                self._hand_back(version)
                raise
            # Retryable errors are retried later, with growing pauses; others once the annotations change.
            self._end(version, "failed", str(error), again=error.retryable)
            raise
        except Exception as error:
            self._end(version, "failed", f"{type(error).__name__}: {error}")
            raise
        finally:
            # If another version is in use now, tasks need new predictions. If the worker dies between the promotion and
            # this line, the retry, which finds nothing new to train on, gets here too.
            self._refresh(version)

    # -- begin, hand back, end

    def _begin(self) -> Version | None:
        running = self._registry.running(self._project)
        cancelled = self._container.training_queue.is_cancelled(self._project)
        # A run that has yet to read the annotations serves all requests so far; one at the gate does not.
        reads_annotations = running is None or running.state in ("dataset", "training")
        motion = self._settings.detector == "motion"
        if reads_annotations or cancelled or motion:
            self._container.training_queue.begin(self._project)
        if motion:
            if running:
                self._end(self._registry.take_over(running, self._owner), "cancelled", "DETECTOR=motion is set.")
            raise ConfigError("DETECTOR=motion is set: there is no network to train.", "Set DETECTOR=auto or yolo.")
        if running is None:
            parent = self._registry.current(self._project)
            version = self._registry.begin(self._project, self._owner, self._trigger, parent)
        else:
            version = self._registry.take_over(running, self._owner)
        self._version_id = version.id
        forced = reads_annotations and self._container.training_queue.take_force(self._project)
        self._force = forced or version.trigger.startswith("force")
        if cancelled:
            self._end(version, "cancelled", "Cancelled on request.")
            return None
        if running is None:
            return version
        if running.attempts >= self._settings.job_attempts:
            reason = f"Its worker died {running.attempts} times in state {running.state!r}."
            hint = "See the worker's and the machine's log for the cause."
            self._end(version, "failed", f"{reason} {hint}")
            raise TrainingFailed(reason, hint)
        log.info("Project %s: resuming %s in state %s", self._project, version.name, version.state)
        return version

    def _hand_back(self, version: Version) -> None:
        """Undo the attempt, since an orderly stop does not count as one."""
        try:
            owned = dataclasses.replace(version, owner=self._owner)
            self._registry.advance(owned, attempts=max(0, version.attempts - 1))
        except BackendError as error:
            log.warning("Project %s: %s was not handed back: %s", self._project, version.name, error)

    def _end(self, version: Version, state: str, reason: str, *, again: bool = False) -> None:
        """End a run without a result. Unless ``again``, the present annotations do not start another one."""
        last = self._registry.get(version.id) or version
        lineage = dict(last.lineage)
        seen = lineage.pop("seen", None) or self._seen
        if not again:
            # Annotations made during the run are new to the next one.
            lineage["seen"] = ReviewStore(self._container.storage).seen(self._project) if seen is None else seen
            lineage.setdefault("unread", unread_before(self._registry, last))
        try:
            self._registry.finish(dataclasses.replace(version, owner=self._owner), state, reason, lineage=lineage)
        except RunLost:  # it has ended, or belongs to another worker, which needs its files
            log.info("Project %s: %s no longer belongs to this worker.", self._project, version.name)
        else:
            if state == "failed":
                self._announce(version)
            self._tidy_up(version)
            if last.artifact:
                clips = (clip_name(version, number) for number in range(CLIPS))  # of a gate that did not decide
                for name in (last.artifact, *clips):
                    self._container.artifacts.remove(name)

    def outcome(self) -> dict[str, Any] | None:
        """Return the job's result; ``None`` if another worker continues the run."""
        last = self._registry.get(self._version_id) if self._version_id else None
        if last is None:
            return {"version": None, "state": "unchanged", "reason": "Nothing new has been annotated."}
        current = get_current_job()
        if current is not None and last.state == "cancelled":
            current.meta["outcome"] = {"state": CANCELLED}
            current.save_meta()
        if last.state in RUNNING:
            return None
        return {"version": last.name, "state": last.state, "reason": last.reason, "metrics": last.metrics}

    def _announce(self, version: Version) -> None:
        if (last := self._registry.get(version.id)) is not None:
            announce(self._settings, last)

    def _refresh(self, version: Version) -> None:
        last = self._registry.get(version.id)
        promoted = last.state == "promoted" if last else self._registry.current(self._project) is not None
        if promoted:
            self._container.queue.request_refresh(self._project)

    def _tidy_up(self, version: Version) -> None:
        for name in ("runs", "gate"):
            shutil.rmtree(self._folder / name / version.name, ignore_errors=True)
        artifacts = self._container.artifacts
        for name in checkpoint_names(version):
            artifacts.remove(name)
        last = self._registry.get(version.id)
        if last and (held_out := last.lineage.get("held_out_file")):
            artifacts.remove(held_out["name"])
        try:
            remove_old_weights(self._project, self._settings, self._container.storage, artifacts)
        except BackendError as error:  # must not fail a training; the next one tries again
            log.warning("Project %s: weights of old versions were not removed: %s", self._project, error)

    # -- stages

    def _run_stages(self, version: Version) -> None:
        if version.state in ("dataset", "training"):
            trained = self._train(version)
            if trained is None:
                return
            version = trained
        self._run_gate(version)

    def _train(self, version: Version) -> Version | None:
        """Train, and return the version in state ``gate``; ``None`` if there is nothing new to learn from."""
        reviews = ReviewStore(self._container.storage)
        seen = self._seen = reviews.seen(self._project)
        for name in ("runs", "gate"):  # left by runs that ended on another machine
            for folder in (self._folder / name).glob("*"):
                if folder.name != version.name:
                    shutil.rmtree(folder, ignore_errors=True)
        try:
            reader = self._reader()
            data = self._dataset(reader, unread_before(self._registry, version))
        except NotFound:  # the project was deleted, for which there is no event
            reviews.forget(self._project)
            raise
        arguments = json.loads(self._settings.train_args or "{}")
        base = self._container.projects.models(None, download=True).detector.sha256
        facts = json.dumps([data.digest, arguments, self._settings.imgsz, base], sort_keys=True)
        inputs_digest = hashlib.sha256(facts.encode()).hexdigest()
        if self._is_unchanged(version, inputs_digest):
            log.info("Project %s: no new annotations since the last training.", self._project)
            report_progress(get_current_job(), stage="unchanged")
            self._registry.discard(version, seen, data.unread)
            return None
        run = self._folder / "runs" / version.name
        checkpoint = self._checkpoint(version, run) if version.dataset == inputs_digest else None
        if checkpoint is None:
            shutil.rmtree(run, ignore_errors=True)
            version = self._registry.advance(version, history=[], lineage={**version.lineage, "checkpoint": {}})
        start = self._start_checkpoint(version)
        replay = self._replay(reader)
        patterns, classes = self._container.projects.patterns, data.trained_classes
        found = labels_found_by_text(patterns, self._project, data.annotations, classes)
        by_text = (f"The text detector had found objects of: {', '.join(sorted(found))}.",) if found else ()
        data = dataclasses.replace(data, notes=(*data.notes, *replay.notes, *by_text))
        version = self._registry.advance(
            version,
            state="training",
            dataset=inputs_digest,
            held_out=data.held_out_digest,
            classes=list(data.classes),
            lineage={
                **lineage_of(data, seen),
                "settings": training_settings_digest(self._settings, base),
                "held_out_file": self._keep_held_out(version, data.held_out),
                "checkpoint": version.lineage.get("checkpoint") or {},
            },
            detector=start["name"],
            start_sha256=start["sha256"],
        )
        plan = {
            "kind": "train",
            "data": str(data.data_yaml),
            "classes": list(data.classes),
            "trained_classes": list(data.trained_classes),
            "start": start["path"],
            "start_from": {**self._class_mapping(), **data.start_from},
            "label_config": self._container.client.get_project(self._project).label_config,
            "replay": [str(image) for image in replay.images],
            "run": str(run),
            "resume": str(checkpoint) if checkpoint else None,
            "pictures": data.images.get("train", 0),
            "tracks": data.tracks,
            "device": self._settings.device,
            "imgsz": self._settings.imgsz,
            "args": arguments,
        }
        self._free_gpu_memory()
        try:
            done = self._run_plan(plan, run, EpochRecorder(self._container, version))
        except (TrainingFailed, WeightsError) as error:
            if checkpoint is None or error.retryable:
                raise
            log.warning(
                "Project %s: %s cannot resume and starts from the beginning: %s", self._project, version.name, error
            )
            shutil.rmtree(run, ignore_errors=True)
            version = self._registry.advance(version, history=[], lineage={**version.lineage, "checkpoint": {}})
            done = self._run_plan({**plan, "resume": None}, run, EpochRecorder(self._container, version))
        weights = Path(done["weights"])
        # Named by content: a worker that has lost the run replaces no file.
        name = f"projects/{self._project}/{version.name}-{version.id}-{file_sha256(weights)[:16]}.pt"
        self._watcher.check()
        sha256 = self._container.artifacts.put(weights, name)
        return self._registry.advance(
            version, state="gate", weights_sha256=sha256, artifact=name, config=done.get("args") or arguments
        )

    def _keep_held_out(self, version: Version, path: Path) -> dict[str, str]:
        """Store the held-out file, so that any worker can run the gate with it."""
        name = f"projects/{self._project}/{version.name}-{version.id}-held-out-{file_sha256(path)[:16]}.json"
        return {"name": name, "sha256": self._container.artifacts.put(path, name)}

    def _reader(self) -> AnnotationReader:
        from ml_backend.datasets.annotation_reader import AnnotationReader

        client, stop = self._container.client, self._watcher.should_stop
        return AnnotationReader.from_project(client, self._project, self._settings, should_stop=stop)

    def _dataset(self, reader: AnnotationReader, unread: Collection[str]) -> TrainingDataset:
        """Build the dataset, not waiting for the videos of ``unread`` tasks, which were unavailable last time too."""
        from ml_backend.training.dataset import FrameSelectionPlan, build_dataset
        from ml_backend.training.splits import SplitStore

        plan = FrameSelectionPlan(
            per_second=self._settings.train_per_second,
            held_out_frames=self._settings.gate_frames,
            hard=ReviewStore(self._container.storage).hard(self._project),
        )
        return build_dataset(
            reader,
            self._folder / "dataset",
            SplitStore(self._container.storage),
            self._project,
            plan,
            lambda done, of: report_progress(get_current_job(), stage="dataset", done=done, of=of),
            self._watcher.should_stop,
            lambda tasks: _retries_left() and not {str(task) for task in tasks} <= set(unread),
        )

    def _replay(self, reader: AnnotationReader) -> Replay:
        """Sample frames of the project's other videos, on which the training keeps what the detector finds."""
        from ml_backend.training.replay import sample_replay
        from ml_backend.training.splits import SplitStore

        annotated = {split.content for split in SplitStore(self._container.storage).splits(self._project).values()}
        folder = self._folder / "replay"
        return sample_replay(reader, folder, annotated, self._settings.imgsz, self._watcher.should_stop)

    def _class_mapping(self) -> dict[str, Sequence[str]]:
        """Return label -> the detector classes that are mapped to it in predictions."""
        config = parse_label_config(self._container.client.get_project(self._project).label_config)
        running = self._registry.running(self._project)
        parent = self._registry.get(running.parent_id) if running and running.parent_id else None
        # Labels that a trained version has a class for start from that class.
        own = parent.classes if parent else ()
        labels = [label for control in reversed(config.video_controls) for label in reversed(control.labels)]
        return {label.value: classes_for(label) for label in labels if label.value not in own}

    def _is_unchanged(self, version: Version, inputs_digest: str) -> bool:
        """Return whether the last evaluated version was trained with the same data and settings."""
        evaluated = [v for v in self._registry.outline(self._project) if v.state in MEASURED and v.id != version.id]
        return bool(evaluated) and evaluated[0].dataset == inputs_digest and not self._force

    def _start_checkpoint(self, version: Version) -> dict[str, str | None]:
        """Return the start checkpoint: the version in use when the run began, the settings' detector, or none."""
        projects = self._container.projects
        parent = self._registry.get(version.parent_id) if version.parent_id else None
        detector = (
            projects.detector_of(parent, download=True) if parent else projects.models(None, download=True).detector
        )
        if detector.kind == "motion":
            log.warning("Project %s is trained from scratch. %s", self._project, detector.note)
            return {"name": "yolo11n", "sha256": "", "path": None}
        return {"name": detector.name, "sha256": detector.sha256 or "", "path": str(detector.path)}

    def _checkpoint(self, version: Version, run: Path) -> Path | None:
        """Return the recorded checkpoint of a run to resume, from this machine or from the artifact store."""
        weights, recorded = run / "weights", version.lineage.get("checkpoint") or {}
        weights.mkdir(parents=True, exist_ok=True)
        if restore_checkpoints(weights, recorded.get("slot", 0), recorded.get("files") or {}):
            return weights / "last.pt"  # else the run has continued on another machine
        if not (stored := recorded.get("stored")):
            return None
        try:
            shutil.copyfile(self._container.artifacts.fetch(stored["name"], stored["sha256"]), weights / "last.pt")
        except WeightsError as error:
            log.error("Project %s: %s starts from the beginning. %s", self._project, version.name, error)
            return None
        return weights / "last.pt"

    def _run_gate(self, version: Version) -> None:
        """Compare candidate and incumbent on the held-out and on other videos; promote, propose or refuse the
        candidate."""
        artifacts = self._container.artifacts
        candidate = artifacts.fetch(version.artifact, version.weights_sha256)
        stored = version.lineage["held_out_file"]
        held_out = artifacts.fetch(stored["name"], stored["sha256"])
        incumbent = self._registry.current(self._project)
        done = self._measure(version, candidate, incumbent, held_out)
        for _ in range(MAX_GATE_RUNS - 1):
            if _id(now := self._registry.current(self._project)) == _id(incumbent):
                break
            log.info("Project %s: the version in use has changed; the gate runs again.", self._project)
            incumbent = now
            done = self._measure(version, candidate, incumbent, held_out)
        measured, others = done["results"], done["others"]
        propose = self._container.policies.get(self._project).mode == "propose"
        decision = decide_promotion(measured["candidate"], measured["incumbent"], others, propose=propose)
        report_progress(get_current_job(), stage="gate", verdict=decision.reason)
        metrics = {
            **measured,
            "against": incumbent.name if incumbent else BASE,
            "others": others,
            "clips": self._keep_clips(version, others),
        }
        if decision.outcome == "promoted":
            version = self._registry.advance(version, state="promoting", metrics=metrics)
            self._watcher.check()
            self._registry.promote(version, decision.reason, f"gate: {version.trigger}", _id(incumbent))
            self._container.audit.record("gate", "promote", self._project, version.name)
        else:
            self._registry.finish(version, decision.outcome, decision.reason, metrics=metrics)
        self._container.count({"promoted": "promotions", "proposed": "proposals"}.get(decision.outcome, "refusals"))
        self._announce(version)
        self._tidy_up(version)

    def _keep_clips(self, version: Version, others: Mapping[str, Any] | None) -> dict[str, dict[str, str]]:
        """Store the clips of changes on other videos; return their artifacts by number."""
        folder = self._folder / "gate" / version.name / "clips"
        numbers = {change["clip"] for change in (others or {}).get("changes", ())} - {None}
        clips = {}
        for number in sorted(numbers):
            name = clip_name(version, number)
            sha256 = self._container.artifacts.put(folder / f"{number}.mp4", name)
            clips[str(number)] = {"artifact": name, "sha256": sha256}
        return clips

    def _measure(self, version: Version, candidate: Path, incumbent: Version | None, held_out: Path) -> dict[str, Any]:
        """Evaluate and compare the models in a subprocess; return its result."""
        projects = self._container.projects
        held_out_videos = json.loads(held_out.read_text(encoding="utf-8"))["videos"]
        active = projects.detector_of(incumbent, download=True) if incumbent else None
        detector = active or projects.models(None, download=True).detector
        config = self._container.client.get_project(self._project).label_config
        models = [
            {
                "name": "candidate",
                "title": version.name,
                "kind": "yolo",
                "path": str(candidate),
                "label_config": config,
                "trained": True,
            },
            {
                "name": "incumbent",
                "title": incumbent.name if incumbent else BASE,
                "kind": detector.kind,
                "path": str(detector.path) if detector.path else None,
                "label_config": config,
                "trained": incumbent is not None,
                "default": version.classes[0] if len(version.classes) == 1 else "",
            },
        ]
        if incumbent is not None:
            base = projects.models(None, download=True).detector
            if base.kind == "yolo":  # the reference for labels that nobody has annotated
                reference = {"name": "base", "title": BASE, "kind": "yolo", "path": str(base.path)}
                models.append({**reference, "label_config": config, "held_out": False})
        with ExitStack() as stack:
            videos: dict[str, str] = {}
            for video in held_out_videos:
                try:
                    opened = self._media().open(video["uri"], video["task_id"], self._project)
                    videos[video["name"]] = str(stack.enter_context(opened))
                except (MediaError, VideoError) as error:
                    if error.retryable:
                        raise
                    log.warning("%s is not evaluated: %s", video["name"], error)
            if not videos:
                raise TrainingFailed(
                    "None of the held-out videos can be read.", "Restore them, or annotate other videos."
                )
            folder = self._folder / "gate" / version.name
            plan = {
                "kind": "evaluate",
                "held_out": str(held_out),
                "videos": videos,
                "models": models,
                "others": self._open_others(config, stack),
                "clips": str(folder / "clips"),
            }
            return self._run_plan(plan, folder, self._on_progress)

    def _media(self) -> MediaStore:
        return MediaStore(
            self._settings, self._container.client, self._watcher.should_stop, self._container.unreachable
        )

    def _open_others(self, label_config: str, stack: ExitStack) -> list[dict[str, Any]]:
        """Open some videos that nobody has annotated, always the same ones; return their tasks and paths."""
        controls = parse_label_config(label_config).video_controls
        annotated: set[str] = set()
        tasks: dict[str, int] = {}
        for state in self._container.client.list_task_states(self._project):
            for uri in filter(None, (control.media_uri(state.data) for control in controls)):
                try:
                    name = canonical_uri(uri, self._settings.label_studio_url)
                except MediaError as error:
                    log.warning("A video of task %d is not compared: %s", state.id, error)
                    continue
                if state.annotations:
                    annotated.add(name)
                else:
                    tasks.setdefault(name, state.id)
        others: list[dict[str, Any]] = []
        for uri in sorted(tasks.keys() - annotated, key=lambda uri: hashlib.sha256(uri.encode()).hexdigest()):
            if len(others) == VIDEOS:
                break
            try:
                path = stack.enter_context(self._media().open(uri, tasks[uri], self._project))
            except (MediaError, VideoError) as error:
                if error.retryable and _retries_left():
                    raise
                log.warning("The video of task %d is not compared: %s", tasks[uri], error)
            else:
                others.append({"task": tasks[uri], "path": str(path)})
        return others

    def _on_progress(self, event: Mapping[str, Any]) -> None:
        if event.get("event") == "progress":
            report_progress(
                get_current_job(), stage="gate", **{name: value for name, value in event.items() if name != "event"}
            )

    # -- helpers

    def _run_plan(
        self, plan: Mapping[str, Any], folder: Path, on_event: Callable[[Mapping[str, Any]], None]
    ) -> dict[str, Any]:
        return self._process.run(
            plan,
            folder,
            on_event=on_event,
            should_stop=self._watcher.should_stop,
            should_pause=lambda: self._watcher.paused,
        )

    def _free_gpu_memory(self) -> None:
        """Unload idle models, since serving and training share the GPU."""
        from ml_backend.core.model_cache import current_model_cache

        if not _trains_on_cpu(self._settings):
            self._container.worker_status.optimize()
            if cache := current_model_cache():
                cache.optimize()


def _trains_on_cpu(settings: Settings) -> bool:
    """Return whether trainings have no GPU of NVIDIA, without loading PyTorch."""
    return settings.device in ("cpu", "mps") or not Path("/dev/nvidia0").exists()


def checkpoint_names(version: Version) -> tuple[str, str]:
    """Return the artifact names of a run's last checkpoint, used in turn, from which any worker can resume."""
    stem = f"projects/{version.project_id}/{version.name}-{version.id}"
    return f"{stem}-last.pt", f"{stem}-last-2.pt"


def clip_name(version: Version, number: int) -> str:
    """Return the artifact name of a clip that the gate made."""
    return f"projects/{version.project_id}/{version.name}-{version.id}-clip-{number}.mp4"


def lineage_of(data: TrainingDataset, seen: Mapping[str, str]) -> dict[str, Any]:
    """Return what the registry records of a version's training data."""
    return {
        "seen": dict(seen),
        "annotations": {str(task): number for task, number in data.annotations.items()},
        "pictures": dict(data.images),
        "tracks": data.tracks,
        "notes": list(data.notes),
        "unread": [str(task) for task in data.unread],
    }


def _retries_left() -> bool:
    current = get_current_job()
    return bool(current and current.retries_left)


def _id(version: Version | None) -> int | None:
    return version.id if version else None
