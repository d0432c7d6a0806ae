"""Cameras that are labelled while they run: real streams over HTTP and UDP, files, and the page."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import cv2
import httpx
import numpy as np
import pytest

from ml_backend.core.errors import ConfigError, VideoError
from ml_backend.core.settings import Settings
from ml_backend.embeddings.crop_selection import CropBox
from ml_backend.embeddings.loading import use_embedder
from ml_backend.jobs.live_cameras import LiveCameras, NoPicture
from ml_backend.jobs.queue import JobQueue
from ml_backend.label_studio.label_config import parse_label_config
from ml_backend.labeling.few_shot.pattern_bank import Exemplars, PatternBank
from ml_backend.labeling.label_assignment import DetectorLabels
from ml_backend.labeling.modes import classifier_models, require_embedder
from ml_backend.labeling.track_classifier import TrackClassifier
from ml_backend.live.cameras import open_cameras
from ml_backend.live.labels import MAX_WAITING, TrackCrops, TrackLabeller
from ml_backend.live.page import serve_page
from ml_backend.live.source import LiveSource
from ml_backend.video.reader import read_frames
from tests.builders import Outside, label_config, make_clip, outside, run_command, wait_for
from tests.live.cameras import mjpeg
from tests.model_builders import make_tiny_dinov2
from tests.server.test_dashboard_browser import faults


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "street.mp4")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.xml"
    path.write_text(label_config("thing"))
    return path


@pytest.fixture
def camera() -> Iterator[Outside]:
    with outside() as site:
        yield site


# -- sources


def test_the_newest_frame_counts(clip: Path) -> None:
    """A reader that is slower than the camera gets the newest frame, not the next one."""
    with LiveSource(str(clip), repeat=True) as source:
        first = source.newest(0, 60)
        assert first is not None
        wait_for(lambda: source.status.frames > first.index + 5, what="more frames")
        later = source.newest(first.index, 60)
        assert later is not None
        assert later.index > first.index + 5
        assert later.image.shape == (240, 320, 3)
    with LiveSource(str(clip)) as source:
        wait_for(lambda: source.status.state == "ended", what="the end")
        assert (source.status.frames, source.status.error, source.status.times_lost) == (40, "", 0)
        assert source.newest(40, 0.0) is None


def test_a_file_is_played_at_its_own_pace_and_again(clip: Path) -> None:
    began = time.monotonic()
    with LiveSource(str(clip), width=160, repeat=True) as source:
        wait_for(lambda: source.status.frames >= 45, what="a second round")
        assert time.monotonic() - began >= 2.0
        frame = source.newest(0, 60)
        assert frame is not None
        assert frame.image.shape == (120, 160, 3)
        assert source.status.state == "running"


def test_a_camera_that_is_lost_is_connected_again(
    clip: Path, camera: Outside, caplog: pytest.LogCaptureFixture
) -> None:
    stopped = threading.Event()
    camera.special["/stream"] = mjpeg(clip, 30, stopped)
    address = f"{camera.url.replace('//', '//me:secret@')}/stream?key=hidden"
    with LiveSource(address) as source:
        wait_for(lambda: source.status.state == "lost", what="the lost connection")
        before = source.status.frames
        assert before > 0
        camera.special["/stream"] = mjpeg(clip, 0, stopped)
        wait_for(lambda: source.status.error == "" and source.status.frames > before, what="frames again")
        stopped.set()
    assert source.status.times_lost >= 1
    assert source.name == f"{camera.url}/stream"
    told = caplog.text + json.dumps([source.name, source.status.error])
    assert "is lost" in told
    assert "secret" not in told
    assert "hidden" not in told


@pytest.mark.parametrize(("status", "reason"), [(401, "refuses user or password"), (404, "")])
def test_a_camera_that_refuses_says_why(camera: Outside, status: int, reason: str) -> None:
    camera.answer("/stream", status)
    with LiveSource(f"{camera.url.replace('//', '//me:secret@')}/stream") as source:
        wait_for(lambda: source.status.times_lost >= 2, what="a second try")
        assert source.status.state == "lost"
        assert reason in source.status.error
        assert source.status.error
        assert "secret" not in source.status.error


def test_a_playlist_reads_no_local_file(clip: Path, camera: Outside) -> None:
    lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:2", "#EXTINF:2,", f"file://{clip}", "#EXT-X-ENDLIST", ""]
    camera.files["/list.m3u8"] = "\n".join(lines).encode()
    camera.content_types["/list.m3u8"] = "application/vnd.apple.mpegurl"
    with LiveSource(f"{camera.url}/list.m3u8") as source:
        wait_for(lambda: source.status.times_lost >= 1, what="the refusal")
        assert source.status.frames == 0


@contextmanager
def transport_stream(clip: Path, port: int) -> Iterator[None]:
    """Send MPEG-TS over UDP, as some cameras do, while the context lasts."""
    stopped = threading.Event()

    def send() -> None:
        with av.open(f"udp://127.0.0.1:{port}?pkt_size=1316", "w", format="mpegts") as container:
            stream: Any = container.add_stream("libx264", rate=20, options={"tune": "zerolatency", "g": "5"})
            stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
            number = 0
            images = [frame.image for frame in read_frames(clip)]
            while not stopped.wait(0.05):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(images[number % 40]), format="bgr24")
                frame.pts, number = number, number + 1
                container.mux(stream.encode(frame))

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def lossy_way(port: int) -> Iterator[int]:
    """A port whose datagrams are passed on to another one, but each twentieth, while the context lasts."""
    stopped = threading.Event()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        way.bind(("127.0.0.1", 0))
        way.settimeout(0.1)

        def pass_on() -> None:
            number = 0
            while not stopped.is_set():
                with contextlib.suppress(TimeoutError, ConnectionRefusedError):
                    datagram = way.recv(65536)
                    number += 1
                    if number % 20:
                        way.sendto(datagram, ("127.0.0.1", port))

        thread = threading.Thread(target=pass_on)
        thread.start()
        try:
            yield way.getsockname()[1]
        finally:
            stopped.set()
            thread.join()


def test_lost_packets_cost_no_connection(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ml_backend.live.source.SILENT_S", 120.0)  # the camera may have to wait for the processor
    port = free_udp_port()
    with LiveSource(f"udp://127.0.0.1:{port}") as source, lossy_way(port) as way, transport_stream(clip, way):
        wait_for(lambda: source.status.frames > 0, what="a frame")
        before = source.status.times_lost
        wait_for(lambda: source.status.frames > 60, what="more frames")
        assert source.status.times_lost == before


def test_a_transport_stream_over_udp_that_stops_and_starts(clip: Path) -> None:
    port = free_udp_port()
    with LiveSource(f"udp://127.0.0.1:{port}") as source:
        with transport_stream(clip, port):
            wait_for(lambda: source.status.frames > 5, what="frames")
        wait_for(lambda: source.status.state == "lost", what="the lost connection")
        before = source.status.frames
        with transport_stream(clip, port):
            wait_for(lambda: source.status.frames > before, what="frames again")


def test_what_is_no_camera_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no cameras of ftp://"):
        LiveSource("ftp://camera/stream")
    with pytest.raises(ConfigError, match="no cameras of file://"):
        LiveSource("file:///etc/passwd")
    with pytest.raises(VideoError, match="does not exist"):
        LiveSource(str(tmp_path / "none.mp4"))
    text = tmp_path / "text.mp4"
    text.write_text("this is no video")
    with pytest.raises(VideoError):
        LiveSource(str(text))


def test_an_address_without_a_protocol_is_not_shown() -> None:
    with pytest.raises(ConfigError) as refused:
        LiveSource("me:secret@camera/stream")
    assert "secret" not in str(refused.value)
    assert "rtsp://" in refused.value.hint


def test_passwords_in_the_path_are_not_shown() -> None:
    source = LiveSource("rtsp://10.0.0.2:554/user=admin_password=secret_channel=1_stream=0.sdp?real_stream")
    assert "secret" not in source.name
    assert source.name.startswith("rtsp://10.0.0.2:554/user=")


def test_damaged_frames_are_skipped(clip: Path, camera: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ml_backend.live.source.SILENT_S", 120.0)  # the camera may have to wait for the processor
    stopped = threading.Event()
    camera.special["/stream"] = mjpeg(clip, 0, stopped, damaged=3)
    with LiveSource(f"{camera.url}/stream") as source:
        wait_for(lambda: source.status.frames > 20, what="frames")
        assert source.status.times_lost == 0
        stopped.set()


# -- tracks and labels


def test_objects_are_tracked_shown_and_counted(
    clip: Path,
    config: Path,
    camera: Outside,
    settings: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two cameras on one page: a file, and one over HTTP."""
    monkeypatch.setattr("ml_backend.live.source.SILENT_S", 120.0)
    stopped = threading.Event()
    camera.special["/stream"] = mjpeg(clip, 0, stopped)
    sources = [LiveSource(str(clip), repeat=True), LiveSource(f"{camera.url}/stream")]
    with (
        open_cameras(sources, config, settings(detector="motion")) as cameras,
        serve_page(cameras, 0) as address,
        httpx.Client(base_url=address, timeout=600) as viewer,
    ):

        def facts() -> list[dict[str, Any]]:
            return list(viewer.get("/status").json()["cameras"])

        for number in range(2):
            wait_for(lambda n=number: facts()[n]["seen"].get("thing"), what=f"a track of camera {number}")  # type: ignore[misc]
        for number, found in enumerate(facts()):
            assert found["state"] == "running"
            assert found["processed"] <= found["received"]
            assert found["fps"] > 0
            assert found["latency_p99_s"] >= found["latency_s"] > 0
            assert found["camera"] in viewer.get("/").text
            image = next_picture(viewer, number + 1)
            assert image.shape == (240, 320, 3)
            plain = next(read_frames(clip)).image
            assert (np.abs(image[:40, :40].astype(int) - plain[:40, :40]) > 40).any(), "the legend"
        assert {viewer.get(f"/cameras/{number}.jpg").status_code for number in (0, 3)} == {404}
        assert viewer.get("/status", headers={"Host": "evil.example"}).status_code == 400
        assert viewer.post("/status").status_code == 405
        stopped.set()
    assert not cameras.running


