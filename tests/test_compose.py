"""The compose files: valid by the Compose Specification, and consistent with the code they run."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from ml_backend.cli.commands.live import main as live
from ml_backend.cli.dev_stack.preflight import ROOT
from ml_backend.cli.doctor.__main__ import CHECKS, EXTRA
from ml_backend.core.settings import QUEUES, Settings

FILES = ("docker-compose.yml", "docker-compose.gpu.yml")
#: ``${NAME:-default}``, ``${NAME:?message}``, ``${NAME}``
VARIABLE = re.compile(r"\$\{(?P<name>[A-Z_]+)(?:(?P<kind>:-|:\?)(?P<text>[^}]*))?\}")


def load(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    return loaded


def interpolate(value: Any, environment: Mapping[str, str]) -> Any:
    """Variables replaced as docker compose does it; a missing required one is a KeyError with its message."""
    if isinstance(value, dict):
        return {key: interpolate(item, environment) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolate(item, environment) for item in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        given = environment.get(match["name"], "")
        if not given and match["kind"] == ":?":
            raise KeyError(f"{match['name']}: {match['text']}")
        return given or (match["text"] or "" if match["kind"] == ":-" else "")

    return VARIABLE.sub(replace, value)


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from texts(item)
    elif isinstance(value, str):
        yield value


@pytest.fixture(scope="module")
def filled() -> dict[str, str]:
    """The required variables, as .env.example asks for them."""
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    required = [line[:-1] for line in lines if re.fullmatch(r"[A-Z_]+=", line)]
    assert required
    return {name: f"value of {name}" for name in required}


@pytest.fixture(scope="module")
def compose(filled: dict[str, str]) -> dict[str, Any]:
    loaded: dict[str, Any] = interpolate(load(FILES[0]), filled)
    return loaded


@pytest.mark.parametrize("name", FILES)
def test_valid_by_the_compose_specification(name: str, filled: dict[str, str]) -> None:
    schema = json.loads((ROOT / "tests" / "data" / "compose-spec.json").read_text(encoding="utf-8"))
    # Interpolated values arrive as text; the specification lets compose turn them into numbers.
    document = interpolate(load(name), filled)
    jsonschema.Draft7Validator(schema).validate(document)


def test_the_schema_would_notice_a_mistake(filled: dict[str, str]) -> None:
    schema = json.loads((ROOT / "tests" / "data" / "compose-spec.json").read_text(encoding="utf-8"))
    document = interpolate(load(FILES[0]), filled)
    document["services"]["redis"]["helthcheck"] = {}
    with pytest.raises(jsonschema.ValidationError, match="helthcheck"):
        jsonschema.Draft7Validator(schema).validate(document)


def test_the_topology(compose: dict[str, Any]) -> None:
    ours = {"label-studio", "postgres", "redis", "backend", "worker", "drawer", "trainer"}
    assert set(compose["services"]) == {*ours, "proxy", "cameras"}
    assert {name for name, service in compose["services"].items() if "profiles" in service} == {"proxy", "cameras"}


def test_the_proxy_leads_to_services_and_is_reached_by_others(compose: dict[str, Any], filled: dict[str, str]) -> None:
    rules = (ROOT / "Caddyfile").read_text(encoding="utf-8")
    assert re.findall(r"reverse_proxy (\S+):(\d+)", rules) == [("label-studio", "8080"), ("backend", "9090")]
    assert compose["services"]["backend"]["command"][-1].endswith(":9090")
    proxy = interpolate(load(FILES[0]), filled | {"LABEL_STUDIO_HOST": "https://label.example.org"})["services"][
        "proxy"
    ]
    assert proxy["environment"] == {"LABEL_STUDIO_HOST": "https://label.example.org"}
    assert set(re.findall(r"\{\$(\w+)\}", rules)) == set(proxy["environment"])
    assert "./Caddyfile:/etc/caddy/Caddyfile:ro" in proxy["volumes"]
    assert {port.partition(":")[2] for port in proxy["ports"]} == {"80", "443", *re.findall(r"\}:(\d+) \{", rules)}


def test_the_proxy_reads_its_rules(tmp_path: Path) -> None:
    caddy = Path(sysconfig.get_path("scripts")) / "caddy"
    # Certificates that it makes itself: nothing is asked for outside.
    env = {"LABEL_STUDIO_HOST": "https://localhost", "HOME": str(tmp_path)}
    command = [str(caddy), "validate", "--adapter", "caddyfile", "--config", str(ROOT / "Caddyfile")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_every_service_is_watched_and_comes_back(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL"), name
        assert service["restart"] == "unless-stopped", name
        for other, condition in service.get("depends_on", {}).items():
            assert other in compose["services"], name
            assert condition == {"condition": "service_healthy"}, name


def test_state_is_on_declared_volumes(compose: dict[str, Any]) -> None:
    used = set()
    for name, service in compose["services"].items():
        for volume in service.get("volumes", []):
            source, target = volume.split(":")[:2]
            assert target.startswith("/"), name
            if not source.startswith("."):
                used.add(source)
    assert used == set(compose["volumes"])


def test_images_are_pinned(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        tag = service["image"].partition(":")[2]
        assert "build" in service or (tag and tag != "latest"), name
    server = (ROOT / "requirements-label-studio.txt").read_text(encoding="utf-8")
    assert f"label-studio=={compose['services']['label-studio']['image'].partition(':')[2]}\n" in server


def test_no_secret_is_written_down() -> None:
    for name in FILES:
        for key, value in environments(load(name)):
            if re.search("PASS|SECRET|TOKEN|KEY", key) and value not in ("true", "false"):
                match = VARIABLE.fullmatch(value)
                assert match, f"{key} has a fixed value"
                assert match["kind"] == ":?" or not match["text"], f"{key} has a default"


def environments(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for service in document["services"].values():
        for key, value in service.get("environment", {}).items():
            yield key, str(value)


def test_required_variables_are_asked_for_by_name(filled: dict[str, str]) -> None:
    asked = {
        match["name"] for text in texts(load(FILES[0])) for match in VARIABLE.finditer(text) if match["kind"] == ":?"
    }
    assert asked == set(filled), ".env.example names exactly what is required"
    for name in asked:
        with pytest.raises(KeyError, match=name):
            interpolate(load(FILES[0]), {key: value for key, value in filled.items() if key != name})


def test_the_example_names_only_what_is_used() -> None:
    used = {match["name"] for name in FILES for text in texts(load(name)) for match in VARIABLE.finditer(text)}
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    assert set(re.findall(r"^#?([A-Z_]+)=", example, re.M)) <= used


@pytest.mark.parametrize("service", ["backend", "worker", "drawer", "trainer"])
def test_the_settings_exist_and_are_valid(service: str, compose: dict[str, Any]) -> None:
    values = dict(compose["services"][service]["environment"])
    values |= interpolate(load(FILES[1])["services"]["worker"]["environment"], {})
    unknown = {name for name in values if name.lower() not in Settings.model_fields}
    assert not unknown
    settings = Settings(_env_file=None, **{name.lower(): value for name, value in values.items() if value})
    assert settings.label_studio_url == "http://label-studio:8080"
    assert settings.label_studio_links == "http://localhost:8080", "people do not reach it by a container's name"
    assert settings.redis_url == "redis://:value of REDIS_PASSWORD@redis:6379/0"


@pytest.mark.parametrize("service", ["backend", "worker", "drawer", "trainer", "cameras"])
def test_every_setting_can_be_made_in_the_env_file(service: str, compose: dict[str, Any]) -> None:
    """They get the same ones: versions are told by the one and made by the other. Cameras' passwords are for one."""
    names = {name.upper() for name in Settings.model_fields}
    given = names if service == "cameras" else names - {"LIVE_CAMERAS"}
    assert set(compose["services"][service]["environment"]) == given


