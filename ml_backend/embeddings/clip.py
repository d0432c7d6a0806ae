"""CLIP (Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021)."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_backend.core.errors import WeightsError
from ml_backend.core.settings import Settings
from ml_backend.core.types import FloatArray
from ml_backend.embeddings.embedder import TorchEmbedder
from ml_backend.embeddings.hub import ResolvedModel, read_clip_folder

if TYPE_CHECKING:
    import torch


class ClipEmbedder(TorchEmbedder):
    """A CLIP model of open_clip: images and texts in one embedding space.

    Args:
        path: folder with ``open_clip_config.json`` and ``open_clip_model.safetensors``, as open_clip saves it.
        settings: ``device`` is used.

    Attributes:
        logit_scale: factor of cosines before the softmax over labels (the inverse temperature).

    Raises:
        WeightsError: the folder is missing, damaged, or another kind of model; the device does not exist.
    """

    logit_scale: float

    def __init__(self, path: str | Path, settings: Settings) -> None:
        folder = read_clip_folder(Path(path).expanduser())
        model, self._tokenizer = _load(folder)
        self.model_id = folder.model_id
        self.dim = int(folder.config["model_cfg"]["embed_dim"])
        self.logit_scale = float(model.logit_scale.detach().exp())
        if not math.isfinite(self.logit_scale):
            raise WeightsError(f"The weights in {folder.path} are not finite.", "Download the folder again.")
        preprocessing = model.visual.preprocess_cfg
        size = preprocessing["size"]
        sides = {int(size)} if isinstance(size, int) else {int(side) for side in size}
        if len(sides) != 1:
            raise WeightsError(f"{folder.path} is a model for images of {size} pixels, not square ones.")
        mean, std = ([255 * float(value) for value in preprocessing[key]] for key in ("mean", "std"))
        self._set_up(model, settings, sides.pop(), mean, std)

    def embed_text(self, prompts: Sequence[str]) -> FloatArray:
        """Embed texts, to compare with crops by :attr:`logit_scale` times the dot product.

        Args:
            prompts: e.g. ``"a photo of a fallen person"``; truncated to the model's context length.

        Returns:
            ``(n, dim)`` float32, L2-normalised rows; ``(0, dim)`` for none.

        Raises:
            WeightsError: the network's output is not finite.
        """
        model: Any = self._model
        return self._in_batches(prompts, lambda batch: model.encode_text(self._tokenizer(list(batch)).to(self._device)))

    def _forward(self, pixels: torch.Tensor) -> torch.Tensor:
        model: Any = self._model
        features: torch.Tensor = model.encode_image(pixels)
        return features


def _load(folder: ResolvedModel) -> tuple[Any, Any]:
    """Load the model and its tokeniser."""
    import open_clip
    from open_clip.factory import load_checkpoint

    source = f"local-dir:{folder.path}"
    try:
        with _root_logger_silenced():
            # The weights are loaded separately because open_clip would choose one of the folder's files by itself,
            # maybe not the one that gave the model its identity.
            model = open_clip.create_model(source, load_weights=False, pretrained_text=False)
            load_checkpoint(model, str(folder.weights), weights_only=True)
            hub_format = bool(folder.config["model_cfg"]["text_cfg"].get("hf_tokenizer_name"))
            options = {"local_files_only": True, "trust_remote_code": False} if hub_format else {}
            tokenizer = open_clip.get_tokenizer(source, **options)
            tokenizer(["a"])
    except MemoryError:
        raise
    except Exception as error:  # open_clip raises anything for a folder of another kind
        raise WeightsError(
            f"{folder.path} cannot be loaded as a CLIP model of open_clip ({type(error).__name__}: {error}).",
            "Download the folder again; it may be damaged or lack its tokeniser's files.",
        ) from error
    return model, tokenizer


@contextlib.contextmanager
def _root_logger_silenced() -> Iterator[None]:
    """Keep open_clip from logging each step to the root logger, and from adding a handler to it."""
    root, handler = logging.getLogger(), logging.NullHandler()

    def only_errors(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    root.addHandler(handler)
    root.addFilter(only_errors)
    try:
        yield
    finally:
        root.removeFilter(only_errors)
        root.removeHandler(handler)
