"""Cameras over HTTP."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable
from pathlib import Path

import cv2

from ml_backend.video.reader import read_frames

BOUNDARY = "camera"


def mjpeg(
    clip: Path, frames: int, stopped: threading.Event, damaged: int = 0
) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    """A camera that sends ``frames`` frames of a clip, 20 a second, and closes the connection; 0: goes on.

    Each ``damaged``-th one is no picture.
    """
    jpegs = [cv2.imencode(".jpg", frame.image)[1].tobytes() for frame in read_frames(clip)]
    if damaged:
        jpegs[damaged::damaged] = [b"\xff\xd8 no picture \xff\xd9"] * len(jpegs[damaged::damaged])

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", f"multipart/x-mixed-replace;boundary={BOUNDARY}")
        handler.end_headers()
        sent = 0
        while not stopped.wait(0.05) and (not frames or sent < frames):
            jpeg = jpegs[sent % len(jpegs)]
            head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
            handler.wfile.write(head.encode() + jpeg + b"\r\n")
            handler.wfile.flush()
            sent += 1
        handler.close_connection = True

    return answer
