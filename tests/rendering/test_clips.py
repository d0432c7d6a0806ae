"""Clips that show two models' tracks side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ml_backend.core.types import Image, Track
from ml_backend.rendering.clips import HEIGHT, ClipPane, render_clip
from ml_backend.video.probe import probe
from ml_backend.video.reader import read_frames
from tests.builders import make_clip


def track(label: str, frames: range) -> Track:
    box = np.tile(np.array([160, 240, 480, 600], np.float32), (len(frames), 1))
    return Track(1, np.array(frames), box, np.ones(len(frames), np.float32), {}, label, 0.9)


def panes_of(clip: Path, width: int) -> list[tuple[Image, Image]]:
    """The left and the right pane of each frame."""
    return [(frame.image[:, :width], frame.image[:, -width:]) for frame in read_frames(clip)]


def test_a_track_is_drawn_in_its_pane_while_it_is_there(tmp_path: Path) -> None:
    video = make_clip(tmp_path / "video.mp4", frames=40, size=(960, 720))
    seen, out = track("사람", range(20, 30)), tmp_path / "clips" / "0.mp4"
    render_clip(video, probe(video), out, [ClipPane("v1", [seen], [seen]), ClipPane("v2", [], [seen])], 15, 34)
    facts = probe(out)
    assert (facts.codec, facts.pix_fmt, facts.frames, facts.fps) == ("h264", "yuv420p", 20, 20)
    assert HEIGHT < facts.height < HEIGHT + 60, "a title above each pane"
    assert abs(facts.width - 2 * 480) < 20
    strip = facts.height - HEIGHT
    for number, (left, right) in enumerate(panes_of(out, 480)):
        # The left edge of the box, half as large as in the video, above the block that walks by.
        around = (slice(strip + 125, strip + 135), slice(76, 86))
        drawn = np.abs(left[around].astype(int) - right[around].astype(int)).max() > 60
        assert drawn == (5 <= number < 15), number


def test_the_track_that_matters_is_solid_and_others_are_dashed(tmp_path: Path) -> None:
    video = make_clip(tmp_path / "video.mp4", frames=10, size=(640, 720))
    seen, out = track("person", range(10)), tmp_path / "0.mp4"
    render_clip(video, probe(video), out, [ClipPane("v1", [seen], [seen]), ClipPane("v2", [seen])], 0, 3)
    left, right = panes_of(out, 320)[0]
    strip = probe(out).height - HEIGHT
    edges = [pane[strip + 130 : strip + 290, 76:86].astype(int) for pane in (left, right)]
    # Along the edge, how often the colour changes from one row to the next.
    changes = [int((np.abs(np.diff(edge, axis=0)).max(axis=(1, 2)) > 60).sum()) for edge in edges]
    assert changes[1] > changes[0] + 10
