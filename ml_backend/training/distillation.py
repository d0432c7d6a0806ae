"""Distillation: a training keeps what its start checkpoint knew of labels and videos that nobody has annotated.

The start checkpoint is a frozen teacher, as in Li & Hoiem, "Learning without Forgetting" (2017), and, for detectors,
Shmelkov et al. (2017). Its class probabilities are the targets of labels that nobody has annotated, and its boxes and
probabilities those of replay images: frames of videos without annotations, appended to each batch of training images.

Imports ultralytics: import this module only after :func:`ml_backend.detectors.setup.setup_ultralytics`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn
from ultralytics.data.augment import LetterBox, RandomHSV
from ultralytics.utils.metrics import bbox_iou
from ultralytics.utils.tal import make_anchors

#: Class probability from which the teacher sees an object, whose box is then taught too.
SEEN = 0.25
#: Branches of the output of NMS-free models; others have one.
BRANCHES = ("one2many", "one2one")


@dataclass(frozen=True, slots=True)
class Taught:
    """The teacher's output for a batch, in one branch of the head.

    Attributes:
        probabilities: ``(batch, anchors, classes)`` of the project's labels; 0 for those it does not know.
        boxes: ``(batch, channels, anchors)``: raw output of the box branch.
    """

    probabilities: torch.Tensor
    boxes: torch.Tensor

    def __getitem__(self, images: slice) -> Taught:
        return Taught(self.probabilities[images], self.boxes[images])


class Teacher:
    """A frozen detector that answers in the project's labels.

    Args:
        model: the start checkpoint's.
        rows: label index -> class ids of the checkpoint whose objects have that label in predictions; the most probable
            one counts. Labels that are left out are unknown.
        labels: number of labels.
    """

    def __init__(self, model: nn.Module, rows: Mapping[int, Sequence[int]], labels: int) -> None:
        self._model = model.float().eval().requires_grad_(False)
        self._rows = {label: list(class_ids) for label, class_ids in rows.items()}
        #: ``(labels,)`` whether it knows the label.
        self.known = torch.tensor([label in self._rows for label in range(labels)])

    def to(self, device: torch.device) -> None:
        self._model.to(device)
        self.known = self.known.to(device)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> dict[str, Taught]:
        """Return its output for images ``(batch, 3, height, width)`` by branch."""
        return {name: self._taught(output) for name, output in branches(self._model(images)[1]).items()}

    def _taught(self, output: Mapping[str, torch.Tensor]) -> Taught:
        scores = output["scores"].float().sigmoid()
        probabilities = scores.new_zeros(len(scores), len(self.known), scores.shape[2])
        for label, class_ids in self._rows.items():
            probabilities[:, label] = scores[:, class_ids].amax(1)
        return Taught(probabilities.permute(0, 2, 1), output["boxes"].float())


class ClassLoss(nn.Module):
    """Binary cross-entropy of class scores that does not punish labels nobody has annotated.

    Where nothing is annotated, objects of such labels may be visible all the same, so it must not count as background:
    the target is what the teacher sees there; where it does not know the label, there is no loss. An annotated box has
    another label, so there it does count: what was "person" and is "first_responder" now must not be detected as both.

    Args:
        trained_classes: ``(classes,)`` whether there are boxes of the label.
        known: ``(classes,)`` whether the teacher knows the label.
    """

    def __init__(self, trained_classes: torch.Tensor, known: torch.Tensor) -> None:
        super().__init__()
        self._trained_classes = trained_classes
        self._known = known
        #: ``(batch, anchors, classes)``: the teacher's probabilities for the images of the next call.
        self.taught: torch.Tensor | None = None

    def forward(self, scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return losses ``(batch, anchors, classes)`` of logits and target probabilities of the same shape."""
        counts = self._trained_classes | (targets.sum(-1, keepdim=True) > 0)
        if self.taught is not None:
            targets = torch.where(counts, targets, self.taught.to(targets))
            counts = counts | self._known
        return nn.functional.binary_cross_entropy_with_logits(scores, targets, reduction="none") * counts


