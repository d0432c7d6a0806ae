"""docker-compose.yml gives Label Studio's first user a token beforehand; that this works is Label Studio's promise."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ml_backend.cli.dev_stack.environment import base_environment
from ml_backend.cli.dev_stack.preflight import ROOT, free_port
from ml_backend.cli.dev_stack.processes import LabelStudioServer
from ml_backend.cli.dev_stack.stack import LABEL_STUDIO_TIMEOUT
from ml_backend.label_studio.client import LabelStudioClient


@pytest.mark.slow
@pytest.mark.stack
def test_the_token_of_the_compose_file_opens_label_studio(tmp_path: Path) -> None:
    token = "0123456789abcdef" * 2 + "01234567"
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    configured = compose["services"]["label-studio"]["environment"]
    assert configured["LABEL_STUDIO_USER_TOKEN"].startswith("${LABEL_STUDIO_API_KEY")
    environment = {name: configured[name] for name in configured if "DISABLE" in name or "ENABLE" in name}
    environment["LABEL_STUDIO_USER_TOKEN"] = token
    server = LabelStudioServer(
        tmp_path / "data",
        port=free_port(),
        username="first@example.org",
        password="a password for tests",
        log_dir=tmp_path,
        environment=base_environment(tmp_path, isolated=True) | environment,
    )
    server.start()
    try:
        server.wait_ready(LABEL_STUDIO_TIMEOUT)
        client = LabelStudioClient(server.url, token)
        assert client.whoami() == "first@example.org"
        assert client.auth_headers() == {"Authorization": f"Token {token}"}
    finally:
        server.stop()
