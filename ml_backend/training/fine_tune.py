"""Fine-tune a YOLO detector on a dataset; runs in the training subprocess."""

from __future__ import annotations

import errno
import logging
import math
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_backend.core.errors import BackendError, StorageError, TrainingFailed
from ml_backend.core.memory import device_type, is_out_of_memory, select_device
from ml_backend.core.settings import get_settings
from ml_backend.detectors.setup import setup_ultralytics
from ml_backend.detectors.yolo import YoloDetector
from ml_backend.training.arguments import FREEZE_NORM, check_overrides, training_args
from ml_backend.training.class_transfer import (
    StartFrom,
    checkpoint_metadata,
    known_rows,
    labels_trained_by,
    read_checkpoint,
)

if TYPE_CHECKING:
    from ml_backend.training.distillation import Teacher

log = logging.getLogger(__name__)

Emit = Callable[..., None]

SCRATCH = "yolo11n.yaml"
#: Number of epochs from which the time left is estimated: the first ones and those with mosaics take longer.
RECENT = 5
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: Messages of torch when a file could not be written.
_TORCH_WRITE = re.compile(r"PytorchStreamWriter|inline_container|unexpected pos")


class OutOfMemory(TrainingFailed):
    """There was too little memory at the moment; another process may have taken it."""

    http_status = 507
    retryable = True


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """A training.

    Attributes:
        data: ``data.yaml`` of a YOLO dataset, with an absolute ``path``.
        classes: labels, in the dataset's order.
        trained_classes: labels that have boxes in the training part.
        run: folder for checkpoints; created if missing.
        start: start checkpoint; ``None``: random weights.
        start_from: label -> most similar class of the start checkpoint, or several in order of preference.
        label_config: of the project, which says what the start checkpoint's classes are called there.
        replay: images of videos without annotations, on which it keeps finding what the start checkpoint finds.
        resume: ``weights/last.pt`` in ``run`` of an interrupted training, whose arguments then apply.
        args: ultralytics' arguments as :func:`training_args` returns them.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:0``, ``mps``.
    """

    data: Path
    classes: tuple[str, ...]
    trained_classes: tuple[str, ...]
    run: Path
    start: Path | None = None
    start_from: StartFrom = field(default_factory=dict)
    label_config: str = ""
    replay: tuple[Path, ...] = ()
    resume: Path | None = None
    args: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"

    @classmethod
    def from_json(cls, plan: Mapping[str, Any]) -> TrainingPlan:
        """Parse the subprocess' plan.

        With ``pictures``, ``tracks`` and ``imgsz``, its ``args`` override the defaults for that amount of data and the
        device.

        Raises:
            ConfigError: an argument may not be set or has an invalid value.
            WeightsError: the device does not exist.
        """

        def path(name: str) -> Path | None:
            return Path(plan[name]).absolute() if plan.get(name) else None

        args = dict(plan.get("args") or {})
        device = str(plan.get("device") or "auto")
        if "pictures" in plan:
            kind = device_type(select_device(device))
            args = training_args(plan["pictures"], plan["tracks"], kind, plan["imgsz"], args)
        return cls(
            Path(plan["data"]).absolute(),
            tuple(plan["classes"]),
            tuple(plan["trained_classes"]),
            Path(plan["run"]).absolute(),
            path("start"),
            dict(plan.get("start_from") or {}),
            str(plan.get("label_config") or ""),
            tuple(Path(name).absolute() for name in plan.get("replay") or ()),
            path("resume"),
            check_overrides(args),
            device,
        )


