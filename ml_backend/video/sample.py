"""The demo clip: people (and a bus) cut out of a photograph walk over a still street, with known ground truth.

The photograph is ``assets/bus.jpg`` of the installed ultralytics package, so that no picture has to be shipped. The
camera stands still and every frame is empty of objects at first, so that background subtraction works as well as a
detector. Nothing is random: the same arguments give the same pictures.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from ml_backend.errors import StorageError
from ml_backend.types import Image, Track
from ml_backend.video.writer import VideoWriter

_Float = npt.NDArray[np.float32]
_Points = tuple[tuple[float, float], ...]
# The scene is laid out for this size and scaled to the one asked for.
_WIDTH, _HEIGHT = 1280, 720
_HORIZON = 215.0  # a person standing at row y is y - _HORIZON pixels high
# Less of an object than this inside the frame is no ground truth: nobody would draw a box around it.
_MIN_VISIBLE = 0.1

# Outlines drawn by hand, in twice the photograph's pixels, relative to an origin in the photograph.
_LIGHT_COAT: tuple[tuple[int, int], _Points] = (
    (30, 382),
    (
        (150, 105), (146, 75), (160, 45), (190, 34), (220, 37), (247, 47), (252, 70), (250, 100), (240, 140),
        (232, 162), (234, 180), (258, 190), (284, 216), (288, 240), (299, 266), (306, 298), (328, 324), (338, 350),
        (336, 395), (325, 412), (300, 428), (299, 445), (306, 470), (315, 510), (322, 560), (324, 612), (316, 619),
        (299, 618), (300, 650), (306, 720), (309, 790), (320, 850), (338, 910), (341, 930), (346, 944), (362, 962),
        (398, 971), (426, 985), (431, 1000), (420, 1010), (380, 1018), (330, 1030), (297, 1033), (292, 1020),
        (295, 990), (297, 972), (290, 945), (276, 900), (259, 850), (246, 790), (231, 720), (219, 690), (200, 657),
        (180, 642), (171, 690), (157, 740), (124, 792), (117, 830), (112, 885), (107, 935), (112, 950), (123, 975),
        (147, 1000), (152, 1020), (147, 1032), (110, 1034), (75, 1021), (50, 1004), (43, 990), (49, 965), (57, 950),
        (59, 920), (63, 880), (74, 858), (97, 838), (98, 790), (93, 740), (88, 690), (87, 634), (63, 631), (58, 600),
        (60, 540), (65, 470), (71, 410), (62, 370), (61, 347), (70, 338), (68, 290), (65, 240), (76, 216), (100, 200),
        (124, 187), (137, 165), (137, 145), (150, 136),
    ),
)  # fmt: skip
_DARK_COAT: tuple[tuple[int, int], _Points] = (
    (208, 390),
    (
        (115, 70), (119, 50), (135, 39), (160, 36), (180, 41), (189, 55), (191, 80), (199, 97), (195, 120), (187, 145),
        (181, 170), (199, 183), (214, 196), (243, 206), (250, 225), (253, 260), (262, 285), (267, 310), (259, 333),
        (246, 348), (228, 360), (229, 390), (235, 450), (242, 520), (250, 580), (252, 600), (258, 607), (260, 640),
        (259, 660), (247, 680), (222, 704), (194, 732), (169, 764), (152, 783), (160, 810), (174, 830), (181, 848),
        (172, 859), (152, 850), (144, 834), (136, 868), (141, 885), (155, 908), (167, 925), (164, 933), (130, 933),
        (102, 924), (99, 900), (100, 870), (94, 855), (88, 800), (79, 700), (74, 640), (75, 625), (41, 620), (38, 605),
        (50, 540), (64, 460), (68, 410), (60, 398), (59, 370), (62, 330), (64, 300), (60, 290), (58, 255), (76, 233),
        (104, 217), (119, 190), (133, 172), (134, 150), (124, 122), (116, 100),
    ),
)  # fmt: skip
# Only the rear half of the bus is free of people; its front stays outside the frame.
_BUS: tuple[tuple[int, int], _Points] = (
    (0, 0),
    (
        (690, 478), (800, 482), (1000, 494), (1200, 512), (1400, 530), (1450, 552), (1482, 592), (1494, 612),
        (1500, 660), (1500, 1180), (1496, 1250), (1478, 1300), (1440, 1330), (1400, 1322), (1376, 1300), (1200, 1328),
        (960, 1352), (820, 1372), (690, 1388),
    ),
)  # fmt: skip


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
class _Cutout:
    """A picture with soft edges: ``(h, w, 3)`` and ``(h, w)`` float32 in 0..255 and 0..1."""

    bgr: _Float
    alpha: _Float


@dataclass(frozen=True, slots=True)
class _Actor:
    """An object and its way: foot point (bottom centre) at shares of the clip's length, linear in between."""

    label: str
    cutout: _Cutout
    height: float
    way: tuple[tuple[float, float, float], ...]
    walks: bool = True
    phase: float = 0.0

    def foot(self, share: float) -> tuple[float, float]:
        moments, xs, ys = zip(*self.way, strict=True)
        return float(np.interp(share, moments, xs)), float(np.interp(share, moments, ys))


