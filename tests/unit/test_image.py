"""The Dockerfile agrees with what it packs: versions, settings, ports, extras, and the chart's user."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tightfit_service.settings import load_settings

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_torch_is_the_version_the_service_is_tested_with() -> None:
    pinned = re.search(r"^torch==([\d.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    installed = re.search(r"^ARG TORCH=([\d.]+)\+cpu$", DOCKERFILE, re.MULTILINE)
    assert pinned is not None
    assert installed is not None
    assert installed[1] == pinned[1]


def test_the_service_accepts_the_environment_of_the_image() -> None:
    environment = dict(re.findall(r"(TIGHTFIT_\w+)=(\S+)", DOCKERFILE))
    settings = load_settings({}, environment)
    exposed = re.search(r"^EXPOSE (.+)$", DOCKERFILE, re.MULTILINE)
    assert exposed is not None
    ports = [address.rsplit(":", 1)[1] for address in (settings.listen, settings.metrics_listen)]
    assert exposed[1].split() == ports
    # Only the health check inside asks the third port; the chart opens it to the kubelet.
    assert settings.health_listen == "127.0.0.1:50052"
    assert re.search(rf"^VOLUME {settings.data_dir}$", DOCKERFILE, re.MULTILINE)


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    found = subprocess.run([hadolint, ROOT / "Dockerfile"], check=False, capture_output=True)
    assert (found.returncode, found.stdout) == (0, b"")


def test_the_base_and_torch_can_be_chosen() -> None:
    arguments = dict(re.findall(r"^ARG (\w+)=(\S*)$", DOCKERFILE, re.MULTILINE))
    assert arguments["PYTHON_IMAGE"] == "python:3.11-slim-bookworm"
    assert {"TORCH", "TORCH_INDEX", "EXTRAS", "VERSION", "REVISION", "CREATED"} <= set(arguments)
    assert re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE) == ["${PYTHON_IMAGE}"] * 2


def dependencies(*extras: str) -> subprocess.CompletedProcess[str]:
    script = ROOT / "deploy" / "image" / "dependencies.py"
    projects = [ROOT / "pyproject.toml", ROOT / "clients" / "python" / "pyproject.toml"]
    return subprocess.run(
        [sys.executable, script, *projects, "--extras", " ".join(extras)],
        check=False,
        capture_output=True,
        text=True,
    )


def test_the_layer_of_dependencies_is_what_the_distributions_need() -> None:
    base = dependencies().stdout.splitlines()
    assert any(line.startswith("grpcio>=") for line in base)
    assert any(line.startswith("typer>=") for line in base)
    assert not [line for line in base if line.startswith(("torch=", "tightfit"))]
    assert any(line.startswith("litert-torch") for line in base)
    more = dependencies("postgres").stdout.splitlines()
    assert [line for line in more if line not in base] == ["psycopg[binary]>=3.3,<4"]


@pytest.mark.parametrize("extra", ["none-of-this-name", "postgresql"])
def test_an_extra_that_does_not_exist_ends_the_build(extra: str) -> None:
    done = dependencies("postgres", extra)
    assert done.returncode != 0
    assert extra in done.stderr


def test_the_extras_of_the_image_by_default_exist() -> None:
    default = re.search(r"^ARG EXTRAS=(.*)$", DOCKERFILE, re.MULTILINE)
    assert default is not None
    needed = dependencies(*default[1].split())
    assert needed.returncode == 0
    # all of it is in the lock file, so nothing without a hash is installed by default but torch
    locked = {line.split("==")[0] for line in (ROOT / "requirements.lock").read_text().splitlines()}
    for line in needed.stdout.splitlines():
        assert re.split(r"[\[<>=~! ;]", line)[0].lower() in locked, line
    assert "--require-hashes -r requirements.lock" in DOCKERFILE


def test_the_extras_of_the_chart_are_installed_by_hash_where_they_are_asked_for() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "!requirements-*.lock" in ignored
    assert (
        'pip install --no-deps --require-hashes -r "requirements-$extra.lock" || exit 1'
        in DOCKERFILE
    )
    values = (ROOT / "helm" / "tightfit" / "values.yaml").read_text()
    named = set(re.findall(r"the image needs the extra `(\w+)`", values, re.IGNORECASE))
    assert named == {"otel", "ray"}
    for extra in named:
        assert (ROOT / f"requirements-{extra}.lock").exists()


def test_the_chart_runs_the_image_as_its_own_user() -> None:
    values = yaml.safe_load((ROOT / "helm" / "tightfit" / "values.yaml").read_text())
    security = values["podSecurityContext"]
    assert f"USER {security['runAsUser']}:{security['runAsGroup']}" in DOCKERFILE


def test_every_file_that_is_copied_in_passes_the_ignore_list() -> None:
    allowed = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE):
        for source in sources.split():
            assert any(source == name or source.startswith(f"{name}/") for name in allowed), source
