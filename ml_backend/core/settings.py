"""Every setting, declared once: the only module that reads the environment.

Names follow what Label Studio ML backends already use (``LABEL_STUDIO_URL``, ``BASIC_AUTH_USER``, ...).
A ``.env`` file in the working directory is read too; the environment wins.
"""

from __future__ import annotations

import json
import logging
import os
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from ml_backend.core.errors import ConfigError

log = logging.getLogger(__name__)

Mode = Literal["yolo", "yolo_dinov2", "yolo_clip", "universal"]
EmbedderKind = Literal["auto", "dinov2", "fallback"]
DetectorKind = Literal["auto", "yolo", "motion"]


def _known_engine(value: object) -> object:
    """Say of an engine that earlier releases had that it is gone."""
    if value in ("tensorrt", "coreml"):
        raise ValueError(f"ENGINE={value} was removed, as nobody had tested it; set auto, torch or openvino")
    return value


def _http(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise ValueError("it begins with http:// or https://")
    return value.rstrip("/")


def _redis(value: str) -> str:
    if not value.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("it begins with redis://, rediss:// or unix://")
    return value


def _json_object(value: str) -> str:
    try:
        found = json.loads(value or "{}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError("it is a JSON object")
    return value


def _known_queues(value: tuple[str, ...]) -> tuple[str, ...]:
    if unknown := sorted(set(value) - set(QUEUES)):
        raise ValueError(f"there is no queue {', '.join(unknown)}; they are {', '.join(QUEUES)}")
    return value


def _split(value: object) -> object:
    if isinstance(value, str):
        return tuple(name.strip().lower() for name in value.split(",") if name.strip())
    return value


#: Separated by commas in the environment.
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
#: Absolute, since processes of one stack may be started from different folders.
Folder = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]
EngineKind = Annotated[Literal["auto", "torch", "openvino"], BeforeValidator(_known_engine)]
Precision = Literal["auto", "fp32", "int8"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
#: Queues of jobs in order of priority: preparing a task is short and lets people open it with the right frame rate;
#: what people teach shows within seconds; somebody waits for what is asked for in the control room (imports, exports,
#: rendered videos), but not for a whole library's predictions; whoever has no video helps with another's; labels of
#: known tracks are renewed when nobody waits for anything; a training, which takes minutes, comes last.
QUEUES = ("prepare", "patterns", "control", "predict", "segments", "refresh", "train")
_POLICY = (
    'Set it for each project: in Label Studio by the extra params {{"training": {{"{0}": ...}}}}, or by '
    "scripts/train.py policy --project ID '{{\"{0}\": ...}}'."
)
_FIXED = "Remove it: the value is fixed at {}."
#: Settings of the release before, and what to do about each. To be removed in the next release.
RETIRED = {
    "TRAIN_AUTO": _POLICY.format("auto"),
    "TRAIN_MIN_TRACKS": _POLICY.format("min_tracks"),
    "TRAIN_QUIET_S": _POLICY.format("quiet_s"),
    "TRAIN_EVERY_S": _POLICY.format("every_s"),
    "TRAIN_PSEUDO_LABELS": _POLICY.format("pseudo_labels"),
    "TRAIN_EPOCHS": 'Write TRAIN_ARGS={"epochs": ...} instead.',
    "TRAIN_IMGSZ": 'Write TRAIN_ARGS={"imgsz": ...} instead.',
    "LABEL_STUDIO_TIMEOUT": _FIXED.format("30 s"),
    "MAX_REQUEST_MB": _FIXED.format("64 MB; videos have UPLOAD_MAX_GB"),
    "JOB_TIMEOUT_S": _FIXED.format("a day"),
    "MEDIA_TIMEOUT_S": _FIXED.format("30 s"),
    "EMBED_BATCH": _FIXED.format("32, and less where memory is short"),
    "VIEWS": _FIXED.format("4"),
    "MAX_GAP_S": _FIXED.format("2 s"),
    "SMOOTH_S": _FIXED.format("0.1 s"),
}
TrackerKind = Literal["tracktrack", "botsort", "bytetrack", "ocsort", "deepocsort", "fasttrack"]


class Settings(BaseSettings):
    """Immutable configuration of one process."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore", frozen=True, env_ignore_empty=True)

    # -- Label Studio
    label_studio_url: Annotated[str, AfterValidator(_http)] = Field(
        "http://localhost:8080", description="Where Label Studio answers, without a path."
    )
    label_studio_public_url: Annotated[str, AfterValidator(lambda url: url and _http(url))] = Field(
        "", description="Where people reach Label Studio, for links; empty: LABEL_STUDIO_URL."
    )
    label_studio_api_key: SecretStr = Field(
        SecretStr(""), description="Personal access token (a refresh JWT) or legacy token."
    )

    # -- this service
    basic_auth_user: str = Field("", description="With BASIC_AUTH_PASS: every route but /health asks for these.")
    basic_auth_pass: SecretStr = Field(SecretStr(""), description="See BASIC_AUTH_USER.")
    allowed_hosts: Names = Field(
        (),
        description="Comma-separated names by which browsers may reach this service, beside addresses, `localhost` and "
        "names without a dot; `.example.org` means all below it, `*` any. Not needed with Basic auth.",
    )
    redis_url: Annotated[str, AfterValidator(_redis)] = Field(
        "redis://localhost:6379/0", description="Queue; `unix:///path.sock` works too."
    )
    database_url: str = Field("", description="SQLAlchemy URL, its driver to be installed; empty: SQLite in DATA_DIR.")
    data_dir: Folder = Field(Path("data"), description="Databases, caches, weights, embedded servers' files.")
    upload_max_gb: float = Field(10.0, gt=0, description="Largest video that the control room's API takes.")
    outputs_gb: float = Field(
        20.0, gt=0, description="Rendered videos and exports kept in DATA_DIR for download; the oldest go first."
    )
    log_level: Annotated[LogLevel, BeforeValidator(lambda name: str(name).upper())] = Field(
        "INFO", description="DEBUG, INFO, WARNING or ERROR."
    )
    job_attempts: int = Field(4, ge=1, description="How often a job is tried before it stays failed.")
    job_lease_s: int = Field(30, ge=5, description="A job whose worker is silent for so long is taken up again.")

    # -- media
    media_cache_gb: float = Field(20.0, gt=0, description="Downloaded videos kept; least recently used go first.")
    media_max_gb: float = Field(50.0, gt=0, description="Largest single download.")
    media_allowed_hosts: Names = Field(
        (), description="Comma-separated hosts, besides Label Studio's, from which http(s) videos may be fetched."
    )
    local_files_root: Folder | None = Field(
        None,
        description="Label Studio's LOCAL_FILES_DOCUMENT_ROOT if visible from here: such videos are used in place.",
    )
    uploads_root: Folder | None = Field(
        None, description="Label Studio's media folder if visible from here: uploads are used in place."
    )

    # -- models
    mode: Mode = Field(
        "yolo_dinov2",
        description="How tracks get their labels, where a project has no mode of its own: yolo (the detector's "
        "classes), yolo_dinov2 (patterns learned from annotations), yolo_clip (label names), universal (both).",
    )
    detector: DetectorKind = Field("auto", description="auto: YOLO where weights can be had, else motion.")
    yolo_weights: str = Field("yolo11n.pt", description="A local path, or a name that ultralytics can download.")
    weights_timeout_s: float = Field(10.0, gt=0, description="Seconds to wait for a weights server before giving up.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:0, mps.")
    engine: EngineKind = Field(
        "auto",
        description="What runs the YOLO network: torch or openvino; auto: openvino on x86 CPUs, else torch. "
        "PyTorch serves until an engine is ready, and where it fails.",
    )
    precision: Precision = Field(
        "auto",
        description="auto: fp16 on CUDA, else fp32. fp32: everywhere. int8: for OpenVINO, calibrated with pictures of "
        "the project's own videos, and used once it was found to be as good as fp32 on others; else as auto.",
    )
    imgsz: int = Field(640, ge=64, description="Longer side of the network's input in pixels.")
    batch: int = Field(8, ge=1, description="Frames per network call; PyTorch on a CPU takes 2 at most.")
    embedder: EmbedderKind = Field("auto", description="auto: DINOv2 where its weights can be had, else fallback.")
    dinov2_model: str = Field("facebook/dinov2-base", description="A local folder, or a model of the hub.")
    clip_model: str = Field(
        "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", description="A local folder in open_clip's format, or one of the hub."
    )
    model_memory_gb: float = Field(0.0, ge=0, description="Main memory for loaded models; 0: half of the machine's.")
    gpu_memory_gb: float = Field(0.0, ge=0, description="GPU memory for loaded models; 0: four fifths of the card's.")
    conf: float = Field(0.1, gt=0, lt=1, description="Lowest detection confidence that reaches the tracker.")
    stride: int = Field(
        3,
        ge=1,
        le=30,
        description="YOLO is given one of this many frames, at most 0.1 s apart, and at those between where something "
        "comes, goes or crosses; 1: at all, which is exact, and slower on a CPU.",
    )
    segment_s: float = Field(
        60.0,
        ge=0,
        description="Seconds of a long video that one worker observes at a time: others help with the next ones, and "
        "a job that was interrupted goes on from the last one. 0: videos are never cut.",
    )
    partial_s: float = Field(
        60.0,
        ge=0,
        description="Seconds of work on a video after which Label Studio is shown what was found so far; 0: never.",
    )
    tracker: TrackerKind = Field("tracktrack", description="Any tracker of ultralytics.")

    # -- from tracks to regions
    min_track_s: float = Field(0.27, ge=0, description="Tracks seen for less are flicker and dropped.")
    keyframe_iou: float = Field(0.9, gt=0, lt=1, description="Interpolated boxes overlap the track's at least so.")

    # -- retraining
    train_per_second: float = Field(2.0, gt=0, description="Pictures a second that are trained on, beside keyframes.")
    train_args: Annotated[str, AfterValidator(_json_object)] = Field(
        "{}",
        description="JSON object with arguments of ultralytics' training, such as epochs, imgsz or augmentations: "
        '{"epochs": 30, "mosaic": 0.5}.',
    )
    gate_frames: int = Field(900, ge=30, description="Most held-out frames on which two versions are compared.")
    artifacts_url: str = Field(
        "", description="Folder or fsspec URL for trained weights, shared by all workers; empty: in DATA_DIR."
    )
    keep_versions: int = Field(
        10,
        ge=0,
        description="Promoted versions of a project that keep their weights, beside what is in use and what a rollback "
        "leads to; of refused ones three do. Older ones stay in the list, but cannot be used any more. 0: all.",
    )
    worker_queues: Annotated[Names, AfterValidator(_known_queues)] = Field(
        (), description="Comma-separated queues that a worker serves, in order; empty: all."
    )

    @property
    def label_studio_links(self) -> str:
        """Where people reach Label Studio."""
        return self.label_studio_public_url or self.label_studio_url

    @property
    def database(self) -> str:
        """SQLAlchemy URL that is in force."""
        return self.database_url or f"sqlite:///{self.data_dir / 'backend.sqlite3'}"

    @property
    def weights_dir(self) -> Path:
        return self.data_dir / "weights"

    @property
    def media_dir(self) -> Path:
        return self.data_dir / "media"

    @property
    def outputs_dir(self) -> Path:
        """What was made to be downloaded."""
        return self.data_dir / "outputs"

    @property
    def uploads_dir(self) -> Path:
        """Videos that were received and are not yet in Label Studio."""
        return self.data_dir / "uploads"


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The process's settings, read from the environment on first use.

    Raises:
        ConfigError: naming every setting that is wrong.
    """
    _warn_of_retired()
    try:
        return Settings()
    except ValidationError as error:
        raise ConfigError(wrong_settings(error), "Correct it in the environment or in the file .env.") from error


def _warn_of_retired() -> None:
    from dotenv import dotenv_values

    given = {**dotenv_values(".env"), **os.environ}
    for name in sorted(RETIRED.keys() & {name.upper() for name, value in given.items() if value}):
        log.warning("The setting %s has no effect any more. %s", name, RETIRED[name])


def wrong_settings(error: ValidationError) -> str:
    """One sentence for each setting that is wrong."""
    return " ".join(
        f"The setting {'.'.join(map(str, problem['loc'])).upper()} is wrong: "
        f"{problem['msg'].removeprefix('Value error, ')}."
        for problem in error.errors()
    )
