"""Uploads and downloads of the control room: what is taken, what is given out, and what is not."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ml_backend.core.outputs import GB, MAX_AGE_S, PLAYABLE_FOLDER, STALE_S, OutputFacts, Outputs
from ml_backend.core.settings import Settings
from ml_backend.server.api.uploads import safe_name
from tests.server.control import Room

BODY = bytes(range(256)) * 40


FACTS = OutputFacts(source="v2", model="yolo11n-1.v2", task=3, video="straße.mp4", tracks=4)


def add(outputs: Outputs, facts: OutputFacts = FACTS, project: int = 7) -> str:
    """Add a video to the outputs, as a job does; its name."""
    outputs.folder.mkdir(parents=True, exist_ok=True)
    made = outputs.folder / "made.mp4"
    made.write_bytes(BODY)
    return outputs.add(made, facts, "project", project, "task", 3).name


@pytest.fixture
def made(room: Room) -> str:
    """The name of a video that was made here."""
    path = room.services.outputs.new("project", 7, "task", 1, suffix="mp4")
    path.write_bytes(BODY)
    return path.name


# -- downloads


def test_a_download_whole(room: Room, made: str) -> None:
    answer = room.client.get(f"/api/download/{made}")
    assert (answer.status_code, answer.data) == (200, BODY)
    assert answer.content_type == "video/mp4"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in answer.headers["Content-Security-Policy"]
    assert answer.headers["Accept-Ranges"] == "bytes"


@pytest.mark.parametrize(
    ("wanted", "start", "end"), [("bytes=0-99", 0, 100), ("bytes=100-", 100, None), ("bytes=-10", -10, None)]
)
def test_a_part(room: Room, made: str, wanted: str, start: int, end: int | None) -> None:
    answer = room.client.get(f"/api/download/{made}", headers={"Range": wanted})
    room.check("GET", "/api/download/x", answer)
    assert (answer.status_code, answer.data) == (206, BODY[start:end])
    assert answer.headers["Content-Range"].endswith(f"/{len(BODY)}")


def test_a_part_that_is_not_there(room: Room, made: str) -> None:
    problem = room.get(f"/api/download/{made}", 416, headers={"Range": "bytes=99999-"})
    assert problem["title"]


def test_what_is_known_is_not_sent_again(room: Room, made: str) -> None:
    first = room.client.get(f"/api/download/{made}")
    answer = room.client.get(f"/api/download/{made}", headers={"If-None-Match": first.headers["ETag"]})
    assert (answer.status_code, answer.data) == (304, b"")


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "../backend.sqlite3",
        "..%2fbackend.sqlite3",
        "%2e%2e/backend.sqlite3",
        "%2e%2e%2fbackend.sqlite3",
        "..%5cbackend.sqlite3",
        "%252e%252e%252fbackend.sqlite3",
        "..%c0%afbackend.sqlite3",
        "%e2%80%a5/backend.sqlite3",
        "%ef%bc%8e%ef%bc%8e%ef%bc%8fbackend.sqlite3",
        "%2fetc%2fpasswd",
        "/etc/passwd",
        "//etc/passwd",
        "file:///etc/passwd",
        "c:%5cwindows",
        "secret.mp4%00.zip",
        "secret.txt",
        ".hidden.mp4",
        "UPPER.mp4",
        "link.mp4",
        "folder.mp4",
        "a.mp4%0a",
        "ünïcode.mp4",
        "%F0%9F%94%91.zip",
        "a" * 300 + ".mp4",
        "",
        "none.mp4",
    ],
)
def test_nothing_else_is_given_out(room: Room, made: str, name: str) -> None:
    folder = room.services.outputs.folder
    (folder / "secret.txt").write_text("secret")
    (folder / ".hidden.mp4").write_text("secret")
    (folder / "UPPER.mp4").write_text("secret")
    (folder / "folder.mp4").mkdir()
    (folder / "link.mp4").symlink_to(folder.parent / "backend.sqlite3")
    answer = room.client.get(f"/api/download/{name}")
    assert answer.status_code in (404, 308), answer.data
    assert b"secret" not in answer.data
    assert b"SQLite" not in answer.data


def test_archives_are_saved_not_shown(room: Room) -> None:
    path = room.services.outputs.new("project", 7, suffix="zip")
    path.write_bytes(b"PK")
    answer = room.client.get(f"/api/download/{path.name}")
    assert answer.headers["Content-Disposition"].startswith("attachment")


# -- the list


def test_files_are_listed_with_what_they_were_made_from(room: Room, made: str) -> None:
    outputs = room.services.outputs
    named = add(outputs)
    rows = OutputFacts(format="annotations", source="both", model="a, b", video="a.mp4", videos=3, skipped=1)
    exported = add(outputs, rows)
    add(outputs, project=8)
    os.utime(outputs.folder / made, (1e9, 1e9))
    os.utime(outputs.folder / named, (1.1e9, 1.1e9))
    found = room.get("/api/files?project=7")["files"]
    assert [item["name"] for item in found] == [exported, named, made], "newest first"
    assert {name: found[0][name] for name in rows.model_dump()} == rows.model_dump()
    assert {name: found[1][name] for name in FACTS.model_dump()} == FACTS.model_dump()
    assert (found[1]["bytes"], found[1]["created_at"]) == (len(BODY), "2004-11-09T11:33:20+00:00")
    assert {found[2][name] for name in FACTS.model_dump()} == {None}, "of an earlier release"


@pytest.mark.parametrize(
    "facts", [b"", b"{", b"[]", b'{"source": 1}', b'{"source": "base", "videos": -1}', b" " * (1 << 20)]
)
def test_facts_that_are_damaged_are_none(room: Room, facts: bytes) -> None:
    outputs = room.services.outputs
    name = add(outputs)
    (outputs.folder / f"{name}.json").write_bytes(facts)
    (found,) = room.get("/api/files?project=7")["files"]
    assert (found["name"], found["source"]) == (name, None)


def test_a_file_is_deleted_once(room: Room, made: str) -> None:
    outputs = room.services.outputs
    name = add(outputs)
    assert room.delete(f"/api/files/{name}") == {"deleted": name}
    assert names(outputs.folder) == {made}, "its facts, too"
    assert f"no file {name}" in room.delete(f"/api/files/{name}", 404)["detail"]
    room.delete(f"/api/files/{made}")
    assert room.get("/api/files?project=7")["files"] == []


@pytest.mark.parametrize(
    "name", ["..%2fbackend.sqlite3", "secret.txt", ".hidden.mp4", "link.mp4", "folder.mp4", "x.mp4.json"]
)
def test_nothing_else_is_deleted(room: Room, made: str, name: str) -> None:
    folder = room.services.outputs.folder
    for other in ("secret.txt", ".hidden.mp4", "x.mp4.json"):
        (folder / other).write_text("")
    (folder / "folder.mp4").mkdir()
    (folder / "link.mp4").symlink_to(folder.parent / "backend.sqlite3")
    before = names(folder)
    assert room.client.delete(f"/api/files/{name}").status_code == 404
    assert (names(folder), (folder.parent / "backend.sqlite3").exists()) == (before, True)


# -- names and room


def test_names_are_those_that_are_given_out(settings: Callable[..., Settings]) -> None:
    outputs = Outputs(settings())
    for words in (("a", 1), ("../../etc",), ("<script>",), ("ü" * 500,), ("",), ("x" * 500,), ("-", "--")):
        path = outputs.new(*words, suffix="json")
        path.write_text("{}")
        assert outputs.find(path.name) == path
        assert path.parent == outputs.folder
    with pytest.raises(ValueError, match="suffix"):
        outputs.new("a", suffix="exe")


def test_outputs_go_by_size_and_by_age(settings: Callable[..., Settings]) -> None:
    outputs = Outputs(settings(outputs_gb=3000 / GB))
    now = time.time()
    paths = [outputs.new(str(age), suffix="mp4") for age in (0, 10, 20)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes(1500))
        os.utime(path, (now - 10 * number, now - 10 * number))
    left = outputs.folder / ".export-left-over"
    left.mkdir()
    os.utime(left, (now - STALE_S - 1, now - STALE_S - 1))
    assert outputs.clean() == [paths[2].name]
    assert not left.exists()
    os.utime(paths[1], (now - MAX_AGE_S - 1, now - MAX_AGE_S - 1))
    assert outputs.clean() == [paths[1].name]
    paths[0].write_bytes(bytes(9000))
    assert outputs.clean() == []  # the newest is never taken away from whoever has just asked for it


def test_facts_live_as_long_as_their_file(settings: Callable[..., Settings]) -> None:
    outputs, old = Outputs(settings(outputs_gb=1.0)), time.time() - STALE_S - 60
    first, last = add(outputs), add(outputs)
    for path in outputs.folder.iterdir():
        os.utime(path, (old, old))
    left_over = outputs.folder / "project-7-gone.mp4.json"  # a job was killed between the two
    left_over.write_text("{}")
    os.utime(left_over, (old, old))
    assert outputs.clean() == []
    assert names(outputs.folder) == {first, f"{first}.json", last, f"{last}.json"}
    for path in outputs.folder.glob(f"{first}*"):
        os.utime(path, (old - MAX_AGE_S, old - MAX_AGE_S))
    assert outputs.clean() == [first]
    assert names(outputs.folder) == {last, f"{last}.json"}


def left(folder: Path, name: str, age_s: float, folder_age_s: float | None = None) -> Path:
    """A folder with a file; both were written to so long ago, or the folder even longer."""
    path = folder / name / "deep" / "video.mp4"
    path.parent.mkdir(parents=True)
    path.write_bytes(BODY)
    now = time.time()
    os.utime(path, (now - age_s, now - age_s))
    for item in (path.parent, path.parent.parent):
        os.utime(item, (now - (folder_age_s or age_s), now - (folder_age_s or age_s)))
    return folder / name


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_crashes_and_failures_left_goes(settings: Callable[..., Settings]) -> None:
    here = settings()
    uploads, copies, old = here.uploads_dir, here.data_dir / PLAYABLE_FOLDER, STALE_S + 60
    for name in ("part-0123456789abcdef", "7-aaaa", "7-bbbb"):
        left(uploads, name, old)
        left(uploads, f"{name}9", STALE_S - 60)
    left(uploads, "7-cccc", 60, old)
    left(uploads, "part-fedcba9876543210", 60, old)  # is being received, slowly
    for name in ("aaaa", "bbbb", "dddd"):
        left(copies, name, old)
    left(copies, "eeee", STALE_S - 60)
    left(copies, "ffff", 60, old)  # is being made, slowly
    left(here.outputs_dir, ".export-old", old)
    left(here.outputs_dir, ".export-long", 60, old)
    Outputs(here).clean(needed=lambda name: name == "7-bbbb")
    assert names(uploads) == {
        "part-0123456789abcdef9",
        "part-fedcba9876543210",
        "7-aaaa9",
        "7-bbbb",
        "7-bbbb9",
        "7-cccc",
    }
    assert names(copies) == {"bbbb", "eeee", "ffff"}, "7-bbbb still needs its copy"
    assert names(here.outputs_dir) == {".export-long"}


def test_uploads_stay_where_nobody_knows_who_needs_them(settings: Callable[..., Settings]) -> None:
    here = settings()
    for name in ("part-0123456789abcdef", "7-aaaa"):
        left(here.uploads_dir, name, STALE_S + 60)
    left(here.data_dir / PLAYABLE_FOLDER, "aaaa", STALE_S + 60)
    Outputs(here).clean()
    assert names(here.uploads_dir) == {"7-aaaa"}
    assert names(here.data_dir / PLAYABLE_FOLDER) == {"aaaa"}


def test_copies_that_label_studio_serves_stay(settings: Callable[..., Settings], tmp_path: Path) -> None:
    here = settings(data_dir=tmp_path / "one", local_files_root=tmp_path / "one")
    left(here.data_dir / PLAYABLE_FOLDER, "aaaa", STALE_S + 60)
    Outputs(here).clean(needed=lambda name: False)
    assert names(here.data_dir / PLAYABLE_FOLDER) == {"aaaa"}


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("clip.mp4", "clip.mp4"),
        ("../../etc/passwd.mp4", "passwd.mp4"),
        ("..\\..\\windows\\x.avi", "x.avi"),
        ("/absolute/x.mkv", "x.mkv"),
        ("한국어 영상.mp4", "한국어 영상.mp4"),
        ("<script>alert(1)</script>.mp4", "script_.mp4"),
        ("a\x00b\n.mp4", "a_b_.mp4"),
        ('"; rm -rf ~.mp4', "_; rm -rf ~.mp4"),
        (".mp4", "mp4"),
        ("...", "video"),
        ("", "video"),
        ("ü" * 300 + ".mp4", "ü" * 75 + ".mp4"),
        ("con\u202efdp.mp4", "con_fdp.mp4"),
    ],
)
def test_file_names(given: str, name: str) -> None:
    assert safe_name(given) == name


# -- uploads


def form(content: bytes = BODY, name: str = "clip.mp4", **fields: Any) -> dict[str, Any]:
    return {"project": "7", "file": (io.BytesIO(content), name), **fields}


def kept(room: Room) -> list[str]:
    """What is in the folder of uploads."""
    folder = room.services.settings.uploads_dir
    return sorted(item.name for item in folder.iterdir()) if folder.exists() else []


def upload(room: Room, data: dict[str, Any], status: int = 202, **headers: str) -> Any:
    values = {"data": data, "content_type": "multipart/form-data", "headers": headers}
    return room.ask("POST", "/api/upload_video", status, **values)


def test_an_upload_is_on_disk_and_is_one_job(room: Room) -> None:
    job = upload(room, form())["job"]
    assert (job["kind"], job["project"], job["state"]) == ("import_video", 7, "queued")
    (path,) = room.services.settings.uploads_dir.rglob("*.mp4")
    assert (path.name, path.read_bytes()) == ("clip.mp4", BODY)
    assert upload(room, form())["job"]["id"] == job["id"]
    assert upload(room, form(b"other"))["job"]["id"] != job["id"]
    assert [name.split("-")[0] for name in kept(room)] == ["7", "7"]


@pytest.mark.parametrize(
    ("data", "status", "word"),
    [
        ({"file": (io.BytesIO(BODY), "a.mp4")}, 400, "project"),
        ({"project": "7"}, 400, "file"),
        (form(project="seven"), 400, "project"),
        (form(project="99999999999"), 400, "project"),
        (form(project="9999999999"), 400, "project"),
        (form(colour="red"), 400, "colour"),
        (form(b""), 400, "empty"),
        (form(name="page.html"), 415, "video"),
        (form(name="model.pt"), 415, "video"),
        (form(name="clip.mp4.exe"), 415, "video"),
        (form(name="noname"), 415, "video"),
    ],
)
def test_uploads_that_are_refused(room: Room, data: dict[str, Any], status: int, word: str) -> None:
    problem = upload(
        room, {k: (io.BytesIO(v[0].getvalue()), v[1]) if isinstance(v, tuple) else v for k, v in data.items()}, status
    )
    assert word in problem["detail"]
    assert kept(room) == []
    assert not room.services.jobs.all()


def test_an_upload_to_a_project_that_does_not_exist(room: Room) -> None:
    assert upload(room, form(project="77"), 404)["detail"] == "Project 77 was not found."
    assert kept(room) == []


def test_the_file_that_is_no_video_is_named(room: Room) -> None:
    assert upload(room, form(name="x.jpg"), 415)["detail"] == "x.jpg has no supported video extension."


def test_too_large_an_upload(make_room: Callable[..., Room]) -> None:
    room = make_room(upload_max_gb=1e-4)
    problem = upload(room, form(bytes(400_000)), 413)
    assert "UPLOAD_MAX_GB" in problem["detail"]
    assert kept(room) == []


def test_an_upload_may_be_larger_than_other_requests(make_room: Callable[..., Room]) -> None:
    room = make_room()
    room.client.application.config["MAX_CONTENT_LENGTH"] = 1 << 20
    upload(room, form(bytes(3 << 20)))


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "application/x-www-form-urlencoded", ""])
def test_an_upload_of_another_type(room: Room, kind: str) -> None:
    room.ask("POST", "/api/upload_video", 415, data=b"{}", content_type=kind)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--x",
        b"--x\r\n",
        b"--x\r\nContent-Disposition: form-data; name=file; filename=a.mp4\r\n\r\nabc",
        b"--y\r\n\r\n--y--",
        b"\x00" * 1000,
    ],
)
def test_forms_that_are_none(room: Room, body: bytes) -> None:
    values = {"data": body, "content_type": "multipart/form-data; boundary=x"}
    room.ask("POST", "/api/upload_video", 400, **values)
    assert kept(room) == []


def test_uploads_at_once(room: Room) -> None:
    results: list[int] = []

    def send(number: int) -> None:
        client = room.app.test_client()
        data = form(bytes([number]) * 200_000)
        results.append(client.post("/api/upload_video", data=data, content_type="multipart/form-data").status_code)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [202] * 8
    assert len(kept(room)) == 8


def test_where_nothing_can_be_written(make_room: Callable[..., Room], tmp_path: Path) -> None:
    room = make_room(database_url=f"sqlite:///{tmp_path}/db.sqlite3", data_dir=tmp_path / "file" / "data")
    (tmp_path / "file").write_text("not a folder")
    assert upload(room, form(), 507)["hint"]
