"""The scripts' commands for projects: what is asked in vain is an answer, and lists fit a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest
from click.testing import CliRunner, Result

from ml_backend.cli.__main__ import main
from ml_backend.core.settings import Mode, Settings
from ml_backend.jobs.container import Container
from tests.builders import environment, outside
from tests.server.control import MODEL_VERSION, WORSE, annotated, answer_as_label_studio, refused

Run = Callable[..., Result]


@pytest.fixture
def here(settings: Callable[..., Settings], redis_url: str) -> Iterator[Container]:
    """Beside a Label Studio that has the project 7."""
    with outside() as site:
        answer_as_label_studio(site, {7: "seven"}, tasks=3)
        yield Container(
            settings(redis_url=redis_url, detector="auto", label_studio_url=site.url, label_studio_api_key="token")
        )


@pytest.fixture
def run(here: Container, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command with these settings, on a terminal of 80 columns."""
    for name, value in environment(here.settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "80")
    return lambda *arguments: CliRunner().invoke(main, [str(argument) for argument in arguments])


def fails(result: Result, *texts: str) -> None:
    assert result.exit_code == 1, result.output
    assert "Error: " in result.stderr
    assert "Fix:   " in result.stderr
    for text in texts:
        assert text in result.stderr


def queued(here: Container) -> list[str]:
    return [job["id"] for job in here.jobs.all()]


@pytest.mark.parametrize(
    "words",
    [
        ("train", "start"),
        ("train", "policy", '{"min_tracks": 5}'),
        ("patterns", "learn"),
        ("patterns", "mode", "yolo"),
        ("patterns", "similar", "--label", "x"),
        ("export-annotations", "--out", "rows.json"),
        ("export-dataset", "--format", "coco", "--out", "dataset"),
        ("import-videos", "film.mp4"),
    ],
)
def test_a_project_that_does_not_exist(
    run: Run, here: Container, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fails(run(*words, "--project", 77), "Project 77 was not found.", "Check the number in its address.")
    assert not queued(here)
    assert not list(tmp_path.glob("*.json"))


def test_without_label_studio_nothing_is_requested(run: Run, here: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABEL_STUDIO_URL", "http://127.0.0.1:1")
    fails(run("train", "start", "--project", 7), "Label Studio does not answer")
    assert not queued(here)
    assert run("versions", "list", "--project", 7).exit_code == 0, "it asks the database only"


def test_nothing_new_to_train_on(run: Run, here: Container) -> None:
    annotated(here, "a")
    refused(here)
    fails(run("train", "start", "--project", 7), "Nothing new has been annotated since v1.", "--force")
    assert not queued(here)
    assert run("train", "start", "--project", 7, "--force", "--no-wait").exit_code == 0
    assert queued(here) == ["train-7"]


def test_nothing_to_roll_back_to(run: Run) -> None:
    fails(run("versions", "rollback", "--project", 7), "nothing to roll back to")


def test_a_version_that_does_not_exist(run: Run, here: Container) -> None:
    refused(here)
    fails(run("versions", "use", "v9", "--project", 7), "no version 'v9'", "v1 or base")


def test_lists_fit_a_terminal(run: Run, here: Container) -> None:
    annotated(here, "a")
    refused(here)
    for words in (("versions", "list"), ("patterns", "info")):
        result = run(*words, "--project", 7)
        assert result.exit_code == 0, result.output
        assert max(map(len, result.stdout.splitlines())) <= 80
    text = " ".join(run("versions", "list", "--project", 7).stdout.split())
    assert f"v1 (compared with base): {WORSE}" in text
    assert "0.931 -> 0.912 0.710 -> 0.700 0.822 -> 0.801" in text
    assert f"{MODEL_VERSION}: 20% accepted tasks 1, accepted 1, moved 1" in text


def test_what_is_allowed_instead_of_a_wrong_value(run: Run) -> None:
    result = run("patterns", "mode", "x", "--project", 7)
    assert result.exit_code == 2
    for mode in (*get_args(Mode), "default"):
        assert f"'{mode}'" in result.stderr
    fails(run("train", "policy", '{"x": 1}', "--project", 7), "mode, min_tracks, quiet_s, every_s")
