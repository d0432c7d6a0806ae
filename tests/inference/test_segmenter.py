"""Masks of boxes by tiny models with random weights, saved in their real formats."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ml_backend.core.boxes import iou_matrix
from ml_backend.core.errors import BackendError, ConfigError, WeightsError
from ml_backend.core.settings import Settings
from ml_backend.core.types import BoolArray
from ml_backend.detectors.setup import setup_ultralytics
from ml_backend.inference.segmenter import use_segmenter
from tests.builders import make_tiny_yolo
from tests.tiny_sam import save_tiny_first_sam, save_tiny_sam

KINDS = ("sam", "sam2_video", "edgetam_video", "sam3_tracker_video")
Make = Callable[..., Settings]
IMAGE = np.random.default_rng(0).integers(0, 255, (90, 160, 3), np.uint8)
BOXES = np.array([[10 + 4.5 * n, 5.5 + n, 60 + 4.5 * n, 50 + n] for n in range(18)])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {kind: save_tiny_sam(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS[1:]}
    return made | {"sam": save_tiny_first_sam(tmp_path_factory.mktemp("sam"))}


def assert_inside(masks: BoolArray, xyxy: np.ndarray) -> None:
    for mask, (x1, y1, x2, y2) in zip(masks, xyxy, strict=True):
        rows, columns = np.nonzero(mask)
        assert ((rows >= np.floor(y1)) & (rows < np.ceil(y2))).all()
        assert ((columns >= np.floor(x1)) & (columns < np.ceil(x2))).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_for_each_box(folders: dict[str, Path], settings: Make, kind: str) -> None:
    with use_segmenter(settings(segmenter=str(folders[kind]), device="cpu")) as segmenter:
        masks = segmenter.segment(IMAGE, BOXES)
        assert (masks.shape, masks.dtype) == ((18, 90, 160), bool)
        assert_inside(masks, BOXES)
        assert masks.any(axis=(1, 2)).any(), "random, but not nothing"
        last = segmenter.segment(IMAGE, BOXES[-1:])
        assert (last[0] == masks[-1]).mean() > 0.99, "whichever boxes come before"
        assert segmenter.segment(IMAGE, np.zeros((0, 4))).shape == (0, 90, 160)
        assert segmenter.name == json.loads((folders[kind] / "config.json").read_text())["model_type"]


def test_yolo_gives_each_box_the_instance_that_fits_it(settings: Make, tmp_path: Path) -> None:
    weights = make_tiny_yolo(tmp_path / "own-seg.pt", {0: "person"}, masks=True)
    setup_ultralytics()
    from ultralytics import YOLO

    image = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
    (found,) = YOLO(weights).predict(image, imgsz=640, conf=0.05, retina_masks=True, verbose=False, device="cpu")
    boxes, own = found.boxes.xyxy.numpy().astype(np.float64), found.masks.data.numpy() > 0
    assert len(boxes) > 1
    asked = np.concatenate([boxes[::-1], [[0, 0, 3, 3]]])
    assert iou_matrix(boxes, asked[-1:]).max() < 0.5
    with use_segmenter(settings(segmenter=str(weights), device="cpu")) as segmenter:
        masks = segmenter.segment(image, asked)
    assert_inside(masks, asked)
    assert masks.any(axis=(1, 2)).tolist() == [True] * len(boxes) + [False], "nothing is found at the last one"
    for mask, instance in zip(masks, own[::-1], strict=False):
        assert (mask & instance).sum() / (mask | instance).sum() > 0.95


@pytest.mark.slow
def test_ultralytics_files_of_sam_are_told_by_their_names(settings: Make, tmp_path: Path) -> None:
    setup_ultralytics()
    import torch
    from ultralytics.models.sam.build import build_mobile_sam

    torch.manual_seed(0)
    torch.save(build_mobile_sam().state_dict(), tmp_path / "mobile_sam.pt")
    with use_segmenter(settings(segmenter=str(tmp_path / "mobile_sam.pt"), device="cpu")) as segmenter:
        masks = segmenter.segment(IMAGE, BOXES[:2])
    assert masks.shape == (2, 90, 160)
    assert_inside(masks, BOXES[:2])
    shutil.move(tmp_path / "mobile_sam.pt", tmp_path / "renamed.pt")
    with pytest.raises(WeightsError, match="keep its name"):
        use_segmenter(settings(segmenter=str(tmp_path / "renamed.pt"), device="cpu")).__enter__()


def test_what_is_missing_or_wrong_is_said(folders: dict[str, Path], settings: Make, tmp_path: Path) -> None:
    def refusal(model: Path | str) -> BackendError:
        with (
            pytest.raises(BackendError) as caught,
            use_segmenter(settings(segmenter=str(model), device="cpu")),
        ):
            pass
        return caught.value

    unset = refusal("")
    assert isinstance(unset, ConfigError)
    assert (unset.message, "SEGMENTER" in unset.hint) == ("Masks are made by a model, and SEGMENTER is not set.", True)
    assert "is not available" in refusal("facebook/sam2.1-hiera-tiny").message
    assert "does not exist" in refusal(tmp_path / "nowhere").message
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "dinov2"}')
    assert "makes no masks" in refusal(other).message
    detector = make_tiny_yolo(tmp_path / "own.pt", {0: "person"})
    assert "has no masks" in refusal(detector).message
    (tmp_path / "broken.pt").write_bytes(b"no checkpoint")
    assert "cannot be loaded by ultralytics" in refusal(tmp_path / "broken.pt").message
    folder = shutil.copytree(folders["sam2_video"], tmp_path / "model")
    for file in folder.glob("*processor*.json"):  # makes images of another size than the network takes
        file.write_text(file.read_text().replace("128", "64"))
    assert "failed to make masks" in refusal(folder).message
