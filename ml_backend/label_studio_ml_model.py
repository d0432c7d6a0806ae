"""The model for the stock ``label-studio-ml start``.

label-studio-ml 2.x is installed from its repository; see docs/guides/api.md. Redis and a worker are needed here too:
like this project's own server, the class only looks up predictions and enqueues jobs.

    # my_backend/model.py
    from ml_backend.label_studio_ml_model import VideoBackend
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from ml_backend.core.errors import RequestError
from ml_backend.core.settings import get_settings
from ml_backend.server.container import WebContainer
from ml_backend.server.webhooks import parse_event

try:
    from label_studio_ml.model import LabelStudioMLBase
except ImportError as error:  # pragma: no cover - depends on what is installed
    raise ImportError(
        "label_studio_ml_model needs label-studio-ml 2.x, which is not installed. "
        "It is only needed for `label-studio-ml start`, not for `scripts/up.sh`."
    ) from error


@lru_cache(maxsize=1)
def get_services() -> WebContainer:
    """Return the process's container."""
    return WebContainer(get_settings())


class VideoBackend(LabelStudioMLBase):  # type: ignore[misc]
    """Pre-annotates video tracks. The stock runner creates one instance per request; they share connections."""

    def setup(self) -> None:
        """Set the model version of new predictions."""
        project, service = str(self.project_id or ""), get_services().prediction_service
        if project.isdecimal():
            version = service.setup(int(project), "", self.get("extra_params"))
        else:
            version = service.version()
        self.set("model_version", version)

    def predict(
        self, tasks: Sequence[Mapping[str, Any]], context: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        """Return per task its prediction, or ``[]`` until a worker has made and pushed it.

        Raises:
            BackendError: all tasks failed.
        """
        project = str(self.project_id or "")
        if not project.isdecimal():
            raise RequestError("The project's id is missing.", "Connect the backend from Label Studio.")
        return get_services().prediction_service.predict(int(project), self.label_config, tasks)

    def fit(self, event: str, data: Mapping[str, Any], **kwargs: Any) -> dict[str, str]:
        """Record an event, which a worker processes."""
        return {"result": get_services().webhooks.receive(parse_event({**data, "action": event}))}
