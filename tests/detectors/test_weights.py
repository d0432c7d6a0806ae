"""Which detector is in use, and getting its weights from a server that may be slow, wrong or away."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ml_backend.core import downloads
from ml_backend.core.errors import WeightsError
from ml_backend.core.files import file_sha256
from ml_backend.core.settings import Settings
from ml_backend.detectors import weights
from ml_backend.detectors.weights import resolve_detector
from tests.builders import ROOT, Outside, outside


def _checkpoint() -> bytes:
    """An archive, as torch saves them, of a megabyte."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), bytes(1 << 20))
    return file.getvalue()


CHECKPOINT = _checkpoint()
#: Seconds without bytes after which a download that should succeed is given up, on a slow machine too.
DEADLINE = 60.0
NAME = "/yolo11n.pt"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Outside]:
    """Stands where the detector's release page does."""
    with outside() as site:
        monkeypatch.setattr(weights, "RELEASE", site.url)
        yield site


def names(folder: Path) -> list[str]:
    """What lies in a folder, beside the empty files that processes lock."""
    return sorted(file.name for file in folder.iterdir() if file.suffix != ".lock")


def test_local_path_is_used_as_it_is(settings: Callable[..., Settings], tmp_path: Path) -> None:
    path = tmp_path / "my model.pt"
    path.write_bytes(CHECKPOINT)
    found = resolve_detector(settings(yolo_weights=str(path)), download=True)
    assert (found.kind, found.name, found.path, found.note) == ("yolo", "my model", path, "")
    assert found.sha256 == hashlib.sha256(CHECKPOINT).hexdigest()


