"""Drawing once beside annotating by hand, in Label Studio's editor: clicks, keys, seconds and how good the boxes are.

    python benchmarks/drawing.py [--pictures FOLDER]

A script does in Chromium what a person would, with a real local stack and a generated video of three objects that no
detector knows. By hand, a box is drawn on the first frame and dragged on as few others as straight lines between them
need to be good everywhere (IoU). Drawing once is one box in the middle of the video, a click on it, and its label's
key; while it is not good on some frame, it is dragged there, unless it is hidden, and the key pressed twice. A drag
counts as a click. Prints a table and, as the last line, JSON.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import click
import cv2
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import wait_for  # noqa: E402
from ml_backend.cli.dev_stack.demo import connect  # noqa: E402
from ml_backend.cli.dev_stack.preflight import free_port  # noqa: E402
from ml_backend.cli.dev_stack.stack import Stack, StackOptions  # noqa: E402
from ml_backend.core.boxes import iou_pairs  # noqa: E402
from ml_backend.core.types import Float64Array, Image  # noqa: E402
from ml_backend.label_studio.regions import region_boxes  # noqa: E402
from tests.label_studio.editor import Editor, open_editor  # noqa: E402

WIDTH, HEIGHT, FPS, FRAMES = 960, 540, 25, 100
#: IoU that a box has on every frame once its annotator is content.
GOOD = 0.7
WAYS = ("by hand", "drawn once")
#: Last frame that the editor can be sent to, counted from 1.
LAST = FRAMES - 1
#: Part of the page that pictures show, in pixels.
PICTURE = {"x": 240, "y": 90, "width": 720, "height": 770}
#: Corrections after which an annotator gives up.
MAX_CORRECTIONS = 5
#: Width and height in pixels of each object.
SIZES = {"straight on": (150, 90), "up and down": (90, 90), "there and back": (110, 80)}


def truth(name: str) -> Float64Array:
    """Return the boxes ``(FRAMES, 4)`` of an object, ``xyxy`` in pixels."""
    share = np.arange(FRAMES) / (FRAMES - 1)
    x, y = {
        "straight on": (60 + 660 * share, 330 + 20 * share),
        "up and down": (780 - 640 * share, 210 + 60 * np.sin(14 * share)),
        "there and back": (100 + 560 * np.sin(np.pi * share), 60 + 40 * share),
    }[name]
    width, height = SIZES[name]
    return np.column_stack([x, y, x + width, y + height]).astype(np.float64)


def write_video(path: Path) -> None:
    """Write the video: a chequered van, ball and box before a street of plain shapes."""
    rng = np.random.default_rng(3)
    background = np.full((HEIGHT, WIDTH, 3), (196, 204, 208), np.uint8)
    background[300:] = (140, 146, 150)
    for x in range(0, WIDTH, 120):
        cv2.rectangle(background, (x + 12, 120), (x + 96, 299), rng.integers(120, 210, 3).tolist(), -1)
    noise = rng.integers(-12, 12, (HEIGHT // 6, WIDTH // 6, 3)).repeat(6, 0).repeat(6, 1)
    background = np.clip(background.astype(int) + noise, 0, 255).astype(np.uint8)
    colours = {"straight on": (60, 60, 200), "up and down": (40, 170, 230), "there and back": (170, 110, 40)}
    sprites: dict[str, Image] = {}
    for name, (width, height) in SIZES.items():
        sprite = np.full((height, width, 3), colours[name], np.uint8)
        cells = rng.integers(-50, 50, (height // 15 + 1, width // 15 + 1, 1)).repeat(15, 0).repeat(15, 1)
        sprites[name] = np.clip(sprite + cells[:height, :width], 0, 255).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for frame in range(FRAMES):
            image = background.copy()
            for name, sprite in sprites.items():
                x, y = truth(name)[frame, :2].round().astype(int).tolist()
                image[y : y + sprite.shape[0], x : x + sprite.shape[1]] = sprite
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image[..., ::-1].copy(), "rgb24")))
        container.mux(stream.encode(None))


@dataclass(slots=True)
class Effort:
    """What an annotation has cost."""

    clicks: int = 0
    keys: int = 0


@dataclass(frozen=True)
class CountingEditor(Editor):
    """An editor that counts what its annotator does."""

    effort: Effort = field(default_factory=Effort)

    def go_to(self, frame: int) -> None:
        self.effort.clicks += 1
        self.effort.keys += len(str(frame)) + 1
        super().go_to(frame)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        self.effort.clicks += 1
        super().drag(start, end)

    def press(self, key: str, times: int = 1) -> dict[str, Any]:
        self.effort.keys += times
        return super().press(key, times)

    def click_on(self, box: Float64Array) -> None:
        self.effort.clicks += 1
        self.select(*_centre(box))

    def move(self, frame: int, before: Float64Array, after: Float64Array) -> None:
        """Drag the selected region's box on a frame."""
        self.go_to(frame)
        self.drag(_centre(before), _centre(after))
        self.page.wait_for_function(
            "frame => Htx.annotationStore.selected.regionStore.regions[0].sequence.some(key => key.frame === frame)",
            arg=frame,
        )

    def clear(self) -> None:
        """Delete all regions, which is nothing that counts."""
        self.page.evaluate(
            "Htx.annotationStore.selected.regionStore.regions.slice().forEach(region => region.deleteRegion())"
        )


def _centre(box: Float64Array) -> tuple[float, float]:
    return float(box[0] + box[2]) / 2, float(box[1] + box[3]) / 2


