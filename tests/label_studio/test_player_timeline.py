"""Which picture a real Chromium shows where Label Studio's player seeks, against :class:`Timeline`.

The page seeks as the player does and reads the number that every picture carries.
"""

from __future__ import annotations

import functools
import http.server
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_backend.label_studio.timeline import Timeline, recommended_fps
from tests.label_studio.numbered import PICTURES, READ_NUMBER, steady, write_video

pytestmark = pytest.mark.browser

# After "seeked" the new picture may take a moment to arrive, for which the player redraws on later events: so the page
# looks again at what is not the picture that was expected. One that is wrong for good costs its patience only once.
PAGE = """<!doctype html><video id="video" muted preload="auto"></video><script>READ_NUMBER
const video = document.getElementById("video");
const load = src => new Promise((resolve, reject) => {
  video.onloadeddata = () => resolve(video.duration);
  video.onerror = () => reject(new Error(video.error.message));
  video.src = src;
});
const pause = time => new Promise(next => setTimeout(next, time));
const seek = time => new Promise(resolve => {
  video.addEventListener("seeked", resolve, {once: true});
  video.currentTime = time;
});
async function watch(times, expected) {
  const seen = [];
  let patience = 300;
  for (const [n, time] of times.entries()) {
    await seek(time);
    await pause(30);
    for (; readNumber(video) !== expected[n] && patience; patience--) await pause(100);
    seen.push(readNumber(video));
  }
  return seen;
}
</script>"""


class _RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Serves byte ranges: without them the browser does not seek."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = Path(self.directory) / Path(self.path).name
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        first, last = 0, len(data) - 1
        wanted = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted:
            first, last = int(wanted[1]), min(last, int(wanted[2] or last))
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Type", "text/html" if path.suffix == ".html" else "video/mp4")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        self.wfile.write(data[first : last + 1])

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the test's output clean."""


@dataclass(frozen=True)
class Player:
    """A page that seeks as Label Studio's player does."""

    page: Any
    folder: Path
    url: str

    def load(self, path: Path) -> float:
        """The duration that the browser reports."""
        return float(self.page.evaluate("src => load(src)", f"{self.url}/{path.name}"))

    def watch(self, timeline: Timeline, expected: Sequence[int]) -> list[int]:
        """Numbers of the pictures seen on all of Label Studio's frames; those expected are waited for a while."""
        times = timeline.seek_times(np.arange(1, timeline.frames_count + 1)).tolist()
        seen: list[int] = self.page.evaluate("([times, expected]) => watch(times, expected)", [times, list(expected)])
        return seen


@pytest.fixture(scope="module")
def player(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Player]:
    folder = tmp_path_factory.mktemp("player")
    (folder / "page.html").write_text(PAGE.replace("READ_NUMBER", READ_NUMBER))
    handler = functools.partial(_RangeHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        page = chromium.new_page()
        page.set_default_timeout(600_000)
        page.goto(f"{url}/page.html")
        yield Player(page, folder, url)
        page.close()
        server.shutdown()
        thread.join()


# Some intervals end on a step of the player's 2 ms grid and some do not.
VARIABLE = np.cumsum([0, *np.random.default_rng(0).integers(10, 90, PICTURES - 1)]).tolist()


@pytest.mark.parametrize(
    ("name", "pts", "tick", "options", "frame_rate"),
    [
        ("30 fps", steady(), Fraction(1, 30), {}, 30),
        ("29.97 fps", steady(1001), Fraction(1, 30000), {}, 29.97),
        ("29.97 fps on a timeline of 30", steady(1001), Fraction(1, 30000), {}, 30),
        ("25 fps on the default timeline", steady(), Fraction(1, 25), {}, 24),
        # With B-frames Chromium's seek can miss by a picture or two just before a key frame of such files.
        ("variable frame rate", VARIABLE, Fraction(1, 1000), {"b_frames": 0}, 25),
        ("variable frame rate, default timeline", VARIABLE, Fraction(1, 1000), {"b_frames": 0}, 24),
        ("late first picture", steady(first=9), Fraction(1, 30), {}, 30),
        ("late first picture, longer audio", steady(first=9), Fraction(1, 30), {"audio_s": 2.5}, 30),
    ],
)
def test_browser_shows_the_picture_that_the_timeline_says(
    player: Player, name: str, pts: list[int], tick: Fraction, options: dict[str, Any], frame_rate: float
) -> None:
    path = write_video(player.folder / f"{name.replace(' ', '-')}.mp4", pts, tick, **options)
    timeline = Timeline(frame_rate, [float(at * tick) for at in pts], player.load(path))
    expected = timeline.decoded_index(np.arange(1, timeline.frames_count + 1)).tolist()
    assert player.watch(timeline, expected) == expected
    assert len(set(expected)) > PICTURES // 2  # the video was seen at all, not one picture of it


@pytest.mark.parametrize(
    ("ticks", "tick"), [(1001, Fraction(1, 24000)), (1001, Fraction(1, 60000)), (1, Fraction(1, 50))]
)
def test_recommended_rate_shows_every_picture_once(player: Player, ticks: int, tick: Fraction) -> None:
    pts = steady(ticks)
    path = write_video(player.folder / f"every-{tick.denominator}.mp4", pts, tick)
    times = [float(at * tick) for at in pts]
    duration = player.load(path)
    timeline = Timeline(recommended_fps(times, duration), times, duration)
    assert player.watch(timeline, range(PICTURES)) == list(range(PICTURES))
