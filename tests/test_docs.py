"""What README and docs promise exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ml_backend.core.settings import SECRETS, Settings
from ml_backend.core.settings_table import settings_table

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {path: path.read_text(encoding="utf-8") for path in PAGES}
#: Variables of other programs, and an event of Label Studio.
OF_OTHERS = {
    "SSRF_PROTECTION_ENABLED",
    "ML_BLOCK_LOCAL_IP",
    "SECRET_KEY",
    "TASKS_CREATED",
    "NO_PROXY",
    "HF_TOKEN",
    *("BACKEND_MEMORY", "LABEL_STUDIO_HOST", "LIVE_OPTIONS"),
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"),
}


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as they are linked to."""
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def named_settings() -> list[str]:
    texts = (text for path, text in TEXTS.items() if path.name != "performance.md" or path.parent.name == "guides")
    return sorted({name for text in texts for name in re.findall(r"`([A-Z][A-Z0-9]+_[A-Z0-9_]+)(?:=[^`]*)?`", text)})


def test_configuration_table_is_that_of_the_settings() -> None:
    table = TEXTS[ROOT / "docs" / "configuration.md"]
    assert settings_table() in table, "run: python -m ml_backend.core.settings_table docs/configuration.md"


def test_readme_is_one_page() -> None:
    assert len(TEXTS[ROOT / "README.md"].splitlines()) <= 150


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[path]):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        if not linked.exists() or (anchor and anchor not in anchors(linked.read_text(encoding="utf-8"))):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_scripts_that_are_named_exist(path: Path) -> None:
    named = set(re.findall(r"\b(?:scripts|benchmarks)/\w+\.(?:py|sh)\b", TEXTS[path]))
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_modules_that_are_named_exist(name: str) -> None:
    files = [str(path.relative_to(ROOT)) for room in ("ml_backend", "tests") for path in (ROOT / room).rglob("*.py")]
    named = set(re.findall(r"`([\w/]+\.py)`", TEXTS[ROOT / name]))
    assert named
    assert [module for module in sorted(named) if not any(f"/{file}".endswith(f"/{module}") for file in files)] == []


@pytest.mark.parametrize("name", ["docs/architecture.md"])
def test_tests_that_are_named_exist(name: str) -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)\*?`", TEXTS[ROOT / name]))
    assert named
    assert [test for test in sorted(named) if f"def {test}" not in tests] == []


@pytest.mark.parametrize("name", named_settings())
def test_every_variable_that_is_named_is_a_setting(name: str) -> None:
    secret = name.lower().removesuffix("_file")
    assert name.lower() in Settings.model_fields or name in OF_OTHERS or secret in SECRETS