@dataclass(frozen=True, slots=True)
class _Placed:
    """A cut-out in one frame: its region, picture and mask there, its box, pixels inside and in all."""

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
    actors = _cast(photo, np.random.default_rng(seed).uniform(0, 2 * np.pi, 8))
    seen: list[list[tuple[int, _Float, float]]] = [[] for _ in actors]
    with VideoWriter(path, width, height, fps, crf=21) as writer:
        for frame in range(count):
            writer.write(_draw(frame, frame / count, frame / fps, scale, background, actors, seen))
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


def _cut(photo: Image, origin: tuple[int, int], outline: _Points, flip: bool = False) -> _Cutout:
    points = np.array(outline, np.float64) / 2 + origin
    left, top = np.floor(points.min(axis=0)).astype(int) - 4
    right, bottom = np.ceil(points.max(axis=0)).astype(int) + 4
    left, top = max(0, left), max(0, top)
    mask = np.zeros(photo.shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.round(points * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    soft = cv2.GaussianBlur(mask, (0, 0), 0.9)[top:bottom, left:right].astype(np.float32) / 255
    # The outer half of the soft edge still shows the old background: leave it out.
    alpha = np.clip((soft - 0.35) / 0.6, 0, 1)
    bgr = photo[top:bottom, left:right].astype(np.float32)
    if flip:
        bgr, alpha = bgr[:, ::-1], alpha[:, ::-1]
    return _Cutout(np.ascontiguousarray(bgr), np.ascontiguousarray(alpha, np.float32))


def _tint(cutout: _Cutout, gain: tuple[float, float, float]) -> _Cutout:
    """Other light and dye: blue, green and red multiplied."""
    return _Cutout(np.clip(cutout.bgr * np.array(gain, np.float32), 0, 255), cutout.alpha)


def _clean_bus(photo: Image) -> Image:
    """Paint over the hand and the posts that stand before the bus."""
    mask = np.zeros(photo.shape[:2], np.uint8)
    for x0, y0, x1, y1 in ((716, 532, 760, 600), (654, 618, 698, 672), (422, 652, 466, 700), (744, 480, 756, 660)):
        mask[y0:y1, x0:x1] = 255
    return np.asarray(cv2.inpaint(photo, mask, 7, cv2.INPAINT_TELEA), np.uint8)


def _cast(photo: Image, phases: npt.NDArray[np.float64]) -> list[_Actor]:
    """All objects, the farthest first."""
    light, dark = _cut(photo, *_LIGHT_COAT), _cut(photo, *_DARK_COAT)
    dark_right = _cut(photo, *_DARK_COAT, flip=True)
    bus = _cut(_clean_bus(photo), *_BUS)

    def person(cutout: _Cutout, phase: float, *way: tuple[float, float, float]) -> _Actor:
        return _Actor("person", cutout, way[0][2] - _HORIZON, way, phase=phase)

    return [
        # backs in and drives off again
        _Actor("bus", bus, 270, ((0.06, -170, 440), (0.34, 108, 440), (0.5, 108, 440), (0.72, -180, 440)), walks=False),
        person(_tint(light, (1.0, 0.86, 0.62)), phases[0], (0.05, 1340, 478), (1.0, 430, 478)),
        person(_tint(dark, (1.12, 1.12, 1.2)), phases[1], (0.5, 1340, 505), (1.0, 880, 505)),
        person(dark_right, phases[2], (0.04, -80, 575), (0.9, 1370, 575)),
        person(light, phases[3], (0.1, 1400, 684), (0.86, -130, 684)),
    ]


def _draw(
    frame: int,
    share: float,
    time: float,
    scale: npt.NDArray[np.float64],
    background: _Float,
    actors: list[_Actor],
    seen: list[list[tuple[int, _Float, float]]],
) -> Image:
    """One picture; notes each object's box and visible share in ``seen``."""
    canvas = background.copy()
    # Who is in front, for each pixel: the number of the actor, or -1.
    owner = np.full(canvas.shape[:2], -1, np.int8)
    placed: dict[int, _Placed] = {}
    for number, actor in enumerate(actors):
        if not actor.way[0][0] <= share <= actor.way[-1][0]:
            continue
        layer = _place(actor.cutout, scale @ _pose(actor, share, time), canvas.shape[1], canvas.shape[0])
        if layer is None:
            continue
        _shadow(canvas, actor, share, scale)
        part = canvas[layer.region]
        part += (layer.bgr - part) * layer.alpha[..., None]
        owner[layer.region][layer.alpha > 0.5] = number
        placed[number] = layer
    for number, layer in placed.items():
        if layer.pixels >= _MIN_VISIBLE * layer.whole:
            visible = np.count_nonzero(owner[layer.region] == number) / layer.whole
            seen[number].append((frame, layer.box, min(1.0, visible)))
    return np.asarray(np.clip(canvas + 0.5, 0, 255), np.uint8)


def _pose(actor: _Actor, share: float, time: float) -> npt.NDArray[np.float64]:
    """``(3, 3)`` matrix from cut-out pixels to the scene: upright at its foot point, swaying with each step."""
    rows, columns = actor.cutout.alpha.shape
    zoom = actor.height / rows
    x, y = actor.foot(share)
    step = 2 * np.pi * 0.95 * time + actor.phase
    lean = np.deg2rad(1.1) * np.sin(step) if actor.walks else 0.0
    lift = 0.012 * actor.height * abs(np.sin(step)) if actor.walks else 0.0
    to_foot = np.array([[1, 0, -columns / 2], [0, 1, -rows], [0, 0, 1]])
    turn = zoom * np.array([[np.cos(lean), -np.sin(lean), 0], [np.sin(lean), np.cos(lean), 0], [0, 0, 1 / zoom]])
    result: npt.NDArray[np.float64] = np.array([[1, 0, x], [0, 1, y - lift], [0, 0, 1]]) @ turn @ to_foot
    return result


def _place(cutout: _Cutout, matrix: npt.NDArray[np.float64], width: int, height: int) -> _Placed | None:
    """Put a cut-out into a frame of the given size; ``None`` where nothing of it is inside."""
    rows, columns = cutout.alpha.shape
    corners = matrix[:2] @ np.array([[0, columns, columns, 0], [0, 0, rows, rows], [1, 1, 1, 1]])
    left, top = np.clip(np.floor(corners.min(axis=1)), 0, (width, height)).astype(int)
    right, bottom = np.clip(np.ceil(corners.max(axis=1)), 0, (width, height)).astype(int)
    if right - left < 2 or bottom - top < 2:
        return None
    local = matrix[:2] - np.array([[0, 0, left], [0, 0, top]])
    size = (int(right - left), int(bottom - top))
    alpha = np.asarray(cv2.warpAffine(cutout.alpha, local, size), np.float32)
    ys, xs = np.nonzero(alpha > 0.5)
    if len(ys) == 0:
        return None
    box = np.array([left + xs.min(), top + ys.min(), left + xs.max() + 1, top + ys.max() + 1], np.float32)
    return _Placed(
        region=(slice(int(top), int(bottom)), slice(int(left), int(right))),
        bgr=np.asarray(cv2.warpAffine(cutout.bgr, local, size), np.float32),
        alpha=alpha,
        box=box,
        pixels=len(ys),
        whole=float(np.count_nonzero(cutout.alpha > 0.5)) * abs(float(np.linalg.det(matrix[:2, :2]))),
    )


def _shadow(canvas: _Float, actor: _Actor, share: float, scale: npt.NDArray[np.float64]) -> None:
    """Darken the ground softly under an object: without it, it would float."""
    rows, columns = actor.cutout.alpha.shape
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


def _tracks(actors: list[_Actor], seen: list[list[tuple[int, _Float, float]]]) -> Iterator[Track]:
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