def overlaps(region: dict[str, Any], boxes: Float64Array) -> Float64Array:
    """Return a region's IoU ``(FRAMES,)`` with the truth; 0 where it is hidden."""
    _, found, visible = region_boxes(region, WIDTH, HEIGHT, np.arange(1, FRAMES + 1))
    return np.where(visible, iou_pairs(found, boxes), 0.0)


def keyframes_by_hand(boxes: Float64Array) -> list[int]:
    """Return the fewest 1-based frames between which straight lines stay good."""
    chosen = [0]
    while chosen[-1] < LAST - 1:
        first = chosen[-1]
        for last in range(LAST - 1, first, -1):
            share = np.linspace(0, 1, last - first + 1)[:, None]
            if iou_pairs((1 - share) * boxes[first] + share * boxes[last], boxes[first : last + 1]).min() >= GOOD:
                break
        chosen.append(last)
    return [frame + 1 for frame in chosen]


def by_hand(editor: CountingEditor, boxes: Float64Array) -> dict[str, Any]:
    first, *others = keyframes_by_hand(boxes)
    editor.go_to(first)
    editor.effort.keys += 1
    editor.page.keyboard.press("1")
    editor.draw(boxes[0])
    editor.click_on(boxes[0])
    before = boxes[0]
    for frame in others:
        editor.move(frame, before, boxes[frame - 1])
        before = boxes[frame - 1]
    return editor.region()


def draw_once(editor: CountingEditor, boxes: Float64Array, pictures: Path | None) -> dict[str, Any]:
    middle = FRAMES // 2
    editor.go_to(middle)
    editor.draw(boxes[middle - 1])
    take_picture(editor, pictures, "draw")
    editor.click_on(boxes[middle - 1])
    take_picture(editor, pictures, "click")
    region = editor.press("1")
    take_picture(editor, pictures, "followed")
    for _ in range(MAX_CORRECTIONS):
        found = overlaps(region, boxes)
        worst = int(found[:LAST].argmin())
        if found[worst] >= GOOD:
            break
        _, shown, visible = region_boxes(region, WIDTH, HEIGHT, np.array([worst + 1]))
        if visible[0]:  # else it goes on by pressing alone
            editor.move(worst + 1, shown[0], boxes[worst])
        region = editor.press("1", times=2)
    return region


def show_correction(editor: CountingEditor, boxes: Float64Array, pictures: Path) -> None:
    """Take pictures of a correction by some pixels, and of what is followed after it."""
    frame = 3 * FRAMES // 4
    _, shown, _ = region_boxes(editor.region(), WIDTH, HEIGHT, np.array([frame]))
    editor.move(frame, shown[0], boxes[frame - 1] + np.array([8.0, 6, 8, 6]))
    take_picture(editor, pictures, "corrected")
    editor.press("1", times=2)
    take_picture(editor, pictures, "again")


def take_picture(editor: CountingEditor, pictures: Path | None, name: str) -> None:
    if pictures:
        editor.page.mouse.move(5, 5)
        editor.page.screenshot(path=pictures / f"{name}.jpg", type="jpeg", quality=60, clip=PICTURE)


def measure(stack: Stack, page: Any, folder: Path, pictures: Path | None = None) -> list[dict[str, Any]]:
    """Annotate each object in both ways in a new project of a running stack."""
    write_video(folder / "three.mp4")
    client, server = stack.client(), stack.label_studio
    project = client.create_project("drawing", (ROOT / "label_config.xml").read_text(encoding="utf-8"))
    connect(stack, client, project)
    facts = {"fps": FPS, "frames": FRAMES, "width": WIDTH, "height": HEIGHT, "duration": FRAMES / FPS}
    task = client.create_task(project, {"video": client.upload_file(project, folder / "three.mp4"), **facts})
    wait_for("the prediction", lambda: client.get_task(task).prediction_versions, stack)
    open_editor(page, server, f"{server.url}/projects/{project}/data?task={task}")
    rows = []
    for way in WAYS:
        if way == "drawn once":
            Editor(page).auto_annotate()
        for name in SIZES:
            editor = CountingEditor(page, FPS, Effort())
            editor.clear()
            started = time.monotonic()
            boxes = truth(name)
            shown = pictures if name == "up and down" else None
            region = by_hand(editor, boxes) if way == "by hand" else draw_once(editor, boxes, shown)
            seconds, found = time.monotonic() - started, overlaps(region, boxes)
            rows.append(
                {
                    **{"object": name, "way": way, "clicks": editor.effort.clicks, "keys": editor.effort.keys},
                    **{"seconds": round(seconds, 1), "keyframes": len(region["value"]["sequence"])},
                    **{"mean_iou": round(float(found.mean()), 3), "lowest_iou": round(float(found.min()), 3)},
                }
            )
            if shown and way == "drawn once":
                show_correction(editor, boxes, shown)
            click.echo("  ".join(f"{key} {value}" for key, value in rows[-1].items()))
    return rows


@click.command()
@click.option("--pictures", type=click.Path(path_type=Path, file_okay=False), help="Folder for screenshots.")
def main(pictures: Path | None) -> None:
    """Measure annotating by hand and drawing once."""
    from playwright.sync_api import sync_playwright

    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if pictures:
        pictures.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        folder = Path(temporary)
        (folder / "data").mkdir()
        environment = {"DETECTOR": "motion", "MODE": "yolo", "WEIGHTS_TIMEOUT_S": "0.5"}
        options = StackOptions(folder / "data", free_port(), free_port(), isolated=True, environment=environment)
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        with Stack(options) as stack:
            page = browser.new_page(viewport={"width": 1280, "height": 860})
            rows = measure(stack, page, folder, pictures)
        browser.close()
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
