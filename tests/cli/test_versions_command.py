"""``versions.py`` without a stack: on the database of the settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ml_backend.cli.__main__ import main
from ml_backend.core.settings import Settings
from ml_backend.server.container import WebContainer
from tests.builders import environment
from tests.server.control import proposed


@pytest.fixture
def services(settings: Callable[..., Settings], redis_url: str, monkeypatch: pytest.MonkeyPatch) -> WebContainer:
    """The services of the commands' settings."""
    chosen = settings(redis_url=redis_url, detector="auto")
    for name, value in environment(chosen).items():
        monkeypatch.setenv(name, value)
    return WebContainer(chosen)


def run(*words: str) -> Result:
    return CliRunner().invoke(main, [*words, "--project", "7"])


def test_a_proposed_version_is_accepted_by_using_it(services: WebContainer, tmp_path: Path) -> None:
    proposed(services, tmp_path)
    assert "proposed" in run("versions", "list").output
    used = run("versions", "use", "v1")
    assert (used.exit_code, used.output.strip().endswith(".v1")) == (0, True), used.output
    assert services.registry.versions(7)[0].state == "promoted"
    (row,), _ = services.audit.find(7, 10)
    assert (row["action"], row["detail"]) == ("switch_model", "v1")
    assert row["who"].endswith("scripts/versions.py")


def test_a_proposed_version_is_declined_once(services: WebContainer, tmp_path: Path) -> None:
    proposed(services, tmp_path)
    assert run("versions", "decline", "v1").exit_code == 0
    (version,) = services.registry.versions(7)
    assert version.state == "refused"
    assert "Declined by" in version.reason
    again = run("versions", "decline", "v1")
    assert again.exit_code == 1
    assert "not proposed" in again.output
    assert "Fix:" in again.output
    rows, _ = services.audit.find(7, 10)
    assert [(row["action"], row["detail"]) for row in rows] == [("decline", "v1")]