class Distillation:
    """A detector's criterion that follows people on training images, and its teacher elsewhere.

    Args:
        criterion: ultralytics' criterion.
        trained_classes: ``(classes,)`` whether there are boxes of the label.
        teacher: without one, labels without boxes have no loss except at annotated boxes.
    """

    def __init__(self, criterion: Any, trained_classes: torch.Tensor, teacher: Teacher | None) -> None:
        self._criterion, self._teacher = criterion, teacher
        known = teacher.known if teacher else torch.zeros_like(trained_classes)
        self._keeps = bool((known & ~trained_classes).any())
        self._losses = {name: getattr(criterion, name, criterion) for name in BRANCHES if hasattr(criterion, name)}
        self._losses = self._losses or {BRANCHES[0]: criterion}
        self._class_losses = {name: ClassLoss(trained_classes, known) for name in self._losses}
        for name, loss in self._losses.items():
            loss.bce = self._class_losses[name]

    def __call__(self, output: Any, batch: Mapping[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the losses of a batch whose last images may be replay images, and those of the others for logs."""
        output = output[1] if isinstance(output, tuple) else output
        students, images = branches(output), batch["img"]
        trained = len(batch["im_file"]) if self._teacher else len(images)
        first = slice(None if self._keeps else trained, None)
        taught = self._teacher(images[first]) if self._teacher and len(images[first]) else {}
        for name, class_loss in self._class_losses.items():
            class_loss.taught = taught[name].probabilities[:trained] if self._keeps and taught else None
        loss, items = self._criterion(_cut(output, slice(trained)), batch)
        if trained < len(images):
            assert self._teacher
            gains = (self._criterion.o2m, self._criterion.o2o) if len(students) > 1 else (1.0,)
            replayed = slice(trained, None)
            for gain, (name, student) in zip(gains, students.items(), strict=True):
                target = taught[name][replayed if self._keeps else slice(None)]
                loss = loss + gain * self._distil(self._losses[name], _cut(student, replayed), target)
        return loss, items

    def _distil(self, criterion: Any, student: Mapping[str, Any], taught: Taught) -> torch.Tensor:
        """Return the losses ``(3,)`` (boxes, classes, 0) between a student and its teacher on the same images."""
        assert self._teacher
        scores, targets = student["scores"].permute(0, 2, 1).float(), taught.probabilities
        losses = nn.functional.binary_cross_entropy_with_logits(scores, targets, reduction="none")
        probability = targets.amax(-1)
        weights = torch.where(probability >= SEEN, probability, 0)
        total = weights.sum().clamp(min=1)
        class_loss = (losses * self._teacher.known).sum() / total
        anchors = make_anchors(student["feats"], criterion.stride, 0.5)[0]
        ours, theirs = (
            criterion.bbox_decode(anchors, boxes.permute(0, 2, 1).contiguous())[weights > 0]
            for boxes in (student["boxes"].float(), taught.boxes)
        )
        iou = bbox_iou(ours, theirs, xywh=False, CIoU=True).squeeze(-1)
        box_loss = ((1 - iou) * weights[weights > 0]).sum() / total
        hyp = criterion.hyp
        return torch.stack([hyp.box * box_loss, hyp.cls * class_loss, torch.zeros_like(total)]) * len(scores)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of ultralytics' criterion, which its trainer uses."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._criterion, name)


def branches(output: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return a model's raw output by branch of its head."""
    return {name: output[name] for name in BRANCHES} if BRANCHES[0] in output else {BRANCHES[0]: output}


def _cut(output: Any, images: slice) -> Any:
    """Return a model's raw output for some of a batch's images."""
    if isinstance(output, Mapping):
        return {name: _cut(value, images) for name, value in output.items()}
    return [_cut(value, images) for value in output] if isinstance(output, (list, tuple)) else output[images]


class ReplayImages:
    """Replay images in endless random order, scaled, moved, flipped and recoloured as training images are.

    Args:
        files: of images.
        args: ultralytics' training arguments.
    """

    def __init__(self, files: Sequence[Path], args: Any) -> None:
        self._files, self._args = list(files), args
        self._recolour = RandomHSV(args.hsv_h, args.hsv_s, args.hsv_v)
        self._random = np.random.default_rng(int(args.seed))
        self._order = self._endless()

    def next(self, count: int, size: tuple[int, int]) -> torch.Tensor:
        """Return ``(count, 3, height, width)`` uint8 RGB, letterboxed to ``size`` ``(height, width)``."""
        images = [self._load(next(self._order), size) for _ in range(count)]
        return torch.from_numpy(np.ascontiguousarray(np.stack(images)[..., ::-1].transpose(0, 3, 1, 2)))

    def _load(self, file: Path, size: tuple[int, int]) -> Any:
        image = cv2.imread(str(file))
        if image is None:
            raise FileNotFoundError(f"{file} cannot be read.")
        image = self._move(self._recolour({"img": LetterBox(size)(image=image)})["img"])
        return image[:, ::-1] if self._random.random() < self._args.fliplr else image

    def _move(self, image: Any) -> Any:
        """Scale an image around its centre and shift it; what is uncovered is grey, as beside letterboxed images.

        What is kept on few images is then kept on others, too: 15 instead of 11 of 16 sure tracks of unseen videos.
        """
        (height, width), spread = image.shape[:2], self._args.scale
        scale = self._random.uniform(*(spread if isinstance(spread, list) else (1 - spread, 1 + spread)))
        x, y = self._random.uniform(-1, 1, 2) * self._args.translate + 0.5
        matrix = np.array([[scale, 0, (x - scale / 2) * width], [0, scale, (y - scale / 2) * height]])
        return cv2.warpAffine(image, matrix, (width, height), borderValue=(114, 114, 114))

    def _endless(self) -> Iterator[Path]:
        while True:
            yield from (self._files[index] for index in self._random.permutation(len(self._files)))