def next_picture(viewer: httpx.Client, number: int) -> np.ndarray:
    response = wait_for(lambda: (r := viewer.get(f"/cameras/{number}.jpg")).status_code == 200 and r, what="a picture")
    assert response.headers["content-type"] == "image/jpeg"
    image = cv2.imdecode(np.frombuffer(response.content, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return np.asarray(image)


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_dinov2(tmp_path_factory.mktemp("models") / "dinov2")


def test_a_taught_label_is_given_from_the_best_crops(settings: Callable[..., Settings], dinov2: Path) -> None:
    values = settings(dinov2_model=str(dinov2), device="cpu")
    models = classifier_models(values, "yolo_dinov2")
    rng = np.random.default_rng(1)
    red, blue = (
        np.clip(rng.normal(c, 20, (8, 90, 60, 3)), 0, 255).astype(np.uint8) for c in ((0, 0, 200), (200, 0, 0))
    )
    with use_embedder(require_embedder(models), values) as embedder:
        vectors = np.concatenate([embedder.embed(list(red)), embedder.embed(list(blue))])
    labels = ("guard",) * 8 + ("visitor",) * 8
    bank = PatternBank.fit(Exemplars(np.arange(16), vectors, labels, np.arange(16)))
    control = parse_label_config(label_config("guard", "visitor", "person")).video_controls[0]
    detector = DetectorLabels(control, ("person",), class_agnostic=False)
    with TrackLabeller(TrackClassifier(values, models, bank), values, control, detector, ("person",)) as labeller:
        tracks = [
            TrackCrops([(CropBox(frame, (0.0, 0.0, 60.0, 90.0), 0.9), image) for frame in (3, 9)])
            for image in (red[0], blue[0])
        ]
        for crops in tracks:
            labeller.request(crops, {"person": 2.0})
        wait_for(lambda: all(crops.scores for crops in tracks), what="scores")
        assert [crops.scores.patterns.best for crops in tracks] == ["guard", "visitor"]  # type: ignore[union-attr]
        assert not any(crops.has_new(9.0) for crops in tracks)
        labeller.request(TrackCrops([(CropBox(0, (0.0, 0.0, 1.0, 1.0), 0.9), np.zeros((0, 0, 3), np.uint8))]), {})
        wait_for(lambda: labeller.error, what="the failure of a crop without pixels")
        again = TrackCrops([tracks[0].images[0]])
        labeller.request(again, {"person": 1.0})
        wait_for(lambda: again.scores, what="scores after a failure")
        assert labeller.error == ""
    late = TrackLabeller(TrackClassifier(values, models, bank), values, control, detector, ("person",))
    many = [TrackCrops([tracks[0].images[0]]) for _ in range(MAX_WAITING + 3)]
    for crops in (*many, many[3]):
        late.request(crops, {"person": 1.0})
    assert [crops.has_new(9.0) for crops in many] == [True] * 3 + [False] * MAX_WAITING, "they are asked for again"
    with late:
        wait_for(lambda: many[-1].scores, what="scores")
        assert all(crops.scores for crops in many[3:])
        assert not any(crops.scores for crops in many[:3])


def test_of_a_tracks_life_the_best_crops_are_kept() -> None:
    crops, image = TrackCrops(), np.zeros((100, 100, 3), np.uint8)

    def look(age: float, side: int, conf: float = 0.9) -> None:
        crops.offer(age, round(20 * age), np.array([0, 0, side, side], np.float32), conf, image)

    look(0.1, 20)
    look(0.2, 30)
    look(0.25, 40, conf=0.1)
    assert [box.xyxy[2] for box, _ in crops.images] == [30.0]
    assert not crops.has_new(0.25)
    assert crops.has_new(0.4)
    crops.embedded = 1
    assert not crops.has_new(0.4)
    look(0.45, 90)
    assert len(crops.images) == 1, "its time is over"
    for age in (0.6, 1.7, 5.0, 9.0):
        look(age, 25)
    assert [box.frame for box, _ in crops.images] == [4, 12, 34, 100]
    assert crops.has_new(5.5)
    crops.offer(5.0, 100, np.array([200, 0, 300, 50], np.float32), 0.9, image)
    assert len(crops.images) == 4


# -- the command


def run(*arguments: object, cwd: Path) -> tuple[int, dict[str, Any], str]:
    done = run_command("live", *arguments, "--port", 0, cwd=cwd)
    lines = done.stdout.strip().splitlines()
    return done.returncode, json.loads(lines[-1]) if lines else {}, done.stderr


def test_a_file_as_a_camera(clip: Path, config: Path, tmp_path: Path) -> None:
    code, result, log = run(clip, "--config", config, "--detector", "motion", cwd=tmp_path)
    assert code == 0, log
    (found,) = result["cameras"]
    assert (found["camera"], found["state"], found["received"], found["error"]) == ("street.mp4", "ended", 40, "")
    assert 0 < found["processed"] <= 40
    assert "Watch it at http://127.0.0.1:" in log


def test_an_end_is_set_and_a_lost_camera_is_said(clip: Path, config: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    lost = f"http://me:secret@127.0.0.1:{port}/stream"
    arguments = ("--repeat", "--config", config, "--detector", "motion", "--seconds", 1)
    code, result, log = run(clip, lost, *arguments, cwd=tmp_path)
    assert code == 1
    assert result["cameras"][0]["state"] in ("connecting", "running")
    assert result["cameras"][1]["state"] == "lost"
    assert f"Error: http://127.0.0.1:{port}/stream: " in log
    assert "secret" not in log + json.dumps(result)


def test_the_control_room_is_told(
    clip: Path, config: Path, tmp_path: Path, settings: Callable[..., Settings], redis_url: str
) -> None:
    """Of the cameras in LIVE_CAMERAS, while the command runs."""
    told, pictures = LiveCameras(JobQueue(settings(redis_url=redis_url), timeout=60)), list[bytes]()

    def watch() -> None:
        try:
            wait_for(lambda: [c for c in told.cameras() if c.name == "street.mp4 (2)"], what="the second camera")
            found = wait_for(lambda: [c for c in told.cameras() if c.seen and c.state == "running"], what="a camera")[0]
            assert found.name in ("street.mp4 (1)", "street.mp4 (2)"), "equal names can be told apart"
            assert (found.project, found.recorded, found.tasks) == (None, None, [])
            assert found.latency_s > 0
            while not pictures:
                with contextlib.suppress(NoPicture):
                    pictures.append(told.next_picture(found.id))
        finally:
            if signal.getsignal(signal.SIGTERM) is signal.default_int_handler:  # the command runs: it ends
                os.kill(os.getpid(), signal.SIGTERM)

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        arguments = ("--config", config, "--detector", "motion", "--repeat", "--seconds", 900, "--port", 0)
        done = run_command("live", *arguments, cwd=tmp_path, LIVE_CAMERAS=f"{clip} {clip}", REDIS_URL=redis_url)
        watching.result()
    assert done.returncode == 0, done.stderr
    assert cv2.imdecode(np.frombuffer(pictures[0], np.uint8), cv2.IMREAD_COLOR).shape == (240, 320, 3)
    assert told.cameras() == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [(("ftp://x",), "no cameras of ftp"), (("none.mp4",), "none.mp4"), ((), "SOURCE")],
)
def test_what_cannot_be_watched(arguments: tuple[str, ...], text: str, config: Path, tmp_path: Path) -> None:
    code, result, log = run(*arguments, "--config", config, cwd=tmp_path)
    assert code in (1, 2)
    assert result == {}
    assert text in log
    assert "Traceback" not in log


# -- the page in a browser


@pytest.mark.browser
def test_the_page_in_a_browser(clip: Path, config: Path, settings: Callable[..., Settings], chromium: Any) -> None:
    page = chromium.new_page(viewport={"width": 390, "height": 844})
    page.set_default_timeout(600_000)
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    source = LiveSource(str(clip), repeat=True)
    with (
        open_cameras([source], config, settings(detector="motion")) as cameras,
        serve_page(cameras, 0) as address,
    ):
        page.goto(address, wait_until="domcontentloaded")
        page.get_by_role("cell", name="thing").wait_for()
        assert page.get_by_role("status").inner_text() == "Running"
        wait_for(lambda: page.locator("img").evaluate("image => image.naturalWidth") == 320, what="a picture")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert faults(page) == []
    page.get_by_text("The command has ended").wait_for()
    page.close()
    assert [text for text in complaints if "net::ERR_" not in text] == []
