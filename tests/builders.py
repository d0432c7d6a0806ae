"""Small things that several tests are made of: label configs, clips, tiny models, and an "outside" to fetch from."""

from __future__ import annotations

import contextlib
import functools
import http.server
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from click.testing import CliRunner

from ml_backend.cli.__main__ import main as commands
from ml_backend.core.settings import Settings
from ml_backend.video.writer import VideoWriter

ROOT = Path(__file__).resolve().parents[1]

CONFIG = (
    '<View><Labels name="label" toName="video"><Label value="thing"/></Labels>'
    '<Video name="video" value="$video" frameRate="$fps"/><VideoRectangle name="box" toName="video"/></View>'
)
TWO_VIDEOS = (
    '<View><Video name="left" value="$left" frameRate="$fps"/><VideoRectangle name="left-box" toName="left"/>'
    '<Labels name="left-label" toName="left"><Label value="thing"/></Labels>'
    '<Video name="right" value="$right" frameRate="$right_fps"/><VideoRectangle name="kästchen" toName="right"/>'
    '<Labels name="right-label" toName="right"><Label value="ding"/></Labels></View>'
)
NO_RECTANGLE = (
    '<View><Video name="video" value="$video"/><Labels name="label" toName="video"><Label value="a"/></Labels></View>'
)


def label_config(*labels: str, predicted: Mapping[str, str] | None = None, frame_rate: str = "$fps") -> str:
    """A video config with these labels; ``predicted`` gives their ``predicted_values``."""
    tags = "".join(f'<Label value="{name}" predicted_values="{(predicted or {}).get(name, "")}"/>' for name in labels)
    return (
        f'<View><Labels name="label" toName="video">{tags}</Labels>'
        f'<Video name="video" value="$video" frameRate="{frame_rate}"/>'
        '<VideoRectangle name="box" toName="video"/></View>'
    )


def made_once(make: Callable[..., Path]) -> Callable[..., Path]:
    """Decorate a function that makes a file at a path: with equal other arguments, later calls copy the first's."""
    made: dict[str, bytes] = {}

    @functools.wraps(make)
    def make_or_copy(path: Path, *arguments: Any, **options: Any) -> Path:
        key = repr((path.suffix, arguments, options))
        if key in made:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(made[key])
        else:
            make(path, *arguments, **options)
            made[key] = path.read_bytes()
        return path

    return make_or_copy