def test_replaced_file_is_hashed_again(settings: Callable[..., Settings], tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(CHECKPOINT)
    before = resolve_detector(settings(yolo_weights=str(path))).sha256
    path.write_bytes(CHECKPOINT[:-1] + b"x")
    os.utime(path, ns=(1, 1))
    assert resolve_detector(settings(yolo_weights=str(path))).sha256 != before
    assert file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("detector", ["auto", "yolo"])
def test_missing_path_is_an_error_not_a_silent_fallback(
    settings: Callable[..., Settings], hub: Outside, tmp_path: Path, detector: str
) -> None:
    with pytest.raises(WeightsError, match="do not exist") as failure:
        resolve_detector(settings(yolo_weights=str(tmp_path / "no.pt"), detector=detector), download=True)
    assert "YOLO_WEIGHTS" in failure.value.hint
    assert hub.requests == []


@pytest.mark.parametrize("name", ["yolo99x.pt", "../yolo11n.pt", "https://evil.example/yolo11n.pt", "yolo11n", ""])
def test_only_known_names_are_downloaded(settings: Callable[..., Settings], hub: Outside, name: str) -> None:
    with pytest.raises(WeightsError):
        resolve_detector(settings(yolo_weights=name), download=True)
    assert hub.requests == []


def test_folder_is_not_a_file(settings: Callable[..., Settings], tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="do not exist"):
        resolve_detector(settings(yolo_weights=str(tmp_path)))


def test_motion_asks_nobody(settings: Callable[..., Settings], hub: Outside) -> None:
    assert resolve_detector(settings(detector="motion", yolo_weights="no such file"), download=True).kind == "motion"
    assert hub.requests == []


def test_downloads_once(settings: Callable[..., Settings], hub: Outside) -> None:
    hub.files[NAME] = CHECKPOINT
    values = settings(weights_timeout_s=DEADLINE)
    assert resolve_detector(values).kind == "motion"  # without permission to download
    found = resolve_detector(values, download=True)
    assert (found.kind, found.name, found.note) == ("yolo", "yolo11n", "")
    assert found.path == values.weights_dir / "yolo11n.pt"
    assert found.path.read_bytes() == CHECKPOINT
    assert resolve_detector(values, download=True) == resolve_detector(values) == found
    assert len(hub.requests) == 1
    assert names(values.weights_dir) == ["yolo11n.pt"]


BAD: dict[str, Callable[[Outside], None]] = {
    "404": lambda hub: hub.answer(NAME, 404),
    "503": lambda hub: hub.answer(NAME, 503),
    "a proxy's page": lambda hub: hub.answer(NAME, 200, b"<html>log in to the internet</html>"),
    "nothing": lambda hub: hub.answer(NAME, 200, b""),
    "a circle": lambda hub: hub.redirect(NAME, NAME),
    "a nonsense redirect": lambda hub: hub.redirect(NAME, "http://["),
    "a broken connection": lambda hub: (  # type: ignore[dict-item]
        hub.files.update({NAME: CHECKPOINT}),  # type: ignore[func-returns-value]
        hub.break_after.update({NAME: [9999] * 9}),  # type: ignore[func-returns-value]
    ),
    "no length that makes sense": lambda hub: hub.answer(NAME, 200, CHECKPOINT, content_length="a lot"),
}


@pytest.mark.slow
@pytest.mark.parametrize("trouble", BAD)
def test_what_goes_wrong_is_said_remembered_and_leaves_nothing(
    settings: Callable[..., Settings], hub: Outside, trouble: str
) -> None:
    BAD[trouble](hub)
    values = settings(weights_timeout_s=DEADLINE)
    found = resolve_detector(values, download=True)
    assert found.kind == "motion"
    assert "motion detector is used" in found.note
    assert str(values.weights_dir / "yolo11n.pt") in found.note
    assert names(values.weights_dir) == ["yolo11n.pt.unavailable"]
    asked = len(hub.requests)
    # Asking again, here or in another process, neither waits nor forgets the reason.
    assert resolve_detector(values, download=True) == resolve_detector(values) == found
    with pytest.raises(WeightsError) as failure:
        resolve_detector(values.model_copy(update={"detector": "yolo"}), download=True)
    assert str(values.weights_dir / "yolo11n.pt") in failure.value.hint
    assert len(hub.requests) == asked


def test_failure_is_not_remembered_for_ever(settings: Callable[..., Settings], hub: Outside) -> None:
    values = settings(weights_timeout_s=DEADLINE)
    assert resolve_detector(values, download=True).kind == "motion"
    hub.files[NAME] = CHECKPOINT
    marker = values.weights_dir / "yolo11n.pt.unavailable"
    earlier = time.time() - downloads.RETRY_AFTER_S - 1
    os.utime(marker, (earlier, earlier))
    assert resolve_detector(values, download=True).kind == "yolo"


def test_file_put_there_by_hand_ends_the_fallback_at_once(settings: Callable[..., Settings], hub: Outside) -> None:
    values = settings(weights_timeout_s=DEADLINE)
    assert resolve_detector(values, download=True).kind == "motion"
    (values.weights_dir / "yolo11n.pt").write_bytes(CHECKPOINT)
    assert resolve_detector(values).kind == "yolo"


@pytest.mark.slow
def test_hub_that_takes_the_connection_and_says_nothing(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(weights, "RELEASE", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        found = resolve_detector(settings(weights_timeout_s=0.5), download=True)
        assert found.kind == "motion"
        assert "which is too slow" in found.note
        assert time.monotonic() - started < 60


def test_hub_that_drips(settings: Callable[..., Settings], hub: Outside) -> None:
    """A byte now and then keeps every single read alive; the whole must end all the same."""

    def drip(handler: object) -> None:
        handler.send_response(200)  # type: ignore[attr-defined]
        handler.end_headers()  # type: ignore[attr-defined]
        for _ in range(200):
            handler.wfile.write(b"P")  # type: ignore[attr-defined]
            handler.wfile.flush()  # type: ignore[attr-defined]
            time.sleep(0.1)

    hub.special[NAME] = drip
    started = time.monotonic()
    assert resolve_detector(settings(weights_timeout_s=0.5), download=True).kind == "motion"
    assert time.monotonic() - started < 60


def test_nobody_there(settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    with outside() as gone:
        pass
    monkeypatch.setattr(weights, "RELEASE", gone.url)
    found = resolve_detector(settings(weights_timeout_s=DEADLINE), download=True)
    assert "yolo11n.pt is not available (ConnectError: " in found.note


def test_folder_that_cannot_be_made(settings: Callable[..., Settings], hub: Outside, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    """A disk that takes no weights is as good a reason for the fallback as a missing network."""
    resolved = resolve_detector(settings(data_dir=tmp_path / "file"), download=True)
    assert resolved.kind == "motion"
    assert "cannot be written" in resolved.note
    with pytest.raises(WeightsError, match="cannot be written"):
        resolve_detector(settings(data_dir=tmp_path / "file", detector="yolo"), download=True)


def test_processes_that_download_at_once_end_with_one_whole_file(hub: Outside, tmp_path: Path) -> None:
    hub.files[NAME] = CHECKPOINT
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from ml_backend.detectors import weights
from ml_backend.core.settings import Settings
weights.RELEASE = {hub.url!r}
values = Settings(_env_file=None, data_dir={str(tmp_path)!r}, weights_timeout_s={DEADLINE})
print(weights.resolve_detector(values, download=True).sha256)
"""
    started = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(3)]
    digests = {process.communicate(timeout=900)[0].strip().decode() for process in started}
    assert digests == {hashlib.sha256(CHECKPOINT).hexdigest()}
    assert names(tmp_path / "weights") == ["yolo11n.pt"]


def test_deciding_loads_no_model_library() -> None:
    code = (
        "import sys; from ml_backend.detectors.weights import resolve_detector;"
        "from ml_backend.core.settings import Settings;"
        "resolve_detector(Settings(_env_file=None, data_dir='/nonexistent'));"
        "print([name for name in ('torch', 'ultralytics', 'cv2', 'av') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
