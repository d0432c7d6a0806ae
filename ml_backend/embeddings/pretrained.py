"""Load models from folders in transformers' format, without running anything that lies there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ml_backend.core.errors import WeightsError
from ml_backend.embeddings.hub import ResolvedModel


def load_pretrained(folder: ResolvedModel, model_class: str = "AutoModel", unused: frozenset[str] = frozenset()) -> Any:
    """Load a model of transformers.

    Args:
        folder: read before.
        model_class: of transformers.
        unused: parameters that a checkpoint may lack, as only training uses them.

    Raises:
        WeightsError: the folder is damaged, or its weights lack tensors.
    """
    import torch
    import transformers

    with _quiet(), _as_weights_error(folder):
        model, info = getattr(transformers, model_class).from_pretrained(
            str(folder.path),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,  # a pickle is code
            dtype=torch.float32,
            output_loading_info=True,
        )
    missing = sorted(set(info["missing_keys"]) - unused)
    if missing:
        raise WeightsError(
            f"The weights in {folder.path} lack {len(missing)} tensors, such as {missing[0]}.",
            "Download the folder again; it may mix two models.",
        )
    return model


def load_processor(folder: ResolvedModel, processor_class: str) -> Any:
    """Load what prepares a model's input.

    Raises:
        WeightsError: the folder has no complete configuration of it.
    """
    import transformers

    with _quiet(), _as_weights_error(folder):
        return getattr(transformers, processor_class).from_pretrained(
            str(folder.path), local_files_only=True, trust_remote_code=False
        )


@contextmanager
def _quiet() -> Iterator[None]:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # missing tensors are checked
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(verbosity)


@contextmanager
def _as_weights_error(folder: ResolvedModel) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # transformers raises anything for a folder of another kind
        raise WeightsError(
            f"{folder.path} cannot be loaded as {folder.name} ({type(error).__name__}: {error}).",
            "Download the folder again; it may be damaged.",
        ) from error
