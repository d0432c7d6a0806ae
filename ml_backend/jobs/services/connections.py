"""Connect Label Studio projects to this backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ml_backend.jobs.task_plan import cached_label_config

if TYPE_CHECKING:
    from ml_backend.jobs.container import Container


def connect_project(container: Container, project_id: int) -> dict[str, Any]:
    """Connect a project, and return the job that predicts its tasks without annotations. Doing it again repairs it.

    Raises:
        ConfigError: the label config has no video tracks.
        LabelStudioError: there is no such project, or Label Studio cannot reach ``BACKEND_URL``.
        QueueUnavailable: Redis does not answer; nothing predicts its tasks yet.
    """
    settings, client = container.settings, container.client
    cached_label_config(client.get_project(project_id).label_config)  # Label Studio would only say that it is refused
    with container.queue.project_lock("settings", project_id):
        client.connect_backend(project_id, settings.backend_url, container.credentials(project_id))
    container.lister.forget()
    return container.api_queue.auto_label(project_id, [])
