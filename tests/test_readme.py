"""What the README promises exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ml_backend.settings import Settings
from ml_backend.settings_table import settings_table

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_configuration_table_is_that_of_the_settings() -> None:
    assert settings_table() in README, "run: python -m ml_backend.settings_table README.md"


def test_every_file_that_is_named_exists() -> None:
    named = set(re.findall(r"\bscripts/\w+\.(?:py|sh)\b", README))
    named |= set(re.findall(r"\]\(([^)#:]+)\)", README))
    assert {"scripts/up.sh", "scripts/test.sh", "docs/task.jpg"} <= named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_every_anchor_has_its_heading() -> None:
    headings = {
        re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in re.findall(r"^#+ (.+)$", README, re.M)
    }
    assert set(re.findall(r"\]\(#([\w-]+)\)", README)) <= headings


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`([A-Z][A-Z0-9]+_[A-Z0-9_]+)(?:=[^`]*)?`", README))))
def test_every_variable_that_is_named_is_a_setting(name: str) -> None:
    of_others = {"SSRF_PROTECTION_ENABLED", "ML_BLOCK_LOCAL_IP", "SECRET_KEY", "TASKS_CREATED", "NO_PROXY"}
    assert name.lower() in Settings.model_fields or name in of_others
