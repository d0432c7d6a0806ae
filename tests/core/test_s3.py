"""Artifacts in a store that speaks S3: moto's server."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from ml_backend.cli.dev_stack.preflight import free_port
from ml_backend.cli.dev_stack.processes import ManagedProcess
from ml_backend.cli.doctor.__main__ import examine
from ml_backend.cli.doctor.checks import Target
from ml_backend.core.artifacts import Artifacts
from ml_backend.core.errors import WeightsError
from ml_backend.core.outputs import OutputFacts
from ml_backend.core.settings import Settings
from ml_backend.core.shared_files import SharedOutputs

Make = Callable[..., Settings]


class MotoServer(ManagedProcess):
    """A server of moto on a free port of this machine."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        super().__init__("moto", log_dir=folder, environment=environment, cwd=folder)
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"

    def command(self) -> Sequence[str]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self._port)]

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/moto-api/", trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory, mark: dict[str, str]) -> Iterator[str]:
    """URL of an empty bucket, which the environment says how to reach."""
    for package in ("s3fs", "moto", "boto3"):
        pytest.importorskip(package, reason=f"{package} is not installed; bash scripts/test.sh installs it")
    import boto3

    server = MotoServer(tmp_path_factory.mktemp("moto"), os.environ | mark)
    server.start()
    try:
        server.wait_ready(240)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", server.url)
            patch.setenv("AWS_ACCESS_KEY_ID", "a key")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "a secret")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            boto3.client("s3").create_bucket(Bucket="bucket")
            yield "s3://bucket/folder"
    finally:
        server.stop()


def test_weights_go_from_one_host_to_another(s3: str, settings: Make, tmp_path: Path) -> None:
    weights = tmp_path / "best.pt"
    weights.write_bytes(os.urandom(6 << 20))  # more than one part
    here, there = (Artifacts(settings(artifacts_url=s3, data_dir=tmp_path / host)) for host in ("here", "there"))
    sha256 = here.put(weights, "projects/1/v1.pt")
    there.check("projects/1/v1.pt", sha256)
    path = there.fetch("projects/1/v1.pt", sha256)
    assert path.read_bytes() == weights.read_bytes()
    assert tmp_path / "there" in path.parents
    assert there.sizes("projects/1") == {"v1.pt": 6 << 20}
    assert there.ages("projects")["1/v1.pt"] < 3600
    with pytest.raises(WeightsError, match="not what was registered"):
        Artifacts(settings(artifacts_url=s3, data_dir=tmp_path / "third")).fetch("projects/1/v1.pt", "ab" * 32)
    assert here.remove("projects/1/v1.pt", sha256)
    assert here.remove("projects/1/v1.pt", sha256), "it is gone"
    assert not there.exists("projects/1/v1.pt")
    with pytest.raises(WeightsError, match="is not at"):
        there.check("projects/1/v1.pt", "cd" * 32)


def test_small_files(s3: str, settings: Make) -> None:
    store = Artifacts(settings(artifacts_url=s3))
    assert store.read("chunks/none") is None
    store.write("chunks/1", b"first")
    store.write("chunks/1", b"second")
    assert store.read("chunks/1") == b"second"


def test_an_export_of_one_host_is_downloaded_from_another(s3: str, settings: Make, tmp_path: Path) -> None:
    here, there = (settings(artifacts_url=s3, data_dir=tmp_path / host) for host in ("here", "there"))
    made = tmp_path / "made.json"
    made.write_text("[]")
    facts = OutputFacts(format="annotations", source="annotations")
    name = SharedOutputs(here, Artifacts(here)).add(made, facts, "project", 7).name
    outputs = SharedOutputs(there, Artifacts(there))
    (output,) = outputs.of_project(7)
    assert (output.name, output.bytes, output.facts) == (name, 2, facts)
    found = outputs.find(name)
    assert found is not None
    assert found.read_text() == "[]"
    assert outputs.delete(name)
    assert outputs.of_project(7) == []


def test_the_doctor_writes_and_reads(s3: str, settings: Make) -> None:
    (finding,) = examine(Target(settings(artifacts_url=s3), ""), ["artifacts"])
    assert (finding.status, finding.hint) == ("ok", "")
    assert s3 in finding.found
    assert not [name for name in Artifacts(settings(artifacts_url=s3)).sizes("") if name.startswith("doctor")]


@pytest.mark.skipif(find_spec("gcsfs") is not None, reason="gcsfs is installed")
def test_a_missing_package_is_named_with_its_extra(settings: Make) -> None:
    (finding,) = examine(Target(settings(artifacts_url="gcs://bucket/folder"), ""), ["artifacts"])
    assert finding.status == "failed"
    assert "gcsfs" in finding.found
    assert "pip install '.[gcs]'" in finding.hint
