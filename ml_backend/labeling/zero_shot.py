"""Labels from their names: CLIP's text tower says what a label looks like.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (ICML 2021): prompts of a label
are averaged, a picture is compared with all labels, and the softmax at the model's own temperature is the probability.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax, softmax

from ml_backend.core.types import FloatArray
from ml_backend.label_studio.label_config import LabelSpec, clip_prompts

if TYPE_CHECKING:
    from ml_backend.embeddings.clip import ClipEmbedder

Floats = npt.NDArray[np.float64]

#: For labels without a prompt of their own; crops from video are small, partly covered and not always sharp.
TEMPLATES = (
    "a photo of a {}.",
    "a cropped photo of a {}.",
    "a low resolution photo of a {}.",
    "a blurry photo of a {}.",
    "a photo of a {} in a street.",
)
#: What a box shows that is none of the labels.
OTHERS = ("a photo of something.", "a blurry photo of the background.", "a photo of a wall.", "a photo of the ground.")
#: Temperatures tried, as factors of the model's own; below 1 the model is surer of itself than it should be.
TEMPERATURES = np.exp(np.linspace(np.log(0.25), np.log(4.0), 33))
#: Weight of the model's own temperature against the exemplars', in objects.
PRIOR_OBJECTS = 4.0


def label_prompts(label: LabelSpec) -> tuple[str, ...]:
    """What CLIP is asked for a label: the config's ``clip_prompt``, else templates around the label's name."""
    if own := clip_prompts(label):
        return own
    readable = " ".join(label.value.replace("_", " ").replace("-", " ").split())
    return tuple(template.format(readable) for template in TEMPLATES)


@dataclass(frozen=True, slots=True, eq=False)
class ZeroShot:
    """Compares looks of a track with labels.

    Attributes:
        labels: in the order of the label config.
        text: ``(len(labels), d)`` L2-normalised.
        others: ``(n, d)`` L2-normalised: what is none of the labels.
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
        first = {label.value: label for label in reversed(labels)}  # of several with one name the first counts
        names = tuple(dict.fromkeys(label.value for label in labels))
        means = [clip.embed_text(label_prompts(first[name])).mean(axis=0) for name in names]
        text = np.stack(means)
        text /= np.linalg.norm(text, axis=1, keepdims=True)
        return cls(names, text.astype(np.float32), clip.embed_text(OTHERS), clip.logit_scale)

    def _logits(self, views: FloatArray) -> Floats:
        """``(len(labels) + 1,)``: mean over the views; the last one is the likeliest of what is no label."""
        similar = views.astype(np.float64) @ np.concatenate([self.text, self.others]).T.astype(np.float64)
        mean = similar.mean(axis=0)
        count = len(self.labels)
        out: Floats = self.logit_scale * np.append(mean[:count], mean[count:].max())
        return out

    def probabilities(self, views: FloatArray) -> dict[str, float]:
        """Probability of each label for one track; they add up to less than 1, the rest is none of them.

        Args:
            views: ``(m, d)`` L2-normalised image embeddings, m >= 1.
        """
        if views.ndim != 2 or views.shape[1] != self.text.shape[1] or not len(views):
            raise ValueError(f"expected views of shape (m >= 1, {self.text.shape[1]}), got {views.shape}")
        chances = softmax(self.temperature * self._logits(views))
        return dict(zip(self.labels, chances[:-1].tolist(), strict=True))

    def calibrate(self, objects: Sequence[tuple[str, FloatArray]]) -> ZeroShot:
        """Find the temperature at which annotated objects are as likely as they should be.

        Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017), with a prior for the model's own
        temperature that a handful of objects moves only a little.

        Args:
            objects: label and ``(m, d)`` views of each; other labels than ``labels`` are passed over.
        """
        known = [(self.labels.index(label), self._logits(views)) for label, views in objects if label in self.labels]
        if not known:
            return self
        truth = np.array([label for label, _ in known])
        logits = np.stack([row for _, row in known])

        def loss(temperature: float) -> float:
            likelihood = log_softmax(temperature * logits, axis=1)[np.arange(len(truth)), truth].sum()
            return float(PRIOR_OBJECTS * np.log(temperature) ** 2 - likelihood)

        best = min(TEMPERATURES.tolist(), key=loss)
        return replace(self, temperature=float(best))


def with_detector(
    probabilities: Mapping[str, float], detector: Mapping[str, float], known: Sequence[str], floor: float = 0.05
) -> dict[str, float]:
    """Lower the probability of labels that the detector knows itself, and did not see.

    A label that the detector has no class for ("fallen_person") is left to CLIP alone.

    Args:
        probabilities: by label, from :meth:`ZeroShot.probabilities`.
        detector: share of the detector's votes by label, 0..1.
        known: labels that the detector has classes for.
        floor: least share that is believed: detectors err too.
    """
    weighted = {
        label: p * (max(floor, detector.get(label, 0.0)) if label in known else 1.0)
        for label, p in probabilities.items()
    }
    rest = max(0.0, 1.0 - sum(probabilities.values()))
    total = sum(weighted.values()) + rest
    return {label: p / total for label, p in weighted.items()} if total > 0 else dict(probabilities)
