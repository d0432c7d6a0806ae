"""How a training is set up: what suits the amount of data, and what may be set by hand."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from ml_backend.errors import ConfigError

#: Fewer annotated objects than this, or fewer pictures, are few: the backbone, which has seen a million objects,
#: learns nothing from them but forgets. Frames of one track hardly differ, so tracks count, not boxes.
FEW_TRACKS = 150
FEW_PICTURES = 500
#: Pictures gone through in all epochs together, by device: a quarter of an hour on a slow CPU, minutes on a GPU.
PASSES = {"cpu": 3000, "mps": 10_000, "cuda": 40_000}
#: Fewest and most epochs.
EPOCHS = {"cpu": (10, 40), "mps": (20, 60), "cuda": (30, 100)}
#: Share of the free GPU memory that a batch may take; serving needs some too.
GPU_SHARE = 0.6
#: Pictures at once without a GPU: each takes 0.35 GB of main memory at 640 pixels, and more at once are no faster.
CPU_BATCH = 8
#: Marks all layers before the head's neck, however many the model has; resolved when the model is known.
BACKBONE = "backbone"
#: An argument of our own: normalisation statistics stay those of the start checkpoint.
FREEZE_NORM = "freeze_norm"

Check = Callable[[object], bool]


def _number(low: float, high: float) -> tuple[str, Check]:
    def check(value: object) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high

    return f"a number from {low:g} to {high:g}", check


def _whole(low: int, high: int) -> tuple[str, Check]:
    def check(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    return f"a whole number from {low} to {high}", check


def _one_of(*values: object) -> tuple[str, Check]:
    words = ", ".join(str(value).lower() if isinstance(value, bool) else repr(value) for value in values)
    return f"one of {words}", lambda value: any(value is v or (isinstance(v, str) and value == v) for v in values)


def _batch(value: object) -> bool:
    return _whole(1, 1024)[1](value) or (isinstance(value, float) and 0 < value < 1)


def _scale(value: object) -> bool:
    one = _number(0, 1)[1]
    pair = isinstance(value, (list, tuple)) and len(value) == 2 and all(_number(0, 4)[1](v) for v in value)
    return one(value) or pair


def _freeze(value: object) -> bool:
    layer = _whole(0, 1000)[1]
    layers = isinstance(value, list) and all(layer(v) for v in value)
    return value is None or value == BACKBONE or layer(value) or layers


_UNIT, _YES_NO = _number(0, 1), _one_of(True, False)

#: What may be set by hand, with what it must be: hyper-parameters and augmentations of ultralytics' detection
#: training. Whatever chooses files, devices or code is not among them, nor what would break a part of this package.
OPTIONS: dict[str, tuple[str, Check]] = {
    "epochs": _whole(1, 10_000),
    "time": _number(0.01, 1000),  # hours
    "patience": _whole(0, 10_000),
    "batch": ("a whole number from 1 to 1024, or a share of the free GPU memory between 0 and 1", _batch),
    "imgsz": _whole(32, 4096),
    "workers": _whole(0, 64),
    "cache": _YES_NO,
    "optimizer": _one_of("SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSProp", "MuSGD", "auto"),
    "seed": _whole(0, 2**31 - 1),
    "deterministic": _YES_NO,
    "rect": _YES_NO,
    "cos_lr": _YES_NO,
    "close_mosaic": _whole(0, 10_000),
    "amp": _one_of(True, False, "fp16", "bf16", "fp32"),
    "freeze": ("null, the word backbone, a number of layers or a list of layers", _freeze),
    FREEZE_NORM: _YES_NO,
    "multi_scale": _UNIT,
    "max_det": _whole(1, 3000),
    "iou": _UNIT,
    "lr0": _UNIT,
    "lrf": _UNIT,
    "momentum": _UNIT,
    "weight_decay": _UNIT,
    "warmup_epochs": _number(0, 1000),
    "warmup_momentum": _UNIT,
    "warmup_bias_lr": _UNIT,
    "nbs": _whole(1, 1024),
    "box": _number(0, 1000),
    "cls": _number(0, 1000),
    "dfl": _number(0, 1000),
    "cls_pw": _UNIT,
    "hsv_h": _UNIT,
    "hsv_s": _UNIT,
    "hsv_v": _UNIT,
    "degrees": _number(0, 180),
    "translate": _UNIT,
    "scale": ("a number from 0 to 1, or the smallest and the largest factor", _scale),
    "shear": _number(0, 90),
    "perspective": _number(0, 0.001),
    "flipud": _UNIT,
    "fliplr": _UNIT,
    "bgr": _UNIT,
    "mosaic": _UNIT,
    "mixup": _UNIT,
    "cutmix": _UNIT,
}


def check_overrides(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides, if all may be set and have values that make sense.

    Raises:
        ConfigError: naming what is wrong, and what may be set.
    """
    for name, value in overrides.items():
        if name not in OPTIONS:
            near = difflib.get_close_matches(str(name), OPTIONS, 1)
            raise ConfigError(
                f"{name!r} cannot be set for a training{f' (did you mean {near[0]}?)' if near else ''}.",
                f"These can: {', '.join(sorted(OPTIONS))}.",
            )
        wanted, good = OPTIONS[name]
        if not good(value):
            raise ConfigError(f"The training argument {name}={value!r} is wrong.", f"It is {wanted}.")
    return dict(overrides)


def training_args(
    pictures: int,
    boxes: int,
    tracks: int,
    device_type: str,
    imgsz: int,
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Arguments of ultralytics' training that suit the data.

    Args:
        pictures: to train on.
        boxes: on them.
        tracks: different objects among them.
        device_type: ``"cpu"``, ``"cuda"`` or ``"mps"``.
        imgsz: longer side of the network's input, pixels.
        overrides: what somebody wants differently; see :data:`OPTIONS`.

    Raises:
        ConfigError: an override is none that may be set.
    """
    given = check_overrides(overrides or {})
    few = tracks < FEW_TRACKS or pictures < FEW_PICTURES
    fewest, most = EPOCHS.get(device_type, EPOCHS["cpu"])
    epochs = min(max(round(PASSES.get(device_type, PASSES["cpu"]) / max(pictures, 1)), fewest), most)
    args: dict[str, Any] = {
        "imgsz": imgsz,
        "epochs": epochs,
        "patience": max(10, epochs // 3),
        "batch": GPU_SHARE if device_type == "cuda" else min(CPU_BATCH, batch_for(pictures)),
        "nbs": batch_for(pictures),  # a step for each batch: there are not many batches
        "workers": 4 if device_type == "cuda" else 0,
        "optimizer": "AdamW",
        "lr0": 1e-3,  # on 20 pictures 5e-4 needs twice the epochs, 2e-3 gains nothing
        "lrf": 0.05,
        "weight_decay": 5e-4,
        "warmup_epochs": 3.0,
        "warmup_bias_lr": 0.0,
        "freeze": BACKBONE if few else None,
        FREEZE_NORM: few,  # 20 pictures: mAP50-95 0.66 instead of 0.55 after as many epochs
        "cos_lr": True,
        "close_mosaic": max(1, epochs // 3),
        "seed": 0,
        "deterministic": True,
        "rect": False,
    }
    args.update(given)
    if "close_mosaic" not in given:
        args["close_mosaic"] = max(1, int(args["epochs"]) // 3)
    if "nbs" not in given and isinstance(args["batch"], int):
        args["nbs"] = args["batch"]
    return args


def batch_for(pictures: int) -> int:
    """Pictures a step: at least four steps an epoch where they suffice, since few steps teach little."""
    return next((size for size in (16, 8) if pictures >= 4 * size), 4)
