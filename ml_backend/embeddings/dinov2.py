"""DINOv2 (Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", 2023) as an embedder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ml_backend.core.errors import WeightsError
from ml_backend.core.settings import Settings
from ml_backend.embeddings.embedder import TorchEmbedder
from ml_backend.embeddings.hub import read_dinov2_folder, read_json
from ml_backend.embeddings.pretrained import load_pretrained

if TYPE_CHECKING:
    import torch

#: Side of the input in pixels, as in the models' evaluation; time grows with its square.
INPUT_SIZE = 224
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

#: Parameters that a checkpoint may lack, as only training uses them.
UNUSED = frozenset({"embeddings.mask_token"})


class Dinov2Embedder(TorchEmbedder):
    """A DINOv2 model, with or without registers, of any size.

    An embedding concatenates the class token and the mean of the patch tokens, each L2-normalised: the paper's choice
    for linear classification.

    Args:
        path: folder with ``config.json`` and ``model.safetensors``, as transformers saves it.
        settings: ``device`` is used.

    Raises:
        WeightsError: the folder is missing, damaged, or another kind of model; the device does not exist.
    """

    def __init__(self, path: str | Path, settings: Settings) -> None:
        path = Path(path).expanduser()
        folder = read_dinov2_folder(path)
        model = load_pretrained(folder, unused=UNUSED)
        config = model.config
        self.model_id = folder.model_id
        self.dim = 2 * int(config.hidden_size)
        self._first_patch = 1 + int(getattr(config, "num_register_tokens", 0))
        patch = int(config.patch_size)
        mean, std = _normalisation(path)
        self._set_up(model, settings, max(INPUT_SIZE // patch, 1) * patch, mean, std)

    def _forward(self, pixels: torch.Tensor) -> torch.Tensor:
        import torch
        from torch.nn.functional import normalize

        tokens = self._model(pixel_values=pixels).last_hidden_state.float()
        class_token, patch_mean = tokens[:, 0], tokens[:, self._first_patch :].mean(1)
        return torch.cat([normalize(class_token, dim=-1), normalize(patch_mean, dim=-1)], -1)


def _normalisation(path: Path) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of RGB on the scale 0..255: the folder's, else ImageNet's."""
    file = path / "preprocessor_config.json"
    config = read_json(file) if file.is_file() else {}
    mean, std = config.get("image_mean", IMAGENET_MEAN), config.get("image_std", IMAGENET_STD)
    try:
        scaled = [255 * float(value) for value in mean], [255 * float(value) for value in std]
    except (TypeError, ValueError):
        scaled = [], []
    if len(scaled[0]) != 3 or len(scaled[1]) != 3 or not all(value > 0 for value in scaled[1]):
        raise WeightsError(f"{file} has no usable image_mean and image_std.", "Delete it or download it again.")
    return scaled
