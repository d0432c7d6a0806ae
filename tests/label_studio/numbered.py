"""Videos whose pictures carry their number as 16 black or white bars, for a browser page to read."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

WIDTH, HEIGHT, BITS, BAR = 320, 64, 16, 20
PICTURES = 50

# JavaScript: the number of the picture that a video element shows.
READ_NUMBER = """function readNumber(video) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [320, 64];
  const context = canvas.getContext("2d");
  context.drawImage(video, 0, 0, 320, 64);
  const pixels = context.getImageData(0, 32, 320, 1).data;
  let number = 0;
  for (let bit = 0; bit < 16; bit++) if (pixels[4 * (bit * 20 + 10)] > 127) number |= 1 << bit;
  return number;
}"""


def picture(number: int) -> np.ndarray[Any, Any]:
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for bit in range(BITS):
        image[:, bit * BAR : (bit + 1) * BAR] = 255 * (number >> bit & 1)
    return image


def write_video(path: Path, pts: Sequence[int], tick: Fraction, *, b_frames: int = 2, audio_s: float = 0) -> Path:
    """Numbered pictures at ``pts * tick`` seconds, perhaps beside ``audio_s`` seconds of silence from 0 on."""
    usual = tick * round(float(np.median(np.diff(pts))))  # so the last picture lasts as long as the others
    options = {"preset": "veryfast", "g": "25", "bf": str(b_frames)}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1 / usual, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.time_base = stream.codec_context.time_base = tick
        audio = container.add_stream("aac", rate=48000) if audio_s else None
        for number, at in enumerate(pts):
            frame = av.VideoFrame.from_ndarray(picture(number), "rgb24")
            frame.pts, frame.time_base = int(at), tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio:
            for start in range(0, int(audio_s * 48000), 1024):
                sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
                sound.sample_rate, sound.pts, sound.time_base = 48000, start, Fraction(1, 48000)
                container.mux(audio.encode(sound))
            container.mux(audio.encode(None))
    return path


def steady(ticks: int = 1, first: int = 0) -> list[int]:
    return [first + n * ticks for n in range(PICTURES)]
