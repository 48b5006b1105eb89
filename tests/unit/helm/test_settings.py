"""The chart gives the service every setting that it has, and secrets by reference only."""

from __future__ import annotations

import inspect
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from helm_chart import CHART, SCENARIOS, SECRET, Rendered, rendered
from tightfit_service.settings import Settings, load_settings

NOT_IN_THE_CHART: dict[str, str] = {}
"""Settings that the chart leaves alone, with the reason."""

SECRET_SETTINGS = {"database_url", "s3_access_key", "s3_secret_key"}


def variable(name: str) -> str:
    return f"TIGHTFIT_{name.upper()}"


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_service_accepts_the_environment_it_is_given(name: str) -> None:
    settings = load_settings({}, rendered(name).environment())
    assert settings.data_dir == Path("/var/lib/tightfit")
    assert settings.listen == "0.0.0.0:50051"
    assert settings.artifact_store == ("folder" if name in ("embedded", "ephemeral") else "s3")


def test_every_setting_has_a_value_in_the_chart_or_a_reason_why_not() -> None:
    given = set[str]()
    for name in SCENARIOS:
        given |= {name for name in rendered(name).environment() if name.startswith("TIGHTFIT_")}
    settings = {field.name for field in fields(Settings)}
    assert {variable(name) for name in settings - set(NOT_IN_THE_CHART)} == given
    assert set(NOT_IN_THE_CHART) <= settings
    assert all(NOT_IN_THE_CHART.values())


def test_the_chart_and_the_service_agree_on_defaults_but_where_pods_differ() -> None:
    """A value that says nothing else keeps what the service would have done by itself."""
    environment = rendered("embedded").environment()
    chart, service = load_settings({}, environment), Settings()
    differing = {
        field.name
        for field in fields(Settings)
        if getattr(chart, field.name) != getattr(service, field.name)
    }
    assert differing == {
        "listen",
        "metrics_listen",
        "health_listen",
        "data_dir",
        # half of the service's own default, with room for the server in a pod of 6 GiB
        "worker_memory_bytes",
    }


def test_large_numbers_are_not_written_in_scientific_notation() -> None:
    environment = rendered("large").environment()
    assert environment["TIGHTFIT_WORKER_MEMORY_BYTES"] == str(16 << 30)
    assert environment["TIGHTFIT_MAX_UPLOAD_BYTES"] == str(32 << 30)


def test_fractions_stay_fractions() -> None:
    assert (
        Rendered({"settings": {"drainSeconds": 45}}).environment()["TIGHTFIT_DRAIN_SECONDS"] == "45"
    )


@pytest.mark.parametrize("name", SCENARIOS)
def test_secrets_come_by_reference_only(name: str) -> None:
    chart = rendered(name)
    assert "Secret" not in chart.kinds()
    secret = {variable(setting) for setting in SECRET_SETTINGS}
    for manifest in chart.all("ConfigMap"):
        assert not secret & set(manifest["data"])
    for entry in chart.container.get("env", []):
        if entry["name"] in secret:
            assert set(entry) == {"name", "valueFrom"}


def test_references_name_the_secrets_of_the_values() -> None:
    chart = Rendered(
        {
            "database": {"existingSecret": "db", "urlKey": "dsn"},
            "artifacts": {"s3": {"existingSecret": "s3", "accessKeyKey": "a", "secretKeyKey": "b"}},
        }
    )
    references = {
        entry["name"]: (
            entry["valueFrom"]["secretKeyRef"]["name"],
            entry["valueFrom"]["secretKeyRef"]["key"],
        )
        for entry in chart.container["env"]
    }
    assert references["TIGHTFIT_DATABASE_URL"] == ("db", "dsn")
    assert references["TIGHTFIT_S3_ACCESS_KEY"] == ("s3", "a")
    assert references["TIGHTFIT_S3_SECRET_KEY"] == ("s3", "b")


def test_changed_settings_replace_the_pods() -> None:
    def checksum(values: dict[str, Any]) -> str:
        template = Rendered(values).server["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/config"])

    assert checksum({}) == checksum({})
    assert checksum({}) != checksum({"settings": {"logLevel": "debug"}})


def test_more_variables_can_be_given() -> None:
    assert rendered("ephemeral").environment()["OMP_NUM_THREADS"] == "2"
    assert rendered("replicated").environment()["TIGHTFIT_DATABASE_URL"] == SECRET


def test_the_schema_knows_no_setting_that_the_service_does_not() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    known = {field.name.replace("_", "").lower() for field in fields(Settings)}
    for name in schema["properties"]["settings"]["properties"]:
        assert name.lower() in known
    assert "Helm chart" in (inspect.getdoc(Settings) or "")
