"""Tell a configured address what became of a training."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ml_backend.core.settings import Settings

if TYPE_CHECKING:
    from ml_backend.training.registry import Version

log = logging.getLogger(__name__)

#: Seconds to wait for the address: nothing depends on it.
TIMEOUT_S = 5.0


def announce(settings: Settings, version: Version) -> None:
    """Post a version's outcome as JSON to ``NOTIFY_URL``; a failure is logged.

    ``text`` is what Slack, Mattermost and the like show; the other fields are for programs.
    """
    url = settings.notify_url.get_secret_value()
    if not url:
        return
    import httpx

    title = f"{version.name} of project {version.project_id} was {version.state}."
    content = {
        "text": f"{title} {version.reason}",
        "project": version.project_id,
        "version": version.name,
        "state": version.state,
        "reason": version.reason,
        "metrics": {name: version.metrics[name] for name in ("candidate", "incumbent") if name in version.metrics},
    }
    try:
        httpx.post(url, json=content, timeout=TIMEOUT_S).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        log.warning("The outcome of %s was not announced: %s", version.name, type(error).__name__)
