"""ultralytics' detection trainer, extended to start from an existing detector's classes and to retain them.

Imports ultralytics: import this module only after :func:`ml_backend.detectors.setup.setup_ultralytics`.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics.data import utils as data_utils
from ultralytics.engine import trainer as engine
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.modules import Detect
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.torch_utils import unwrap_model

from ml_backend.core.errors import WeightsError
from ml_backend.training.arguments import BACKBONE
from ml_backend.training.class_transfer import StartFrom, transferred_rows
from ml_backend.training.distillation import Distillation, ReplayImages, Teacher

log = logging.getLogger(__name__)

#: Classification branches of the head: the usual one, and that of NMS-free models.
BRANCHES = ("cv3", "one2one_cv3")
#: Replay images of each step, as a share of the training images.
REPLAY_SHARE = 0.5
#: Largest difference of class probabilities between half and full precision on GPUs where AMP works.
AMP_TOLERANCE = 0.1


class FineTuner(DetectionTrainer):  # type: ignore[misc]
    """Trains a detector for other classes while retaining those it knows.

    Args:
        overrides: ultralytics' training arguments.
        start_from: label -> class of the start checkpoint, or several; see :func:`transferred_rows`.
        trained_classes: labels that have boxes in the data. The others keep what the teacher knows of them.
        teacher: answers in the data's labels; ``None``: labels without boxes get no loss; see :class:`ClassLoss`.
        replay: images without annotations on which the teacher is followed.
        freeze_norm: keep the start checkpoint's BatchNorm statistics in all layers, not only in the frozen ones. The
            statistics of a few images, mosaics at that, say little about the next video.
    """

    def __init__(
        self,
        overrides: Mapping[str, Any],
        start_from: StartFrom,
        trained_classes: Sequence[str],
        *,
        teacher: Teacher | None = None,
        replay: Sequence[Path] = (),
        freeze_norm: bool = False,
    ) -> None:
        _keep_offline()
        self.freeze_norm = freeze_norm
        self.teacher, self.replay = teacher, tuple(replay) if teacher and bool(teacher.known.any()) else ()
        self.start_from = dict(start_from)
        self.trained_classes = frozenset(trained_classes)
        #: Label -> class of the start checkpoint whose weights it started from.
        self.began: dict[str, str] = {}
        super().__init__(overrides=dict(overrides))
        self._replay_images = ReplayImages(self.replay, self.args)

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
        if weights is not None:
            check_detector(weights, str(self.args.model))
        model = super().get_model(cfg, weights, verbose)
        if self.args.freeze == BACKBONE:
            self.args.freeze = len(model.yaml["backbone"])
        if weights is not None and not self.resume:
            names = [str(self.data["names"][i]) for i in range(self.data["nc"])]
            self.began = transfer_class_rows(model, weights, names, self.start_from)
        return model

    def _model_train(self) -> None:
        super()._model_train()  # keeps the BatchNorm statistics of frozen layers
        self._distil()
        if self.freeze_norm:
            for module in self.model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()

    def _distil(self) -> None:
        model = unwrap_model(self.model)
        if isinstance(getattr(model, "criterion", None), Distillation):
            return
        trained_classes = [str(self.data["names"][i]) in self.trained_classes for i in range(self.data["nc"])]
        criterion = getattr(model, "criterion", None) or model.init_criterion()
        if self.teacher:
            self.teacher.to(self.device)
        model.criterion = Distillation(criterion, torch.tensor(trained_classes, device=self.device), self.teacher)

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Append replay images, which have no annotations, to a batch of training images."""
        if self.replay and self.model.training:
            images = batch["img"]
            count = math.ceil(len(images) * REPLAY_SHARE)
            batch["img"] = torch.cat([images, self._replay_images.next(count, images.shape[2:]).to(images)])
        return dict(super().preprocess_batch(batch))

    def auto_batch(self) -> int:
        # The batch that fits is far larger than what trains best: few images would make one step an epoch.
        fitting = int(super().auto_batch()) / (1 + REPLAY_SHARE if self.replay else 1)
        return max(1, min(int(self.args.nbs), int(fitting)))

    def save_model(self) -> bool:
        """Write checkpoints atomically, the best one first: training can be resumed whenever the process ends."""
        last: Path = self.wdir / "last.pt"
        best: Path = self.wdir / "best.pt"
        self.last, self.best = last.with_suffix(".part"), best.with_suffix(".part")
        try:
            saved = super().save_model()
            for part, path in ((self.best, best), (self.last, last)):
                if part.exists():
                    os.replace(part, path)
        finally:
            self.last, self.best = last, best
        return bool(saved)

    def final_eval(self) -> None:
        """Skip the final validation and leave ``last.pt`` unstripped, so that it can be resumed."""


