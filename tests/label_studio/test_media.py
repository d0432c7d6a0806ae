"""From a task's video field to a local file, with real web servers that behave and misbehave."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ml_backend.core.errors import (
    BackendError,
    Interrupted,
    MediaError,
    MediaRefused,
    MediaUnavailable,
    StorageError,
    VideoError,
)
from ml_backend.core.settings import Settings
from ml_backend.label_studio import media as media_module
from ml_backend.label_studio.media import CHECK_BYTES, SPARE_BYTES, MediaStore, canonical_uri
from tests.builders import ROOT, Outside, outside

MB = random.Random(0).randbytes(1 << 20)


class Client:
    """Stands for the API client: a host and what authenticates there."""

    def __init__(self, url: str) -> None:
        self.url = url

    def auth_headers(self) -> dict[str, str]:
        return {"Authorization": "Token secret"}

    def local_files_folders(self, project_id: int) -> list[str]:
        return ["/label-studio/files/sub"] if project_id == 1 else []


@pytest.fixture
def site() -> Iterator[Outside]:
    """Stands where Label Studio does. The name differs from that of :func:`foreign`, hence the host."""
    with outside("localhost") as running:
        yield running


@pytest.fixture
def foreign() -> Iterator[Outside]:
    with outside("127.0.0.1") as running:
        yield running


@pytest.fixture
def store(site: Outside, settings: Callable[..., Settings]) -> Callable[..., MediaStore]:
    return lambda **values: MediaStore(settings(**values), Client(site.url))


def read(store: MediaStore, uri: str, task_id: int = 1, project_id: int = 1) -> bytes:
    with store.open(uri, task_id, project_id) as path:
        return path.read_bytes()


def cached(store: MediaStore) -> set[str]:
    return {file.name for file in store.folder.glob("*") if file.suffix != ".lock"}


# -- names


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        (" /data/upload/1/a.mp4 ", "/data/upload/1/a.mp4"),
        ("http://ls/data/upload/1/a.mp4", "/data/upload/1/a.mp4"),
        ("http://ls.example/data/upload/1/a.mp4", "http://ls.example/data/upload/1/a.mp4"),
        ("/tasks/7/resolve/?fileuri=" + base64.urlsafe_b64encode(b"s3://b/k.mp4").decode(), "s3://b/k.mp4"),
        (
            "http://ls/tasks/7/presign/?fileuri=" + base64.urlsafe_b64encode(b"gs://b/k").decode().rstrip("="),
            "gs://b/k",
        ),
        ("/tasks/7/resolve/?fileuri=%ff%ff", "/tasks/7/resolve/?fileuri=%ff%ff"),
        ("s3://bucket/a b.mp4", "s3://bucket/a b.mp4"),
    ],
)
def test_one_video_has_one_name(uri: str, name: str) -> None:
    assert canonical_uri(uri, "http://ls") == name


# -- in place


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for name in ("media/upload/1/ein film.mp4", "local/sub/a.mp4", "secret.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "local" / "sub" / "out").symlink_to(tmp_path / "secret.txt")
    (tmp_path / "local" / "sub" / "inside").symlink_to(tmp_path / "local" / "sub" / "a.mp4")
    (tmp_path / "local" / "sub" / "circle").symlink_to(tmp_path / "local" / "sub" / "circle")
    return tmp_path


@pytest.mark.parametrize(
    ("uri", "file"),
    [
        ("/data/upload/1/ein%20film.mp4", "media/upload/1/ein film.mp4"),
        ("/data/local-files/?d=sub/a.mp4", "local/sub/a.mp4"),
        ("/data/local-files?d=sub%2Fa.mp4", "local/sub/a.mp4"),
        ("/data/local-files/?d=/sub/a.mp4", "local/sub/a.mp4"),
        ("/data/local-files/?d=sub/inside", "local/sub/a.mp4"),
    ],
)
def test_visible_files_are_used_in_place(
    folders: Path, store: Callable[..., MediaStore], site: Outside, uri: str, file: str
) -> None:
    media = store(uploads_root=folders / "media", local_files_root=folders / "local")
    for spelling in (uri, site.url + uri):
        with media.open(spelling, 1, 1) as path:
            assert path == folders / file
    assert site.requests == []
    assert cached(media) == set()


TRAVERSALS = [
    "/data/local-files/?d=../secret.txt",
    "/data/local-files/?d=sub/../../secret.txt",
    "/data/local-files/?d=%2e%2e%2fsecret.txt",
    "/data/local-files/?d=%252e%252e%252fsecret.txt",
    "/data/local-files/?d={folder}/secret.txt",
    "/data/local-files/?d=%2F{folder}%2Fsecret.txt",
    "/data/local-files/?d=..\u2215secret.txt",
    "/data/local-files/?d=\uff0e\uff0e/secret.txt",
    "/data/local-files/?d=..\\secret.txt",
    "/data/local-files/?d=sub/out",
    "/data/local-files/?d=sub/circle",
    "/data/local-files/?d=sub",
    "/data/local-files/?d=sub/a.mp4&d=../secret.txt",
    "/data/local-files/?d=",
    "/data/local-files/?d=%00",
    "/data/local-files/?d=a%00/../../secret.txt",
    "/data/local-files/?d=" + "a" * 5000,
    "/data/local-files/",
    "/data/upload/../../secret.txt",
    "/data/upload/%2e%2e/%2e%2e/secret.txt",
    "/data/upload/1/..%2f..%2f..%2fsecret.txt",
    "/data/upload//etc/passwd",
    "/data/upload/%2Fetc%2Fpasswd",
    "/data/upload/",
    "/data/upload/" + "a" * 5000,
    "/data/../api/projects/24/export?exportType=JSON",
    "/data/upload/1/../../../api/projects/24/export?exportType=JSON",
    "/data/upload/1/%2e%2e/%2e%2e/%2e%2e/api/projects",
    "/data/upload/1/./a.mp4",
    "/data/upload/1//a.mp4",
    "/data/upload/1",
    "/data/uploads/1/a.mp4",
    "/data/avatars/1.png",
    "/data/",
    "/api/projects/24/export?exportType=JSON",
    "/tasks/1/resolve/",
]


@pytest.mark.slow
@pytest.mark.parametrize("uri", TRAVERSALS, ids=lambda uri: uri[:50])
def test_nothing_outside_the_visible_folders_is_used(
    folders: Path, store: Callable[..., MediaStore], site: Outside, uri: str
) -> None:
    media = store(uploads_root=folders / "media", local_files_root=folders / "local")
    uri = uri.replace("{folder}", str(folders))
    for spelling in (uri, site.url + uri, site.url.upper() + uri, site.url.replace("//", "//somebody@") + uri):
        with pytest.raises(MediaError):
            read(media, spelling)
    asked = {urlsplit(path).path for path, _ in site.requests}
    assert asked <= {"/data/local-files/"}, "below a storage of the project, where Label Studio itself says no"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("/data/upload/2/a.mp4", "no upload of its task's project 1"),
        ("/data/upload/a.mp4", "no upload of its task's project 1"),
        ("/data/upload/01/a.mp4", "no upload of its task's project 1"),
        ("/data/local-files/?d=other/a.mp4", "no local files storage of its task's project 1"),
        ("/data/local-files/?d=subway/a.mp4", "no local files storage of its task's project 1"),
        ("/data/local-files/?d=a.mp4", "no local files storage of its task's project 1"),
    ],
)
@pytest.mark.parametrize("in_place", [True, False])
def test_files_of_other_projects_are_refused(
    store: Callable[..., MediaStore], site: Outside, tmp_path: Path, uri: str, expected: str, in_place: bool
) -> None:
    """Whoever wrote the address into a task may not see them, while our token does."""
    for name in ("media/upload/2/a.mp4", "media/upload/a.mp4", "other/a.mp4", "subway/a.mp4", "a.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"secret")
    site.files[uri] = b"secret"
    media = store(uploads_root=tmp_path / "media", local_files_root=tmp_path) if in_place else store()
    for spelling in (uri, site.url + uri):
        with pytest.raises(MediaError, match=expected):
            read(media, spelling)
    assert site.requests == []


def test_a_download_for_one_project_is_not_given_to_another(store: Callable[..., MediaStore], site: Outside) -> None:
    """Label Studio decides by project who may read a storage."""
    resolver = "/tasks/{}/resolve/?fileuri=" + quote(base64.urlsafe_b64encode(b"s3://bucket/k.mp4").decode())
    site.files[resolver.format(5)] = MB
    media = store()
    assert read(media, "s3://bucket/k.mp4", 5, 1) == MB
    with pytest.raises(MediaError, match="does not exist"):
        read(media, "s3://bucket/k.mp4", 6, 2)
    read(store(uploads_root=None), "s3://bucket/k.mp4", 7, 1)
    assert len(site.requests) == 2, "another task of the same project needs no download"


def test_hidden_folders_are_downloaded_from_label_studio(store: Callable[..., MediaStore], site: Outside) -> None:
    site.files["/data/upload/1/a.mp4"] = MB
    assert read(store(), "/data/upload/1/a.mp4") == MB
    assert site.asked("/data/upload/1/a.mp4")[0]["authorization"] == "Token secret"


# -- which hosts, and who gets the token


@pytest.mark.parametrize(
    "uri",
    [
        "file:///etc/passwd",
        "ftp://h/x",
        "data:video/mp4;base64,AAAA",
        "/etc/passwd",
        "etc/passwd",
        "//evil.example/x.mp4",
        "javascript:alert(1)",
        "",
        "   ",
        "\0",
        "http:///x",
        "unix:///run/docker.sock",
    ],
)
def test_other_kinds_of_addresses_are_not_fetched(store: Callable[..., MediaStore], uri: str) -> None:
    with pytest.raises(MediaError):
        read(store(), uri)


def test_foreign_hosts_need_permission(store: Callable[..., MediaStore], foreign: Outside) -> None:
    foreign.files["/a.mp4"] = MB
    with pytest.raises(MediaError, match=r"not fetched from the host '127\.0\.0\.1:\d+'") as failure:
        read(store(), foreign.url + "/a.mp4")
    assert "MEDIA_ALLOWED_HOSTS" in failure.value.hint
    assert not failure.value.retryable
    assert foreign.requests == []
    assert read(store(media_allowed_hosts="127.0.0.1:*"), foreign.url + "/a.mp4") == MB


@pytest.mark.parametrize(
    ("allowed", "url", "fits"),
    [
        ("videos.example", "http://videos.example/a.mp4", True),
        ("videos.example", "https://VIDEOS.example:443/a.mp4", True),
        ("videos.example", "http://videos.example:8080/a.mp4", False),
        ("videos.example", "http://videos.example:443/a.mp4", False),
        ("videos.example:8080", "http://videos.example:8080/a.mp4", True),
        ("videos.example:8080", "http://videos.example/a.mp4", False),
        ("videos.example:*", "http://videos.example:6379/a.mp4", True),
        ("[::1]:8080", "http://[::1]:8080/a.mp4", True),
        ("[::1]", "http://[::1]:8080/a.mp4", False),
    ],
)
def test_allowed_hosts_know_ports(settings: Callable[..., Settings], allowed: str, url: str, fits: bool) -> None:
    """Other services of an allowed host are not reached."""
    away = {urlsplit(url).netloc}  # so nothing is asked
    store = MediaStore(settings(media_allowed_hosts=allowed), Client("http://ls"), unreachable=away)
    with pytest.raises(MediaUnavailable if fits else MediaRefused) as failure:
        read(store, url)
    if not fits:
        named = failure.value.hint.split()[1]
        with pytest.raises(MediaUnavailable):
            read(MediaStore(settings(media_allowed_hosts=named), Client("http://ls"), unreachable=away), url)


@pytest.mark.parametrize(
    ("url", "base", "same"),
    [
        ("http://ls:80/data/upload/1/a.mp4", "http://ls", True),
        ("https://ls/data/upload/1/a.mp4", "https://ls:443", True),
        ("http://LS/data/upload/1/a.mp4", "http://ls", True),
        ("http://ls:443/data/upload/1/a.mp4", "https://ls", False),
        ("http://ls:8080/data/upload/1/a.mp4", "http://ls", False),
    ],
)
def test_a_port_that_goes_without_saying(settings: Callable[..., Settings], url: str, base: str, same: bool) -> None:
    store = MediaStore(settings(), Client(base), unreachable={urlsplit(base).netloc})  # so nothing is asked
    with pytest.raises(MediaUnavailable if same else MediaRefused):
        read(store, url)


def test_label_studio_s_name_in_disguise_is_another_host(
    store: Callable[..., MediaStore], site: Outside, foreign: Outside
) -> None:
    port = foreign.url.rsplit(":", 1)[1]
    for uri in (
        f"{site.url}@127.0.0.1:{port}/a.mp4",
        f"{site.url}\\@127.0.0.1:{port}/a.mp4",
        f"http://localhost@127.0.0.1:{port}/a.mp4",
        f"http://localhost:{port}/a.mp4",  # same name, other port: another server
        f"http://localhost.:{port}/a.mp4",
        f"http://127.0.0.1:{port}/a.mp4#{site.url}/",
        f"http://2130706433:{port}/a.mp4",
        f"http://ⓛocalhost:{port}/a.mp4",
        f"https://localhost:{port}/a.mp4",
    ):
        with pytest.raises(MediaError):
            read(store(), uri)
    assert foreign.requests == []


def test_token_goes_to_label_studio_only(store: Callable[..., MediaStore], site: Outside, foreign: Outside) -> None:
    foreign.files["/a.mp4"] = MB
    site.redirect("/data/upload/1/a.mp4", foreign.url + "/a.mp4")
    assert read(store(media_allowed_hosts="127.0.0.1:*"), "/data/upload/1/a.mp4") == MB
    assert "authorization" in site.requests[0][1]
    assert len(foreign.requests) == 1
    assert "authorization" not in foreign.requests[0][1]
    assert "secret" not in json.dumps(foreign.requests)


def test_direct_foreign_address_gets_no_token(store: Callable[..., MediaStore], foreign: Outside) -> None:
    foreign.files["/a.mp4"] = MB
    read(store(media_allowed_hosts="127.0.0.1:*"), foreign.url + "/a.mp4")
    assert "authorization" not in foreign.requests[0][1]


def test_foreign_host_cannot_send_the_token_after_label_studio(
    store: Callable[..., MediaStore], site: Outside, foreign: Outside
) -> None:
    """A redirect from outside into Label Studio would make it hand out what only the token may see."""
    site.files["/api/projects"] = b"private"
    foreign.redirect("/a.mp4", site.url + "/api/projects")
    site.redirect("/data/upload/1/a.mp4", "/api/projects")
    for uri in (foreign.url + "/a.mp4", "/data/upload/1/a.mp4"):
        with pytest.raises(MediaError, match="redirects into Label Studio"):
            read(store(media_allowed_hosts="127.0.0.1:*"), uri)
    assert [path for path, _ in site.requests] == ["/data/upload/1/a.mp4"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_to_a_host_that_is_not_allowed(
    store: Callable[..., MediaStore], site: Outside, foreign: Outside, status: int
) -> None:
    foreign.files["/a.mp4"] = MB
    site.redirect("/data/upload/1/a.mp4", foreign.url + "/a.mp4", status)
    with pytest.raises(MediaError, match="not fetched from the host"):
        read(store(), "/data/upload/1/a.mp4")
    assert foreign.requests == []


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "ftp://localhost/x", "/data/upload/1/a.mp4", "data:,x", "javascript:0"]
)
def test_redirects_in_circles_or_to_other_kinds(store: Callable[..., MediaStore], site: Outside, location: str) -> None:
    site.redirect("/data/upload/1/a.mp4", location)
    with pytest.raises(MediaError, match=r"redirects in circles or to something|malformed") as failure:
        read(store(), "/data/upload/1/a.mp4")
    assert not failure.value.retryable
    assert len(site.requests) < 10


@pytest.mark.slow
@pytest.mark.parametrize(
    "location", ["http://[", "http://localhost:port/", "http://h\x7f/", "http://localhost:99999/x"]
)
def test_malformed_redirects(store: Callable[..., MediaStore], site: Outside, location: str) -> None:
    site.redirect("/data/upload/1/a.mp4", location)
    with pytest.raises(MediaError):
        read(store(), "/data/upload/1/a.mp4")


@pytest.mark.parametrize("status", [300, 301, 304, 204, 418])
def test_status_without_a_video(store: Callable[..., MediaStore], site: Outside, status: int) -> None:
    site.answer("/data/upload/1/a.mp4", status)
    with pytest.raises(MediaError):
        read(store(), "/data/upload/1/a.mp4")
    assert cached(store()) == set()


def test_cloud_addresses_go_through_label_studio_s_resolver(
    store: Callable[..., MediaStore], site: Outside, foreign: Outside
) -> None:
    foreign.files["/bucket/k.mp4?signature=x"] = MB
    encoded = base64.urlsafe_b64encode(b"s3://bucket/k.mp4").decode()
    resolver = f"/tasks/5/resolve/?fileuri={encoded}"
    site.redirect(
        resolver.replace("=", "%3D").replace("fileuri%3D", "fileuri="), foreign.url + "/bucket/k.mp4?signature=x"
    )
    media = store()
    assert read(media, "s3://bucket/k.mp4", 5) == MB
    assert "authorization" in site.requests[0][1]
    assert "authorization" not in foreign.requests[0][1]
    assert read(media, f"/tasks/6/resolve/?fileuri={encoded}", 6) == MB  # another task, the same video
    assert len(foreign.requests) == 1


address = st.one_of(
    st.text(max_size=30),
    st.from_regex(r"(https?|HTTP|s3|file|ftp)?:?[/\\]{0,3}[\[\]@:a-zA-Z0-9\\/?#%.\x00-\x20-]{0,25}", fullmatch=True),
    st.from_regex(r"/data/(local-files/\?d=|upload/)[\x00-\x7f\u2215\uff0e]{0,25}", fullmatch=True),
    st.binary(max_size=30).map(lambda b: "/tasks/1/resolve/?fileuri=" + base64.urlsafe_b64encode(b).decode()),
)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of all hosts that a connection is looked up for."""
    import socket

    hosts: list[str] = []
    real = socket.getaddrinfo

    def note(host: Any, *args: Any, **kwargs: Any) -> Any:
        hosts.append(host.decode() if isinstance(host, bytes) else host)
        return real("127.0.0.1", *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", note)
    return hosts


@pytest.mark.slow
@hypothesis_settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(uri=address)
def test_no_address_reaches_another_host_or_breaks_the_store(
    uri: str, folders_once: Path, site_once: Outside, tried: list[str], tmp_path: Path
) -> None:
    values = Settings(
        _env_file=None,
        data_dir=tmp_path / "data",
        local_files_root=folders_once / "local",
        uploads_root=folders_once / "media",
    )
    with contextlib.suppress(BackendError):
        content = read(MediaStore(values, Client(site_once.url)), uri)
        assert b"secret" not in content
    assert set(tried) <= {"localhost"}


@pytest.fixture(scope="module")
def site_once() -> Iterator[Outside]:
    with outside("localhost") as running:
        yield running


@pytest.fixture(scope="module")
def folders_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("visible")
    for name in ("media/upload/1/a.mp4", "local/sub/a.mp4", "secret.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


# -- refusals


@pytest.mark.parametrize(
    ("status", "kind", "text"),
    [(401, MediaError, "refuses access"), (403, MediaError, "refuses access"), (404, MediaError, "does not exist")],
)
def test_refusals_are_final_and_say_why(
    store: Callable[..., MediaStore], site: Outside, status: int, kind: type[BackendError], text: str
) -> None:
    site.answer("/data/upload/1/a.mp4", status)
    with pytest.raises(kind, match=text) as failure:
        read(store(), "/data/upload/1/a.mp4")
    assert not failure.value.retryable
    assert failure.value.hint
    assert "secret" not in str(failure.value)
    assert len(site.requests) == 1


@pytest.mark.slow
def test_server_s_trouble_is_tried_again_and_then_retryable(store: Callable[..., MediaStore], site: Outside) -> None:
    site.answer("/data/upload/1/a.mp4", 503)
    with pytest.raises(MediaUnavailable, match="fails") as failure:
        read(store(), "/data/upload/1/a.mp4")
    assert failure.value.retryable
    assert len(site.requests) > 1


@pytest.mark.slow
def test_nobody_there(store: Callable[..., MediaStore], settings: Callable[..., Settings]) -> None:
    with outside("localhost") as gone:
        pass
    with pytest.raises(MediaUnavailable, match="cannot be fetched"):
        read(MediaStore(settings(), Client(gone.url)), "/data/upload/1/a.mp4")


@pytest.mark.slow
def test_silent_server_is_given_up(
    store: Callable[..., MediaStore], site: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media_module, "TIMEOUT_S", 0.1)
    site.special["/data/upload/1/a.mp4"] = lambda handler: time.sleep(3)
    started = time.monotonic()
    with pytest.raises(MediaUnavailable):
        read(store(), "/data/upload/1/a.mp4")
    assert time.monotonic() - started < 30


def test_login_page_is_not_a_video(store: Callable[..., MediaStore], site: Outside) -> None:
    site.files["/data/upload/1/a.mp4"] = b"<html>please log in</html>"
    site.content_types["/data/upload/1/a.mp4"] = "text/html; charset=utf-8"
    with pytest.raises(MediaError, match="web page instead of a video") as failure:
        read(store(), "/data/upload/1/a.mp4")
    assert "token" in failure.value.hint
    assert cached(store()) == set()


# -- resuming


@pytest.mark.slow
def test_broken_connection_goes_on_where_it_stopped(store: Callable[..., MediaStore], site: Outside) -> None:
    path = "/data/upload/1/a.mp4"
    site.files[path], site.etags[path] = MB, '"v1"'
    site.break_after[path] = [300_000, 400_000]
    assert read(store(), path) == MB
    asked = site.asked(path)
    assert "range" not in asked[0]
    assert [headers["if-range"] for headers in asked[1:]] == ['"v1"'] * 2
    starts = [int(headers["range"][6:-1]) for headers in asked[1:]]
    assert 0 < starts[0] <= 300_000 < starts[1] <= 700_000
    assert len(cached(store())) == 1


def test_file_that_changed_meanwhile_is_begun_anew(store: Callable[..., MediaStore], site: Outside) -> None:
    path, new = "/data/upload/1/a.mp4", MB[::-1]
    site.files[path], site.etags[path] = MB, '"v1"'

    def first(handler: http.server.BaseHTTPRequestHandler) -> None:
        del site.special[path]
        site.break_after[path] = [300_000]
        site.serve(handler)
        site.files[path], site.etags[path] = new, '"v2"'

    site.special[path] = first
    assert read(store(), path) == new


def test_without_validator_nothing_is_glued_together(store: Callable[..., MediaStore], site: Outside) -> None:
    path = "/data/upload/1/a.mp4"
    site.files[path] = MB
    site.break_after[path] = [300_000]
    assert read(store(), path) == MB
    assert "range" not in site.asked(path)[1]


def test_weak_validator_is_no_validator(store: Callable[..., MediaStore], site: Outside) -> None:
    path = "/data/upload/1/a.mp4"
    site.files[path], site.etags[path] = MB, 'W/"v1"'
    site.break_after[path] = [300_000]
    assert read(store(), path) == MB
    assert "range" not in site.asked(path)[1]


@pytest.mark.slow
def test_server_that_answers_another_range(store: Callable[..., MediaStore], site: Outside) -> None:
    """Some servers and caches round ranges down; what they send must not be appended as if they had not."""
    path = "/data/upload/1/a.mp4"
    site.files[path], site.etags[path] = MB, '"v1"'
    site.break_after[path] = [300_000]

    def rounded(handler: http.server.BaseHTTPRequestHandler) -> None:
        if "Range" not in handler.headers:
            del site.special[path]
            site.serve(handler)
            site.special[path] = rounded
            return
        start = 262_144
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start}-{len(MB) - 1}/{len(MB)}")
        handler.send_header("Content-Length", str(len(MB) - start))
        handler.send_header("ETag", '"v1"')
        handler.end_headers()
        handler.wfile.write(MB[start:])

    site.special[path] = rounded
    with contextlib.suppress(MediaUnavailable):  # giving up is fine, garbage is not
        assert read(store(), path) == MB


@pytest.fixture(scope="module")
def half_a_download(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache after a download that broke off again and again until it was given up."""
    folder, path = tmp_path_factory.mktemp("half"), "/data/upload/1/a.mp4"
    with outside("localhost") as site:
        site.files[path], site.etags[path] = MB, '"v1"'
        site.break_after[path] = [100_000] * 10
        with pytest.raises(MediaUnavailable):
            read(MediaStore(Settings(_env_file=None, data_dir=folder), Client(site.url)), path)
    return folder / "media"


@pytest.fixture
def interrupted(half_a_download: Path, store: Callable[..., MediaStore], site: Outside) -> tuple[MediaStore, Path]:
    """A store that finds half of a download, and the partial file."""
    path = "/data/upload/1/a.mp4"
    site.files[path], site.etags[path] = MB, '"v1"'
    media = store()
    shutil.copytree(half_a_download, media.folder)
    (part,) = media.folder.glob("*.part")
    assert 0 < part.stat().st_size < len(MB)
    return media, part


@pytest.mark.parametrize("silent", ["before", "during", "elsewhere"])
def test_request_to_stop_is_obeyed_while_nothing_comes(
    settings: Callable[..., Settings], site: Outside, silent: str
) -> None:
    """A server that says nothing, also to another process, whose download this one waits for."""
    path, release = "/data/upload/1/a.mp4", threading.Event()

    def hang(handler: http.server.BaseHTTPRequestHandler) -> None:
        if silent == "during":
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(MB)))
            handler.send_header("ETag", '"v1"')
            handler.end_headers()
            handler.wfile.write(MB[:1000])
            handler.wfile.flush()
        release.wait(300)

    site.special[path] = hang
    folder = settings().media_dir

    def should_stop() -> bool:
        return bool(site.requests) and (
            silent != "during" or any(part.stat().st_size for part in folder.glob("*.part"))
        )

    def read_elsewhere() -> None:
        with contextlib.suppress(BackendError):
            read(MediaStore(settings(), Client(site.url), release.is_set), path)

    other = threading.Thread(target=read_elsewhere)
    if silent == "elsewhere":
        other.start()
        while not site.requests:
            time.sleep(0.01)
    started = time.monotonic()
    with pytest.raises(Interrupted):
        read(MediaStore(settings(), Client(site.url), should_stop), path)
    assert time.monotonic() - started < 5
    assert len(site.requests) == 1
    release.set()
    if silent == "elsewhere":
        other.join()
    del site.special[path]
    site.files[path], site.etags[path] = MB, '"v1"'
    assert read(MediaStore(settings(), Client(site.url)), path) == MB, "the one that was left writes nothing any more"
    assert ("range" in site.asked(path)[-1]) == (silent == "during"), "what was there is kept"


@pytest.mark.slow
def test_a_server_that_sends_too_little_is_given_up(
    store: Callable[..., MediaStore], site: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media_module, "TIMEOUT_S", 1.0)

    def drip(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(MB)))
        handler.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(600):
                handler.wfile.write(b"x")
                time.sleep(0.1)

    site.special["/data/upload/1/a.mp4"] = drip
    started = time.monotonic()
    with pytest.raises(MediaUnavailable, match="less than 16 KiB/s") as failure:
        read(store(), "/data/upload/1/a.mp4")
    assert failure.value.retryable
    assert time.monotonic() - started < 30


@pytest.mark.slow
def test_next_process_goes_on(interrupted: tuple[MediaStore, Path], site: Outside) -> None:
    media, part = interrupted
    size = part.stat().st_size
    assert read(media, "/data/upload/1/a.mp4") == MB
    assert [headers.get("range") for _, headers in site.requests] == [f"bytes={size}-"]


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b"\xff\xfe", b'{"validator": 7}', b"{}"])
def test_damaged_note_beside_a_partial_file_is_no_obstacle(interrupted: tuple[MediaStore, Path], note: bytes) -> None:
    media, part = interrupted
    part.with_name(part.name + ".json").write_bytes(note)
    assert read(media, "/data/upload/1/a.mp4") == MB


def test_killed_between_the_last_byte_and_the_rename(interrupted: tuple[MediaStore, Path], site: Outside) -> None:
    media, part = interrupted
    part.write_bytes(MB)  # complete: the server can only answer 416 to a request for the rest
    assert read(media, "/data/upload/1/a.mp4") == MB


def test_longer_partial_file_than_the_video(interrupted: tuple[MediaStore, Path]) -> None:
    media, part = interrupted
    part.write_bytes(MB + b"too much")
    assert read(media, "/data/upload/1/a.mp4") == MB


# -- room


def test_size_cap_by_announcement(store: Callable[..., MediaStore], site: Outside) -> None:
    site.files["/data/upload/1/a.mp4"] = MB
    with pytest.raises(MediaError, match="larger than") as failure:
        read(store(media_max_gb=0.0005), "/data/upload/1/a.mp4")
    assert "MEDIA_MAX_GB" in failure.value.hint
    assert cached(store()) == set()


def test_size_cap_for_servers_that_do_not_say(store: Callable[..., MediaStore], site: Outside) -> None:
    def endless(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("ETag", '"v"')
        handler.end_headers()  # no length: until the connection closes
        while True:
            handler.wfile.write(MB)

    site.special["/data/upload/1/a.mp4"] = endless
    with pytest.raises(MediaError, match="larger than"):
        read(store(media_max_gb=0.01), "/data/upload/1/a.mp4")
    assert cached(store()) == set()  # what is never used takes no room


def test_least_recently_used_goes_first(store: Callable[..., MediaStore], site: Outside) -> None:
    media = store(media_cache_gb=2.5 / 1024)
    for name in "abc":
        site.files[f"/data/upload/1/{name}.mp4"] = MB
    read(media, "/data/upload/1/a.mp4")
    read(media, "/data/upload/1/b.mp4")
    for number, file in enumerate(sorted(media.folder.glob("*.mp4"), key=lambda f: f.stat().st_mtime)):
        os.utime(file, (number, number))  # time passes
    read(media, "/data/upload/1/a.mp4")  # used again
    read(media, "/data/upload/1/c.mp4")
    site.requests.clear()
    read(media, "/data/upload/1/a.mp4")
    read(media, "/data/upload/1/c.mp4")
    assert site.requests == []
    read(media, "/data/upload/1/b.mp4")
    assert len(site.requests) == 1


def test_files_in_use_stay(store: Callable[..., MediaStore], site: Outside) -> None:
    media = store(media_cache_gb=1.5 / 1024)
    for name in "ab":
        site.files[f"/data/upload/1/{name}.mp4"] = MB
    with media.open("/data/upload/1/a.mp4", 1, 1) as in_use:
        read(media, "/data/upload/1/b.mp4")
        assert in_use.read_bytes() == MB


def test_a_cleared_cache_keeps_files_in_use_only(store: Callable[..., MediaStore], site: Outside) -> None:
    media = store()
    media.clear_cache()  # before there is any
    for name in "ab":
        site.files[f"/data/upload/1/{name}.mp4"] = MB
        read(media, f"/data/upload/1/{name}.mp4")
    with media.open("/data/upload/1/a.mp4", 1, 1) as in_use:
        media.clear_cache()
        assert cached(media) == {in_use.name}
        assert in_use.read_bytes() == MB
    media.clear_cache()
    assert cached(media) == set()


@pytest.mark.slow
def test_files_in_use_by_another_process_stay(store: Callable[..., MediaStore], site: Outside) -> None:
    media = store(media_cache_gb=1.5 / 1024)
    for name in "ab":
        site.files[f"/data/upload/1/{name}.mp4"] = MB
    with reader(media, site, "/data/upload/1/a.mp4", hold=True) as process:
        assert process.stdout is not None
        path = Path(process.stdout.readline().decode().strip())
        read(media, "/data/upload/1/b.mp4")
        assert path.read_bytes() == MB
        process.kill()


def test_one_reader_does_not_wait_for_another(store: Callable[..., MediaStore], site: Outside) -> None:
    """A video is read for as long as its prediction takes; meanwhile other tasks may show the same one."""
    path, media = "/data/upload/1/a.mp4", store()
    site.files[path] = MB
    with media.open(path, 1, 1), reader(media, site, path) as process:
        assert process.communicate(timeout=300)[0].split()[-1] == str(len(MB)).encode()
    assert len(site.asked(path)) == 1


def test_unusable_video_is_not_kept(store: Callable[..., MediaStore], site: Outside) -> None:
    path, media = "/data/upload/1/a.mp4", store()
    site.files[path] = b"broken"
    with pytest.raises(VideoError), media.open(path, 1, 1):
        raise VideoError("It is corrupt.")
    assert cached(media) == set()
    site.files[path] = MB  # mended under the same address
    assert read(media, path) == MB


@contextlib.contextmanager
def reader(media: MediaStore, site: Outside, uri: str, *, hold: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that opens a video and prints its path, then waits (``hold``) or its size."""
    code = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from ml_backend.label_studio.media import MediaStore
from ml_backend.core.settings import Settings
class Client:
    url = {site.url!r}
    def auth_headers(self): return {{}}
    def local_files_folders(self, project_id): return []
store = MediaStore(Settings(_env_file=None, data_dir={str(media.folder.parent)!r}), Client())
with store.open({uri!r}, 1, 1) as path:
    print(path, path.stat().st_size, sep="\\n", flush=True)
    if {hold}: time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_processes_that_want_the_same_video_share_one_download(store: Callable[..., MediaStore], site: Outside) -> None:
    path, media = "/data/upload/1/a.mp4", store()
    site.files[path] = MB

    def slow(handler: http.server.BaseHTTPRequestHandler) -> None:
        time.sleep(1)
        del site.special[path]
        site.serve(handler)

    site.special[path] = slow
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(reader(media, site, path)) for _ in range(3)]
        sizes = [process.communicate(timeout=300)[0].split()[-1] for process in processes]
    assert sizes == [str(len(MB)).encode()] * 3
    assert len(site.asked(path)) == 2  # `slow` counts itself twice


class Disk:
    """A disk of a given size that holds nothing but the cache; how large the real one is, is not for a test to say."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        self.most = 0

    def usage(self, path: Any) -> Any:
        used = sum(file.stat().st_size for file in self.folder.iterdir()) if self.folder.is_dir() else 0
        self.most = max(self.most, used)
        return SimpleNamespace(total=self.size, used=used, free=max(0, self.size - used))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[MediaStore, int], Disk]:
    """Factory of the disk below a store, with so many bytes beside the spare ones."""

    def make(media: MediaStore, room: int) -> Disk:
        made = Disk(media.folder, room + SPARE_BYTES)
        monkeypatch.setattr(shutil, "disk_usage", made.usage)
        return made

    return make


def aged(media: MediaStore) -> list[Path]:
    """The cache's files, which from now on were used one after the other, long ago."""
    files = sorted(media.folder.glob("*.mp4"), key=lambda file: file.stat().st_mtime)
    for number, file in enumerate(files):
        os.utime(file, (number, number))
    return files


def chunks(total: int) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    """An answer that does not say how long it is."""

    def send(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("ETag", '"v"')
        handler.end_headers()
        for _ in range(total // len(MB)):
            handler.wfile.write(MB)

    return send


def test_disk_smaller_than_the_cache_may_be(
    store: Callable[..., MediaStore], site: Outside, disk: Callable[[MediaStore, int], Disk]
) -> None:
    """What nobody uses goes for a new video; what is being read and what was used last stays."""
    media = store()
    small = disk(media, 3 * len(MB))
    for name in "abc":
        site.files[f"/data/upload/1/{name}.mp4"] = MB
        read(media, f"/data/upload/1/{name}.mp4")
    a, b, c = aged(media)
    site.files["/data/upload/1/d.mp4"] = MB
    with media.open("/data/upload/1/a.mp4", 1, 1) as in_use:
        os.utime(in_use, (0, 0))  # a long time ago: it is the oldest again
        assert read(media, "/data/upload/1/d.mp4") == MB
        assert in_use.read_bytes() == MB
    assert (a.exists(), b.exists(), c.exists()) == (True, False, True)
    assert small.most <= 3 * len(MB)


def test_nothing_is_thrown_away_in_vain(
    store: Callable[..., MediaStore], site: Outside, disk: Callable[[MediaStore, int], Disk]
) -> None:
    media = store()
    disk(media, 3 * len(MB))
    site.files["/data/upload/1/a.mp4"], site.files["/data/upload/1/large.mp4"] = MB, MB * 4
    read(media, "/data/upload/1/a.mp4")
    before = cached(media)
    with pytest.raises(StorageError, match="No room"):
        read(media, "/data/upload/1/large.mp4")
    assert cached(media) == before


def test_no_room_while_everything_is_in_use(
    store: Callable[..., MediaStore], site: Outside, disk: Callable[[MediaStore, int], Disk]
) -> None:
    media = store()
    disk(media, 2 * len(MB))
    site.files["/data/upload/1/a.mp4"], site.files["/data/upload/1/b.mp4"] = MB, MB * 2
    with media.open("/data/upload/1/a.mp4", 1, 1) as in_use:
        with pytest.raises(StorageError, match="No room") as failure:
            read(media, "/data/upload/1/b.mp4")
        assert in_use.read_bytes() == MB
    assert failure.value.retryable
    assert read(media, "/data/upload/1/b.mp4") == MB * 2  # nobody uses the other one any more


def test_room_for_a_video_of_unknown_length(
    store: Callable[..., MediaStore], site: Outside, disk: Callable[[MediaStore, int], Disk]
) -> None:
    """It is looked for on the way; the files that nobody uses go, and the spare bytes stay."""
    media = store()
    total = 2 * CHECK_BYTES - len(MB)  # one check on the way, however the bytes arrive
    small = disk(media, total + 10 * len(MB))
    site.special["/data/upload/1/old.mp4"] = chunks(CHECK_BYTES)
    read(media, "/data/upload/1/old.mp4")
    (old,) = aged(media)
    site.special["/data/upload/1/new.mp4"] = chunks(total)
    with media.open("/data/upload/1/new.mp4", 1, 1) as path:
        assert path.stat().st_size == total
    assert not old.exists()
    assert small.most <= small.size - SPARE_BYTES


def test_no_room_for_a_video_of_unknown_length(
    store: Callable[..., MediaStore], site: Outside, disk: Callable[[MediaStore, int], Disk]
) -> None:
    media = store()
    small = disk(media, 2 * CHECK_BYTES - len(MB))  # the first check finds too little, however the bytes arrive
    site.special["/data/upload/1/a.mp4"] = chunks(4 * CHECK_BYTES)
    with pytest.raises(StorageError, match="No room"):
        read(media, "/data/upload/1/a.mp4")
    assert 0 < small.most < small.size - SPARE_BYTES
    assert cached(media) == set()  # the part, which nobody could complete, takes no room


def test_old_part_is_no_obstacle_for_a_new_beginning(
    interrupted: tuple[MediaStore, Path], disk: Callable[[MediaStore, int], Disk]
) -> None:
    media, part = interrupted
    part.with_name(part.name + ".json").unlink()  # so that it cannot go on
    disk(media, len(MB))
    assert read(media, "/data/upload/1/a.mp4") == MB


def test_disk_that_is_too_small(store: Callable[..., MediaStore], site: Outside) -> None:
    def huge(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(1 << 60))
        handler.end_headers()

    site.special["/data/upload/1/a.mp4"] = huge
    with pytest.raises(StorageError, match="No room") as failure:
        read(store(media_max_gb=2e9), "/data/upload/1/a.mp4")
    assert failure.value.http_status == 507


def test_disk_that_fills_up(settings: Callable[..., Settings], site: Outside, tmp_path: Path) -> None:
    """A limit on file sizes makes the kernel refuse writes as a full disk does."""
    site.files["/data/upload/1/a.mp4"] = MB
    code = f"""
import resource, signal, sys
sys.path.insert(0, {str(ROOT)!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
from ml_backend.core.errors import StorageError
from ml_backend.label_studio.media import MediaStore
from ml_backend.core.settings import Settings
class Client:
    url = {site.url!r}
    def auth_headers(self): return {{}}
    def local_files_folders(self, project_id): return []
try:
    store = MediaStore(Settings(_env_file=None, data_dir={str(tmp_path)!r}), Client())
    with store.open("/data/upload/1/a.mp4", 1, 1): pass
except StorageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert "cannot be written" in done.stdout, done.stderr
    assert "Free some disk space" in done.stdout
    assert [file.suffix for file in (tmp_path / "media").iterdir()] == [".lock"], "what is of no use takes no room"


def test_folder_that_cannot_be_made(store: Callable[..., MediaStore], site: Outside, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be created"):
        read(store(data_dir=tmp_path / "file"), "/data/upload/1/a.mp4")


def test_odd_suffixes_do_not_reach_the_disk(store: Callable[..., MediaStore], site: Outside) -> None:
    for uri in (
        "/data/upload/1/a.lock",
        "/data/upload/1/b.json",
        "/data/upload/1/c.part",
        "/data/upload/1/d.m%C3%A9",
        "/data/upload/1/e",
    ):
        site.files[uri] = MB
        media = store()
        assert read(media, uri) == MB
        assert read(media, uri) == MB
        assert len(site.asked(quote(uri, safe="/%"))) == 1, "the second time it comes from the cache"


@pytest.mark.slow
def test_a_server_that_is_away_is_asked_for_one_video_only(store: Callable[..., MediaStore], foreign: Outside) -> None:
    media = store(media_allowed_hosts="127.0.0.1:*")
    with pytest.raises(MediaUnavailable, match="ConnectError"):
        read(media, "http://127.0.0.1:9/a.mp4")
    begun = time.monotonic()
    with pytest.raises(MediaUnavailable, match=r"127\.0\.0\.1:9.*a moment ago"):
        read(media, "http://127.0.0.1:9/b.mp4")
    assert time.monotonic() - begun < 2, "no second round of tries with their pauses"
    foreign.answer("/a.mp4", 503)
    for _ in range(2):  # it answers, if only with an error of this one
        with pytest.raises(MediaUnavailable, match="503"):
            read(media, foreign.url + "/a.mp4")
    foreign.files["/b.mp4"] = b"video"
    assert read(media, foreign.url + "/b.mp4") == b"video"


@pytest.mark.slow
def test_a_storage_that_is_away_is_not_label_studio(store: Callable[..., MediaStore], site: Outside) -> None:
    media = store()
    site.redirect("/tasks/1/resolve/", "http://127.0.0.1:9/a.mp4")
    site.files["/data/upload/1/b.mp4"] = b"video"
    with pytest.raises(MediaUnavailable):
        read(media, "s3://bucket/a.mp4")
    assert read(media, "/data/upload/1/b.mp4") == b"video"
