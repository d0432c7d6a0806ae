"""The fallback embedder: EfficientNet-Lite0, whose ImageNet weights are part of a Python package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_backend.core.errors import WeightsError
from ml_backend.core.settings import Settings
from ml_backend.embeddings.embedder import TorchEmbedder
from ml_backend.embeddings.hub import fallback_id, fallback_weights

if TYPE_CHECKING:
    import torch

#: Normalisation in the training of the weights, on the scale 0..255.
MEAN, STD = (127.0, 127.0, 127.0), (128.0, 128.0, 128.0)
INPUT_SIZE = 224
DIM = 1280


class EfficientNetEmbedder(TorchEmbedder):
    """EfficientNet-Lite0 without its classifier: 1280 pooled features.

    See Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019.

    Args:
        settings: ``device`` is used.

    Raises:
        WeightsError: the package with the weights is missing or has others; the device does not exist.
    """

    dim = DIM
    cpu_batch = 4  # a fifth faster than 8, whose activations do not fit into the CPU's cache

    def __init__(self, settings: Settings) -> None:
        self.model_id = fallback_id()
        self._set_up(_load(fallback_weights()), settings, INPUT_SIZE, MEAN, STD)

    def _forward(self, pixels: torch.Tensor) -> torch.Tensor:
        model: Any = self._model
        features: torch.Tensor = model.forward_head(model.forward_features(pixels), pre_logits=True)
        return features


def _load(path: Path) -> torch.nn.Module:
    """Load the network, with its classifier to verify that all weights match."""
    import timm
    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling foreign files raises anything
        raise WeightsError(f"{path} cannot be loaded ({type(error).__name__}: {error}).", "Reinstall it.") from error
    model: torch.nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    own = model.state_dict()
    # The file's tensors have other names than timm's, but the same order.
    shapes, expected = ([tuple(t.shape) for t in state.values()] for state in (loaded, own))
    if shapes != expected:
        raise WeightsError(f"{path} has other tensors than timm's tf_efficientnet_lite0.", "Install the pinned timm.")
    model.load_state_dict(dict(zip(own, loaded.values(), strict=True)))
    # A quarter faster on a CPU, and the layout of our input.
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model
