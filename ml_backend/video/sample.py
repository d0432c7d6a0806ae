"""The demo clip: people (and a bus) cut out of a photograph walk over a still street, with known ground truth.

The photograph is ``assets/bus.jpg`` of the installed ultralytics package, so that no picture has to be shipped. The
camera stands still and every frame is empty of objects at first, so that background subtraction works as well as a
detector. Nothing is random: the same arguments give the same pictures. ``sample.json`` has the outlines, drawn by hand
in twice the photograph's pixels relative to an origin in it, and who walks where, the farthest first.
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
# The scene is laid out for this size and scaled to the one asked for.
_WIDTH, _HEIGHT = 1280, 720
# Less of an object than this inside the frame is no ground truth: nobody would draw a box around it.
_MIN_VISIBLE = 0.1
# The hand and the posts that stand before the bus in the photograph are painted over: x0, y0, x1, y1.
_BEFORE_BUS = ((716, 532, 760, 600), (654, 618, 698, 672), (422, 652, 466, 700), (744, 480, 756, 660))


@dataclass(frozen=True, slots=True)
class SampleTruth:
    """What the clip shows.

    Attributes:
        fps: frames per second.
        width, height: pixels.
        frames: number of frames.
        tracks: one per object, with its ``label`` (``"person"``, ``"bus"``); boxes are clipped to the frame and span
            the whole object also where another one covers it; ``conf`` is the share of it that is to be seen.
    """

    fps: float
    width: int
    height: int
    frames: int
    tracks: tuple[Track, ...]


@dataclass(frozen=True, slots=True)
class _Actor:
    """An object and its way.

    Attributes:
        bgr, alpha: picture with soft edges, ``(h, w, 3)`` and ``(h, w)`` float32 in 0..255 and 0..1.
        height: in the scene.
        way: moments as shares of the clip's length, and x and y of the foot point (bottom centre), linear in between.
        phase: of the steps.
    """

    label: str
    bgr: _Float
    alpha: _Float
    height: float
    way: _Matrix
    walks: bool
    phase: float

    def foot(self, share: float) -> tuple[float, float]:
        moments, xs, ys = self.way.T
        return float(np.interp(share, moments, xs)), float(np.interp(share, moments, ys))


@dataclass(frozen=True, slots=True)
class _Placed:
    """An actor in one frame: its region, picture and mask there, its box, pixels inside and in all."""

    region: tuple[slice, slice]
    bgr: _Float
    alpha: _Float
    box: _Float
    pixels: int
    whole: float


def make_sample(
    path: str | os.PathLike[str],
    seconds: float = 8.0,
    fps: float = 25.0,
    size: tuple[int, int] = (1280, 720),
    seed: int = 0,
) -> SampleTruth:
    """Write the clip as H.264 and say what is in it.

    Args:
        path: target, ending in ``.mp4``.
        seconds: length; the objects walk faster in a shorter clip.
        size: even ``(width, height)``.
        seed: shifts the rhythm of the steps, so that several clips differ.

    Raises:
        StorageError: the photograph is not installed, or the clip cannot be written.
    """
    width, height = size
    count = max(1, round(seconds * fps))
    photo = _photo()
    scale = np.diag([width / _WIDTH, height / _HEIGHT, 1.0])
    background = cv2.resize(_background(photo), size, interpolation=cv2.INTER_AREA).astype(np.float32)
    actors = list(_cast(photo, np.random.default_rng(seed).uniform(0, 2 * np.pi, 8)))
    seen: list[list[tuple[int, _Float, float]]] = [[] for _ in actors]
    with VideoWriter(path, width, height, fps, crf=21) as writer:
        for frame in range(count):
            picture, shown = _draw(frame / count, frame / fps, scale, background, actors)
            writer.write(picture)
            for number, box, visible in shown:
                seen[number].append((frame, box, visible))
    return SampleTruth(fps, width, height, count, tuple(_tracks(actors, seen)))


def _photo() -> Image:
    # find_spec does not import the package, which would load torch.
    spec = importlib.util.find_spec("ultralytics")
    folders = list(spec.submodule_search_locations or []) if spec else []
    image = cv2.imread(str(Path(folders[0]) / "assets" / "bus.jpg")) if folders else None
    if image is None:
        raise StorageError(
            "The photograph of the ultralytics package is missing.", "Reinstall: `pip install ultralytics`."
        )
    return np.asarray(image, np.uint8)


def _background(photo: Image) -> Image:
    """A street without people: the house front and the pavement of the photograph, put together anew."""
    seam = 352
    front = cv2.resize(photo[0:224, :], (_WIDTH, seam), interpolation=cv2.INTER_CUBIC)
    front = cv2.GaussianBlur(front, (0, 0), 3.0)  # out of focus, as behind people who are in focus
    ground = cv2.resize(photo[930:1076, 60:], (_WIDTH, _HEIGHT - seam), interpolation=cv2.INTER_CUBIC)
    ground = cv2.GaussianBlur(ground, (0, 0), 1.2)
    street = np.concatenate([front, ground]).astype(np.float32)
    # A kerb: the house stands on a strip of grey stone that fades into shade.
    rows = np.arange(_HEIGHT, dtype=np.float32)
    shade = 1 - 0.45 * np.exp(-(((rows - seam) / 22) ** 2))
    street *= shade[:, None, None]
    street[seam - 16 : seam + 4] = 0.35 * street[seam - 16 : seam + 4] + 0.65 * np.array((118, 122, 128), np.float32)
    street = cv2.GaussianBlur(street, (0, 0), 0.8)
    return np.asarray(np.clip(street, 0, 255), np.uint8)


def _cut(photo: Image, origin: Sequence[int], outline: Sequence[Sequence[int]]) -> tuple[_Float, _Float]:
    """What is inside an outline: BGR and alpha."""
    points = np.array(outline, np.float64) / 2 + origin
    left, top = np.maximum(np.floor(points.min(axis=0)).astype(int) - 4, 0)
    right, bottom = np.ceil(points.max(axis=0)).astype(int) + 4
    mask = np.zeros(photo.shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.round(points * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    soft = cv2.GaussianBlur(mask, (0, 0), 0.9)[top:bottom, left:right].astype(np.float32) / 255
    # The outer half of the soft edge still shows the old background: leave it out.
    alpha = np.clip((soft - 0.35) / 0.6, 0, 1).astype(np.float32)
    return photo[top:bottom, left:right].astype(np.float32), alpha


def _cast(photo: Image, phases: _Matrix) -> Iterator[_Actor]:
    """All objects, the farthest first. Of the bus only the rear half is free of people; its front stays outside."""
    scene = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    mask = np.zeros(photo.shape[:2], np.uint8)
    for x0, y0, x1, y1 in _BEFORE_BUS:
        mask[y0:y1, x0:x1] = 255
    clean = np.asarray(cv2.inpaint(photo, mask, 7, cv2.INPAINT_TELEA), np.uint8)
    people = 0
    for each in scene["cast"]:
        walks = each.get("walks", True)
        bgr, alpha = _cut(photo if walks else clean, *scene["outlines"][each["outline"]].values())
        if each.get("flip"):
            bgr, alpha = np.ascontiguousarray(bgr[:, ::-1]), np.ascontiguousarray(alpha[:, ::-1])
        if tint := each.get("tint"):  # other light and dye: blue, green and red multiplied
            bgr = np.clip(bgr * np.array(tint, np.float32), 0, 255)
        phase = float(phases[people]) if walks else 0.0
        people += walks
        yield _Actor(each["label"], bgr, alpha, each["height"], np.array(each["way"], np.float64), walks, phase)


def _draw(
    share: float, time: float, scale: _Matrix, background: _Float, actors: Sequence[_Actor]
) -> tuple[Image, list[tuple[int, _Float, float]]]:
    """One picture, and of the actors on it their numbers, boxes and the shares of them that are to be seen."""
    canvas = background.copy()
    # Who is in front, for each pixel: the number of the actor, or -1.
    owner = np.full(canvas.shape[:2], -1, np.int8)
    placed: dict[int, _Placed] = {}
    for number, actor in enumerate(actors):
        if not actor.way[0, 0] <= share <= actor.way[-1, 0]:
            continue
        layer = _place(actor, scale @ _pose(actor, share, time), canvas.shape[1], canvas.shape[0])
        if layer is None:
            continue
        _shadow(canvas, actor, share, scale)
        part = canvas[layer.region]
        part += (layer.bgr - part) * layer.alpha[..., None]
        owner[layer.region][layer.alpha > 0.5] = number
        placed[number] = layer
    shown = [
        (number, layer.box, min(1.0, np.count_nonzero(owner[layer.region] == number) / layer.whole))
        for number, layer in placed.items()
        if layer.pixels >= _MIN_VISIBLE * layer.whole
    ]
    return np.asarray(np.clip(canvas + 0.5, 0, 255), np.uint8), shown


def _pose(actor: _Actor, share: float, time: float) -> _Matrix:
    """``(3, 3)`` matrix from cut-out pixels to the scene: upright at its foot point, swaying with each step."""
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


def _place(actor: _Actor, matrix: _Matrix, width: int, height: int) -> _Placed | None:
    """Put an actor into a frame of the given size; ``None`` where nothing of it is inside."""
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
    return _Placed(
        region=(slice(int(top), int(bottom)), slice(int(left), int(right))),
        bgr=np.asarray(cv2.warpAffine(actor.bgr, local, size), np.float32),
        alpha=alpha,
        box=np.array([left + xs.min(), top + ys.min(), left + xs.max() + 1, top + ys.max() + 1], np.float32),
        pixels=len(ys),
        whole=float(np.count_nonzero(actor.alpha > 0.5)) * abs(float(np.linalg.det(matrix[:2, :2]))),
    )


def _shadow(canvas: _Float, actor: _Actor, share: float, scale: _Matrix) -> None:
    """Darken the ground softly under an object: without it, it would float."""
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


def _tracks(actors: Sequence[_Actor], seen: list[list[tuple[int, _Float, float]]]) -> Iterator[Track]:
    for number, (actor, notes) in enumerate(zip(actors, seen, strict=True)):
        if not notes:
            continue
        frames, boxes, visible = zip(*notes, strict=True)
        yield Track(
            track_id=number + 1,
            frames=np.array(frames, np.int64),
            xyxy=np.stack(boxes).astype(np.float32),
            conf=np.array(visible, np.float32),
            class_scores={actor.label: float(np.sum(visible))},
            label=actor.label,
            score=1.0,
        )
