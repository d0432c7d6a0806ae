"""Checks of the servers: queue, workers, database, backend, Label Studio and what connects them."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

import httpx
from redis.exceptions import RedisError

from ml_backend.doctor.checks import Finding, Target
from ml_backend.errors import BackendError, LabelStudioError
from ml_backend.label_studio.client import LabelStudioClient, basic_auth_header, server_version
from ml_backend.settings import Settings

TIMEOUT = 5.0
#: Newest projects that are looked at.
PROJECTS = 100
MODEL_CLASS = "VideoBackend"
LOCAL_IP_HINT = (
    "Label Studio refuses local addresses unless it runs with "
    "SSRF_PROTECTION_ENABLED=false and ML_BLOCK_LOCAL_IP=false."
)


def queue(target: Target) -> Iterator[Finding]:
    """Redis answers, keeps what it is given, and somebody works on it."""
    from ml_backend.jobs.queue import JobQueue

    jobs = JobQueue(target.settings)
    shown = target.settings.redis_url.rsplit("@", 1)[-1]
    jobs.ping()
    try:
        facts: Any = jobs.connection.info()
        policy = str(facts.get("maxmemory_policy", "noeviction"))
        found = f"Redis {facts['redis_version']} at {shown}"
        if not facts.get("aof_enabled"):
            yield Finding("Queue", "note", f"{found}, without persistence", "Run Redis with --appendonly yes.")
        elif policy != "noeviction":
            yield Finding("Queue", "note", f"{found}, evicts by {policy}", "Set maxmemory-policy to noeviction.")
        else:
            yield Finding("Queue", "ok", found)
    except RedisError as error:  # some hosted servers refuse INFO
        yield Finding("Queue", "note", f"{shown} answers, but not to INFO: {error}")
    yield from _workers(target.settings)
    failed = jobs.failed_jobs()
    if failed:
        yield Finding(
            "Failed jobs", "note", f"{len(failed)}", "The worker's log has the reasons; opening a task asks again."
        )


def _workers(settings: Settings) -> Iterator[Finding]:
    from ml_backend.jobs.workers import live_workers

    workers = live_workers(settings.redis_url)
    if workers:
        names = ", ".join(f"{worker.hostname}:{worker.pid}" for worker in workers)
        yield Finding("Workers", "ok", f"{len(workers)} ({names})")
    else:
        yield Finding("Workers", "failed", "none is running", "Start one: python -m ml_backend.jobs.worker")


def worker_here(target: Target) -> Iterator[Finding]:
    """Whether a worker of this very machine or container is registered; for health checks."""
    from ml_backend.jobs.workers import live_workers

    here = [worker for worker in live_workers(target.settings.redis_url) if worker.hostname == socket.gethostname()]
    if here:
        yield Finding("Worker on this machine", "ok", ", ".join(str(worker.pid) for worker in here))
    else:
        yield Finding("Worker on this machine", "failed", "none", "Its log says why it does not reach Redis.")


def database(target: Target) -> Iterator[Finding]:
    """Whether the database can be opened and written."""
    import sqlalchemy as sa
    from sqlalchemy.exc import SQLAlchemyError

    from ml_backend.storage import Storage
    from ml_backend.tables import metadata

    storage = Storage(target.settings.database)
    shown = sa.make_url(target.settings.database).render_as_string(hide_password=True)
    table = metadata.sorted_tables[0]
    try:
        with storage.engine.connect() as connection, connection.begin() as transaction:
            connection.execute(table.delete().where(sa.false()))  # changes nothing, but needs the right to write
            transaction.rollback()
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error)
        yield Finding("Database", "failed", f"{shown}: {reason}", "Check permissions, disk space and DATABASE_URL.")
    else:
        yield Finding("Database", "ok", shown)
    finally:
        storage.engine.dispose()


def _basic_auth(settings: Settings) -> tuple[str, str] | None:
    user, password = settings.basic_auth_user, settings.basic_auth_pass.get_secret_value()
    return (user, password) if user and password else None


def backend(target: Target) -> Iterator[Finding]:
    """Whether the backend answers, as Label Studio would ask it."""
    url = f"{target.backend_url}/"  # says the same as /health, which asks for no credentials
    try:
        auth = _basic_auth(target.settings)
        response = httpx.get(url, auth=auth, timeout=TIMEOUT, trust_env=False)
    except httpx.HTTPError as error:
        cure = "Start it: bash scripts/up.sh, or gunicorn ml_backend.wsgi:app; --backend-url says where it is."
        yield Finding("ML backend", "failed", f"no answer at {url} ({error.__class__.__name__})", cure)
        return
    if response.status_code == 401:
        cure = "Set the same BASIC_AUTH_USER and BASIC_AUTH_PASS here as for the backend."
        yield Finding("ML backend", "failed", f"{url} refuses the Basic auth credentials", cure)
    elif response.status_code != 200 or MODEL_CLASS not in response.text:
        yield Finding("ML backend", "failed", f"something else answers at {url}", "Choose another port: --port.")
    else:
        yield Finding("ML backend", "ok", target.backend_url)


def label_studio(target: Target) -> Iterator[Finding]:
    """Label Studio answers, takes the token, and its projects are connected properly."""
    settings = target.settings
    url = settings.label_studio_url
    try:
        yield Finding("Label Studio", "ok", f"{server_version(url, TIMEOUT)} at {url}")
    except LabelStudioError as error:
        yield Finding("Label Studio", "failed", error.message, error.cure)
        return
    client = LabelStudioClient(url, settings.label_studio_api_key.get_secret_value(), TIMEOUT)
    yield Finding("Token", "ok", f"belongs to {client.whoami()}")
    try:
        yield from _connections(client, target)
    except LabelStudioError as error:
        yield Finding("Connection", "failed", error.message, error.cure)


def _connections(client: LabelStudioClient, target: Target) -> Iterator[Finding]:
    projects = islice(client.list_projects(), PROJECTS)
    backends = [item for project in projects for item in client.list_backends(project["id"])]
    connected = [item for item in backends if is_ours(str(item.get("url", "")), target)]
    if not connected:
        cure = f"In Label Studio: project > Settings > Model > Connect model, URL {target.backend_url}. {LOCAL_IP_HINT}"
        yield Finding("Connection", "note", "no project uses this backend", cure)
        return
    for item in connected:
        project = int(item["project"])
        check = f"Project {project}"
        if item.get("state") == "ER":
            reason = str(item.get("error_message") or "no reason given").strip().splitlines()[-1][:200]
            yield Finding(check, "failed", f"Label Studio cannot use {item['url']}: {reason}", _connection_cure(reason))
            continue
        yield Finding(check, "ok", f"connected to {item['url']}")
        hook_url = f"{str(item['url']).rstrip('/')}/webhook"
        hooks = [hook for hook in client.list_webhooks(project) if hook.get("url") == hook_url]
        yield _webhook(project, hook_url, hooks, target.settings)


def _connection_cure(reason: str) -> str:
    if "401" in reason:
        return "Enter the backend's Basic auth user and password where the model is connected (Settings > Model)."
    return f"The backend must be reachable from Label Studio's machine. {LOCAL_IP_HINT}"


def _webhook(project: int, url: str, hooks: Sequence[Mapping[str, Any]], settings: Settings) -> Finding:
    check = f"Project {project}, webhook"
    where = f"In Label Studio: project {project} > Settings > Webhooks, URL {url}"
    if not hooks:
        return Finding(check, "failed", "there is none", f"{where}: add it, with payload, for all actions.")
    hook = hooks[0]
    if not hook.get("is_active"):
        return Finding(check, "failed", "is switched off", f"{where}: switch it on.")
    if not hook.get("send_payload"):
        return Finding(check, "failed", "sends no payload", f"{where}: switch 'send payload' on.")
    if auth := _basic_auth(settings):
        headers = {str(name).lower(): value for name, value in (hook.get("headers") or {}).items()}
        if headers.get("authorization") != basic_auth_header(*auth)["Authorization"]:
            found = "carries other credentials" if "authorization" in headers else "carries no credentials"
            cure = f"{where}: set the header Authorization to 'Basic ' and what `printf USER:PASSWORD | base64` prints."
            return Finding(check, "failed", f"{found}, so the backend refuses its events", cure)
    return Finding(check, "ok", url)


def is_ours(url: str, target: Target) -> bool:
    """Whether an URL that Label Studio knows leads to this backend: the same address, or the same model behind it.

    Label Studio may know it by another name (in a compose network: ``http://backend:9090``), so names are tried.
    """
    if url.rstrip("/") == target.backend_url.rstrip("/"):
        return True
    if urlsplit(url).port == urlsplit(target.backend_url).port and urlsplit(url).hostname in _LOCAL_NAMES:
        return True
    try:
        response = httpx.get(f"{url.rstrip('/')}/health", auth=_basic_auth(target.settings), timeout=2.0)
        return bool(response.json().get("model_class") == MODEL_CLASS)
    except (httpx.HTTPError, ValueError, AttributeError, BackendError):
        return False


_LOCAL_NAMES = frozenset(("localhost", "127.0.0.1", "host.docker.internal", "backend"))
