"""Settings for commands that people start by hand beside a stack that ``up.sh`` runs."""

from __future__ import annotations

from ml_backend.local.state import running_stack
from ml_backend.settings import Settings


def settings_in_force() -> tuple[Settings, str]:
    """The settings, where the environment has none those of a stack that runs on the same data folder.

    Returns:
        settings, and the address of the backend.
    """
    settings = Settings()
    stack = running_stack(settings.data_dir)
    if stack is None:
        return settings, "http://localhost:9090"
    chosen = {name.upper() for name in settings.model_fields_set}
    missing = {name.lower(): value for name, value in stack.environment.items() if name not in chosen}
    return Settings(**missing), stack.backend_url  # type: ignore[arg-type]
