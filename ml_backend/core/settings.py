"""All settings; the only module that reads the environment.

Names follow those of other Label Studio ML backends (``LABEL_STUDIO_URL``, ``BASIC_AUTH_USER``, ...). A ``.env`` file
in the working directory is read too; the environment takes precedence.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from ml_backend.core.errors import ConfigError

log = logging.getLogger(__name__)

Mode = Literal["yolo", "yolo_dinov2", "yolo_clip", "universal", "open_vocabulary"]
EmbedderKind = Literal["auto", "dinov2", "fallback"]
DetectorKind = Literal["auto", "yolo", "motion", "open_vocabulary"]


def _reject_removed_engine(value: object) -> object:
    if value in ("tensorrt", "coreml"):
        raise ValueError(f"ENGINE={value} was removed because it was untested; set auto, torch or openvino")
    return value


def _http_url(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise ValueError("it must begin with http:// or https://")
    if "@" in value:  # it is shown to people, and part of links
        raise ValueError("it must not contain a user or a password")
    return value.rstrip("/")


def _database_url(value: str) -> str:
    # As strict as SQLAlchemy, which takes a moment to load.
    if value and not re.match(r"[\w+]+://([^/@]*@)?([^/:@]*|\[[^/\]]*\])(:\d+)?(/|\?|$)", value):
        raise ValueError(
            "it must be an SQLAlchemy URL such as postgresql+psycopg://user:password@host:5432/database, with special "
            "characters of user and password percent-encoded"
        )
    return value


def _redis_url(value: str) -> str:
    if not value.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("it must begin with redis://, rediss:// or unix://")
    return value


def _json_object(value: str) -> str:
    try:
        content = json.loads(value or "{}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError("it must be a JSON object")
    return value


def _queue_names(value: tuple[str, ...]) -> tuple[str, ...]:
    if unknown := sorted(set(value) - set(QUEUES)):
        raise ValueError(f"there is no queue {', '.join(unknown)}; the queues are {', '.join(QUEUES)}")
    return value


def _split_names(value: object) -> object:
    if isinstance(value, str):
        return tuple(name.strip().lower() for name in value.split(",") if name.strip())
    return value


#: Comma-separated in the environment.
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_names)]
#: Absolute, because the processes of a stack may have different working directories.
Folder = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]
EngineKind = Annotated[Literal["auto", "torch", "openvino"], BeforeValidator(_reject_removed_engine)]
Precision = Literal["auto", "fp32", "int8"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
#: Queues of jobs in order of priority: somebody who has drawn a box waits in the editor; preparing a task is short, and
#: the editor needs its frame rate; learning from an
#: annotation should take seconds; users wait for control room jobs (imports, exports, renderings), but not for a whole
#: library's predictions; idle workers help with the chunks of other workers' videos; refreshing the labels of stored
#: tracks is not urgent; a training, which takes minutes, comes last. The queue of chunks is called segments, as they
#: once were: the name is in people's WORKER_QUEUES.
QUEUES = ("interactive", "prepare", "patterns", "control", "predict", "segments", "refresh", "train")
_POLICY = (
    'Set it for each project: in Label Studio by the extra params {{"training": {{"{0}": ...}}}}, or by '
    "scripts/train.py policy --project ID '{{\"{0}\": ...}}'."
)
_FIXED = "Remove it: the value is fixed at {}."
#: Settings of the previous release, and what to do about each. To be removed in the next release.
RETIRED = {
    "TRAIN_AUTO": _POLICY.format("mode"),
    "TRAIN_MIN_TRACKS": _POLICY.format("min_tracks"),
    "TRAIN_QUIET_S": _POLICY.format("quiet_s"),
    "TRAIN_EVERY_S": _POLICY.format("every_s"),
    "TRAIN_PSEUDO_LABELS": "Remove it: trainings keep what the detector finds in videos without annotations.",
    "TRAIN_EPOCHS": 'Write TRAIN_ARGS={"epochs": ...} instead.',
    "TRAIN_IMGSZ": 'Write TRAIN_ARGS={"imgsz": ...} instead.',
    "LABEL_STUDIO_TIMEOUT": _FIXED.format("30 s"),
    "MAX_REQUEST_MB": _FIXED.format("64 MB; videos have UPLOAD_MAX_GB"),
    "JOB_TIMEOUT_S": _FIXED.format("a day"),
    "MEDIA_TIMEOUT_S": _FIXED.format("30 s"),
    "EMBED_BATCH": _FIXED.format("32, less if memory is short"),
    "VIEWS": _FIXED.format("4"),
    "MAX_GAP_S": _FIXED.format("2 s"),
    "SMOOTH_S": _FIXED.format("0.1 s"),
}
TrackerKind = Literal["tracktrack", "botsort", "bytetrack", "ocsort", "deepocsort", "fasttrack"]


#: Settings that may be, or contain, a password: the environment, or .env, may name a file that has it, as
#: ``<NAME>_FILE``.
SECRETS = ("label_studio_api_key", "basic_auth_pass", "redis_url", "database_url", "notify_url", "live_cameras")


class _SecretFiles(PydanticBaseSettingsSource):
    """Read secrets from the files that ``<NAME>_FILE`` names, as orchestrators mount them.

    Args:
        places: where settings come from, by name in lower case; the first place that has one counts.
    """

    def __init__(self, settings_cls: type[BaseSettings], *places: Mapping[str, str | None]) -> None:
        super().__init__(settings_cls)
        self._places = places

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        name, file = field_name.upper(), f"{field_name}_file"
        place = next((place for place in self._places if place.get(field_name) or place.get(file)), {})
        path = place.get(file) if field_name in SECRETS else None
        if not path:
            return None, field_name, False
        if place.get(field_name):
            raise ConfigError(f"Both {name} and {name}_FILE are set.", "Set one of them.")
        try:
            return Path(path).read_text(encoding="utf-8").strip(), field_name, False
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"The file of {name}_FILE cannot be read: {error}.", "Correct its path or rights."
            ) from error

    def __call__(self) -> dict[str, Any]:
        values = {name: self.get_field_value(field, name)[0] for name, field in self.settings_cls.model_fields.items()}
        return {name: value for name, value in values.items() if value}


class Settings(BaseSettings):
    """Immutable settings of one process."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore", frozen=True, env_ignore_empty=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return where settings come from; the first place that has one counts."""
        places: Any = (env_settings, dotenv_settings)
        secrets = _SecretFiles(settings_cls, *(place.env_vars for place in places))
        return init_settings, secrets, env_settings, dotenv_settings

    # -- Label Studio
    label_studio_url: Annotated[str, AfterValidator(_http_url)] = Field(
        "http://localhost:8080", description="URL of Label Studio, without a path."
    )
    label_studio_public_url: Annotated[str, AfterValidator(lambda url: url and _http_url(url))] = Field(
        "", description="URL at which browsers reach Label Studio, for links; empty: LABEL_STUDIO_URL."
    )
    label_studio_api_key: SecretStr = Field(
        SecretStr(""), description="Personal access token (a refresh JWT) or legacy token."
    )

    # -- this service
    backend_url: Annotated[str, AfterValidator(_http_url)] = Field(
        "http://localhost:9090",
        description="URL at which Label Studio reaches this service; projects are connected to it.",
    )
    basic_auth_user: str = Field(
        "", description="With BASIC_AUTH_PASS: credentials for every route but /health and /ready."
    )
    basic_auth_pass: SecretStr = Field(SecretStr(""), description="See BASIC_AUTH_USER.")
    allow_anonymous: bool = Field(
        False,
        description="Serve other machines without BASIC_AUTH_USER and BASIC_AUTH_PASS: whoever reaches the port can "
        "then see and change everything.",
    )
    sign_in: bool = Field(
        False,
        description="People sign in to the control room with an access token of their Label Studio account, see the "
        "projects that Label Studio shows them, and have roles. Off: whoever gets in may do everything, as suits a "
        "machine of one's own.",
    )
    project_tokens: bool = Field(
        False,
        description="Requests of Label Studio carry a token of their project (*Connect* enters it), which gives access "
        "to nothing else; BASIC_AUTH_USER and BASIC_AUTH_PASS are taken, too.",
    )
    allowed_hosts: Names = Field(
        (),
        description="Comma-separated host names at which browsers may reach this service, besides IP addresses, "
        "`localhost` and names without a dot; `.example.org` means all its subdomains, `*` any host. Not needed with "
        "Basic auth.",
    )
    proxy_hops: int = Field(
        0,
        ge=0,
        description="Proxies in front of this service, which is reached through them only: so many addresses of "
        "X-Forwarded-For are believed. Without it wrong passwords of one client slow down all.",
    )
    redis_url: Annotated[str, AfterValidator(_redis_url)] = Field(
        "redis://localhost:6379/0", description="Queue; `unix:///path.sock` works too."
    )
    database_url: Annotated[str, AfterValidator(_database_url)] = Field(
        "",
        description="SQLAlchemy URL, such as `postgresql+psycopg://user:password@host/database` (extra `[postgres]`); "
        "empty: SQLite in DATA_DIR.",
    )
    data_dir: Folder = Field(Path("data"), description="Databases, caches, weights, outputs, the local stack's files.")
    upload_max_gb: float = Field(10.0, gt=0, description="Largest video that the control room accepts.")
    outputs_gb: float = Field(
        20.0,
        gt=0,
        description="Rendered videos and exports kept in DATA_DIR for download, newest first.",
    )
    log_level: Annotated[LogLevel, BeforeValidator(lambda name: str(name).upper())] = Field(
        "INFO", description="DEBUG, INFO, WARNING or ERROR."
    )
    job_attempts: int = Field(4, ge=1, description="Attempts before a job is marked as failed.")
    job_lease_s: int = Field(30, ge=5, description="Seconds until another worker takes over from a silent one.")

    # -- media
    media_cache_gb: float = Field(20.0, gt=0, description="Downloaded videos kept, most recently used first.")
    media_max_gb: float = Field(50.0, gt=0, description="Largest single download.")
    media_allowed_hosts: Names = Field(
        (),
        description="Comma-separated hosts, besides Label Studio's, from which http(s) videos may be fetched: "
        "`host` at the usual port, `host:8443`, or `host:*` for any port.",
    )
    local_files_root: Folder | None = Field(
        None,
        description="Label Studio's LOCAL_FILES_DOCUMENT_ROOT, if mounted here: its videos are not copied.",
    )
    uploads_root: Folder | None = Field(
        None, description="Label Studio's media folder, if mounted here: uploads are not copied."
    )

    # -- models
    mode: Mode = Field(
        "yolo_dinov2",
        description="How tracks get their labels in projects without a mode of their own: yolo (the detector's "
        "classes), yolo_dinov2 (patterns learned from annotations), yolo_clip (label names), universal (both), "
        "open_vocabulary (patterns; OPEN_VOCABULARY_MODEL finds objects of labels that the detector does not know).",
    )
    detector: DetectorKind = Field(
        "auto",
        description="auto: YOLO if its weights are available, else motion. open_vocabulary: the same, and in every "
        "mode OPEN_VOCABULARY_MODEL finds the objects of labels that it does not know.",
    )
    yolo_weights: str = Field("yolo11n.pt", description="A local path, or a name that ultralytics can download.")
    weights_timeout_s: float = Field(10.0, gt=0, description="Seconds until a stalled download is given up.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:0, mps.")
    engine: EngineKind = Field(
        "auto",
        description="What runs the YOLO network: torch or openvino; auto: openvino on x86 CPUs, else torch. "
        "PyTorch is used until an export is ready, and if it fails.",
    )
    precision: Precision = Field(
        "auto",
        description="auto: fp16 on CUDA; int8 on x86 CPUs with VNNI or AMX, calibrated with frames of the project's "
        "own videos and used only if it finds what fp32 finds on held-out frames; else fp32. fp32: everywhere. "
        "int8: also on x86 CPUs without VNNI, and commands wait for it.",
    )
    imgsz: int = Field(640, ge=64, description="Longer side of the network's input in pixels.")
    batch: int = Field(8, ge=1, description="Frames per network call; PyTorch on a CPU takes 2 at most.")
    embedder: EmbedderKind = Field("auto", description="auto: DINOv2 if its weights are available, else fallback.")
    dinov2_model: str = Field("facebook/dinov2-base", description="A local folder, or a model of the Hugging Face hub.")
    clip_model: str = Field(
        "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", description="As DINOV2_MODEL, in open_clip's format."
    )
    open_vocabulary_model: str = Field(
        "",
        description="Model that finds objects by text, as a local folder or a model of the Hugging Face hub such as "
        "IDEA-Research/grounding-dino-tiny: Grounding DINO, LLMDet, OWLv2 or OmDet-Turbo.",
    )
    open_vocabulary_fps: float = Field(
        2.0, ge=0.1, le=30, description="Frames per second on which it searches; in between, what it found is followed."
    )
    open_vocabulary_conf: float = Field(
        0.3, gt=0, lt=1, description="Lowest score of what it finds. Models differ: 0.1 to 0.2 is usual for OWLv2."
    )
    interactive_model: str = Field(
        "",
        description="Model that follows drawn boxes on a GPU: SAM 2, EdgeTAM or SAM 3, as a local folder or a model of "
        "the Hugging Face hub such as facebook/sam2.1-hiera-tiny. Empty: dlib's correlation tracker, which needs none.",
    )
    segmenter: str = Field(
        "",
        description="Model that makes masks of boxes, for exports and renderings: SAM, SAM 2, EdgeTAM or SAM 3 as a "
        "local folder or a model of the Hugging Face hub, or a local file of ultralytics (mobile_sam.pt, "
        "yolo11n-seg.pt). Empty: no masks.",
    )
    model_memory_gb: float = Field(0.0, ge=0, description="Main memory for loaded models; 0: half of the machine's.")
    gpu_memory_gb: float = Field(0.0, ge=0, description="GPU memory for loaded models; 0: four fifths of the card's.")
    conf: float = Field(0.1, gt=0, lt=1, description="Lowest confidence of the detections that are tracked.")
    stride: int = Field(
        3,
        ge=1,
        le=30,
        description="YOLO runs on every n-th frame, at most 0.1 s apart, and on frames in between where objects "
        "appear, disappear or cross; 1: on every frame, which is exact, and slower on a CPU.",
    )
    segment_s: float = Field(
        60.0,
        ge=0,
        description="Length in seconds of the chunks of a long video: several workers process them in parallel, and "
        "an interrupted job resumes at the last one. 0: videos are not split.",
    )
    partial_s: float = Field(
        60.0,
        ge=0,
        description="Seconds of work on a video after which Label Studio gets the tracks so far; 0: never.",
    )
    tracker: TrackerKind = Field("tracktrack", description="Any tracker of ultralytics.")

    # -- from tracks to regions
    min_track_s: float = Field(0.27, ge=0, description="Shorter tracks are dropped as flicker.")
    keyframe_iou: float = Field(0.9, gt=0, lt=1, description="Lowest IoU of interpolated boxes with the track's.")

    # -- drawn boxes
    follow_s: float = Field(
        60.0, gt=0, le=3600, description="Seconds of video for which a drawn box is followed per request, each way."
    )

    # -- cameras
    live_cameras: SecretStr = Field(
        SecretStr(""),
        description="Addresses of cameras, separated by spaces, which `scripts/live.py` looks at if it is given none.",
    )

    # -- fine-tuning
    notify_url: SecretStr = Field(
        SecretStr(""),
        description="URL that gets each fine-tuning's outcome as JSON, such as a chat's webhook.",
    )
    train_per_second: float = Field(2.0, gt=0, description="Frames per second to train on, besides keyframes.")
    train_args: Annotated[str, AfterValidator(_json_object)] = Field(
        "{}",
        description="JSON object with ultralytics' training arguments, such as epochs, imgsz or augmentations: "
        '{"epochs": 30, "mosaic": 0.5}.',
    )
    gate_frames: int = Field(
        900,
        ge=30,
        description="Held-out frames on which versions are compared, at most, and as many frames of other videos.",
    )
    artifacts_url: str = Field(
        "",
        description="Folder or fsspec URL for trained weights, exports, rendered videos and uploads, shared by all "
        "hosts, such as `s3://bucket/folder` (extra `[s3]`) or `gs://bucket/folder` (`[gcs]`); empty: in DATA_DIR.",
    )
    keep_versions: int = Field(
        10,
        ge=0,
        description="Promoted versions of a project whose weights are kept, besides the current one and the target of "
        "a rollback; of refused versions, three. Older ones stay listed, but cannot be used. 0: all.",
    )
    worker_queues: Annotated[Names, AfterValidator(_queue_names)] = Field(
        (), description="Comma-separated queues of a worker, in order; empty: all."
    )

    @model_validator(mode="after")
    def _check_credentials(self) -> Settings:
        password = self.basic_auth_pass.get_secret_value()
        if bool(self.basic_auth_user) != bool(password):
            missing, other = ("USER", "PASS") if password else ("PASS", "USER")
            raise ValueError(f"BASIC_AUTH_{missing} is missing, while BASIC_AUTH_{other} is set: set both or neither")
        return self

    @property
    def basic_auth(self) -> tuple[str, str] | None:
        """User and password; ``None`` if none are required."""
        password = self.basic_auth_pass.get_secret_value()
        return (self.basic_auth_user, password) if self.basic_auth_user and password else None

    @property
    def label_studio_links(self) -> str:
        """Label Studio's URL for links in browsers."""
        return self.label_studio_public_url or self.label_studio_url

    @property
    def database(self) -> str:
        """SQLAlchemy URL of the database."""
        return self.database_url or f"sqlite:///{self.data_dir / 'backend.sqlite3'}"

    @property
    def weights_dir(self) -> Path:
        return self.data_dir / "weights"

    @property
    def media_dir(self) -> Path:
        return self.data_dir / "media"

    @property
    def outputs_dir(self) -> Path:
        """Rendered videos and exports for download."""
        return self.data_dir / "outputs"

    @property
    def uploads_dir(self) -> Path:
        """Uploaded videos that are not yet imported into Label Studio."""
        return self.data_dir / "uploads"


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """Return the process's settings, read from the environment on first use.

    Raises:
        ConfigError: a setting is invalid; the message names all of them.
    """
    _warn_of_retired()
    try:
        return Settings()
    except ValidationError as error:
        raise ConfigError(describe_invalid_settings(error), "Correct it in the environment or in .env.") from error


def _warn_of_retired() -> None:
    from dotenv import dotenv_values

    environment = {**dotenv_values(".env"), **os.environ}
    for name in sorted(RETIRED.keys() & {name.upper() for name, value in environment.items() if value}):
        log.warning("The setting %s has no effect any more. %s", name, RETIRED[name])


def describe_invalid_settings(error: ValidationError) -> str:
    """Return a sentence for each invalid setting."""
    sentences = []
    for problem in error.errors():
        setting, text = ".".join(map(str, problem["loc"])).upper(), problem["msg"].removeprefix("Value error, ")
        sentences.append(f"The setting {setting} is invalid: {text}." if setting else f"{text}.")
    return " ".join(sentences)
