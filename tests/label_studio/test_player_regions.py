"""Label Studio's own task page, frame by frame: the picture, the counter and the boxes that it shows.

The video's frame rate is not the timeline's, so that a mistake of one frame cannot hide.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from ml_backend.core.boxes import iou_pairs
from ml_backend.core.types import Track, VideoInfo
from ml_backend.label_studio.label_config import parse_label_config
from ml_backend.label_studio.regions import make_prediction, region_boxes, track_to_region
from ml_backend.label_studio.timeline import Timeline
from tests.label_studio.editor import open_editor
from tests.label_studio.numbered import HEIGHT, PICTURES, READ_NUMBER, WIDTH, steady, write_video

pytestmark = [pytest.mark.stack, pytest.mark.browser]

FPS, FRAME_RATE = 25, 29.97
CONFIG = """<View><Labels name="the-label" toName="video"><Label value="Person" alias="person"/></Labels>
<Video name="video" value="$video" frameRate="$fps"/><VideoRectangle name="кадр" toName="video"/></View>"""

# What is on screen, once the frame that was asked for has arrived, its picture too, and nothing changes any more.
LOOK = (
    f"async ([frame, picture]) => {{ {READ_NUMBER}"
    + """
  const video = document.querySelector("video");
  const counter = () => parseInt(document.querySelector(".lsf-frames-control").innerText);
  const pause = time => new Promise(next => setTimeout(next, time));
  for (let waits = 0; waits < 750 && (counter() !== frame || video.seeking); waits++) await pause(40);
  const boxes = () => Konva.stages.flatMap(stage => stage.find("Rect")).filter(r => r.isVisible() && r.stroke())
    .map(r => [r.x(), r.y(), r.x() + r.width(), r.y() + r.height()]);
  const look = () => ({picture: readNumber(video), boxes: boxes(), counter: counter()});
  const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);
  await pause(60);
  let before = look(), seen = before;
  for (let looks = 0; looks < 50 && (!looks || seen.picture !== picture || !same(seen, before)); looks++) {
    await pause(100);
    [before, seen] = [seen, look()];
  }
  return seen;
}"""
)


def look(page: Any, frame: int, total: int, picture: int) -> dict[str, Any]:
    """Go to a frame as a person does: click on the counter, type, press Enter; then see.

    ``picture`` is waited for a while.
    """
    if frame < total:
        control = page.locator(".lsf-frames-control")
        control.click()
        field = control.locator("input")
        field.fill(str(frame))
        field.press("Enter")
    else:  # the counter does not take the last frame
        page.evaluate("frame => Htx.annotationStore.selected.names.get('video').setFrame(frame)", frame)
    seen: dict[str, Any] = page.evaluate(LOOK, [frame, picture])
    return seen


@dataclass(frozen=True)
class Seen:
    """What the page showed on each frame from 1 on, and how many frames its counter has."""

    pictures: list[int]
    counters: list[int]
    boxes: list[list[list[float]]]
    total: int


@dataclass(frozen=True)
class Case:
    """A prediction in Label Studio, and what its page made of it."""

    timeline: Timeline
    region: dict[str, Any]
    seen: Seen


def make_track() -> Track:
    """Seen on pictures 5 to 12, 20 alone, and 30 to 41, while it moves."""
    frames = np.array([*range(5, 13), 20, *range(30, 42)])
    left = 20 + 4.0 * frames + 10 * np.sin(frames / 3)
    xyxy = np.stack([left, 10 + 0 * left, left + 60, 50 + 0 * left], axis=1).astype(np.float32)
    return Track(1, frames, xyxy, np.ones(len(frames), np.float32), {"person": 3.0}, "person", 0.8)


@pytest.fixture(scope="module")
def case(label_studio: Any, chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Case:
    path = write_video(tmp_path_factory.mktemp("page") / "numbered.mp4", steady(), Fraction(1, FPS))
    (control,) = parse_label_config(CONFIG).video_controls
    timeline = Timeline(FRAME_RATE, np.arange(PICTURES) / FPS, PICTURES / FPS)
    info = VideoInfo(str(path), WIDTH, HEIGHT, FPS, PICTURES, PICTURES / FPS, "h264", "yuv420p")
    region = track_to_region(make_track(), timeline, control, info)
    assert region is not None

    client = label_studio.client()
    project = client.create_project("player", CONFIG)
    task = client.create_task(project, {"video": client.upload_file(project, path), "fps": str(FRAME_RATE)})
    client.create_prediction(task, make_prediction([region], "v1"))

    page = chromium.new_page(viewport={"width": 1400, "height": 1000})
    open_editor(page, label_studio, f"{label_studio.url}/projects/{project}/data?task={task}")
    total = int(page.locator(".lsf-frames-control").inner_text().replace("\n", " ").split("of")[1])
    frames = [9, *range(1, total + 1)]  # so frame 1, too, is gone to
    pictures = timeline.decoded_index(np.array(frames)).tolist()
    looks = [look(page, frame, total, picture) for frame, picture in zip(frames, pictures, strict=True)][1:]
    page.close()
    keys = ("picture", "counter", "boxes")
    return Case(timeline, region, Seen(*([one[key] for one in looks] for key in keys), total))


def test_page_counts_frames_as_the_timeline_does(case: Case) -> None:
    assert case.seen.total == case.timeline.frames_count
    assert case.seen.counters == list(range(1, case.timeline.frames_count + 1))


def test_page_shows_the_pictures_that_the_timeline_says(case: Case) -> None:
    frames = np.arange(1, case.timeline.frames_count + 1)
    assert case.seen.pictures == case.timeline.decoded_index(frames).tolist()


def test_page_draws_the_region_on_exactly_the_frames_it_is_read_on(case: Case) -> None:
    frames, xyxy, visible = region_boxes(case.region, WIDTH, HEIGHT)
    drawn = [bool(boxes) for boxes in case.seen.boxes]
    assert drawn == visible.tolist()
    np.testing.assert_allclose(
        [boxes[0] for boxes in case.seen.boxes if boxes], xyxy[visible], atol=0.01, err_msg=str(frames[visible])
    )


def test_box_on_screen_fits_the_track_on_the_picture_on_screen(case: Case) -> None:
    track = make_track()
    truth = dict(zip(track.frames.tolist(), track.xyxy, strict=True))
    for picture, boxes in zip(case.seen.pictures, case.seen.boxes, strict=True):
        assert bool(boxes) == (picture in truth)
        if boxes:
            assert iou_pairs(boxes, [truth[picture]])[0] >= 0.9
