"""The API client against a real Label Studio."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import httpx
import pytest
from label_studio_sdk import LabelStudio as Sdk
from label_studio_sdk.tokens import client_ext

from ml_backend.core.errors import BackendError, LabelStudioError, LabelStudioUnavailable
from ml_backend.core.settings import Settings
from ml_backend.label_studio.client import LabelStudioClient, NotFound, is_same_backend
from tests.builders import CONFIG, Outside, make_clip, outside


@pytest.fixture
def client(label_studio: Any) -> LabelStudioClient:
    made: LabelStudioClient = label_studio.client()
    return made


@pytest.fixture
def sdk(label_studio: Any) -> Any:
    return Sdk(base_url=label_studio.url, api_key=label_studio.token)


def test_token_of_either_kind(label_studio: Any, client: LabelStudioClient) -> None:
    assert client.whoami() == label_studio.username
    header = client.auth_headers()
    assert header["Authorization"].startswith("Bearer ")
    assert label_studio.token not in header["Authorization"], "the refresh token itself is not what is sent"


def test_expired_access_token_is_refreshed(
    label_studio: Any, client: LabelStudioClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = client.auth_headers()
    assert client.auth_headers() == first

    class Later(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Later:
            return cls.fromtimestamp(time.time() + 24 * 3600, tz)

    monkeypatch.setattr(client_ext, "datetime", Later)
    assert client.auth_headers() != first
    assert client.whoami() == label_studio.username


def test_project_and_tasks(client: LabelStudioClient) -> None:
    project = client.create_project("Ein Projekt", CONFIG)
    found = client.get_project(project)
    assert (found.id, found.title) == (project, "Ein Projekt")
    assert "VideoRectangle" in found.label_config
    assert [state.id for state in client.list_task_states(project)] == []
    task = client.create_task(project, {"video": "s3://bucket/a b.mp4", "n": [1, {"ü": None}]})
    seen = client.get_task(task)
    assert (seen.id, seen.project_id, seen.annotations) == (task, project, 0)
    assert seen.data == {"video": "s3://bucket/a b.mp4", "n": [1, {"ü": None}]}, "cloud addresses come unresolved"
    client.update_task_data(task, {**seen.data, "fps": 25})
    assert client.get_task(task).data == {**seen.data, "fps": 25}


def test_tasks_that_a_project_does_not_have(client: LabelStudioClient) -> None:
    project, other = (client.create_project(title, CONFIG) for title in ("one", "other"))
    ours = [client.create_task(project, {"video": f"{n}.mp4"}) for n in range(3)]
    theirs = client.create_task(other, {"video": "a.mp4"})
    assert client.missing_tasks(project, ours) == []
    assert client.missing_tasks(project, [*ours[:2], 999_999, theirs]) == sorted([theirs, 999_999])


def test_a_project_that_is_not_there_is_named(client: LabelStudioClient) -> None:
    with pytest.raises(NotFound, match=r"Project 999999 was not found\. Check the number"):
        client.get_project(999_999)


def test_pages_of_tasks(client: LabelStudioClient, sdk: Any) -> None:
    project = client.create_project("many", CONFIG)
    sdk.projects.import_tasks(id=project, request=[{"data": {"video": f"{n}.mp4"}} for n in range(150)])
    ids = [state.id for state in client.list_task_states(project)]
    assert len(ids) == len(set(ids)) == 150


def test_cancelled_annotations_do_not_count(client: LabelStudioClient, sdk: Any) -> None:
    task = client.create_task(client.create_project("test", CONFIG), {"video": "a.mp4"})
    sdk.annotations.create(id=task, result=[], was_cancelled=True)
    assert client.get_task(task).annotations == 0
    sdk.annotations.create(id=task, result=[])
    assert client.get_task(task).annotations == 1


REGION = {"id": "a", "type": "videorectangle", "from_name": "box", "to_name": "video", "value": {"sequence": []}}


@pytest.mark.parametrize(("result", "number"), [([], 0), ([REGION], 1)])
def test_drafts_and_skipped_annotations_with_work_in_them_do(
    client: LabelStudioClient, sdk: Any, result: list[Any], number: int
) -> None:
    task = client.create_task(client.create_project("test", CONFIG), {"video": "a.mp4"})
    draft = {"result": result, "lead_time": 1}
    answer = httpx.post(f"{client.url}/api/tasks/{task}/drafts", json=draft, headers=client.auth_headers(), timeout=300)
    assert answer.status_code == 201
    assert client.get_task(task).annotations == number
    sdk.annotations.create(id=task, result=result, was_cancelled=True)
    assert client.get_task(task).annotations == 2 * number


def test_prediction_once_per_version(client: LabelStudioClient, sdk: Any) -> None:
    task = client.create_task(client.create_project("test", CONFIG), {"video": "a.mp4"})
    for version in ("one", "one", "two"):
        client.create_prediction(task, {"result": [], "score": 0.5, "model_version": version})
    assert sorted(p.model_version for p in sdk.predictions.list(task=task)) == ["one", "two"]
    assert client.get_task(task).prediction_versions == {"one", "two"}


def test_predicted_tasks_are_counted_once_however_many_versions_they_have(client: LabelStudioClient) -> None:
    project = client.create_project("test", CONFIG)
    tasks = [client.create_task(project, {"video": f"{number}.mp4"}) for number in range(3)]
    assert client.count_predicted(project) == 0
    for task, version in ((tasks[0], "one"), (tasks[0], "two"), (tasks[2], "one")):
        client.create_prediction(task, {"result": [], "score": 0.5, "model_version": version})
    assert client.count_predicted(project) == 2


def test_upload_keeps_odd_names_and_makes_no_task(client: LabelStudioClient, label_studio: Any, tmp_path: Path) -> None:
    project = client.create_project("test", CONFIG)
    clip = make_clip(tmp_path / "Straße & Co (1).mp4", frames=5)
    address = client.upload_file(project, clip)
    assert address.startswith("/data/upload/")
    assert [state.id for state in client.list_task_states(project)] == []
    fetched = httpx.get(label_studio.url + address, headers=client.auth_headers(), timeout=300)
    assert fetched.content == clip.read_bytes()


def test_upload_of_more_than_label_studio_takes_by_default(client: LabelStudioClient, tmp_path: Path) -> None:
    large = tmp_path / "large.mp4"
    with large.open("wb") as file:
        file.truncate(251 * 2**20)
    assert client.upload_file(client.create_project("test", CONFIG), large).endswith("-large.mp4")


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.get_project(999_999),
        lambda c: c.get_task(999_999),
        lambda c: c.update_task_data(999_999, {}),
        lambda c: c.create_task(999_999, {"video": "a"}),
    ],
)
def test_what_is_not_there(client: LabelStudioClient, call: Callable[[LabelStudioClient], Any]) -> None:
    with pytest.raises(LabelStudioError) as failure:
        call(client)
    assert isinstance(failure.value, NotFound) or "999999" in str(failure.value)
    assert not failure.value.retryable


def test_prediction_for_a_task_that_is_gone(client: LabelStudioClient) -> None:
    with pytest.raises(LabelStudioError) as failure:
        client.create_prediction(999_999, {"result": [], "score": 0, "model_version": "x"})
    assert not failure.value.retryable


@pytest.mark.parametrize("token", ["nonsense", "a.b.c", "0" * 40, "eyJhbGciOiJIUzI1NiJ9.e30.x", "ü"])
def test_wrong_token_is_named_with_a_cure(label_studio: Any, token: str) -> None:
    with pytest.raises(LabelStudioError) as failure:
        LabelStudioClient(label_studio.url, token).whoami()
    assert "LABEL_STUDIO_API_KEY" in failure.value.hint
    assert token not in failure.value.message
    assert not failure.value.retryable


def test_no_token(label_studio: Any, settings: Callable[..., Settings]) -> None:
    client = LabelStudioClient.from_settings(settings(label_studio_url=label_studio.url))
    with pytest.raises(LabelStudioError, match="no token"):
        client.get_task(1)


# -- trouble, from a server that stands where Label Studio does


@pytest.fixture
def site() -> Iterator[Outside]:
    with outside("localhost") as running:
        yield running


def trouble(url: str, token: str = "0" * 40, timeout: float = 5) -> BackendError:
    with pytest.raises(LabelStudioError) as failure:
        LabelStudioClient(url, token, timeout).get_task(1)
    return failure.value


@pytest.mark.slow
@pytest.mark.parametrize("status", [503, 429])
def test_server_s_trouble_is_worth_another_try(site: Outside, status: int) -> None:
    site.answer("/api/tasks/1/?resolve_uri=false", status, b"oops")
    error = trouble(site.url)
    assert isinstance(error, LabelStudioUnavailable)
    assert str(status) in error.message


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405])
def test_refusals_are_final(site: Outside, status: int) -> None:
    site.answer("/api/tasks/1/?resolve_uri=false", status, b'{"detail": "no"}', content_type="application/json")
    assert not trouble(site.url).retryable


@pytest.mark.parametrize("body", [b"<html>a proxy</html>", b"[]", b"null", b"{}", b'{"id": 1}', b"\xff"])
def test_answer_that_is_not_label_studio_s(site: Outside, body: bytes) -> None:
    """A wrong LABEL_STUDIO_URL: something answers 200, but not what is expected."""
    site.answer("/api/tasks/1/?resolve_uri=false", 200, body, content_type="application/json")
    assert "LABEL_STUDIO_URL" in str(trouble(site.url))


@pytest.mark.slow
def test_nobody_there() -> None:
    with outside("localhost") as gone:
        pass
    error = trouble(gone.url)
    assert isinstance(error, LabelStudioUnavailable)
    assert "LABEL_STUDIO_URL" in error.hint


@pytest.mark.slow
@pytest.mark.parametrize("url", ["http://", "nonsense", "http://[", "ftp://x", ""])
def test_url_that_is_none(url: str) -> None:
    assert "LABEL_STUDIO_URL" in str(trouble(url))


# -- connecting


@pytest.fixture
def backend() -> Iterator[Outside]:
    """Something that Label Studio takes for a backend."""
    with outside("localhost") as site:
        site.answer("/health", 200, b'{"status":"UP"}', content_type="application/json")
        site.answer("/setup", 200, b'{"model_version":"v"}', content_type="application/json")
        yield site


def test_connecting_twice_changes_nothing(client: LabelStudioClient, sdk: Any, backend: Outside) -> None:
    project = client.create_project("test", CONFIG)
    for _ in range(2):
        client.connect_backend(project, backend.url + "/", ("üser", "geheim"))
    assert [b.url for b in sdk.ml.list(project=project)] == [backend.url]
    (hook,) = sdk.webhooks.list(project=project)
    assert hook.url == backend.url + "/webhook"
    assert hook.headers["Authorization"] == "Basic w7xzZXI6Z2VoZWlt"


def test_connecting_again_repairs_the_webhook(client: LabelStudioClient, sdk: Any, backend: Outside) -> None:
    project = client.create_project("test", CONFIG)
    client.connect_backend(project, backend.url)
    (hook,) = sdk.webhooks.list(project=project)
    broken = {"is_active": False, "send_payload": False, "send_for_all_actions": False, "headers": {"X-Own": "1"}}
    sdk.webhooks.update(hook.id, url=hook.url, **broken)
    client.connect_backend(project, backend.url)
    (hook,) = sdk.webhooks.list(project=project)
    assert (hook.is_active, hook.send_payload, hook.send_for_all_actions) == (True, True, True)
    assert hook.headers == {"X-Own": "1"}


def test_another_name_of_the_same_machine_is_no_second_connection(
    client: LabelStudioClient, sdk: Any, backend: Outside
) -> None:
    project = client.create_project("test", CONFIG)
    named = backend.url.replace("localhost", "127.0.0.1")
    for url in (backend.url, named):
        client.connect_backend(project, url)
    assert [b.url for b in sdk.ml.list(project=project)] == [backend.url]
    assert len(sdk.webhooks.list(project=project)) == 1


def test_a_backend_that_label_studio_does_not_reach(client: LabelStudioClient) -> None:
    with outside("localhost") as gone:
        pass
    with pytest.raises(LabelStudioError, match="health check failed") as failure:
        client.connect_backend(client.create_project("test", CONFIG), gone.url)
    assert "BACKEND_URL" in failure.value.hint


@pytest.mark.parametrize(
    ("url", "same"),
    [
        ("http://localhost:9090/", True),
        ("http://backend:9090", True),
        ("http://room.example:9090", True),
        ("http://localhost:9091", False),
        ("http://other.example:9090", False),
        ("http://localhost", False),
        ("http://localhost:port", False),
    ],
)
def test_names_of_a_backend(url: str, same: bool) -> None:
    assert is_same_backend(url, "http://room.example:9090") is same
