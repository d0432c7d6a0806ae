"""Why a thread of a camera has failed: it ends or goes on, but people are told."""

from __future__ import annotations

from ml_backend.core.errors import BackendError


def reason_of(error: Exception) -> str:
    """Return an error for people; of unforeseen ones also the kind, as their text alone may say nothing."""
    return str(error) if isinstance(error, BackendError) else f"{type(error).__name__}: {error}"
