"""Training arguments: defaults that suit the amount of data, and validation of overrides."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from ml_backend.core.errors import ConfigError

#: Below these numbers the backbone is frozen: it has seen a million objects and would only forget. Frames of one
#: track hardly differ, so tracks are counted, not boxes.
FEW_TRACKS = 150
FEW_IMAGES = 500
#: Training images processed over all epochs, by device: half an hour on a slow CPU with replay, minutes on a GPU.
PASSES = {"cpu": 3000, "mps": 10_000, "cuda": 40_000}
#: Fewest and most epochs.
EPOCHS = {"cpu": (10, 40), "mps": (20, 60), "cuda": (30, 100)}
#: Share of the free GPU memory that a batch may take; predictions need some too.
GPU_SHARE = 0.6
#: Batch size without a GPU: each image takes 0.35 GB of main memory at 640 pixels, half as many replay images come on
#: top, and larger batches are no faster.
CPU_BATCH = 8
#: Value of ``freeze`` for all backbone layers; resolved to their number when the model is known.
BACKBONE = "backbone"
#: Our own argument: BatchNorm statistics stay those of the start checkpoint.
FREEZE_NORM = "freeze_norm"

_Unit = Annotated[float, Field(ge=0, le=1)]
_Layer = Annotated[int, Field(ge=0, le=1000)]


class Overrides(TypedDict, total=False):
    """Training arguments that may be set by hand: hyper-parameters and augmentations of ultralytics' training.

    Arguments that choose files, devices or code are left out on purpose, and so are those that would break a part of
    this package.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)  # type: ignore[misc]

    epochs: Annotated[int, Field(ge=1, le=10_000)]
    time: Annotated[float, Field(ge=0.01, le=1000)]  # hours
    patience: Annotated[int, Field(ge=0, le=10_000)]
    batch: Annotated[int, Field(ge=1, le=1024)] | Annotated[float, Field(gt=0, lt=1)]
    imgsz: Annotated[int, Field(ge=32, le=4096)]
    workers: Annotated[int, Field(ge=0, le=64)]
    cache: bool
    optimizer: Literal["SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSProp", "MuSGD", "auto"]
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    deterministic: bool
    rect: bool
    cos_lr: bool
    close_mosaic: Annotated[int, Field(ge=0, le=10_000)]
    amp: bool | Literal["fp16", "bf16", "fp32"]
    freeze: Literal["backbone"] | _Layer | list[_Layer] | None
    freeze_norm: bool
    multi_scale: _Unit
    max_det: Annotated[int, Field(ge=1, le=3000)]
    iou: _Unit
    lr0: _Unit
    lrf: _Unit
    momentum: _Unit
    weight_decay: _Unit
    warmup_epochs: Annotated[float, Field(ge=0, le=1000)]
    warmup_momentum: _Unit
    warmup_bias_lr: _Unit
    nbs: Annotated[int, Field(ge=1, le=1024)]
    box: Annotated[float, Field(ge=0, le=1000)]
    cls: Annotated[float, Field(ge=0, le=1000)]
    dfl: Annotated[float, Field(ge=0, le=1000)]
    cls_pw: _Unit
    hsv_h: _Unit
    hsv_s: _Unit
    hsv_v: _Unit
    degrees: Annotated[float, Field(ge=0, le=180)]
    translate: _Unit
    scale: _Unit | Annotated[list[Annotated[float, Field(ge=0, le=4)]], Field(min_length=2, max_length=2)]
    shear: Annotated[float, Field(ge=0, le=90)]
    perspective: Annotated[float, Field(ge=0, le=0.001)]
    flipud: _Unit
    fliplr: _Unit
    bgr: _Unit
    mosaic: _Unit
    mixup: _Unit
    cutmix: _Unit


def check_overrides(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Validate overrides and return them.

    Raises:
        ConfigError: an argument may not be set or has an invalid value; names the allowed ones.
    """
    try:
        TypeAdapter(Overrides).validate_python(dict(overrides))
    except ValidationError as error:
        first, *others = error.errors()
        name = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(name, Overrides.__annotations__, 1)
            raise ConfigError(
                f"{name!r} cannot be set for a training{f' (did you mean {near[0]}?)' if near else ''}.",
                f"These can: {', '.join(sorted(Overrides.__annotations__))}.",
            ) from error
        wrong = "; or ".join(item["msg"] for item in (first, *others) if item["loc"][0] == name)
        raise ConfigError(
            f"The training argument {name}={overrides[name]!r} is wrong: {wrong}.", "Correct TRAIN_ARGS."
        ) from error
    return dict(overrides)


def training_args(
    images: int,
    tracks: int,
    device_type: str,
    imgsz: int,
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return arguments for ultralytics' training that suit the data.

    Args:
        images: number of training images.
        tracks: number of distinct objects on them.
        device_type: ``"cpu"``, ``"cuda"`` or ``"mps"``.
        imgsz: longer side of the network's input, pixels.
        overrides: values that replace the defaults; see :class:`Overrides`.

    Raises:
        ConfigError: an override may not be set or has an invalid value.
    """
    given = check_overrides(overrides or {})
    few = tracks < FEW_TRACKS or images < FEW_IMAGES
    fewest, most = EPOCHS.get(device_type, EPOCHS["cpu"])
    epochs = min(max(round(PASSES.get(device_type, PASSES["cpu"]) / max(images, 1)), fewest), most)
    args: dict[str, Any] = {
        "imgsz": imgsz,
        "epochs": epochs,
        "patience": max(10, epochs // 3),
        "batch": GPU_SHARE if device_type == "cuda" else min(CPU_BATCH, batch_for(images)),
        "nbs": batch_for(images),  # one optimizer step per batch: there are few batches
        "workers": 4 if device_type == "cuda" else 0,
        "optimizer": "AdamW",
        "lr0": 1e-3,  # on 20 images 5e-4 needs twice the epochs, 2e-3 gains nothing
        "lrf": 0.05,
        "weight_decay": 5e-4,
        "warmup_epochs": 3.0,
        "warmup_bias_lr": 0.0,
        "freeze": BACKBONE if few else None,
        FREEZE_NORM: few,  # 20 images: mAP50-95 0.66 instead of 0.55 after as many epochs
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


def batch_for(images: int) -> int:
    """Return a batch size that gives at least four optimizer steps an epoch, if there are enough images."""
    return next((size for size in (16, 8) if images >= 4 * size), 4)
