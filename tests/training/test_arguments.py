"""How trainings are set up."""

from __future__ import annotations

import pytest

from ml_backend.core.errors import ConfigError
from ml_backend.training.arguments import BACKBONE, FREEZE_NORM, Overrides, training_args


def test_little_data_changes_little_of_the_model() -> None:
    args = training_args(20, 12, "cpu", 640)
    assert args["freeze"] == BACKBONE
    assert args[FREEZE_NORM] is True
    assert args["optimizer"] == "AdamW"
    assert args["lr0"] <= 1e-3
    assert args["warmup_epochs"] > 0
    assert args["batch"] == 4
    assert args["imgsz"] == 640


def test_much_data_may_change_all_of_it() -> None:
    args = training_args(5000, 900, "cuda", 640)
    assert args["freeze"] is None
    assert args[FREEZE_NORM] is False
    assert 0 < args["batch"] < 1  # of the free memory


def test_many_frames_of_few_objects_are_little_data() -> None:
    assert training_args(5000, 20, "cuda", 640)["freeze"] == BACKBONE


def test_epochs_follow_the_amount_of_data_and_the_device() -> None:
    few, many = (training_args(n, n, "cpu", 640)["epochs"] for n in (20, 2000))
    assert few > many >= 10
    assert training_args(2000, 2000, "cuda", 640)["epochs"] > many


def test_what_is_given_holds_and_what_depends_on_it_follows() -> None:
    args = training_args(20, 12, "cpu", 640, {"epochs": 9, "batch": 2, "mosaic": 0.5, "degrees": 5, "freeze": 3})
    assert (args["epochs"], args["batch"], args["mosaic"], args["degrees"], args["freeze"]) == (9, 2, 0.5, 5, 3)
    assert args["nbs"] == 2
    assert args["close_mosaic"] < 9


@pytest.mark.parametrize(
    "name",
    [
        "model",
        "data",
        "project",
        "name",
        "save_dir",
        "cfg",
        "resume",
        "pretrained",
        "distill_model",
        "exist_ok",
        "task",
        "mode",
        "device",
        "augmentations",
        "plots",
        "single_cls",
        "source",
        "tracker",
        "__class__",
    ],
)
def test_names_that_choose_files_code_or_devices_are_refused(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        training_args(20, 12, "cpu", 640, {name: "x"})
    assert repr(name) in caught.value.message
    assert all(option in caught.value.hint for option in Overrides.__annotations__)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("epochs", True),
        ("epochs", "10"),
        ("lr0", -1),
        ("lr0", float("nan")),
        ("batch", 0.0),
        ("batch", 1.5),
        ("optimizer", "os.system"),
        ("freeze", "all"),
        ("scale", [0.5]),
        ("amp", 1),
        ("mosaic", None),
    ],
)
def test_values_that_make_no_sense_are_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        training_args(20, 12, "cpu", 640, {name: value})


def test_a_typing_error_is_guessed() -> None:
    with pytest.raises(ConfigError, match="mosaic"):
        training_args(20, 12, "cpu", 640, {"mozaic": 1.0})


def test_every_option_is_one_of_ultralytics() -> None:
    from ml_backend.detectors.setup import setup_ultralytics

    setup_ultralytics()
    from ultralytics.cfg import check_cfg
    from ultralytics.utils import DEFAULT_CFG_DICT

    assert set(Overrides.__annotations__) - {FREEZE_NORM} <= set(DEFAULT_CFG_DICT)
    for pictures, tracks, device in ((20, 5, "cpu"), (5000, 900, "cuda")):
        args = training_args(pictures, tracks, device, 640)
        check_cfg({name: value for name, value in args.items() if name != FREEZE_NORM})
