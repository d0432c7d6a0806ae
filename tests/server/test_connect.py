"""Connecting projects of a running stack, by the API and by hand: the tasks that are there already get tracks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from ml_backend.cli.dev_stack.stack import Stack
from ml_backend.label_studio.client import LabelStudioClient
from tests.builders import CONFIG, NO_RECTANGLE, make_clip, wait_for

pytestmark = pytest.mark.stack


def ask(stack: Stack, method: str, path: str, status: int, **values: Any) -> Any:
    answer = httpx.request(method, stack.backend.url + path, timeout=120, trust_env=False, **values)
    assert answer.status_code == status, answer.text
    return answer.json()


def listed(stack: Stack, project: int) -> dict[str, Any]:
    """A project as the API lists it; empty while the cached list lacks it."""
    projects = ask(stack, "GET", "/api/projects", 200)["projects"]
    return next((item for item in projects if item["id"] == project), {})


@pytest.fixture
def project(motion_stack: Stack) -> int:
    return motion_stack.client().create_project("test", CONFIG)


def add_task(client: LabelStudioClient, project: int, folder: Path) -> int:
    clip = make_clip(folder / "clip.mp4")
    return client.create_task(project, {"video": client.upload_file(project, clip)})


def wait_for_tracks(client: LabelStudioClient, task: int) -> None:
    wait_for(lambda: client.get_task(task).prediction_versions, what="the task has no prediction")


def test_connecting_by_the_api(motion_stack: Stack, project: int, tmp_path: Path) -> None:
    client = motion_stack.client()
    before = add_task(client, project, tmp_path)
    wait_for(lambda: listed(motion_stack, project).get("connected") is False)
    for _ in range(2):
        job = ask(motion_stack, "POST", "/api/connect", 202, json={"project": project})["job"]
        assert (job["kind"], job["project"]) == ("auto_label", project)
    assert listed(motion_stack, project)["connected"] is True
    assert [item["url"] for item in client.list_backends(project)] == [motion_stack.backend.url]
    wait_for_tracks(client, before)
    wait_for_tracks(client, add_task(client, project, tmp_path))  # by the webhook
    wait_for(lambda: listed(motion_stack, project)["predicted"] == 2)


def test_connecting_by_hand(motion_stack: Stack, project: int, tmp_path: Path) -> None:
    client = motion_stack.client()
    before = add_task(client, project, tmp_path)
    connection = {"url": motion_stack.backend.url, "project": project}  # as the form in Label Studio's settings does
    answer = httpx.post(f"{client.url}/api/ml", json=connection, headers=client.auth_headers(), timeout=300)
    answer.raise_for_status()
    wait_for_tracks(client, before)
    wait_for(lambda: listed(motion_stack, project).get("connected"))


def test_a_label_config_that_is_refused(motion_stack: Stack) -> None:
    project = motion_stack.client().create_project("test", NO_RECTANGLE)
    problem = ask(motion_stack, "POST", "/api/connect", 422, json={"project": project})
    assert "VideoRectangle" in problem["detail"]
    told = wait_for(lambda: listed(motion_stack, project).get("config_problem"))
    assert told == {"message": problem["detail"], "hint": problem["hint"]}
    assert motion_stack.client().list_backends(project) == []


def test_a_project_that_is_not_there(motion_stack: Stack) -> None:
    assert ask(motion_stack, "POST", "/api/connect", 404, json={"project": 999_999})["hint"]


@pytest.mark.browser
def test_connecting_by_a_click(motion_stack: Stack, project: int, tmp_path: Path, chromium: Any) -> None:
    """The page that is open shows what becomes of it."""
    client = motion_stack.client()
    for _ in range(2):
        add_task(client, project, tmp_path)
    wait_for(lambda: listed(motion_stack, project).get("tasks") == 2)
    page = chromium.new_page(locale="en")
    try:
        page.goto(f"{motion_stack.backend.url}/?project={project}")
        row = page.locator("#part-projects tr.chosen")
        row.get_by_text("not connected").wait_for()
        page.locator("#connect").click()
        page.locator("#notice").get_by_text("The project is connected.").wait_for(timeout=120_000)
        page.locator("#connect").wait_for(state="detached", timeout=120_000)
        row.get_by_text("2 / 2").wait_for(timeout=120_000)
        assert row.get_by_text("not connected").count() == 0
    finally:
        page.close()
