"""The doctor against real components, whole and broken."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from rq import SimpleWorker

from ml_backend.cli.dev_stack.preflight import ROOT, free_port
from ml_backend.cli.dev_stack.stack import Stack
from ml_backend.cli.doctor import checks
from ml_backend.cli.doctor.__main__ import CHECKS, examine
from ml_backend.cli.doctor.checks import Check, Finding, Target
from ml_backend.core.errors import ConfigError
from ml_backend.core.settings import Settings
from ml_backend.jobs.queue import connect
from tests.builders import NO_RECTANGLE
from tests.conftest import LabelStudio

MakeSettings = Callable[..., Settings]
SECRET = SecretStr("p")
CONFIG = """<View><Labels name="l" toName="v"><Label value="person"/></Labels>
<Video name="v" value="$video" frameRate="$fps"/><VideoRectangle name="b" toName="v"/></View>"""


def target(settings: Settings, backend_url: str = "") -> Target:
    return Target(settings, backend_url or f"http://localhost:{free_port()}")


def only(findings: list[Finding], check: str) -> Finding:
    (finding,) = [each for each in findings if each.check == check]
    return finding


@pytest.mark.slow
def test_this_machine_is_in_order(settings: MakeSettings) -> None:
    findings = examine(target(settings()), ["python", "packages", "torch", "codecs", "disk", "database"])
    assert [finding for finding in findings if finding.status == "failed"] == []
    assert {"Python", "OpenCV", "PyTorch", "GPU", "Codecs", "Database"} <= {finding.check for finding in findings}


def test_nothing_that_runs_is_said_with_a_cure(settings: MakeSettings, tmp_path: Path) -> None:
    nowhere = f"http://localhost:{free_port()}"
    away = settings(redis_url=f"unix://{tmp_path}/no.sock", label_studio_url=nowhere, label_studio_api_key="x")
    findings = examine(target(away), ["queue", "backend", "label-studio"])
    assert [finding.status for finding in findings] == ["failed"] * 3
    assert all(finding.hint for finding in findings)


@pytest.mark.slow
def test_a_server_that_never_answers_does_not_hang_the_doctor(settings: MakeSettings) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        findings = examine(target(settings(label_studio_url=url), url), ["backend", "label-studio"])
    assert [finding.status for finding in findings] == ["failed", "failed"]
    assert all("Timeout" in finding.found for finding in findings)


def test_the_model_of_masks_is_reported_if_one_is_set(settings: MakeSettings, tmp_path: Path) -> None:
    assert examine(target(settings()), ["masks"]) == []
    (finding,) = examine(target(settings(segmenter=str(tmp_path / "nowhere"))), ["masks"])
    assert (finding.status, "does not exist" in finding.found, "SEGMENTER" in finding.hint) == ("failed", True, True)
    (finding,) = examine(target(settings(segmenter="facebook/sam2.1-hiera-tiny")), ["masks"])
    assert (finding.status, "is not available" in finding.hint) == ("note", True)
    (tmp_path / "own-seg.pt").write_bytes(b"a checkpoint")
    (finding,) = examine(target(settings(segmenter=str(tmp_path / "own-seg.pt"))), ["masks"])
    assert finding.status == "ok"


def test_an_error_in_a_check_is_a_finding(settings: MakeSettings) -> None:
    def examine_badly(target: Target) -> Any:
        yield Finding("First", "ok", "fine")
        raise ConfigError("the cause", "the hint")

    findings = Check("bad", "Second", examine_badly).run(target(settings()))
    assert findings == [Finding("First", "ok", "fine"), Finding("Second", "failed", "the cause", "the hint")]


def test_missing_weights_are_a_note_or_a_failure(settings: MakeSettings, tmp_path: Path) -> None:
    (finding,) = examine(target(settings()), ["weights"])
    assert (finding.status, finding.found) == ("note", "motion")
    assert "YOLO_WEIGHTS" in finding.hint
    (finding,) = examine(target(settings(yolo_weights=str(tmp_path / "missing.pt"))), ["weights"])
    assert finding.status == "failed"
    assert "missing.pt" in finding.found
    (finding,) = examine(target(settings(detector="motion")), ["weights"])
    assert finding.status == "ok"


def test_cuda_is_asked_for_but_not_there() -> None:
    facts = {"cuda": False, "mps": False, "build": "13.0", "device": ""}
    assert checks.device("cuda:0", facts).status == "failed"
    assert checks.device("auto", facts | {"cuda": True, "device": "H"}).found == "H (CUDA 13.0)"


def test_full_and_unwritable_data_folders(
    settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "RUN_GB", 1e9)
    (finding,) = examine(target(settings()), ["disk"])
    assert (finding.status, finding.hint[:15]) == ("failed", "Free some space")
    file = tmp_path / "file"
    file.touch()
    (finding,) = examine(target(settings(data_dir=file)), ["disk"])
    assert finding.status == "failed"
    assert "DATA_DIR" in finding.hint


@pytest.mark.slow
def test_a_locked_and_a_damaged_database(settings: MakeSettings, tmp_path: Path) -> None:
    path = tmp_path / "locked.sqlite3"
    here = settings(database_url=f"sqlite:///{path}")
    assert examine(target(here), ["database"])[0].status == "ok"
    with sqlite3.connect(path) as connection:
        connection.execute("begin exclusive")
        (finding,) = examine(target(here), ["database"])
    assert finding.status == "failed"
    assert "locked" in finding.found
    path.write_bytes(b"this is not a database" * 100)
    (finding,) = examine(target(here), ["database"])
    assert finding.status == "failed"


def test_queue_with_and_without_workers(settings: MakeSettings, redis_url: str) -> None:
    here = settings(redis_url=redis_url)
    findings = examine(target(here), ["queue", "worker-here"])
    assert only(findings, "Queue").status == "ok"
    assert only(findings, "Workers").status == "failed"
    assert only(findings, "Worker on this machine").status == "failed"
    worker = SimpleWorker(["predict"], connection=connect(here))
    worker.register_birth()
    findings = examine(target(here), ["queue", "worker-here"])
    assert only(findings, "Workers").found.startswith("1 (")
    assert only(findings, "Worker on this machine").found == str(os.getpid())


def test_the_token_is_tried(settings: MakeSettings, label_studio: LabelStudio) -> None:
    for token, status in ((label_studio.token, "ok"), ("wrong", "failed"), ("", "failed")):
        here = settings(label_studio_url=label_studio.url, label_studio_api_key=token)
        finding = only(examine(target(here), ["label-studio"]), "Token")
        assert finding.status == status
        assert status == "ok" or "Account & Settings" in finding.hint


def test_another_server_at_label_studios_address(settings: MakeSettings, label_studio: LabelStudio) -> None:
    here = settings()
    (finding,) = examine(target(here, label_studio.url), ["backend"])
    assert finding.status == "failed"
    assert "something else answers" in finding.found


@pytest.mark.stack
def test_connections_of_a_running_stack(motion_stack: Stack) -> None:
    client = motion_stack.client()
    project = client.create_project("Doctor", CONFIG)
    here = Settings(_env_file=None, **{k.lower(): v for k, v in motion_stack.settings_environment().items()})
    where = Target(here, motion_stack.backend.url)
    check, hook = f"Project {project}", f"Project {project}, webhook"

    before = examine(where, ["label-studio", "backend"])
    assert check not in {finding.check for finding in before}
    client.create_task(project, {"video": "a.mp4"})
    finding = only(examine(where, ["label-studio"]), check)
    assert (finding.status, "not connected" in finding.found) == ("note", True)
    assert f"import_videos.py --project {project} --connect" in finding.hint

    client.connect_backend(project, motion_stack.backend.url)
    findings = examine(where, ["label-studio", "backend"])
    assert only(findings, "ML backend").status == "ok"
    assert only(findings, check).status == "ok"
    assert only(findings, hook).status == "ok"

    # Drawn boxes: the config shipped here has what they need, and so has each new connection.
    def of_drawing(config: str) -> str:
        client.set_label_config(project, config)
        told = [one.found for one in examine(where, ["label-studio"]) if one.check == f"{check}, drawing"]
        return " ".join(told)

    shipped = (ROOT / "label_config.xml").read_text(encoding="utf-8")
    assert of_drawing(shipped) == ""
    assert "allowEmpty" in of_drawing(shipped.replace(' allowEmpty="true"', ""))
    assert "smart" in of_drawing(shipped.replace(' smart="true"', ""))
    (connection,) = client.list_backends(project)
    client.sdk.ml.update(connection["id"], url=connection["url"], project=project, is_interactive=False)
    assert "not interactive" in of_drawing(shipped)

    # With Basic auth, a webhook without the header is useless; connecting anew fixes it.
    guarded = Target(here.model_copy(update={"basic_auth_user": "u", "basic_auth_pass": SECRET}), where.backend_url)
    finding = only(examine(guarded, ["label-studio"]), hook)
    assert (finding.status, "carries no credentials" in finding.found) == ("failed", True)
    client.connect_backend(project, motion_stack.backend.url, ("u", SECRET.get_secret_value()))
    assert only(examine(guarded, ["label-studio"]), hook).status == "ok"
    finding = only(
        examine(
            Target(guarded.settings.model_copy(update={"basic_auth_user": "v"}), where.backend_url), ["label-studio"]
        ),
        hook,
    )
    assert "carries other credentials" in finding.found

    # Somebody deletes the webhook.
    with httpx.Client(base_url=client.url, headers=client.auth_headers(), timeout=300) as session:
        for item in session.get("/api/webhooks/", params={"project": project}).json():
            session.delete(f"/api/webhooks/{item['id']}/").raise_for_status()
    assert only(examine(where, ["label-studio"]), hook).found == "there is none"


@pytest.mark.stack
def test_label_configs_that_are_refused(motion_stack: Stack) -> None:
    client = motion_stack.client()
    images = '<View><Image name="i" value="$image"/><Labels name="l" toName="i"><Label value="a"/></Labels></View>'
    wrong, of_images, once_right = (client.create_project("Doctor", each) for each in (NO_RECTANGLE, images, CONFIG))
    client.connect_backend(once_right, motion_stack.backend.url)
    client.set_label_config(once_right, NO_RECTANGLE)
    here = Settings(_env_file=None, **{k.lower(): v for k, v in motion_stack.settings_environment().items()})
    findings = examine(Target(here, motion_stack.backend.url), ["label-studio"])
    for project, status in ((wrong, "note"), (once_right, "failed")):
        finding = only(findings, f"Project {project}")
        assert finding.status == status
        assert "VideoRectangle" in finding.found
        assert "<VideoRectangle" in finding.hint
    assert f"Project {of_images}" not in {finding.check for finding in findings}


def run_doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "doctor.py"), *arguments],
        env=os.environ | environment,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_the_script_prints_json_and_ends_with_1_on_failure(tmp_path: Path) -> None:
    result = run_doctor("--json", "--only", "python", DATA_DIR=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)[0]["status"] == "ok"
    url = f"http://localhost:{free_port()}"
    result = run_doctor("--only", "backend", "--backend-url", url, DATA_DIR=str(tmp_path))
    assert result.returncode == 1
    assert url in result.stdout
    assert "Fix: Start it" in result.stdout
    assert run_doctor("--quiet", "--only", "python", DATA_DIR=str(tmp_path)).stdout == ""


def test_every_check_has_its_own_name() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)
