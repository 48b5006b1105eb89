"""The chart gives the service every setting that it has, and secrets by reference only."""

from __future__ import annotations

import inspect
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from helm_chart import CHART, SCENARIOS, SECRET, Rendered, rendered
from tightfit_service.adapters.access.policy_file import read_policy
from tightfit_service.domain.access import Grant, Role
from tightfit_service.settings import Settings, load_settings

NOT_IN_THE_CHART = {
    "s3_access_key": "read from a file, which follows a change of its Secret",
    "s3_secret_key": "read from a file, which follows a change of its Secret",
    "worker_user": "pods run without the rights to change users",
    "replica_name": "the name of the pod, which is its host's name",
    "artifact_dir": "replicas share a bucket, and one server has its data folder",
}
"""Settings that the chart leaves alone, with the reason."""

SECRET_SETTINGS = {"database_url", "s3_access_key", "s3_secret_key"}
IN_FILES = (
    "tls_",
    "metrics_client_",
    "provenance_",
    "access_policy_",
    "s3_access_",
    "s3_secret_",
    "ray_",
)
"""Settings that name a file of a Secret or of a ConfigMap."""


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
        # room for the server in a pod of 6 GiB, and for other files on a volume of 20 GiB
        "worker_memory_bytes",
        "worker_disk_bytes",
        # the service's own default is for a server on loopback
        "auth_required",
        "tls_cert_file",
        "tls_key_file",
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
    # readable by the group of the pod, and by nobody else
    for volume in chart.pod["volumes"]:
        assert volume.get("secret", {}).get("defaultMode", 0o440) == 0o440


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
    settings = load_settings({}, chart.environment())
    assert settings.s3_access_key_file == "/etc/tightfit/s3/a"
    assert settings.s3_secret_key_file == "/etc/tightfit/s3/b"


def test_the_role_of_the_service_account_stands_in_for_keys_of_the_store() -> None:
    chart = Rendered({"artifacts": {"s3": {"existingSecret": ""}}})
    settings = load_settings({}, chart.environment())
    assert settings.s3_access_key_file == settings.s3_secret_key_file == ""
    assert "s3" not in {volume["name"] for volume in chart.pod["volumes"]}


@pytest.mark.parametrize("name", SCENARIOS)
def test_files_that_settings_name_are_mounted_whole(name: str) -> None:
    """A file that is mounted by subPath would not follow a change of its Secret."""
    chart = rendered(name)
    settings = load_settings({}, chart.environment())
    folders = {mount["mountPath"]: mount["name"] for mount in chart.container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in chart.pod["volumes"]}
    files = {
        getattr(settings, field.name)
        for field in fields(Settings)
        if field.name.startswith(IN_FILES) and field.name.endswith("_file")
    } - {""}
    assert bool(files) == (name != "ephemeral")
    for file in files:
        volume = volumes[folders[str(Path(file).parent)]]
        assert {"secret", "configMap"} & set(volume)
    assert "subPath" not in str(chart.container["volumeMounts"])


def test_roles_reach_the_service_as_a_policy_that_it_accepts(tmp_path: Path) -> None:
    chart = rendered("ray")
    made = chart.one("ConfigMap", "demo-tightfit-access")["data"]["policy.yaml"]
    (tmp_path / "policy.yaml").write_text(made)
    policy = read_policy(tmp_path / "policy.yaml")
    assert policy.groups["ml-platform"] == (Grant(role=Role.ADMIN, project="*"),)
    assert chart.environment()["TIGHTFIT_ACCESS_POLICY_FILE"] == "/etc/tightfit/access/policy.yaml"


def test_a_change_of_roles_does_not_replace_pods() -> None:
    def template(role: str) -> Any:
        values = {"auth": {"policy": {"groups": {"edge": {"*": role}}}}}
        return Rendered(values).server["spec"]["template"]

    assert template("viewer") == template("admin")


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
