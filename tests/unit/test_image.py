"""The Dockerfile agrees with what it packs: versions, settings, ports, and the chart's user."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from tightfit_service.settings import load_settings

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_torch_is_the_version_the_service_is_tested_with() -> None:
    pinned = re.search(r"^torch==([\d.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    installed = re.search(r"torch==([\d.]+)\+cpu", DOCKERFILE)
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
    assert re.search(rf"^VOLUME {settings.data_dir}$", DOCKERFILE, re.MULTILINE)


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
