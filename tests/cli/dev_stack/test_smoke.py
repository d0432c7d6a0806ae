"""``up.sh --smoke``, as a stranger runs it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from ml_backend.cli.dev_stack.preflight import ROOT

pytestmark = pytest.mark.stack

STAGES = {"install", "redis", "label_studio", "backend", "demo", "prediction", "check", "total"}
STAGES |= {"second_video", "retraining", "new_prediction"}


def smoke(tmp_path: Path, **environment: str) -> tuple[int, dict[str, object], str]:
    result = subprocess.run(
        ["bash", str(ROOT / "scripts" / "up.sh"), "--smoke"],
        env=os.environ | {"TMPDIR": str(tmp_path), "WEIGHTS_TIMEOUT_S": "1"} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    return result.returncode, json.loads(result.stdout.splitlines()[-1]), result.stderr


@pytest.mark.slow
def test_without_weights(tmp_path: Path) -> None:
    code, outcome, log = smoke(tmp_path, DETECTOR="motion")
    assert code == 0, log
    assert outcome["ok"] is True
    assert set(outcome) >= STAGES
    assert str(outcome["model_version"]).startswith("motion.")
    assert "nothing to train" in str(outcome["retrained"])
    assert outcome["new_version"] != outcome["model_version"], "labels were learned all the same"
    assert list(tmp_path.iterdir()) == [], "everything is cleaned up"


def test_with_real_weights(tmp_path: Path, yolo_weights: Path) -> None:
    code, outcome, log = smoke(tmp_path, DETECTOR="yolo", YOLO_WEIGHTS=str(yolo_weights))
    assert code == 0, log
    assert outcome["found"] == outcome["objects"]
    assert str(outcome["model_version"]).startswith(f"{yolo_weights.stem}-")
    # On the same machine a training gives the same weights each time, on another processor others: three epochs on one
    # video, measured on 30 of its pictures, may be better or worse. What must be is that it was trained and measured.
    decided = re.fullmatch(
        r"(promoted|proposed|refused): .*Measured on \d+ held-out frames? of \d+ videos?.*", str(outcome["retrained"])
    )
    assert decided, log
    assert str(outcome["new_version"]).endswith(".v1" if decided[1] == "promoted" else ".base")


@pytest.mark.slow
def test_a_failure_ends_with_1_and_says_why(tmp_path: Path) -> None:
    code, outcome, log = smoke(tmp_path, DETECTOR="yolo", YOLO_WEIGHTS=str(tmp_path / "missing.pt"))
    assert code == 1
    assert outcome["ok"] is False
    assert "missing.pt" in log
    assert list(tmp_path.iterdir()) == []