@made_once
def make_clip(path: Path, *, frames: int = 40, fps: int = 20, size: tuple[int, int] = (320, 240)) -> Path:
    """A still, textured background over which one bright block walks from left to right, from frame 10 on."""
    width, height = size
    background = np.random.default_rng(1).integers(60, 120, (height // 8, width // 8, 3), np.uint8)
    background = np.kron(background, np.ones((8, 8, 1), np.uint8))
    with VideoWriter(path, width, height, fps) as writer:
        for number in range(frames):
            image = background.copy()
            if number >= 10:
                left = 10 + (number - 10) * (width - 70) // max(frames - 10, 1)
                image[height // 3 : height // 3 + 80, left : left + 40] = 250
            writer.write(image)
    return path


def repeat_clip(source: Path, target: Path, times: int) -> Path:
    """A long video at the cost of a copy: the packets of ``source`` again and again."""
    with av.open(str(target), "w") as out:
        stream = None
        for turn in range(times):
            with av.open(str(source)) as inp:
                video = inp.streams.video[0]
                stream = stream or out.add_stream_from_template(video)
                length = video.duration or 0
                for packet in inp.demux(video):
                    if packet.dts is None:
                        continue
                    packet.pts += turn * length
                    packet.dts += turn * length
                    packet.stream = stream
                    out.mux(packet)
    return target


@made_once
def make_tiny_yolo(path: Path, names: Mapping[int, str], *, masks: bool = False) -> Path:
    """A YOLO11 checkpoint of a few hundred kilobytes with random weights, biased so that it does see things.

    Args:
        masks: whether it is a model for segmentation.
    """
    import torch
    import ultralytics
    from ultralytics import YOLO
    from ultralytics.nn.tasks import DetectionModel, SegmentationModel
    from ultralytics.utils import YAML

    torch.manual_seed(0)
    folder = Path(ultralytics.__file__).parent / "cfg" / "models" / "11"
    kind, model_class, task = "yolo11", DetectionModel, "detect"
    if masks:
        kind, model_class, task = "yolo11-seg", SegmentationModel, "segment"
    architecture = YAML.load(folder / f"{kind}.yaml") | {"scales": {"n": [0.33, 0.0625, 128]}, "scale": "n"}
    model = model_class(architecture, nc=len(names), verbose=False)
    model.names = dict(names)
    head = model.model[-1]
    with torch.no_grad():
        for branch, bias in zip(head.cv3, (-9.0, -9.0, 1.5), strict=True):
            branch[-1].bias[:] = bias - torch.arange(len(names))  # the coarse grid is sure of the first class
        if masks:
            for branch in head.cv4:
                branch[-1].bias[:] = 1.0
            head.proto.cv3.bn.bias[:] = 0.2  # of masks, which fill most of their boxes
    yolo = YOLO(folder / f"{kind}.yaml", task=task, verbose=False)
    yolo.model = model
    yolo.ckpt = {"train_args": {"task": task}}
    yolo.save(path)
    return path


# -- the outside


@dataclass
class Outside:
    """A web server of somebody else: serves ``files`` with ranges, records requests, and misbehaves on demand.

    Attributes:
        files: content by path.
        etags: validator by path; without one, none is sent.
        special: handlers by path, with or without its query, which write the whole answer themselves.
        requests: (path, headers with lower-case names) of everything that was asked.
        break_after: bytes by path after which the connection is dropped, once each.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    content_types: dict[str, str] = field(default_factory=dict)
    special: dict[str, Callable[[http.server.BaseHTTPRequestHandler], None]] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    break_after: dict[str, list[int]] = field(default_factory=dict)

    @property
    def host(self) -> str:
        return self.url.split("//")[1].split(":")[0]

    def asked(self, path: str) -> list[dict[str, str]]:
        """Headers of the requests for a path."""
        return [headers for asked, headers in self.requests if asked == path]

    def answer(self, path: str, status: int, body: bytes = b"", **headers: str) -> None:
        """Always answer so; underscores in header names become dashes."""

        self.special[path] = lambda handler: send(handler, status, body, **headers)

    def redirect(self, path: str, location: str, status: int = 302) -> None:
        self.answer(path, status, location=location)

    def serve(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        """Answer a request; ``special`` handlers may call it too."""
        path = handler.path
        self.requests.append((path, {name.lower(): value for name, value in handler.headers.items()}))
        special = self.special.get(path) or self.special.get(path.partition("?")[0])
        if special:
            special(handler)
            return
        if path not in self.files:
            handler.send_error(404)
            return
        body, start = self.files[path], 0
        etag = self.etags.get(path)
        wanted = handler.headers.get("Range", "")
        if wanted.startswith("bytes=") and (handler.headers.get("If-Range") in (None, etag)):
            start = int(wanted[6:].rstrip("-"))
            if start >= len(body):
                handler.send_error(416)
                return
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if etag:
            handler.send_header("ETag", etag)
        handler.send_header("Content-Type", self.content_types.get(path, "video/mp4"))
        handler.send_header("Content-Length", str(len(body) - start))
        handler.end_headers()
        breaks = self.break_after.get(path)
        if breaks:
            handler.wfile.write(body[start : start + breaks.pop(0)])
            handler.wfile.flush()
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        handler.wfile.write(body[start:])


def send(handler: http.server.BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    """Write a whole answer; underscores in header names become dashes."""
    handler.send_response(status)
    for name, value in {"content_length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


@contextlib.contextmanager
def outside(host: str = "127.0.0.1") -> Iterator[Outside]:
    """Run an :class:`Outside`. ``host`` is how clients name it: two names make two hosts of one machine."""
    site = Outside()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # clients may go away as they like
                site.serve(self)

        do_HEAD = do_POST = do_PATCH = do_GET

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    site.url = f"http://{host}:{server.server_address[1]}"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Gate:
    """A TCP relay to a real server that can be shut and opened: what is behind it is "down" meanwhile."""

    def __init__(self, target: str) -> None:
        host, port = target.split("//")[1].split(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://localhost:{self._listener.getsockname()[1]}"
        self._shut = threading.Event()
        self._pairs: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def shut(self) -> None:
        """Refuse new connections and break the open ones."""
        self._shut.set()
        for end in list(self._pairs):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def open(self) -> None:
        self._shut.clear()

    def close(self) -> None:
        self.shut()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._shut.is_set():
                client.close()
                continue
            server = socket.create_connection(self._target)
            self._pairs |= {client, server}
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._relay, args=(source, sink), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
            self._pairs.discard(end)


# -- processes


def environment(settings: Settings) -> dict[str, str]:
    """The environment of a process that is to have these settings."""
    values = {name.upper(): value for name, value in settings.model_dump(exclude_unset=True).items()}
    texts = {}
    for name, value in values.items():
        if hasattr(value, "get_secret_value"):
            value = value.get_secret_value()
        texts[name] = ",".join(value) if isinstance(value, tuple) else str(value)
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **texts}


@contextlib.contextmanager
def worker_process(settings: Settings, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A real worker; killed at the end if it still runs. Its log goes to ``log``."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "ml_backend.jobs.worker"],
            env=environment(settings),
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def run_command(name: str, *arguments: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in this process, which has imported what each new one would have to; what it printed.

    Args:
        name: as ``label-studio-video`` has it.
        cwd: folder that it runs in.
        variables: environment variables that it has besides those of this process.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        for variable in ("no_proxy", "NO_PROXY"):  # commands change them
            patch.setenv(variable, os.environ.get(variable, ""))
        for variable, value in variables.items():
            patch.setenv(variable, value)
        level = logging.root.level
        patch.setattr(logging.root, "handlers", [])  # as in a new process, where commands set up their log
        try:
            done = CliRunner().invoke(commands, [name, *map(str, arguments)])
        finally:
            logging.root.setLevel(level)
    crash = [] if isinstance(done.exception, (SystemExit, type(None))) else traceback.format_exception(done.exception)
    return subprocess.CompletedProcess([name], done.exit_code, done.stdout, done.stderr + "".join(crash))


def run_with_bare_home(code: str, folder: Path, without: Callable[[str], bool]) -> str:
    """Run Python code that must leave its home empty; what it printed.

    Args:
        folder: where it runs; its home is made there.
        without: names of environment variables that it is not to have.
    """
    home = folder / "home"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not without(name)}
    kept |= {"HOME": str(home), "PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "MPLCONFIGDIR": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=kept, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert list(home.rglob("*")) == []
    return done.stdout


def wait_for(condition: Callable[[], Any], timeout: float = 900.0, what: str = "") -> Any:
    """The first true value of ``condition``; a generous bound that only keeps a broken test from hanging."""
    deadline = time.monotonic() + timeout
    while True:
        asked = time.monotonic()
        value = condition()
        if value:
            return value
        now = time.monotonic()
        if now > deadline:
            raise AssertionError(f"not after {timeout:.0f} s: {what or condition}")
        # Asking Label Studio ten times a second would take the processor from what is waited for.
        time.sleep(min(max(0.1, 4 * (now - asked)), 1.0))
