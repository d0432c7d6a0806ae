"""The version string changes exactly when predictions would."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ml_backend.core.settings import Settings
from ml_backend.detectors.weights import MOTION, ResolvedDetector
from ml_backend.labeling.model_version import PARTIAL, is_outdated, is_partial, model_version, same_kind

YOLO = ResolvedDetector("yolo", "yolo11n", Path("/w/yolo11n.pt"), "3f2a91c0" + "0" * 56)


def test_names_what_made_the_prediction(settings: Callable[..., Settings]) -> None:
    version = model_version(settings(mode="yolo"), YOLO)
    assert re.fullmatch(r"yolo11n-3f2a91c0\.tracktrack-[0-9a-f]{4}\.yolo\.base", version)
    assert model_version(settings(), YOLO, "universal-1a2b3c4d").endswith(".universal-1a2b3c4d.base")
    assert model_version(settings(), MOTION).startswith("motion.tracktrack-")
    assert model_version(settings(), YOLO, registry="p7-v3").endswith(".p7-v3")


@pytest.mark.parametrize(
    "change",
    [
        {"imgsz": 960},
        {"conf": 0.2},
        {"tracker": "botsort"},
        {"min_track_s": 1.0},
        {"keyframe_iou": 0.95},
    ],
)
def test_other_settings_that_shape_boxes_are_another_version(
    settings: Callable[..., Settings], change: dict[str, object]
) -> None:
    assert model_version(settings(**change), YOLO) != model_version(settings(), YOLO)


@pytest.mark.parametrize("change", [{"batch": 1}, {"device": "cpu"}, {"redis_url": "redis://x"}])
def test_settings_that_do_not_shape_boxes_are_not(settings: Callable[..., Settings], change: dict[str, object]) -> None:
    assert model_version(settings(**change), YOLO) == model_version(settings(), YOLO)


@pytest.mark.parametrize("change", [{"precision": "int8"}, {"precision": "fp32"}, {"engine": "torch"}])
def test_tasks_are_not_predicted_again_when_an_engine_takes_over(
    settings: Callable[..., Settings], change: dict[str, object]
) -> None:
    """An engine must find the same sure boxes to be used, and takes over in the middle of a project."""
    assert model_version(settings(**change), YOLO) == model_version(settings(), YOLO)


def test_other_weights_under_the_same_name_are_another_version(settings: Callable[..., Settings]) -> None:
    other = ResolvedDetector("yolo", "yolo11n", Path("/w/yolo11n.pt"), "4" * 64)
    assert model_version(settings(), other) != model_version(settings(), YOLO)


def test_odd_file_names_stay_readable(settings: Callable[..., Settings]) -> None:
    odd = ResolvedDetector("yolo", "mein modell (v2).best/é", Path("/w/x.pt"), "a" * 64)
    version = model_version(settings(), odd)
    assert re.fullmatch(r"[A-Za-z0-9_.\-]+", version)
    assert len(version) < 255
    assert version.count(".") == 3


def test_same_kind_differs_only_in_what_was_learned() -> None:
    version = "yolo11n-a.tracktrack-b.yolo_dinov2-1234.base"
    for other in (
        "yolo11n-a.tracktrack-b.yolo_dinov2.base",
        "yolo11n-a.tracktrack-b.yolo_dinov2-5678.base",
        "yolo11n-c.tracktrack-b.yolo_dinov2-1.v2",
    ):
        assert same_kind(version, other)
        assert same_kind(other, version)
    assert same_kind("motion.tracktrack-b.yolo_dinov2.base", "yolo11n-c.tracktrack-b.yolo_dinov2-1.v2")
    for other in (
        version,
        "yolo11n-a.tracktrack-b.yolo.base",
        "yolo11n-a.tracktrack-b.yolo_clip-1234.base",
        "yolo11n-a.tracktrack-c.yolo_dinov2-1.base",
        "yolo11n-c.tracktrack-b.yolo_dinov2-1.base",
        "motion.tracktrack-b.yolo_dinov2-1.base",
        "somebody else's",
        "",
    ):
        assert not same_kind(version, other)


def test_what_takes_the_place_of_what() -> None:
    version = "yolo11n-3f2a91c0.tracktrack-9c1e.yolo_dinov2-1b2c3d4e.base"
    learned = "yolo11n-3f2a91c0.tracktrack-9c1e.yolo_dinov2-5f6a7b8c.base"
    foreign = "yolo11n-3f2a91c0.botsort-77aa.yolo.base"
    assert is_outdated(version, learned)
    assert not is_outdated(version, foreign)
    assert not is_outdated(version, version)
    for part in (version, learned, foreign):
        assert is_partial(part + PARTIAL)
        assert is_outdated(version, part + PARTIAL)
        assert not is_partial(part)
