"""The doctor's checks of this machine, the servers and their connections."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from typing import Any, Literal

import httpx

from ml_backend.cli.dev_stack.preflight import RUN_GB, check_disk, check_writable
from ml_backend.core.errors import BackendError, ConfigError, LabelStudioError
from ml_backend.core.settings import Settings
from ml_backend.core.urls import shown_url
from ml_backend.label_studio.client import (
    LOCAL_IP_HINT,
    LabelStudioClient,
    authorization,
    basic_auth_header,
    is_same_backend,
    server_version,
)
from ml_backend.label_studio.label_config import parse_label_config

#: Seconds to wait for a server.
TIMEOUT = 5.0
#: Seconds. The first import of PyTorch after installing reads gigabytes.
IMPORT_TIMEOUT = 120.0
REINSTALL = "Run `bash scripts/up.sh` (or `pip install --no-deps -r requirements.lock`) to install the pinned versions."
LOW_DISK_GB = 5.0
#: Maximum number of projects to check, newest first.
MAX_PROJECTS = 100
MODEL_CLASS = "VideoBackend"
PACKAGES = (
    *("av", "flask", "gunicorn", "label-studio-sdk", "lap", "numpy", "open-clip-torch", "redis", "rq"),
    *("scikit-learn", "sqlalchemy", "timm", "transformers", "ultralytics"),
)

Status = Literal["ok", "note", "failed"]


@dataclass(frozen=True, slots=True)
class Finding:
    """A result of a check.

    Attributes:
        check: title of the check.
        status: ``note`` works, but is worth knowing.
        found: what was found.
        hint: how to fix it; empty if there is nothing to fix.
    """

    check: str
    status: Status
    found: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """What to check: the effective settings and the backend's URL."""

    settings: Settings
    backend_url: str


@dataclass(frozen=True, slots=True)
class Check:
    """A named check, which yields findings; a BackendError becomes a failed finding."""

    name: str
    title: str
    examine: Callable[[Target], Iterator[Finding]]

    def run(self, target: Target) -> list[Finding]:
        """Return all findings; an error ends the check, not the doctor."""
        findings: list[Finding] = []
        try:
            findings.extend(self.examine(target))
        except BackendError as error:
            findings.append(Finding(self.title, "failed", error.message, error.hint))
        return findings


# -- this machine

# Run in a subprocess, since a broken build of PyTorch may crash instead of raising.
_IMPORT_TORCH = """
import json, torch, torchvision
torchvision.ops.nms(torch.zeros((1, 4)), torch.zeros(1), 0.5)
cuda = torch.cuda.is_available()
print(json.dumps({
    "torch": torch.__version__, "torchvision": torchvision.__version__, "cuda": cuda, "build": torch.version.cuda,
    "mps": torch.backends.mps.is_available(), "device": torch.cuda.get_device_name(0) if cuda else "",
}))
"""


def python(target: Target) -> Iterator[Finding]:
    """Report the Python version; one older than 3.10 could not import this module."""
    yield Finding("Python", "ok", f"{sys.version.split()[0]} ({sys.executable})")


def packages(target: Target) -> Iterator[Finding]:
    missing = [name for name in PACKAGES if _version(name) is None]
    if missing:
        yield Finding("Packages", "failed", f"missing: {', '.join(missing)}", REINSTALL)
    else:
        yield Finding("Packages", "ok", ", ".join(f"{name} {_version(name)}" for name in PACKAGES))
    yield _opencv()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _opencv() -> Finding:
    """Check that both OpenCV packages, which write the same folder, have the same version."""
    versions = {name: _version(name) for name in ("opencv-python", "opencv-python-headless")}
    found = ", ".join(f"{name} {value or 'missing'}" for name, value in versions.items())
    if len(set(filter(None, versions.values()))) != 1:
        return Finding("OpenCV", "failed", found, f"Both must have the same version. {REINSTALL}")
    loaded, failure = _run_python("import cv2; print(cv2.__version__)")
    if failure:
        found = f"cannot be imported: {failure}"
    elif str(versions["opencv-python-headless"] or versions["opencv-python"]).startswith(loaded):
        return Finding("OpenCV", "ok", found)
    else:
        found = f"{found}, but {loaded} is imported"
    command = "`pip install --no-deps --force-reinstall opencv-python-headless==4.12.0.88`"
    return Finding("OpenCV", "failed", found, f"Reinstall the headless one last: {command}.")


