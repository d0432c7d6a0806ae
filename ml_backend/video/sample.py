"""The demo clip: people and a bus, cut out of a photograph, move over a still street, with exact ground truth.

The photograph is ``assets/bus.jpg`` of the installed ultralytics package, so that no image has to be shipped. The
camera is static and the clip starts without objects, so that background subtraction works as well as a detector. The
output is deterministic. ``sample.json`` has the outlines, drawn by hand at twice the photograph's resolution relative
to an origin in it, and the objects' paths, the farthest first.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from ml_backend.core.errors import StorageError
from ml_backend.core.types import Image, Track
from ml_backend.video.writer import VideoWriter

_Float = npt.NDArray[np.float32]
_Matrix = npt.NDArray[np.float64]
# Size of the scene, which is scaled to the requested one.
_WIDTH, _HEIGHT = 1280, 720
# Share of an object that must be inside the frame to count as ground truth.
_MIN_INSIDE = 0.1
# The hand and the posts in front of the bus, which are inpainted: x0, y0, x1, y1.
_BUS_OCCLUDERS = ((716, 532, 760, 600), (654, 618, 698, 672), (422, 652, 466, 700), (744, 480, 756, 660))


@dataclass(frozen=True, slots=True)
class SampleTruth:
    """Ground truth of the clip.

    Attributes:
        fps: frames per second.
        width, height: pixels.
        frames: number of frames.
        tracks: one per object, with its ``label`` (``"person"``, ``"bus"``); boxes are clipped to the frame and include
            occluded parts; ``conf`` is the visible share of the object.
    """

    fps: float
    width: int
    height: int
    frames: int
    tracks: tuple[Track, ...]


@dataclass(frozen=True, slots=True)
class _Actor:
    """An object and its path.

    Attributes:
        bgr, alpha: image with soft edges, ``(h, w, 3)`` and ``(h, w)`` float32 in 0..255 and 0..1.
        height: in pixels of the scene.
        path: ``(n, 3)``: time as a share of the clip's length, x and y of the bottom centre; linear in between.
        phase: of the steps, in radians.
    """

    label: str
    bgr: _Float
    alpha: _Float
    height: float
    path: _Matrix
    walks: bool
    phase: float

    def foot(self, share: float) -> tuple[float, float]:
        times, xs, ys = self.path.T
        return float(np.interp(share, times, xs)), float(np.interp(share, times, ys))


@dataclass(frozen=True, slots=True)
class _Sprite:
    """An actor in one frame: its region, image and mask, its box, and its area in pixels inside the frame and total."""

    region: tuple[slice, slice]
    bgr: _Float
    alpha: _Float
    box: _Float
    inside_area: int
    total_area: float


def make_sample(
    path: str | os.PathLike[str],
    seconds: float = 8.0,
    fps: float = 25.0,
    size: tuple[int, int] = (1280, 720),
    seed: int = 0,
) -> SampleTruth:
    """Write the clip as H.264 and return its ground truth.

    Args:
        path: target, ending in ``.mp4``.
        seconds: length; the objects move faster in a shorter clip.
        fps: frames per second.
        size: even ``(width, height)``.
        seed: varies the phases of the steps, so that clips differ.

    Raises:
        StorageError: the photograph is not installed, or the clip cannot be written.
    """
    width, height = size
    count = max(1, round(seconds * fps))
    photo = _photo()
    scale = np.diag([width / _WIDTH, height / _HEIGHT, 1.0])
    background = cv2.resize(_background(photo), size, interpolation=cv2.INTER_AREA).astype(np.float32)
    actors = list(_actors(photo, np.random.default_rng(seed).uniform(0, 2 * np.pi, 8)))
    boxes: list[list[tuple[int, _Float, float]]] = [[] for _ in actors]
    with VideoWriter(path, width, height, fps, crf=21) as writer:
        for frame in range(count):
            image, frame_boxes = _draw(frame / count, frame / fps, scale, background, actors)
            writer.write(image)
            for index, box, visible in frame_boxes:
                boxes[index].append((frame, box, visible))
    return SampleTruth(fps, width, height, count, tuple(_tracks(actors, boxes)))


def _photo() -> Image:
    # find_spec does not import the package, and with it torch.
    spec = importlib.util.find_spec("ultralytics")
    folders = list(spec.submodule_search_locations or []) if spec else []
    image = cv2.imread(str(Path(folders[0]) / "assets" / "bus.jpg")) if folders else None
    if image is None:
        raise StorageError(
            "The photograph of the ultralytics package is missing.", "Reinstall it: `pip install ultralytics`."
        )
    return np.asarray(image, np.uint8)


def _background(photo: Image) -> Image:
    """Compose a street without people from the house front and the pavement of the photograph."""
    seam = 352
    front = cv2.resize(photo[0:224, :], (_WIDTH, seam), interpolation=cv2.INTER_CUBIC)
    front = cv2.GaussianBlur(front, (0, 0), 3.0)  # out of focus, as behind people who are in focus
    ground = cv2.resize(photo[930:1076, 60:], (_WIDTH, _HEIGHT - seam), interpolation=cv2.INTER_CUBIC)
    ground = cv2.GaussianBlur(ground, (0, 0), 1.2)
    street = np.concatenate([front, ground]).astype(np.float32)
    # A kerb: a strip of grey stone below the house that fades into shade.
    rows = np.arange(_HEIGHT, dtype=np.float32)
    shade = 1 - 0.45 * np.exp(-(((rows - seam) / 22) ** 2))
    street *= shade[:, None, None]
    street[seam - 16 : seam + 4] = 0.35 * street[seam - 16 : seam + 4] + 0.65 * np.array((118, 122, 128), np.float32)
    street = cv2.GaussianBlur(street, (0, 0), 0.8)
    return np.asarray(np.clip(street, 0, 255), np.uint8)


def _cut(photo: Image, origin: Sequence[int], outline: Sequence[Sequence[int]]) -> tuple[_Float, _Float]:
    """Cut out the inside of an outline, as BGR and alpha."""
    points = np.array(outline, np.float64) / 2 + origin
    left, top = np.maximum(np.floor(points.min(axis=0)).astype(int) - 4, 0)
    right, bottom = np.ceil(points.max(axis=0)).astype(int) + 4
    mask = np.zeros(photo.shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.round(points * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    soft = cv2.GaussianBlur(mask, (0, 0), 0.9)[top:bottom, left:right].astype(np.float32) / 255
    # Drop the outer half of the soft edge, which shows the old background.
    alpha = np.clip((soft - 0.35) / 0.6, 0, 1).astype(np.float32)
    return photo[top:bottom, left:right].astype(np.float32), alpha


def _actors(photo: Image, phases: _Matrix) -> Iterator[_Actor]:
    """Yield the objects, the farthest first. Only the rear half of the bus enters: people cover its front."""
    scene = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    mask = np.zeros(photo.shape[:2], np.uint8)
    for x0, y0, x1, y1 in _BUS_OCCLUDERS:
        mask[y0:y1, x0:x1] = 255
    clean = np.asarray(cv2.inpaint(photo, mask, 7, cv2.INPAINT_TELEA), np.uint8)
    people = 0
    for actor in scene["cast"]:
        walks = actor.get("walks", True)
        bgr, alpha = _cut(photo if walks else clean, *scene["outlines"][actor["outline"]].values())
        if actor.get("flip"):
            bgr, alpha = np.ascontiguousarray(bgr[:, ::-1]), np.ascontiguousarray(alpha[:, ::-1])
        if tint := actor.get("tint"):  # factors of blue, green and red, for other clothes and light
            bgr = np.clip(bgr * np.array(tint, np.float32), 0, 255)
        phase = float(phases[people]) if walks else 0.0
        people += walks
        yield _Actor(actor["label"], bgr, alpha, actor["height"], np.array(actor["way"], np.float64), walks, phase)


def _draw(
    share: float, time: float, scale: _Matrix, background: _Float, actors: Sequence[_Actor]
) -> tuple[Image, list[tuple[int, _Float, float]]]:
    """Draw one frame; return it with the index, box and visible share of each actor in it."""
    canvas = background.copy()
    # Index of the frontmost actor at each pixel, or -1.
    front = np.full(canvas.shape[:2], -1, np.int8)
    sprites: dict[int, _Sprite] = {}
    for index, actor in enumerate(actors):
        if not actor.path[0, 0] <= share <= actor.path[-1, 0]:
            continue
        sprite = _make_sprite(actor, scale @ _pose(actor, share, time), canvas.shape[1], canvas.shape[0])
        if sprite is None:
            continue
        _draw_shadow(canvas, actor, share, scale)
        region = canvas[sprite.region]
        region += (sprite.bgr - region) * sprite.alpha[..., None]
        front[sprite.region][sprite.alpha > 0.5] = index
        sprites[index] = sprite
    boxes = [
        (index, sprite.box, min(1.0, np.count_nonzero(front[sprite.region] == index) / sprite.total_area))
        for index, sprite in sprites.items()
        if sprite.inside_area >= _MIN_INSIDE * sprite.total_area
    ]
    return np.asarray(np.clip(canvas + 0.5, 0, 255), np.uint8), boxes


def _pose(actor: _Actor, share: float, time: float) -> _Matrix:
    """Return the ``(3, 3)`` matrix from cut-out pixels to the scene: upright at the foot point, swaying in step."""
    rows, columns = actor.alpha.shape
    zoom = actor.height / rows
    x, y = actor.foot(share)
    step = 2 * np.pi * 0.95 * time + actor.phase
    lean = np.deg2rad(1.1) * np.sin(step) if actor.walks else 0.0
    lift = 0.012 * actor.height * abs(np.sin(step)) if actor.walks else 0.0
    to_foot = np.array([[1, 0, -columns / 2], [0, 1, -rows], [0, 0, 1]])
    turn = zoom * np.array([[np.cos(lean), -np.sin(lean), 0], [np.sin(lean), np.cos(lean), 0], [0, 0, 1 / zoom]])
    result: _Matrix = np.array([[1, 0, x], [0, 1, y - lift], [0, 0, 1]]) @ turn @ to_foot
    return result


def _make_sprite(actor: _Actor, matrix: _Matrix, width: int, height: int) -> _Sprite | None:
    """Transform an actor into a frame of the given size; ``None`` if it is outside."""
    rows, columns = actor.alpha.shape
    corners = matrix[:2] @ np.array([[0, columns, columns, 0], [0, 0, rows, rows], [1, 1, 1, 1]])
    left, top = np.clip(np.floor(corners.min(axis=1)), 0, (width, height)).astype(int)
    right, bottom = np.clip(np.ceil(corners.max(axis=1)), 0, (width, height)).astype(int)
    if right - left < 2 or bottom - top < 2:
        return None
    local = matrix[:2] - np.array([[0, 0, left], [0, 0, top]])
    size = (int(right - left), int(bottom - top))
    alpha = np.asarray(cv2.warpAffine(actor.alpha, local, size), np.float32)
    ys, xs = np.nonzero(alpha > 0.5)
    if len(ys) == 0:
        return None
    return _Sprite(
        region=(slice(int(top), int(bottom)), slice(int(left), int(right))),
        bgr=np.asarray(cv2.warpAffine(actor.bgr, local, size), np.float32),
        alpha=alpha,
        box=np.array([left + xs.min(), top + ys.min(), left + xs.max() + 1, top + ys.max() + 1], np.float32),
        inside_area=len(ys),
        total_area=float(np.count_nonzero(actor.alpha > 0.5)) * abs(float(np.linalg.det(matrix[:2, :2]))),
    )


def _draw_shadow(canvas: _Float, actor: _Actor, share: float, scale: _Matrix) -> None:
    """Darken the ground under an object, so that it does not seem to float."""
    rows, columns = actor.alpha.shape
    x, y = actor.foot(share)
    half = actor.height * columns / rows * 0.45
    thick, soft = 0.028 * actor.height, 4.5
    grid_y, grid_x = np.mgrid[
        max(0, int((y - 4 * thick) * scale[1, 1])) : max(0, min(canvas.shape[0], int((y + 4 * thick) * scale[1, 1]))),
        max(0, int((x - 1.6 * half) * scale[0, 0])) : max(0, min(canvas.shape[1], int((x + 1.6 * half) * scale[0, 0]))),
    ]
    if grid_x.size == 0:
        return
    distance = np.hypot((grid_x / scale[0, 0] - x) / half, (grid_y / scale[1, 1] - y + 3) / (thick + soft))
    dark = 1 - 0.55 / (1 + np.exp((distance - 0.85) * 9))
    top, left = int(grid_y[0, 0]), int(grid_x[0, 0])
    canvas[top : top + grid_y.shape[0], left : left + grid_x.shape[1]] *= dark.astype(np.float32)[..., None]


def _tracks(actors: Sequence[_Actor], boxes: list[list[tuple[int, _Float, float]]]) -> Iterator[Track]:
    for track_id, (actor, actor_boxes) in enumerate(zip(actors, boxes, strict=True), start=1):
        if not actor_boxes:
            continue
        frames, xyxy, visible = zip(*actor_boxes, strict=True)
        yield Track(
            track_id=track_id,
            frames=np.array(frames, np.int64),
            xyxy=np.stack(xyxy).astype(np.float32),
            conf=np.array(visible, np.float32),
            class_scores={actor.label: float(np.sum(visible))},
            label=actor.label,
            score=1.0,
        )
