"""Settings for commands that people start by hand beside a stack that ``up.sh`` runs."""

from __future__ import annotations

import os
import sys

from ml_backend.cli.dev_stack.environment import spare_local_addresses
from ml_backend.cli.dev_stack.preflight import ROOT
from ml_backend.cli.dev_stack.state import announced, running_stack
from ml_backend.core.settings import Settings

#: Whoever sets one of these has a service of their own in mind, not a stack that ``up.sh`` runs.
_WHEREABOUTS = {"data_dir", "label_studio_url", "redis_url", "database_url"}


def settings_in_force() -> tuple[Settings, str]:
    """The settings, where the environment has none those of a running stack.

    That is one on the settings' data folder, or, where nobody has chosen that, one that ``up.sh`` of this project
    runs, from whatever folder the command is started. Without any, one line on stderr names the folder that is used.
    The process's environment is changed: what is on this machine is talked to without a proxy.

    Returns:
        settings, and the address of the backend.
    """
    spare_local_addresses(os.environ)
    settings = Settings()
    chosen = settings.model_fields_set
    folders = [settings.data_dir]
    if "data_dir" not in chosen:
        folders += [ROOT / "data", *announced(ROOT)]
    stack = next(filter(None, map(running_stack, folders)), None)
    if stack is None:
        if not chosen & _WHEREABOUTS:
            print(
                f"No stack that up.sh runs was found; the data folder is {settings.data_dir} "
                "(to use another one: DATA_DIR).",
                file=sys.stderr,
            )
        return settings, "http://localhost:9090"
    missing = {name.lower(): value for name, value in stack.environment.items() if name.lower() not in chosen}
    return Settings(**missing), stack.backend_url  # type: ignore[arg-type]