def _run_python(code: str) -> tuple[str, str]:
    """Run Python code in a subprocess; return its last line of output, or else why it failed."""
    command = [sys.executable, "-c", code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        return "", f"the import takes longer than {IMPORT_TIMEOUT:.0f} s; is the disk overloaded?"
    lines = (done.stderr if done.returncode else done.stdout).strip().splitlines()
    last = lines[-1] if lines else f"crashed ({done.returncode})"
    return ("", last[:300]) if done.returncode else (last, "")


def torch(target: Target) -> Iterator[Finding]:
    """Check that PyTorch and torchvision match, and report the device."""
    printed, failure = _run_python(_IMPORT_TORCH)
    if failure:
        raise ConfigError(failure, f"Install matching versions of torch and torchvision. {REINSTALL}")
    facts = json.loads(printed)
    yield Finding("PyTorch", "ok", f"torch {facts['torch']}, torchvision {facts['torchvision']}")
    yield device(target.settings.device, facts)


def device(wanted: str, facts: Mapping[str, object]) -> Finding:
    """Check ``DEVICE`` against PyTorch's ``facts``: cuda, mps, build, device."""
    if wanted.startswith("cuda") and not facts["cuda"]:
        return Finding(
            "GPU", "failed", f"DEVICE={wanted}, but PyTorch sees no CUDA GPU", "Set DEVICE=auto or install the driver."
        )
    if facts["cuda"]:
        return Finding("GPU", "ok", f"{facts['device']} (CUDA {facts['build']})")
    if facts["mps"]:
        return Finding("GPU", "ok", "Apple GPU (mps)")
    if shutil.which("nvidia-smi"):
        hint = f"Install a newer driver for CUDA {facts['build']}, or set DEVICE=cpu."
        return Finding("GPU", "note", "an NVIDIA driver is installed, but PyTorch cannot use the GPU", hint)
    return Finding("GPU", "ok", f"none; using {os.cpu_count()} CPU cores")


def codecs(target: Target) -> Iterator[Finding]:
    """Check the decoders of common videos, and the encoder of browser-playable copies."""
    import av
    from av.codec import Codec
    from av.error import FFmpegError

    missing = []
    for name, mode in (("libx264", "w"), ("h264", "r"), ("hevc", "r"), ("vp9", "r"), ("mpeg4", "r")):
        try:
            Codec(name, mode)
        except (ValueError, FFmpegError):
            missing.append(f"{name} ({'encoder' if mode == 'w' else 'decoder'})")
    found = f"PyAV {av.__version__}"
    if missing:
        raise ConfigError(f"{found} lacks {', '.join(missing)}", f"Use the PyAV wheel. {REINSTALL}")
    yield Finding("Codecs", "ok", f"{found}: H.264 encoder; H.264, HEVC, VP9, MPEG-4 decoders")


def disk(target: Target) -> Iterator[Finding]:
    """Check that the data folder is writable and has free space."""
    folder = target.settings.data_dir.absolute()
    check_writable(folder)
    free_gb = check_disk(folder, RUN_GB, "Running")
    low = free_gb < min(LOW_DISK_GB, target.settings.media_cache_gb)
    hint = "Free some space or lower MEDIA_CACHE_GB." if low else ""
    yield Finding("Data folder", "note" if low else "ok", f"{folder}, {free_gb:.1f} GB free", hint)


def labels(target: Target) -> Iterator[Finding]:
    """Report the models that label tracks beside the detector."""
    from ml_backend.labeling.modes import classifier_models

    models = classifier_models(target.settings, target.settings.mode)
    used = (models.embedder, models.clip, models.text_detector)
    found = [f"mode {models.mode}", *(model.model_id for model in used if model)]
    yield Finding("Labels", "note" if models.notes else "ok", ", ".join(found), " ".join(models.notes))


def weights(target: Target) -> Iterator[Finding]:
    """Report the detector that would be used."""
    from ml_backend.detectors.weights import resolve_detector

    detector = resolve_detector(target.settings, download=False)
    found = f"{detector.name} ({detector.path})" if detector.path else detector.name
    yield Finding("Detector", "note" if detector.note else "ok", found, detector.note)


def masks(target: Target) -> Iterator[Finding]:
    """Report the model that makes masks, if one is configured."""
    from ml_backend.embeddings.hub import resolve_segmenter

    if target.settings.segmenter:
        model = resolve_segmenter(target.settings)
        missing = model if isinstance(model, str) else ""
        yield Finding("Masks", "note" if missing else "ok", target.settings.segmenter, missing)


# -- servers


def queue(target: Target) -> Iterator[Finding]:
    """Check that Redis is up and persistent, and that workers are running."""
    from redis.exceptions import RedisError

    from ml_backend.jobs.queue import JobQueue

    jobs = JobQueue(target.settings)
    shown = shown_url(target.settings.redis_url)
    jobs.ping()
    try:
        facts: Any = jobs.connection.info()
        policy = str(facts.get("maxmemory_policy", "noeviction"))
        found, hint = f"Redis {facts['redis_version']} at {shown}", ""
        if not facts.get("aof_enabled"):
            found, hint = f"{found}, without persistence", "Run Redis with --appendonly yes."
        elif policy != "noeviction":
            found, hint = f"{found}, evicts by {policy}", "Set maxmemory-policy to noeviction."
        yield Finding("Queue", "note" if hint else "ok", found, hint)
    except RedisError as error:  # some hosted servers refuse INFO
        yield Finding("Queue", "note", f"{shown} is reachable, but refuses INFO: {error}")
    workers = jobs.workers()
    names = ", ".join(f"{worker.hostname}:{worker.pid}" for worker in workers)
    if workers:
        yield Finding("Workers", "ok", f"{len(workers)} ({names})")
    else:
        yield Finding("Workers", "failed", "none is running", "Start a worker: python -m ml_backend.jobs.worker")
    failed = jobs.failed_jobs()
    if failed:
        yield Finding("Failed jobs", "note", f"{len(failed)}", "See the worker's log; open a task to try again.")


def worker_here(target: Target) -> Iterator[Finding]:
    """Check that a worker of this machine or container is registered; for health checks."""
    from ml_backend.jobs.queue import JobQueue

    here = [worker for worker in JobQueue(target.settings).workers() if worker.hostname == socket.gethostname()]
    if not here:
        raise ConfigError("none", "See its log for why it cannot reach Redis.")
    yield Finding("Worker on this machine", "ok", ", ".join(str(worker.pid) for worker in here))


def database(target: Target) -> Iterator[Finding]:
    """Check that the database can be opened, and that what is written can be read; nothing is left there."""
    import sqlalchemy as sa
    from sqlalchemy.exc import SQLAlchemyError

    from ml_backend.db.storage import Storage
    from ml_backend.db.tables import pending

    storage = Storage(target.settings.database)
    shown, revision = shown_url(target.settings.database), uuid.uuid4().hex
    row = {"kind": "doctor", "project_id": 0, "task_id": 0, "revision": revision}
    try:
        with storage.engine.connect() as connection, connection.begin() as transaction:
            connection.execute(sa.insert(pending).values(**row))
            read = connection.scalar(sa.select(pending.c.revision).where(pending.c.kind == "doctor"))
            transaction.rollback()
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error)
        raise ConfigError(f"{shown}: {reason}", "Check permissions, disk space and DATABASE_URL.") from error
    finally:
        storage.engine.dispose()
    if read != revision:
        raise ConfigError(f"{shown}: what was written is not what is read", "Check the database server.")
    yield Finding("Database", "ok", f"{shown}, written and read")


