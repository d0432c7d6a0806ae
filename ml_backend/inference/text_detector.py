"""Find objects by text: Grounding DINO (Liu et al., ECCV 2024) and LLMDet, OWLv2 (Minderer et al., NeurIPS 2023),
OmDet-Turbo (Zhao et al., 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ml_backend.core.boxes import clip_xyxy
from ml_backend.core.errors import ConfigError
from ml_backend.core.memory import OutOfMemoryFallback, select_device
from ml_backend.core.types import Detections, Image
from ml_backend.detectors.nms import suppress_duplicates
from ml_backend.embeddings.loading import use_model

if TYPE_CHECKING:
    import torch

    from ml_backend.core.settings import Settings
    from ml_backend.embeddings.hub import ResolvedModel

#: Frames per call; more need much memory and are hardly faster.
BATCH = 4
#: Descriptions per call, at most.
DESCRIPTIONS = 16
#: Their tokens in Grounding DINO's text, with a full stop after each of them and the marks at both ends.
_TOKENS = 256
#: Types whose network scores the tokens of one text, rather than each description.
_GROUNDED = ("grounding-dino", "mm-grounding-dino")


class TextDetector(OutOfMemoryFallback):
    """A zero-shot detector of transformers.

    Args:
        resolved: read before.
        settings: ``device`` is used.

    Raises:
        WeightsError: its folder is damaged, or the device does not exist.
    """

    item_name = "frames"

    def __init__(self, resolved: ResolvedModel, settings: Settings) -> None:
        from ml_backend.embeddings.pretrained import load_pretrained, load_processor

        self._grounded = resolved.name in _GROUNDED
        self._processor = load_processor(resolved, "AutoProcessor")
        self._model = load_pretrained(resolved, "AutoModelForZeroShotObjectDetection").eval()
        self.batch = BATCH
        self.move_to(select_device(settings.device))

    def detect(self, images: Sequence[Image], prompts: Sequence[Sequence[str]], conf: float) -> list[Detections]:
        """Find objects.

        Args:
            images: ``(height, width, 3)`` uint8 BGR each; sizes may differ.
            prompts: descriptions of each label, at least one.
            conf: score that detections exceed.

        Returns:
            One :class:`Detections` per image, highest score first; ``class_id`` is an index into ``prompts``, ``conf``
            the score of the description that fits best.

        Raises:
            ConfigError: the descriptions are too long for the model.
        """
        owners = np.array([label for label, texts in enumerate(prompts) for _ in texts], np.int64)
        texts = [_cleaned(text) for group in prompts for text in group]
        results: list[Detections] = []
        while len(results) < len(images):
            results += self.run_with_fallback(partial(self._detect, images[len(results) :], texts, owners, conf))
        return results

    def _detect(
        self, images: Sequence[Image], texts: Sequence[str], owners: np.ndarray[Any, Any], conf: float, limit: int
    ) -> list[Detections]:
        batch = images[:limit]
        found: list[list[Detections]] = [[] for _ in batch]
        start = 0
        for group in self._groups(texts):
            for merged, detections in zip(found, self._pass(batch, group, conf), strict=True):
                merged.append(Detections(detections.xyxy, detections.conf, owners[start + detections.class_id]))
            start += len(group)
        return [_merged(passes, image) for passes, image in zip(found, batch, strict=True)]

    def _groups(self, texts: Sequence[str]) -> list[list[str]]:
        """Cut descriptions into groups, each for one call of the network."""
        groups: list[list[str]] = []
        used = 0
        for text in texts:
            tokens = 0  # of the others each description is a text of its own
            if self._grounded:
                tokens = len(self._processor.tokenizer(text, add_special_tokens=False).input_ids) + 1
            if not groups or len(groups[-1]) == DESCRIPTIONS or used + tokens > _TOKENS - 2:
                groups.append([])
                used = 0
            groups[-1].append(text)
            used += tokens
        return groups

    def _pass(self, images: Sequence[Image], texts: Sequence[str], conf: float) -> list[Detections]:
        """Return the detections of one call of the network; ``class_id`` is an index into ``texts``."""
        import torch

        sizes = [image.shape[:2] for image in images]
        with torch.inference_mode():
            encoded = self._processor(
                images=[image[..., ::-1].copy() for image in images],
                text=[list(texts)] * len(images),
                return_tensors="pt",
                truncation=True,
                **({"padding": True, "max_length": _TOKENS} if self._grounded else {"padding": "max_length"}),
            ).to(self._device)
            output = self._model(**encoded)
            if self._grounded:
                return self._grounded_detections(output, encoded.input_ids, texts, sizes, conf)
            results = self._processor.post_process_grounded_object_detection(output, threshold=conf, target_sizes=sizes)
            return [_detections(found["boxes"], found["scores"], found["labels"]) for found in results]

    def _grounded_detections(
        self, output: Any, input_ids: torch.Tensor, texts: Sequence[str], sizes: Sequence[tuple[int, ...]], conf: float
    ) -> list[Detections]:
        """Give each box the description whose most probable token is best.

        The processor's own post-processing joins tokens of several descriptions to texts that are none of them.
        """
        import torch

        columns = self._columns(input_ids[0].tolist(), texts)
        tokens = output.logits.sigmoid()  # (images, boxes, tokens)
        scores = torch.stack([tokens[..., these].amax(dim=-1) for these in columns], dim=-1)
        best, labels = scores.max(dim=-1)
        centre, half = output.pred_boxes[..., :2], output.pred_boxes[..., 2:] / 2
        corners = torch.cat([centre - half, centre + half], dim=-1)
        found = []
        for number, (height, width) in enumerate(sizes):
            kept = best[number] > conf
            boxes = corners[number][kept] * corners.new_tensor([width, height, width, height])
            found.append(_detections(boxes, best[number][kept], labels[number][kept]))
        return found

    def _columns(self, ids: Sequence[int], texts: Sequence[str]) -> list[list[int]]:
        """Return the positions of each description's tokens in a text that separates them by full stops."""
        tokenizer = self._processor.tokenizer
        special, stop = set(tokenizer.all_special_ids), tokenizer.convert_tokens_to_ids(".")
        columns: list[list[int]] = [[]]
        for position, token in enumerate(ids):
            if token == stop:
                columns.append([])
            elif token not in special or token == tokenizer.unk_token_id:
                columns[-1].append(position)
        columns.pop()  # what follows the last full stop
        if len(columns) != len(texts) or not all(columns):
            raise ConfigError(
                f"The descriptions {', '.join(map(repr, texts))[:300]} cannot be given to the model that finds objects "
                "by text: one is too long, or has no words.",
                'Write another as prompt="..." of the label.',
            )
        return columns


def _cleaned(text: str) -> str:
    """Return a description without full stops, which would separate two of them."""
    return " ".join(text.replace(".", " ").lower().split())


def _detections(boxes: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor) -> Detections:
    return Detections(
        boxes.float().cpu().numpy().reshape(-1, 4),
        scores.float().cpu().numpy(),
        labels.cpu().numpy().astype(np.int64),
    )


def _merged(passes: Sequence[Detections], image: Image) -> Detections:
    """Join the detections of several calls, without duplicates within a label."""
    height, width = image.shape[:2]
    xyxy = clip_xyxy(np.concatenate([one.xyxy for one in passes]), width, height).astype(np.float32)
    conf = np.concatenate([one.conf for one in passes])
    class_id = np.concatenate([one.class_id for one in passes])
    kept = suppress_duplicates(xyxy, conf, class_id)
    return Detections(xyxy[kept], conf[kept], class_id[kept])


def use_text_detector(resolved: ResolvedModel, settings: Settings) -> AbstractContextManager[TextDetector]:
    """Load a zero-shot detector, or take it from the model cache.

    Raises:
        WeightsError: it cannot be loaded.
    """
    return use_model(resolved, settings, TextDetector)