def fine_tune(plan: TrainingPlan, emit: Emit, pause: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Train, or resume a training, or only finish one whose last epoch is done.

    Args:
        plan: the training.
        emit: called with the events ``start`` and ``epoch`` and their fields.
        pause: called before each batch; returns when the training may go on.

    Returns:
        Fields of the event ``done``: ``weights`` (a stripped checkpoint that has been loaded once as a check),
        ``epochs`` and ``seconds`` of training, and its ``args``.

    Raises:
        TrainingFailed: the data or the arguments are unusable, memory is too small, or the loss is not finite.
        WeightsError: a checkpoint cannot be used.
        StorageError: the disk is full.
    """
    setup_ultralytics()
    seconds = 0.0
    with _translate_errors(plan):
        finished = plan.resume is not None and _finished(plan.resume)
        if not finished:
            seconds = _train(plan, emit, pause)
        weights, epochs = _finish(plan)
    return {"weights": str(weights), "epochs": epochs, "seconds": round(seconds, 3), "args": dict(plan.args)}


def _train(plan: TrainingPlan, emit: Emit, pause: Callable[[], None]) -> float:
    from ml_backend.training.fine_tuner import FineTuner, check_detector

    if plan.start and not plan.resume:
        check_detector(read_checkpoint(plan.start)[0], str(plan.start))
    device = select_device(plan.device)
    fixed: dict[str, Any] = {
        "data": str(plan.data),
        "save_dir": str(plan.run),
        "device": device.partition(":")[2] or "0" if device_type(device) == "cuda" else device,
        "plots": False,
        "val": True,
        "workers": plan.args.get("workers", 0),
    }
    if plan.resume:
        overrides = {**fixed, "resume": str(plan.resume), "model": str(plan.resume)}
    else:
        model = {"model": str(plan.start or SCRATCH), "pretrained": plan.start is not None, "cls_remap": False}
        overrides = {**plan.args, **fixed, **model, "exist_ok": True, "verbose": False, "mode": "train"}
    # Random weights have no BatchNorm statistics worth keeping.
    freeze_norm = bool(overrides.pop(FREEZE_NORM, plan.args.get(FREEZE_NORM))) and plan.start is not None
    trainer = FineTuner(
        overrides,
        _start_from(plan, _start_of(plan)),
        plan.trained_classes,
        teacher=_teacher(plan),
        replay=plan.replay,
        freeze_norm=freeze_norm,
    )
    callbacks = _EventCallbacks(emit)
    trainer.add_callback("on_train_batch_start", lambda _: pause())
    trainer.add_callback("on_train_start", callbacks.start)
    trainer.add_callback("on_train_epoch_end", callbacks.losses)
    trainer.add_callback("on_fit_epoch_end", callbacks.epoch)
    trainer.train()
    return callbacks.seconds


class _EventCallbacks:
    """Trainer callbacks that emit events."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._recent: deque[float] = deque(maxlen=RECENT)
        self.seconds = 0.0

    def start(self, trainer: Any) -> None:
        self._emit(
            "start",
            device=str(trainer.device),
            batch=int(trainer.batch_size),
            pictures=len(trainer.train_loader.dataset),
            epochs=int(trainer.epochs),
            began=trainer.began,
        )

    def losses(self, trainer: Any) -> None:
        # In later epochs ultralytics recovers from the last checkpoint; in the first one there is none.
        if trainer.epoch == trainer.start_epoch and not bool(trainer.loss.isfinite()):
            raise _diverged()

    def epoch(self, trainer: Any) -> None:
        self.seconds += trainer.epoch_time
        self._recent.append(trainer.epoch_time)
        losses = {_LOSSES.get(name, name): float(value) for name, value in (trainer.tloss or {}).items()}
        left = 0 if trainer.stop else max(0, trainer.epochs - trainer.epoch - 1)
        self._emit(
            "epoch",
            epoch=trainer.epoch + 1,
            epochs=int(trainer.epochs),
            losses={name: round(value, 5) for name, value in losses.items()},
            map50=_rounded(trainer.metrics.get("metrics/mAP50(B)")),
            map50_95=_rounded(trainer.metrics.get("metrics/mAP50-95(B)")),
            seconds=round(trainer.epoch_time, 3),
            eta_s=round(left * sum(self._recent) / len(self._recent), 1),
            checkpoint=str(trainer.last),
        )


#: Models without distribution focal loss have an L1 loss in its place.
_LOSSES = {"box_loss": "box", "cls_loss": "cls", "dfl_loss": "dfl", "l1_loss": "dfl"}


def _rounded(value: object) -> float | None:
    return round(float(value), 5) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _finished(last: Path) -> bool:
    """Return whether a checkpoint is of the last epoch, or of the one at which patience ran out.

    Raises:
        WeightsError: it cannot be read.
    """
    checkpoint = read_checkpoint(last)[1]
    epoch, args = int(checkpoint.get("epoch", -1)), checkpoint.get("train_args") or {}
    if epoch < 0:  # ultralytics marks finished trainings so
        return True
    best_epoch, patience = (checkpoint.get("stopper") or {}).get("best_epoch"), args.get("patience") or math.inf
    waited = epoch + 1 - best_epoch if best_epoch is not None else 0
    return bool(epoch + 1 >= args.get("epochs", math.inf) or waited >= patience)


def _finish(plan: TrainingPlan) -> tuple[Path, int]:
    """Strip the best checkpoint, load it as predictions will, and return its path and the number of epochs.

    Raises:
        TrainingFailed: the checkpoint cannot be read or has other classes.
    """
    from ultralytics.utils.torch_utils import strip_optimizer

    folder = plan.run / "weights"
    last, best, part = folder / "last.pt", folder / "best.pt", folder / "stripped.part"
    epochs = int(read_checkpoint(last)[1].get("epoch", -1)) + 1
    start = _start_of(plan)
    marks = checkpoint_metadata(plan.classes, plan.trained_classes, start, _start_from(plan, start))
    if not strip_optimizer(best if best.exists() else last, str(part), updates=marks):
        raise TrainingFailed("The trained checkpoint cannot be read.", "Start the training again.")
    os.replace(part, best)
    names = YoloDetector(best, get_settings().model_copy(update={"device": "cpu"})).names
    if [names.get(i) for i in range(len(names))] != list(plan.classes):
        raise TrainingFailed(f"The trained detector knows {', '.join(names.values())}.", "Start the training again.")
    return best, epochs


def _start_of(plan: TrainingPlan) -> tuple[Mapping[int, Any], Mapping[str, Any]] | None:
    """Return class names and content of the start checkpoint; ``None`` where a resumed training no longer has it."""
    if plan.start is None or (plan.resume and not plan.start.is_file()):
        return None
    model, content = read_checkpoint(plan.start)
    return model.names, content


def _teacher(plan: TrainingPlan) -> Teacher | None:
    """Return the start checkpoint as the teacher; ``None`` where there is none or no longer."""
    from ml_backend.training.distillation import Teacher

    if plan.start is None or (plan.resume and not plan.start.is_file()):
        return None
    model, content = read_checkpoint(plan.start)
    return Teacher(model, known_rows(plan.classes, model.names, content, plan.label_config), len(plan.classes))


def _start_from(plan: TrainingPlan, start: tuple[Mapping[int, Any], Mapping[str, Any]] | None) -> StartFrom:
    """Return ``start_from`` without labels that the start checkpoint was trained on."""
    trained = labels_trained_by(*start) if start else set()
    return {label: name for label, name in plan.start_from.items() if label not in trained}


def _diverged() -> TrainingFailed:
    return TrainingFailed(
        "The training's loss is no longer finite.",
        "Lower lr0, or set amp to false; TRAIN_ARGS takes both.",
    )


@contextmanager
def _translate_errors(plan: TrainingPlan) -> Iterator[None]:
    """Translate errors of torch and ultralytics into errors that name cause and fix."""
    try:
        yield
    except BackendError:
        raise
    except (RuntimeError, OSError, MemoryError, ValueError, TypeError, AssertionError, SyntaxError, KeyError) as error:
        translated = _translate(error, plan)
        if translated is None:
            raise
        raise translated from error


def _translate(error: BaseException, plan: TrainingPlan) -> BackendError | None:
    text = str(error)
    if is_out_of_memory(error) or any(word in text for word in ("CUBLAS_STATUS_ALLOC", "no usable batch size")):
        return OutOfMemory(
            "There is too little memory to train.",
            f"Free some, or lower batch or imgsz, now {plan.args.get('imgsz', 640)} pixels; TRAIN_ARGS takes both.",
        )
    if (isinstance(error, OSError) and error.errno in _FULL) or _TORCH_WRITE.search(text):
        return StorageError(f"The training's weights cannot be written to {plan.run}: the disk is full.", "Free space.")
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return StorageError(f"{error.filename or plan.run} cannot be written: {error.strerror}.", "Check permissions.")
    if "NaN" in text:
        return _diverged()
    if text.startswith("Dataset ") or isinstance(error, FileNotFoundError) or "No valid images" in text:
        return TrainingFailed(f"The dataset {plan.data} cannot be used: {text}", "Rebuild it.")
    if isinstance(error, (ValueError, TypeError, AssertionError)) and "'" in text and _names_argument(text, plan.args):
        return TrainingFailed(f"ultralytics refuses a training argument: {text}", "Correct TRAIN_ARGS.")
    return None


def _names_argument(text: str, args: Sequence[str] | Mapping[str, Any]) -> bool:
    return any(f"{name}=" in text or f"'{name}'" in text or f"{name} " in text for name in args)