def artifacts(target: Target) -> Iterator[Finding]:
    """Check that what is written at ARTIFACTS_URL can be read and removed."""
    from ml_backend.core.artifacts import Artifacts

    store, name, content = Artifacts(target.settings), f"doctor-{uuid.uuid4().hex}", os.urandom(64)
    shown = shown_url(target.settings.artifacts_url) or "in the data folder"
    store.write(name, content)
    try:
        if store.read(name) != content:
            raise ConfigError(f"{shown}: what was written is not what is read", "Check what ARTIFACTS_URL names.")
    finally:
        removed = store.remove(name)
    if not removed:
        raise ConfigError(f"{shown}: {name} cannot be removed", "Give the credentials the right to delete files.")
    yield Finding("Artifacts", "ok", f"{shown}, written, read and removed")


def backend(target: Target) -> Iterator[Finding]:
    """Check that the backend responds to a request like Label Studio's."""
    url = f"{target.backend_url}/"  # like /health, but with Basic auth
    try:
        response = httpx.get(url, auth=target.settings.basic_auth, timeout=TIMEOUT, trust_env=False)
    except httpx.HTTPError as error:
        hint = "Start it with scripts/up.sh or gunicorn (docs/guides/deployment.md), or set --backend-url."
        raise ConfigError(f"no answer at {url} ({error.__class__.__name__})", hint) from error
    if response.status_code == 401:
        hint = "Set the same BASIC_AUTH_USER and BASIC_AUTH_PASS here as for the backend."
        raise ConfigError(f"{url} refuses the Basic auth credentials", hint)
    if response.status_code != 200 or MODEL_CLASS not in response.text:
        raise ConfigError(f"something else answers at {url}", "Choose another port: --port.")
    try:
        ready = httpx.get(f"{target.backend_url}/ready", timeout=TIMEOUT, trust_env=False)
        problems = {} if ready.status_code == 200 else ready.json()["problems"]
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise ConfigError(f"no answer at {target.backend_url}/ready ({error.__class__.__name__})") from error
    if problems:
        raise ConfigError(" ".join(problems.values()), "See the checks of the database and the queue.")
    yield Finding("ML backend", "ok", target.backend_url)


