"""Chromium plays and seeks what was rendered, with the boxes on its pictures and the sound."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_backend.label_studio.regions import region_boxes
from ml_backend.rendering.draw import BoxStyle
from ml_backend.rendering.layers import AnnotationFile, file_layer
from ml_backend.rendering.render import RenderOptions, render
from tests.rendering.drawing import COLOURS, make_region, write_prediction
from tests.video.builders import make_video
from tests.video.chromium import VIDEO

pytestmark = pytest.mark.browser

WITHIN_PX = 3

# Plays for a moment; then measures at each time what is green in the picture.
PLAYER = (
    """async ([content, times, wanted, within_px]) => {"""
    + VIDEO
    + """
  const video = await load(content, 'video/mp4');
  await video.play();
  const ended = new Promise(done => { video.onended = done; });
  await within(ended, 60000);
  const played = video.currentTime, heard = video.webkitAudioDecodedByteCount;
  const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  const context = canvas.getContext('2d', {willReadFrequently: true});
  const look = () => {
    context.drawImage(video, 0, 0);
    const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
    let box = [1e9, 1e9, -1, -1];
    for (let at = 0; at < data.length; at += 4) {
      if (data[at] > 80 || data[at + 1] < 175 || data[at + 2] > 80) continue;
      const x = at / 4 % canvas.width, y = Math.floor(at / 4 / canvas.width);
      box = [Math.min(box[0], x), Math.min(box[1], y), Math.max(box[2], x), Math.max(box[3], y)];
    }
    return box[2] < 0 ? null : box;
  };
  const fits = (box, n) => box && wanted[n]
    ? box.every((v, side) => Math.abs(v - wanted[n][side]) <= within_px) : !box && !wanted[n];
  const seen = await lookAt(video, times, look, fits);
  return {width: video.videoWidth, height: video.videoHeight, duration: video.duration, played, heard, seen};
}"""
)


@pytest.fixture(scope="module")
def page(chromium: Any) -> Iterator[Any]:
    opened = chromium.new_page()
    yield opened
    opened.close()


@pytest.mark.parametrize(
    "made",
    [
        {"audio_s": 1.0, "options": {"bf": "3", "g": "12"}},
        {"rotation": 90, "size": (240, 320)},
        {"size": (321, 241), "pix_fmt": "yuv444p"},
        {"codec": "mpeg4"},
    ],
    ids=["sound", "turned", "odd", "another codec"],
)
def test_plays_and_seeks(tmp_path: Path, page: Any, made: dict[str, Any]) -> None:
    source = make_video(tmp_path / "source.mp4", **made)
    region = make_region([(4, 20, 50, 10, 20, True), (25, 60, 40, 20, 30, False)], count=30, fps=30)
    out = tmp_path / "out.mp4"
    look = BoxStyle(names=False, numbers=False, confidence=False)
    layer = file_layer(source, AnnotationFile(write_prediction(tmp_path / "p.json", [region])))
    render(source, out, [layer], RenderOptions(look, COLOURS, crf=2))
    width, height = layer.video.info.width, layer.video.info.height
    numbers = [0, 3, 10, 17, 24, 25, 29, 5]
    times = [(number + 0.5) / 30 for number in numbers]
    _, xyxy, visible = region_boxes(region, width, height, np.array(numbers) + 1)
    wanted = [box if there else None for box, there in zip(xyxy.tolist(), visible, strict=True)]
    shown = page.evaluate(PLAYER, [base64.b64encode(out.read_bytes()).decode(), times, wanted, WITHIN_PX])
    assert (shown["width"], shown["height"]) == (width + width % 2, height + height % 2)
    assert shown["duration"] == pytest.approx(1.0, abs=0.05)
    assert shown["played"] == pytest.approx(shown["duration"], abs=0.1)
    assert (shown["heard"] > 0) == bool(made.get("audio_s"))
    for found, box in zip(shown["seen"], wanted, strict=True):
        assert (found is None) == (box is None)
        if box:
            assert np.abs(np.array(found) - box).max() <= WITHIN_PX
