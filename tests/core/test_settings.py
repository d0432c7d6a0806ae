"""What is invalid with a setting is said in one sentence, before anything is started."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
from pydantic import ValidationError
from sqlalchemy.engine import make_url

from ml_backend.core.errors import ConfigError
from ml_backend.core.settings import RETIRED, Settings, describe_invalid_settings, get_settings
from tests.builders import ROOT


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("IMGSZ", "abc", "The setting IMGSZ is invalid: Input should be a valid integer"),
        ("LOG_LEVEL", "loud", "The setting LOG_LEVEL is invalid"),
        ("REDIS_URL", "localhost:6379", "The setting REDIS_URL is invalid: it must begin with redis://"),
        ("LABEL_STUDIO_URL", "localhost:8080", "The setting LABEL_STUDIO_URL is invalid: it must begin with http://"),
        ("LABEL_STUDIO_PUBLIC_URL", "label.example", "The setting LABEL_STUDIO_PUBLIC_URL is invalid"),
        ("LABEL_STUDIO_URL", "http://me:secret@ls", "LABEL_STUDIO_URL is invalid: it must not contain a user"),
        ("BACKEND_URL", "http://me:secret@ls", "BACKEND_URL is invalid: it must not contain a user"),
        ("BASIC_AUTH_USER", "me", "^BASIC_AUTH_PASS is missing, while BASIC_AUTH_USER is set"),
        ("BASIC_AUTH_PASS", "secret", "^BASIC_AUTH_USER is missing, while BASIC_AUTH_PASS is set"),
        ("DATABASE_URL", "postgresql:/me:secret@host/db", "DATABASE_URL is invalid: it must be an SQL"),
        ("DATABASE_URL", "postgresql://me:se/cret@host/db", "DATABASE_URL is invalid: it must be an SQL"),
        (
            "DATABASE_URL",
            "postgresql://me:secret@host:port/db",
            "DATABASE_URL is invalid: it must be an SQL",
        ),
        ("DATABASE_URL", "nonsense", "DATABASE_URL is invalid: it must be an SQL"),
    ],
)
def test_wrong_setting(name: str, value: str, text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, value)
    get_settings.cache_clear()
    with pytest.raises(ConfigError, match=text) as failure:
        get_settings()
    assert "secret" not in str(failure.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "sqlite:///relative/db.sqlite3",
        "sqlite:////absolute/my db.sqlite3",
        "sqlite://",
        "postgresql+psycopg://me:s%2Fcret@host:5432/db?sslmode=require",
        "postgresql://[::1]:5432/db",
        "postgresql:///db?host=/run/postgresql",
        "mysql+pymysql://host/db",
    ],
)
def test_databases(settings: Callable[..., Settings], url: str) -> None:
    if url:
        make_url(url)
    assert settings(database_url=url).database_url == url


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


@pytest.mark.parametrize(
    "name", [name for name, field in Settings.model_fields.items() if get_origin(field.annotation) is Literal]
)
def test_a_wrong_choice_lists_what_is_allowed(name: str) -> None:
    with pytest.raises(ValidationError) as failure:
        Settings(_env_file=None, **{name: "x"})  # type: ignore[arg-type]
    text = describe_invalid_settings(failure.value)
    assert name.upper() in text
    for allowed in get_args(Settings.model_fields[name].annotation):
        assert f"'{allowed}'" in text


def test_a_wrong_queue_lists_the_queues() -> None:
    with pytest.raises(
        ValidationError, match="there is no queue x; the queues are interactive, prepare, patterns, control"
    ):
        Settings(_env_file=None, worker_queues="x")  # type: ignore[arg-type]


def test_secrets_come_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in {"BASIC_AUTH_PASS": "a secret\n", "DATABASE_URL": "sqlite:///x"}.items():
        (tmp_path / name).write_text(content)
        monkeypatch.setenv(f"{name}_FILE", str(tmp_path / name))
    monkeypatch.setenv("BASIC_AUTH_USER", "me")
    monkeypatch.setenv("LOG_LEVEL_FILE", str(tmp_path / "none"))
    settings = Settings(_env_file=None)
    assert settings.basic_auth == ("me", "a secret")
    assert settings.database == "sqlite:///x"
    assert Settings(_env_file=None, database_url="sqlite:///y").database == "sqlite:///y"
    monkeypatch.setenv("DATABASE_URL", "sqlite:///z")
    with pytest.raises(ConfigError, match="Both DATABASE_URL and DATABASE_URL_FILE are set"):
        Settings(_env_file=None)
    monkeypatch.delenv("DATABASE_URL")
    (tmp_path / "DATABASE_URL").unlink()
    with pytest.raises(ConfigError, match="The file of DATABASE_URL_FILE cannot be read"):
        Settings(_env_file=None)
    monkeypatch.delenv("DATABASE_URL_FILE")
    (tmp_path / "env").write_text(f"REDIS_URL_FILE={tmp_path}/redis\nLABEL_STUDIO_API_KEY=key\n")
    (tmp_path / "redis").write_text("redis://:secret@queue:6379/0\n")
    settings = Settings(_env_file=tmp_path / "env")
    assert settings.redis_url == "redis://:secret@queue:6379/0"
    assert settings.basic_auth == ("me", "a secret")
    assert settings.label_studio_api_key.get_secret_value() == "key"
    monkeypatch.setenv("REDIS_URL", "redis://of-the-environment:6379/0")
    assert Settings(_env_file=tmp_path / "env").redis_url == "redis://of-the-environment:6379/0"
