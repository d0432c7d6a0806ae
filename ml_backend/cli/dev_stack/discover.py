"""Settings of commands that are run beside a stack started by ``up.sh``."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from ml_backend.cli.dev_stack.environment import spare_local_addresses
from ml_backend.cli.dev_stack.preflight import ROOT
from ml_backend.cli.dev_stack.state import announced, running_stack
from ml_backend.core.settings import Settings

if TYPE_CHECKING:
    from ml_backend.jobs.container import Container

#: Settings that locate a service: if one is set, a running stack is not expected.
_LOCATIONS = {"data_dir", "label_studio_url", "redis_url", "database_url"}


def settings_in_force() -> Settings:
    """Return the settings, completed by those of a running stack.

    The stack is the one on the settings' data folder or, if that is not set, any that ``up.sh`` of this project runs.
    Without one, a line on stderr names the data folder. Changes the environment: local addresses bypass the proxy.
    """
    spare_local_addresses(os.environ)
    settings = Settings()
    chosen = settings.model_fields_set
    folders = [settings.data_dir]
    if "data_dir" not in chosen:
        folders += [ROOT / "data", *announced(ROOT)]
    stack = next(filter(None, map(running_stack, folders)), None)
    if stack is None:
        if not chosen & _LOCATIONS:
            print(
                f"No running stack of up.sh was found; the data folder is {settings.data_dir} "
                "(set DATA_DIR to use another one).",
                file=sys.stderr,
            )
        return settings
    known = {name.lower(): value for name, value in stack.environment.items()} | {"backend_url": stack.backend_url}
    return Settings(**{name: value for name, value in known.items() if name not in chosen})  # type: ignore[arg-type]


def container_in_force(project: int | None = None) -> Container:
    """Return a container with the settings of :func:`settings_in_force`.

    Args:
        project: must exist, for commands that request work on it.

    Raises:
        NotFound: there is no such project.
        LabelStudioError: Label Studio does not answer.
    """
    from ml_backend.jobs.container import Container

    container = Container(settings_in_force())
    if project is not None:
        container.lister.check(project)
    return container
