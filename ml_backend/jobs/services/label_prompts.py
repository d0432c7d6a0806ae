"""Write descriptions of objects into a project's label config in Label Studio."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ml_backend.core.errors import Conflict
from ml_backend.label_studio.label_config import LabelSpec, config_digest, parse_label_config, with_prompts

if TYPE_CHECKING:
    from ml_backend.jobs.container import Container


def add_prompts(
    container: Container, project_id: int, label: str, prompts: Sequence[str], seen: str | None = None
) -> tuple[LabelSpec, bool]:
    """Add descriptions to a label of a project; return the label, and whether the label config was changed.

    Args:
        label: its name; spaces around it do not count.
        seen: digest of the label config that the person has seen.

    Raises:
        Conflict: it is another one by now.
        ConfigError: it has no video tracks, or cannot hold a description.
        LabelStudioError: there is no such project, or Label Studio refuses the label config.
        QueueUnavailable: Redis, which keeps two people from overwriting each other's, does not answer.
    """
    client = container.client
    with container.queue.project_lock("settings", project_id):
        before = client.get_project(project_id).label_config
        if seen not in (None, config_digest(before)):
            raise Conflict(
                "The label config was changed meanwhile.", "Reload the page, look at the labels, and try again."
            )
        after = with_prompts(before, label, prompts)
        changed = after != before
        if changed:
            client.set_label_config(project_id, after)
    config = parse_label_config(after)
    value = config.meant_label(label)
    spec = next(spec for control in config.video_controls for spec in control.labels if spec.value == value)
    return spec, changed
