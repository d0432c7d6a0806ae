"""What is invalid with a setting is said in one sentence, before anything is started."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ml_backend.core.errors import ConfigError
from ml_backend.core.settings import RETIRED, Settings, get_settings
from tests.builders import ROOT


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("IMGSZ", "abc", "The setting IMGSZ is invalid: Input should be a valid integer"),
        ("LOG_LEVEL", "loud", "The setting LOG_LEVEL is invalid"),
        ("REDIS_URL", "localhost:6379", "The setting REDIS_URL is invalid: it must begin with redis://"),
        ("LABEL_STUDIO_URL", "localhost:8080", "The setting LABEL_STUDIO_URL is invalid: it must begin with http://"),
        ("LABEL_STUDIO_PUBLIC_URL", "label.example", "The setting LABEL_STUDIO_PUBLIC_URL is invalid"),
    ],
)
def test_wrong_setting(name: str, value: str, text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, value)
    get_settings.cache_clear()
    with pytest.raises(ConfigError, match=text):
        get_settings()


def test_log_level_in_small_letters(settings: Callable[..., Settings]) -> None:
    assert settings(log_level="debug").log_level == "DEBUG"


def test_settings_of_the_release_before_are_named_with_what_to_do_instead(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRAIN_AUTO", "no such value")
    monkeypatch.setenv("VIEWS", "")
    (tmp_path / ".env").write_text("train_epochs=5\nIMGSZ=320\nLABEL_STUDIO_HOST=http://of-compose\n")
    get_settings.cache_clear()
    for _ in range(2):
        assert get_settings().imgsz == 320
    get_settings.cache_clear()
    auto, epochs = caplog.messages
    assert "TRAIN_AUTO has no effect" in auto
    assert '{"training": {"mode": ...}}' in auto
    assert "TRAIN_EPOCHS has no effect" in epochs
    assert "TRAIN_ARGS" in epochs


def test_nothing_is_a_setting_and_none() -> None:
    assert not {name.upper() for name in Settings.model_fields} & set(RETIRED)


def test_worker_says_it_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ml_backend.jobs.worker"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "REDIS_URL": "localhost:6379"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("The setting REDIS_URL is invalid")
    assert done.stderr.count("\n") == 1