def label_studio(target: Target) -> Iterator[Finding]:
    """Check Label Studio, the token, and the connections of its projects."""
    settings = target.settings
    url = settings.label_studio_url
    try:
        yield Finding("Label Studio", "ok", f"{server_version(url, TIMEOUT)} at {url}")
    except LabelStudioError as error:
        yield Finding("Label Studio", "failed", error.message, error.hint)
        return
    client = LabelStudioClient(url, settings.label_studio_api_key.get_secret_value(), TIMEOUT)
    yield Finding("Token", "ok", f"belongs to {client.whoami()}")
    try:
        yield from _connections(client, target)
    except LabelStudioError as error:
        yield Finding("Connection", "failed", error.message, error.hint)


def _connections(client: LabelStudioClient, target: Target) -> Iterator[Finding]:
    any_connected = False
    for project in islice(client.list_projects(), MAX_PROJECTS):
        number, config = int(project["id"]), str(project.get("label_config") or "")
        connected = [item for item in client.list_backends(number) if is_ours(str(item.get("url", "")), target)]
        any_connected |= bool(connected)
        check = f"Project {number}"
        try:
            parse_label_config(config)
        except ConfigError as error:
            # Projects of other kinds of data are none of our business.
            if connected or "<video" in config.lower():
                yield Finding(check, "failed" if connected else "note", error.message, error.hint)
            continue
        if not connected and project.get("task_number"):
            command = f"scripts/import_videos.py --project {number} --connect"
            hint = f"Press Connect in the control room, or run `python {command}`."
            yield Finding(check, "note", "is not connected to this backend, so it gets no tracks", hint)
        for item in connected:
            yield from _connection(client, number, item, target.settings)
            yield from _drawing(f"{check}, drawing", config, item)
    if not any_connected:
        hint = f"In Label Studio: project > Settings > Model > Connect model, URL {target.backend_url}. {LOCAL_IP_HINT}"
        yield Finding("Connection", "note", "no project uses this backend", hint)


