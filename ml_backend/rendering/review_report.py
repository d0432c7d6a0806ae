"""A page about suspicious moments, with pictures of the boxes before and after each repair, in one HTML file."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import jinja2
import numpy as np
import supervision as sv

from ml_backend.core.boxes import scaled_size
from ml_backend.core.types import Image, Track
from ml_backend.rendering.draw import BoxStyle, FramePainter, label_colours
from ml_backend.rendering.text import Fonts
from ml_backend.review.moments import Moment
from ml_backend.review.reading import ReviewTask
from ml_backend.review.repairs import apply_repair, describe
from ml_backend.video.probe import probe
from ml_backend.video.reader import read_at

#: Longer side of the pictures in pixels, and their JPEG quality: a page with 20 moments has about 3 MB.
SIDE, QUALITY = 720, 70

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Suspicious moments</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px; padding: 0 1rem; color: #1c1c22;
  background: #fff }
article { border-top: 1px solid #ccc; padding: 1rem 0 } h2 { font-size: 1.05rem; margin: 0 } p { margin: .3rem 0 }
figure { margin: .5rem 0; display: inline-block; width: 49%; vertical-align: top } img { width: 100% }
figcaption, small { color: #5a5c66 } .severe { color: #a11 }
@media (max-width: 700px) { figure { width: 100% } }
</style></head><body>
<h1>Suspicious moments</h1>
<p>{{ items | length }} shown of {{ total }}, the most worthwhile first. Frames count from 1, as in Label Studio.</p>
{% for note in notes %}<p><small>{{ note }}</small></p>{% endfor %}
{% for item in items %}
<article><h2>{{ loop.index }}. Task {{ item.moment.task }}, {{ item.name }}, frame {{ item.moment.first + 1 }}
({{ "%.2f" | format(item.seconds) }} s)
{%- if item.moment.severe %} <span class="severe">severe</span>{% endif %}</h2>
<p>{{ item.reason }}</p>
<p><small>{{ item.moment.kind }}, certainty {{ "%.0f" | format(100 * item.moment.score) }} %, about
{{ "%.0f" | format(item.moment.gain) }} boxes to gain. {{ item.repair }}</small></p>
{% for caption, picture in item.pictures %}<figure><img alt="{{ caption }}" src="{{ picture }}">
<figcaption>{{ caption }}</figcaption></figure>{% endfor %}
</article>
{% endfor %}
</body></html>
"""


@dataclass(frozen=True, slots=True)
class ReportItem:
    """One moment of the page.

    Attributes:
        name: of the video.
        seconds: of the moment.
        reason, repair: sentences.
        pictures: captions and data URIs; none without the video.
    """

    moment: Moment
    name: str
    seconds: float
    reason: str
    repair: str
    pictures: tuple[tuple[str, str], ...] = ()


def report_items(task: ReviewTask, moments: Sequence[Moment], pictures: int) -> list[ReportItem]:
    """Describe a task's moments, the first ``pictures`` of them with pictures, while its video file is there."""
    drawn = dict(_pictures(task, moments[:pictures])) if task.path else {}
    return [
        ReportItem(
            moment,
            task.name,
            moment.first / task.video.fps,
            moment.reason,
            describe(moment.repair),
            drawn.get(number, ()),
        )
        for number, moment in enumerate(moments)
    ]


def report_page(items: Sequence[ReportItem], total: int, notes: Sequence[str]) -> str:
    """Return the page as HTML.

    Args:
        total: number of all moments.
        notes: about what could not be looked at.
    """
    environment = jinja2.Environment(autoescape=True)
    return environment.from_string(_PAGE).render(items=items, total=total, notes=notes)


def _pictures(task: ReviewTask, moments: Sequence[Moment]) -> Iterator[tuple[int, tuple[tuple[str, str], ...]]]:
    """Yield the pictures of each moment, by its number."""
    if task.path is None or task.timeline is None:
        return
    info = probe(task.path)
    shown = [min(moment.shown, task.video.frames - 1) for moment in moments]
    index = task.timeline.decoded_index(np.array(shown, np.int64) + 1)
    size = scaled_size(info.width, info.height, min(1.0, SIDE / max(info.width, info.height)))
    fonts = Fonts()
    for frame in read_at(task.path, info, np.unique(index)):
        small = np.asarray(cv2.resize(frame.image, size, interpolation=cv2.INTER_AREA), np.uint8)
        for number in np.flatnonzero(index == frame.index).tolist():
            moment, tracks = moments[number], task.video.tracks
            repaired = apply_repair(tracks, moment.repair)
            marked = {*moment.tracks, *(track.track_id for track in repaired[len(tracks) :])}
            at = f"frame {shown[number] + 1}"
            yield (
                number,
                (
                    (f"Before, {at}", _draw(small, task, tracks, marked, shown[number], fonts)),
                    (f"After the repair, {at}", _draw(small, task, repaired, marked, shown[number], fonts)),
                ),
            )


def _draw(image: Image, task: ReviewTask, tracks: Sequence[Track], marked: set[int], frame: int, fonts: Fonts) -> str:
    """Draw the boxes of a frame, the marked tracks solid and the others dashed; return a data URI."""
    height, width = image.shape[:2]
    visible = [(track, row) for track in tracks for row in np.flatnonzero(track.frames == frame).tolist()]
    boxes = np.array([track.xyxy[row] for track, row in visible], np.float64).reshape(-1, 4)
    boxes = boxes * np.array([width / task.video.width, height / task.video.height] * 2)
    drawable = np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    visible = [item for item, good in zip(visible, np.asarray(drawable).tolist(), strict=True) if good]
    labels = sorted({str(track.label) for track in tracks})
    painter = FramePainter(labels, label_colours(labels), (width, height), 1.0, BoxStyle(confidence=False), fonts)
    canvas = image.copy()
    painter.paint(
        canvas,
        sv.Detections(
            xyxy=boxes[drawable].clip(0, [width - 1, height - 1] * 2),
            class_id=np.array([labels.index(str(track.label)) for track, _ in visible], np.int64),
            tracker_id=np.array([track.track_id for track, _ in visible], np.int64),
            confidence=np.ones(len(visible)),
            data={"manual": np.array([track.track_id in marked for track, _ in visible], bool)},
        ),
    )
    _, jpeg = cv2.imencode(".jpg", canvas, (cv2.IMWRITE_JPEG_QUALITY, QUALITY))
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode()
