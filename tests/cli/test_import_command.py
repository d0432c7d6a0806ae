"""``import_videos.py --connect`` beside a running stack."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ml_backend.cli.dev_stack.preflight import ROOT
from ml_backend.cli.dev_stack.stack import Stack
from tests.builders import CONFIG, make_clip, wait_for


def run(stack: Stack, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "import_videos.py"), *arguments]
    environment = os.environ | {"DATA_DIR": str(stack.data_dir)}  # where the command finds the rest
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)


@pytest.mark.stack
def test_import_with_and_without_connect(motion_stack: Stack, tmp_path: Path) -> None:
    client = motion_stack.client()
    project = client.create_project("test", CONFIG)
    for number in (1, 2):
        make_clip(tmp_path / f"{number}.mp4", frames=30 + number)

    done = run(motion_stack, tmp_path, "1.mp4", "--project", str(project))
    assert done.returncode == 0, done.stderr
    assert f"Project {project} is not connected" in done.stderr
    assert "--connect" in done.stderr

    done = run(motion_stack, tmp_path, "2.mp4", "--project", str(project), "--connect", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert client.list_backends(project) == []

    done = run(motion_stack, tmp_path, "2.mp4", "--project", str(project), "--connect")
    assert done.returncode == 0, done.stderr
    assert "not connected" not in done.stderr
    assert f"is connected to {motion_stack.backend.url}" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1]) == {"imported": 1, "skipped": 0, "failed": 0}
    tasks = [state.id for state in client.list_task_states(project)]
    assert len(tasks) == 2
    wait_for(lambda: all(client.get_task(task).prediction_versions for task in tasks))

    done = run(motion_stack, tmp_path, "--project", str(project), "--connect")
    assert done.returncode == 0, done.stderr
    done = run(motion_stack, tmp_path, "--project", str(project))
    assert done.returncode == 2
    assert "--connect" in done.stderr
