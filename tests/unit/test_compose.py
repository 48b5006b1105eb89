"""The try-out of compose.yaml: every name it uses exists, images are pinned, and secrets come from .env."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tightfit_service.settings import load_settings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
CHECKED_BY_THE_IMAGE = {"tightfit"}
"""Services whose health check is in their Dockerfile."""

SERVICE_KEYS = {
    "build",
    "cap_drop",
    "command",
    "depends_on",
    "environment",
    "healthcheck",
    "image",
    "init",
    "ports",
    "read_only",
    "restart",
    "security_opt",
    "stop_grace_period",
    "tmpfs",
    "volumes",
}
"""Those of the Compose specification that are used here."""


def test_only_keys_of_the_specification_are_used() -> None:
    extensions = {key for key in COMPOSE if key.startswith("x-")}
    assert set(COMPOSE) - extensions == {"name", "services", "volumes"}
    for name, service in SERVICES.items():
        assert set(service) <= SERVICE_KEYS, name
        assert service.get("restart") in ("no", "unless-stopped")


def test_no_key_is_given_twice() -> None:
    def check(node: yaml.Node) -> None:
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value]
            assert len(set(keys)) == len(keys), f"line {node.start_mark.line + 1}: {keys}"
            for _, value in node.value:
                check(value)
        elif isinstance(node, yaml.SequenceNode):
            for item in node.value:
                check(item)

    root = yaml.compose(TEXT, Loader=yaml.SafeLoader)
    assert root is not None
    check(root)


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_images_are_pinned_to_a_version(name: str) -> None:
    repository, _, tag = SERVICES[name]["image"].rpartition(":")
    assert repository
    assert re.fullmatch(r"v?\d+\.\d+(\.\d+)?(-[a-z]+)?", tag)


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_services_wait_for_what_can_be_waited_for(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        if how["condition"] == "service_healthy":
            assert "healthcheck" in SERVICES[other] or other in CHECKED_BY_THE_IMAGE
        else:
            assert how["condition"] == "service_completed_successfully"
            assert SERVICES[other]["restart"] == "no"


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_service_that_stays_is_checked(name: str) -> None:
    if SERVICES[name]["restart"] != "no" and name not in CHECKED_BY_THE_IMAGE:
        assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"
    assert "HEALTHCHECK" in (ROOT / "Dockerfile").read_text()


def test_volumes_are_declared_and_files_exist() -> None:
    named = set[str]()
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source, target, *mode = volume.split(":")
            assert target.startswith("/")
            if source.startswith("./"):
                assert (ROOT / source).is_file(), source
                assert mode == ["ro"]
            else:
                named.add(source)
    assert named == set(COMPOSE["volumes"])


def test_ports_are_open_to_this_machine_only() -> None:
    for service in SERVICES.values():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")


def variables() -> set[str]:
    return set(re.findall(r"\$\{(\w+)", TEXT))


def test_secrets_are_made_by_the_script_and_never_written_here(tmp_path: Path) -> None:
    script = ROOT / "deploy" / "compose" / "make-env.sh"
    copy = tmp_path / "deploy" / "compose" / script.name
    copy.parent.mkdir(parents=True)
    copy.write_text(script.read_text())
    first = subprocess.run(["sh", str(copy)], check=True, capture_output=True, text=True)
    assert ".env" in first.stdout
    made = dict(line.split("=") for line in (tmp_path / ".env").read_text().splitlines())
    assert set(made) == variables()
    assert all(re.fullmatch(r"[0-9a-f]{20,}", value) for value in made.values())
    assert len(set(made.values())) == len(made)
    assert (tmp_path / ".env").stat().st_mode & 0o077 == 0
    again = subprocess.run(["sh", str(copy)], check=False, capture_output=True, text=True)
    assert again.returncode == 1
    assert made == dict(line.split("=") for line in (tmp_path / ".env").read_text().splitlines())
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()
    # each use says what to do where .env is missing
    assert len(re.findall(r"\$\{\w+:\?run deploy/compose/make-env.sh first\}", TEXT)) == len(
        re.findall(r"\$\{", TEXT)
    )


def test_the_service_accepts_its_environment() -> None:
    text = re.sub(r"\$\{(\w+)[^}]*\}", "secret", TEXT)
    services = yaml.safe_load(text)["services"]
    settings = load_settings({}, services["tightfit"]["environment"])
    assert settings.artifact_store == "s3"
    assert settings.allow_insecure
    assert settings.database_url == "postgresql+psycopg://tightfit:secret@database:5432/tightfit"
    grace = int(services["tightfit"]["stop_grace_period"].removesuffix("s"))
    assert grace > settings.drain_seconds
    migrating = load_settings({}, services["migrations"]["environment"])
    assert migrating.database_url == settings.database_url


def test_names_that_services_call_one_another_are_services() -> None:
    hosts = set(re.findall(r"(?:http://|@)([a-z]+):\d+", yaml.safe_dump(COMPOSE)))
    prometheus = yaml.safe_load((ROOT / "deploy" / "compose" / "prometheus.yml").read_text())
    for job in prometheus["scrape_configs"]:
        for target in job["static_configs"][0]["targets"]:
            hosts.add(target.rpartition(":")[0])
    grafana = ROOT / "deploy" / "compose" / "grafana"
    (source,) = yaml.safe_load((grafana / "datasource.yaml").read_text())["datasources"]
    hosts.add(source["url"].removeprefix("http://").rpartition(":")[0])
    assert hosts == {"database", "store", "tightfit", "prometheus"}
    assert hosts <= set(SERVICES)


def test_what_is_mounted_is_where_it_is_looked_for() -> None:
    targets = {
        volume.split(":")[1]
        for name in ("prometheus", "grafana")
        for volume in SERVICES[name]["volumes"]
    }
    prometheus = yaml.safe_load((ROOT / "deploy" / "compose" / "prometheus.yml").read_text())
    assert set(prometheus["rule_files"]) <= targets
    grafana = SERVICES["grafana"]["environment"]
    assert grafana["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] in targets
    providers = yaml.safe_load(
        (ROOT / "deploy" / "compose" / "grafana" / "dashboards.yaml").read_text()
    )["providers"]
    assert providers[0]["options"]["path"] in {str(Path(target).parent) for target in targets}
    json.loads((ROOT / "helm" / "tightfit" / "files" / "dashboard.json").read_text())


def test_the_service_is_as_locked_down_as_in_the_cluster() -> None:
    for name in ("tightfit", "migrations"):
        assert SERVICES[name]["read_only"] is True
        assert SERVICES[name]["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in SERVICES[name]["security_opt"]
