"""Load embedders, or take them from the model cache. Imports torch only with the first model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from ml_backend.core.settings import Settings
from ml_backend.embeddings.hub import ResolvedModel

if TYPE_CHECKING:
    from ml_backend.embeddings.embedder import TorchEmbedder

T = TypeVar("T")


def load_embedder(resolved: ResolvedModel, settings: Settings) -> TorchEmbedder:
    """Load an embedder resolved by :mod:`ml_backend.embeddings.hub`.

    Raises:
        WeightsError: it cannot be loaded.
    """
    if resolved.path is None:
        from ml_backend.embeddings.efficientnet import EfficientNetEmbedder

        return EfficientNetEmbedder(settings)
    if resolved.kind == "clip":
        from ml_backend.embeddings.clip import ClipEmbedder

        return ClipEmbedder(resolved.path, settings)
    from ml_backend.embeddings.dinov2 import Dinov2Embedder

    return Dinov2Embedder(resolved.path, settings)


def use_embedder(resolved: ResolvedModel, settings: Settings) -> AbstractContextManager[Any]:
    """Load an embedder, or take it from the model cache.

    Raises:
        WeightsError: it cannot be loaded.
    """
    return use_model(resolved, settings, load_embedder)


@contextmanager
def use_model(
    resolved: ResolvedModel, settings: Settings, load: Callable[[ResolvedModel, Settings], T], *options: object
) -> Iterator[T]:
    """Load a model, or take it from the model cache.

    Args:
        load: loads it.
        options: values of settings, besides ``device``, with which it is loaded.
    """
    from ml_backend.core.model_cache import get_model_cache

    key = (resolved.kind, resolved.model_id, str(resolved.path), settings.device, *options)
    with get_model_cache(settings).use(key, lambda: load(resolved, settings), name=resolved.name) as model:
        yield model