def _drawing(check: str, config: str, connection: Mapping[str, Any]) -> Iterator[Finding]:
    """Check what drawn boxes need to be followed, and to be followed again after a correction."""
    hint = "In Label Studio: Settings > Labeling Interface > Code. See docs/guides/drawing.md."
    if not re.search(r'<VideoRectangle\b[^>]*\ssmart="true"', config, re.IGNORECASE):
        yield Finding(check, "note", 'drawn boxes are not followed: VideoRectangle has no smart="true"', hint)
    elif not connection.get("is_interactive"):
        hint = "Press Connect in the control room, or in Label Studio: Settings > Model > Edit, interactive."
        yield Finding(check, "note", "drawn boxes are not followed: its connection is not interactive", hint)
    elif not re.search(r'<Labels\b[^>]*\sallowEmpty="true"', config, re.IGNORECASE):
        found = 'the label\'s key does not follow a corrected box anew: Labels has no allowEmpty="true"'
        yield Finding(check, "note", found, hint)


def _connection(
    client: LabelStudioClient, project: int, connection: Mapping[str, Any], settings: Settings
) -> Iterator[Finding]:
    check, url = f"Project {project}", str(connection["url"]).rstrip("/")
    if connection.get("state") == "ER":
        reason = str(connection.get("error_message") or "no reason given").strip().splitlines()[-1][:200]
        hint = f"Make the backend reachable from Label Studio's machine. {LOCAL_IP_HINT}"
        if "401" in reason:
            hint = "Enter the backend's user and password where the model is connected (Settings > Model)."
        yield Finding(check, "failed", f"Label Studio cannot use {url}: {reason}", hint)
        return
    yield Finding(check, "ok", f"connected to {url}")
    hook_url = f"{url}/webhook"
    hooks = [hook for hook in client.list_webhooks(project) if hook.get("url") == hook_url]
    yield _webhook(project, hook_url, hooks, settings)


def _webhook(project: int, url: str, hooks: Sequence[Mapping[str, Any]], settings: Settings) -> Finding:
    from ml_backend.jobs.container import Container

    check = f"Project {project}, webhook"
    location = f"In Label Studio: project {project} > Settings > Webhooks, URL {url}"
    if not hooks:
        return Finding(check, "failed", "there is none", f"{location}: add it, with payload, for all actions.")
    hook = hooks[0]
    if not hook.get("is_active"):
        return Finding(check, "failed", "is switched off", f"{location}: switch it on.")
    if not hook.get("send_payload"):
        return Finding(check, "failed", "sends no payload", f"{location}: switch 'send payload' on.")
    if auth := Container(settings).credentials(project):
        sent = authorization(hook)
        if sent != basic_auth_header(*auth)["Authorization"]:
            found = "carries other credentials" if sent else "carries no credentials"
            hint = (
                f"{location}: set the header Authorization to 'Basic ' and what `printf USER:PASSWORD | base64` prints."
            )
            return Finding(check, "failed", f"{found}, so the backend refuses its events", hint)
    return Finding(check, "ok", url)


def is_ours(url: str, target: Target) -> bool:
    """Return whether a URL configured in Label Studio leads to this backend: it has its name or its model class."""
    if is_same_backend(url, target.backend_url) or is_same_backend(url, target.settings.backend_url):
        return True
    try:
        response = httpx.get(f"{url.rstrip('/')}/health", auth=target.settings.basic_auth, timeout=2.0)
        return bool(response.json().get("model_class") == MODEL_CLASS)
    except (httpx.HTTPError, ValueError, AttributeError, BackendError):
        return False