def test_addresses_lead_to_services(compose: dict[str, Any]) -> None:
    server = compose["services"]["label-studio"]
    assert server["environment"]["POSTGRE_HOST"] in compose["services"]
    # Without both, Label Studio refuses a backend with a private address.
    assert server["environment"]["SSRF_PROTECTION_ENABLED"] == "false"
    assert server["environment"]["ML_BLOCK_LOCAL_IP"] == "false"
    # Published ports are for this machine only, until somebody decides otherwise.
    for name, service in compose["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])) is (name != "proxy"), name


def test_redis_asks_for_a_password_and_is_reached_from_inside_only(compose: dict[str, Any]) -> None:
    """Who can write there tells workers what to do."""
    redis = compose["services"]["redis"]
    assert redis["environment"] == {"REDISCLI_AUTH": "value of REDIS_PASSWORD"}
    assert redis["command"][:3] == ["redis-server", "--requirepass", "value of REDIS_PASSWORD"]
    assert "ports" not in redis


def test_uploads_are_shared_read_only(compose: dict[str, Any]) -> None:
    for name in ("backend", "worker", "drawer", "trainer"):
        service = compose["services"][name]
        assert "label-studio-data:/label-studio/data:ro" in service["volumes"]
        assert service["environment"]["UPLOADS_ROOT"].startswith("/label-studio/data/")


def test_health_checks_call_checks_that_exist(compose: dict[str, Any]) -> None:
    names = {check.name for check in (*CHECKS, *EXTRA)}
    for service in ("backend", "worker", "drawer", "trainer"):
        command = compose["services"][service]["healthcheck"]["test"]
        assert command[1:4] == ["python", "-m", "ml_backend.cli.doctor"]
        assert command[command.index("--only") + 1] in names


def test_every_queue_is_served_once(compose: dict[str, Any]) -> None:
    commands = [compose["services"][name]["command"] for name in ("drawer", "worker", "trainer")]
    served = [queue for command in commands for queue in command[command.index("--queues") + 1].split(",")]
    assert served == list(QUEUES)


def test_the_options_of_cameras_exist(filled: dict[str, str]) -> None:
    options = re.search(r"^#LIVE_OPTIONS=(.+)$", (ROOT / ".env.example").read_text(encoding="utf-8"), re.M)
    assert options
    command = interpolate(load(FILES[0]), filled | {"LIVE_OPTIONS": options[1]})["services"]["cameras"]["command"]
    program, script, *arguments = shlex.split(command)
    assert program == "python"
    assert (ROOT / script).is_file()
    live.make_context(script, arguments)


def test_workers_serve_what_they_are_told(filled: dict[str, str]) -> None:
    document = interpolate(load(FILES[0]), filled | {"WORKER_QUEUES": "predict,segments"})
    assert document["services"]["worker"]["command"][-2:] == ["--queues", "predict,segments"]
    assert document["services"]["trainer"]["command"][-1] == "train"


def test_label_studio_takes_what_we_send(compose: dict[str, Any]) -> None:
    taken = compose["services"]["label-studio"]["environment"]["DATA_UPLOAD_MAX_MEMORY_SIZE"]
    assert int(taken) > Settings.model_fields["upload_max_gb"].default * 2**30


def test_workers_can_be_multiplied(filled: dict[str, str]) -> None:
    assert interpolate(load(FILES[0]), filled)["services"]["worker"]["deploy"]["replicas"] == "1"
    document = interpolate(load(FILES[0]), filled | {"WORKERS": "4"})
    assert document["services"]["worker"]["deploy"]["replicas"] == "4"
    assert "ports" not in document["services"]["worker"], "two workers could not have the same port"


def test_the_gpu_file_only_adds_to_those_that_use_it() -> None:
    services = load(FILES[1])["services"]
    assert {name for name, service in services.items() if "deploy" in service} == {"worker", "trainer", "cameras"}
    for name in ("worker", "trainer", "cameras"):
        (device,) = services[name]["deploy"]["resources"]["reservations"]["devices"]
        assert device["capabilities"] == ["gpu"]


def test_with_a_gpu_all_look_at_every_frame() -> None:
    """One of them with another stride would make other versions."""
    services = load(FILES[1])["services"]
    assert {interpolate(service["environment"]["STRIDE"], {}) for service in services.values()} == {"1"}
    assert services["backend"] == {"environment": {"STRIDE": "${STRIDE:-1}"}}


def test_the_image_has_every_extra_with_hashes() -> None:
    lock = (ROOT / "requirements-image.lock").read_text(encoding="utf-8")
    locked = {entry.split("==")[0]: entry for entry in re.split(r"\n(?=\S)", lock)}
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.M)
    assert {*pinned, "psycopg", "psycopg-binary", "s3fs", "gcsfs"} <= set(locked)
    assert all("--hash=sha256:" in entry for entry in locked.values())
    assert "--require-hashes" in (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_what_the_dockerfile_copies_is_sent_to_the_build() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    sources = [
        source for line in re.findall(r"^COPY (?!--from)(.*)$", dockerfile, re.M) for source in line.split()[:-1]
    ]
    assert sources
    sent = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for source in sources:
        assert (ROOT / source).exists()
        assert f"!{source}" in sent
    assert re.search(r"^USER (?!root|0)", dockerfile, re.M), "it must not run as root"
    assert Path("/data") == Path(re.search(r"DATA_DIR=(\S+)", dockerfile)[1])  # type: ignore[index]


def test_containers_write_and_reach_little(compose: dict[str, Any]) -> None:
    assert compose["networks"]["inside"] == {"internal": True}
    for name, service in compose["services"].items():
        assert service["mem_limit"], name
        assert ("inside" in service["networks"]) == (name != "proxy"), name
        assert (service["networks"] == ["inside"]) is (name in ("postgres", "redis")), name
        assert "no-new-privileges:true" in service["security_opt"], name
        if name != "label-studio":  # it writes into its own installation
            assert service["read_only"] is True, name
            assert "/tmp" in service["tmpfs"], name