def transfer_class_rows(model: Any, start: Any, names: Sequence[str], start_from: StartFrom) -> dict[str, str]:
    """Initialise each class of a model's head with the weights of a class of the start checkpoint, or with zeros.

    Args:
        model: has the start checkpoint's weights, except for the class rows.
        start: model of the start checkpoint.
        names: the model's classes.
        start_from: see :func:`transferred_rows`.

    Returns:
        label -> class of the start checkpoint, for the labels that start from one.
    """
    pairs = transferred_rows(names, start.names, start_from)
    head, start_head = model.model[-1], start.model[-1]
    with torch.no_grad():
        for attribute in BRANCHES:
            for level, branch in enumerate(getattr(head, attribute, None) or ()):
                last = branch[-1]
                # Also where both have the same number of classes and ultralytics copied the rows in order: they mean
                # different classes. From zero, a label without training boxes stays undetected.
                last.weight.zero_()
                last.bias[:] = _prior(len(names), float(head.stride[level]))
                start_branch = getattr(start_head, attribute, None)
                if start_branch is None or start_branch[level][-1].weight.shape[1:] != last.weight.shape[1:]:
                    continue
                for index, row in pairs.items():
                    last.weight[index] = start_branch[level][-1].weight[row].to(last.weight)
                    last.bias[index] = start_branch[level][-1].bias[row].to(last.bias)
    return {names[index]: str(start.names[row]) for index, row in pairs.items()}


def _prior(classes: int, stride: float) -> float:
    """Return the initial bias of a class without weights: ultralytics' prior of five objects in a 640-pixel image."""
    return math.log(5 / classes / (640 / stride) ** 2)


def check_detector(model: Any, path: str) -> None:
    """Raise WeightsError where a model cannot be trained as a detector."""
    if type(model) is not DetectionModel or not isinstance(model.model[-1], Detect):
        raise WeightsError(
            f"{path} is no YOLO detection model that can be trained.",
            "Set YOLO_WEIGHTS to a detection checkpoint such as yolo11n.pt.",
        )
    if model.is_fused():
        raise WeightsError(
            f"{path} has fused layers for inference and cannot be trained.",
            "Set YOLO_WEIGHTS to the checkpoint it was made from.",
        )


def _keep_offline() -> None:
    """Replace functions that would download: a font for plots that are not made, a model for the AMP check."""
    data_utils.check_font = lambda *_: None
    engine.check_amp = amp_works


def amp_works(model: Any) -> bool:
    """Return whether a model gives about the same scores in half precision; some GPUs compute NaN or garbage."""
    device = next(model.parameters()).device
    if device.type != "cuda":
        return False
    copied = deepcopy(model).train()  # training mode returns raw class scores
    image = torch.rand(2, 3, 256, 256, device=device, generator=torch.Generator(device).manual_seed(0))
    with torch.no_grad():
        whole = _scores(copied(image))
        with torch.autocast("cuda"):
            half = _scores(copied(image))
    works = bool(torch.isfinite(half).all()) and bool(((whole - half).abs() < AMP_TOLERANCE).all())
    if not works:
        log.warning("This GPU computes wrong results in half precision: training in full precision.")
    return works


def _scores(output: Any) -> torch.Tensor:
    branch = output.get("one2many", output)
    return torch.as_tensor(branch["scores"]).float().sigmoid()
