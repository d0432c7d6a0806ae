"""Label tracks zero-shot: compare crops with the names of labels in CLIP's embedding space.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (ICML 2021): prompts of a label
are averaged, an image is compared with all labels, and the softmax at the model's own temperature is the probability.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import log_softmax, softmax

from ml_backend.core.types import Float64Array, FloatArray
from ml_backend.label_studio.label_config import LabelSpec, label_prompts, readable_name

if TYPE_CHECKING:
    from ml_backend.embeddings.clip import ClipEmbedder


#: For labels without ``prompt``; crops from video are small, partly covered and often blurred.
TEMPLATES = (
    "a photo of a {}.",
    "a cropped photo of a {}.",
    "a low resolution photo of a {}.",
    "a blurry photo of a {}.",
    "a photo of a {} in a street.",
)
#: Prompts for boxes that show none of the labels.
OTHERS = ("a photo of something.", "a blurry photo of the background.", "a photo of a wall.", "a photo of the ground.")
#: Candidate temperatures, as factors of the model's own; below 1 corrects overconfidence.
TEMPERATURES = np.exp(np.linspace(np.log(0.25), np.log(4.0), 33))
#: Weight of the model's own temperature in the calibration, in objects.
PRIOR_OBJECTS = 4.0


def clip_prompts(label: LabelSpec) -> tuple[str, ...]:
    """Return CLIP's prompts for a label: the config's ``prompt``, else templates with the label's name."""
    return label_prompts(label) or tuple(template.format(readable_name(label)) for template in TEMPLATES)


@dataclass(frozen=True, slots=True, eq=False)
class ZeroShot:
    """Classify the crops of a track by the prompts of labels.

    Attributes:
        labels: in the order of the label config.
        text: ``(len(labels), d)`` L2-normalised.
        others: ``(n, d)`` L2-normalised, of prompts for none of the labels.
        logit_scale: the model's inverse temperature.
        temperature: factor of ``logit_scale``, calibrated by :meth:`calibrate`.
    """

    labels: tuple[str, ...]
    text: FloatArray
    others: FloatArray
    logit_scale: float
    temperature: float = 1.0

    @classmethod
    def from_prompts(cls, clip: ClipEmbedder, labels: Sequence[LabelSpec]) -> ZeroShot:
        """Embed the prompts of all labels."""
        first = {label.value: label for label in reversed(labels)}  # the first of several with the same name
        names = tuple(dict.fromkeys(label.value for label in labels))
        means = [clip.embed_text(clip_prompts(first[name])).mean(axis=0) for name in names]
        text = np.stack(means)
        text /= np.linalg.norm(text, axis=1, keepdims=True)
        return cls(names, text.astype(np.float32), clip.embed_text(OTHERS), clip.logit_scale)

    def _logits(self, embeddings: FloatArray) -> Float64Array:
        """Return ``(len(labels) + 1,)`` logits, averaged over embeddings; the last one is the best of ``others``."""
        similarities = embeddings.astype(np.float64) @ np.concatenate([self.text, self.others]).T.astype(np.float64)
        mean = similarities.mean(axis=0)
        count = len(self.labels)
        out: Float64Array = self.logit_scale * np.append(mean[:count], mean[count:].max())
        return out

    def probabilities(self, embeddings: FloatArray) -> dict[str, float]:
        """Return the probability of each label for one track; the remainder to 1 is that of none of them.

        Args:
            embeddings: ``(m, d)`` L2-normalised image embeddings, m >= 1.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != self.text.shape[1] or not len(embeddings):
            raise ValueError(f"expected embeddings of shape (m >= 1, {self.text.shape[1]}), got {embeddings.shape}")
        probabilities = softmax(self.temperature * self._logits(embeddings))
        return dict(zip(self.labels, probabilities[:-1].tolist(), strict=True))

    def calibrate(self, objects: Sequence[tuple[str, FloatArray]]) -> ZeroShot:
        """Calibrate the temperature on annotated objects.

        Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017), with a prior for the model's own
        temperature, which a handful of objects changes only a little.

        Args:
            objects: label and ``(m, d)`` embeddings of each; labels not in ``labels`` are ignored.
        """
        usable = [(self.labels.index(label), self._logits(rows)) for label, rows in objects if label in self.labels]
        if not usable:
            return self
        truth = np.array([label for label, _ in usable])
        logits = np.stack([row for _, row in usable])

        def loss(temperature: float) -> float:
            likelihood = log_softmax(temperature * logits, axis=1)[np.arange(len(truth)), truth].sum()
            return float(PRIOR_OBJECTS * np.log(temperature) ** 2 - likelihood)

        best = min(TEMPERATURES.tolist(), key=loss)
        return replace(self, temperature=float(best))


def discount_undetected(
    probabilities: Mapping[str, float],
    detector_shares: Mapping[str, float],
    detector_labels: Sequence[str],
    floor: float = 0.05,
) -> dict[str, float]:
    """Lower the probability of labels that the detector has classes for but did not detect.

    Labels without a detector class ("fallen_person") keep CLIP's weight.

    Args:
        probabilities: by label, from :meth:`ZeroShot.probabilities`.
        detector_shares: share of the detector's votes by label, 0..1.
        detector_labels: labels that the detector has classes for.
        floor: smallest weight, since detectors err too.
    """
    weighted = {
        label: p * (max(floor, detector_shares.get(label, 0.0)) if label in detector_labels else 1.0)
        for label, p in probabilities.items()
    }
    rest = max(0.0, 1.0 - sum(probabilities.values()))
    total = sum(weighted.values()) + rest
    return {label: p / total for label, p in weighted.items()} if total > 0 else dict(probabilities)
