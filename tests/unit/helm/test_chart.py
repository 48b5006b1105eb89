"""The Helm chart renders to valid, locked-down manifests that mirror the service's settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml

from tightfit_service import __version__
from tightfit_service.settings import Settings, load_settings

CHART = Path(__file__).parents[3] / "helm" / "tightfit"
SCENARIOS = sorted((CHART / "ci").glob("*-values.yaml"))
KUBERNETES_VERSIONS = ("1.27", "1.31")
SECRET_SETTINGS = {"database_url", "s3_access_key", "s3_secret_key"}


def render(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the rendered manifests by kind."""
    chart = helm_python.Chart.load(str(CHART))
    texts = chart.render(dict(values), name="demo", namespace="models")
    documents = [
        document
        for name, text in texts.items()
        if name.endswith(".yaml")
        for document in yaml.safe_load_all(text)
        if document
    ]
    kinds = {document["kind"]: document for document in documents}
    assert len(kinds) == len(documents)
    return kinds


def scenario(name: str) -> dict[str, Any]:
    loaded = yaml.safe_load((CHART / "ci" / f"{name}-values.yaml").read_text())
    assert isinstance(loaded, dict)
    return loaded


def pod_of(manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    pod = manifests["StatefulSet"]["spec"]["template"]["spec"]
    assert isinstance(pod, dict)
    return pod


def environment_of(manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the container's environment, with a stand-in for what comes from Secrets."""
    (container,) = pod_of(manifests)["containers"]
    environment = dict(manifests["ConfigMap"]["data"])
    for variable in container.get("env", []):
        environment[variable["name"]] = variable.get("value", "from-secret")
    return environment


def test_the_chart_lints_clean() -> None:
    report = helm_python.lint(str(CHART), strict=True, with_subcharts=True)
    assert not report["errors"], report


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.name)
@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_every_scenario_gives_valid_manifests(path: Path, version: str) -> None:
    manifests = render(yaml.safe_load(path.read_text()))
    assert "StatefulSet" in manifests
    for manifest in manifests.values():
        kubernetes_validate.validate(manifest, version, strict=True)


def test_there_are_scenarios() -> None:
    assert {path.name for path in SCENARIOS} >= {"default-values.yaml", "s3-values.yaml"}


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.name)
def test_the_service_accepts_the_environment_it_is_given(path: Path) -> None:
    values = yaml.safe_load(path.read_text())
    environment = environment_of(render(values))
    settings = load_settings({}, environment)
    assert settings.data_dir == Path("/var/lib/tightfit")
    assert settings.artifact_store == values.get("artifacts", {}).get("store", "folder")


def test_every_setting_has_a_value_in_the_chart() -> None:
    names = {name for name in environment_of(render(scenario("s3"))) if "TIGHTFIT_" in name}
    assert names == {f"TIGHTFIT_{field.name.upper()}" for field in fields(Settings)}


def test_large_numbers_are_not_written_in_scientific_notation() -> None:
    environment = environment_of(render(scenario("large")))
    assert environment["TIGHTFIT_WORKER_MEMORY_BYTES"] == str(16 << 30)
    assert environment["TIGHTFIT_MAX_UPLOAD_BYTES"] == str(32 << 30)


def test_secrets_come_by_reference_only() -> None:
    manifests = render(scenario("s3"))
    assert "Secret" not in manifests
    secret = {f"TIGHTFIT_{name.upper()}" for name in SECRET_SETTINGS}
    assert not secret & set(manifests["ConfigMap"]["data"])
    (container,) = pod_of(manifests)["containers"]
    references = {
        variable["name"]: variable["valueFrom"]["secretKeyRef"] for variable in container["env"]
    }
    assert references == {
        "TIGHTFIT_S3_ACCESS_KEY": {"name": "tightfit-s3", "key": "access-key"},
        "TIGHTFIT_S3_SECRET_KEY": {"name": "tightfit-s3", "key": "secret-key"},
        "TIGHTFIT_DATABASE_URL": {"name": "tightfit-database", "key": "url"},
    }


def test_the_pod_is_locked_down() -> None:
    pod = pod_of(render({}))
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"] == "6Gi"
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {
        "/var/lib/tightfit",
        "/tmp",
    }


def test_the_pod_outlives_its_drain_and_is_probed_over_grpc() -> None:
    pod = pod_of(render({"settings": {"drainSeconds": 120}, "service": {"grpcPort": 6000}}))
    assert pod["terminationGracePeriodSeconds"] > 120
    (container,) = pod["containers"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["grpc"]["port"] == 6000


def test_only_one_server_ever_holds_the_volume() -> None:
    spec = render({})["StatefulSet"]["spec"]
    assert spec["replicas"] == 1
    (claim,) = spec["volumeClaimTemplates"]
    assert claim["metadata"]["name"] == "data"
    assert claim["spec"]["resources"]["requests"]["storage"] == "20Gi"


def test_storage_follows_the_values() -> None:
    def data_volume(values: Mapping[str, Any]) -> Any:
        manifests = render(values)
        assert "volumeClaimTemplates" not in manifests["StatefulSet"]["spec"]
        return next(v for v in pod_of(manifests)["volumes"] if v["name"] == "data")

    assert data_volume({"persistence": {"enabled": False}})["emptyDir"] == {}
    claim = data_volume({"persistence": {"existingClaim": "models"}})["persistentVolumeClaim"]
    assert claim == {"claimName": "models"}
    spec = render({"persistence": {"storageClass": "fast"}})["StatefulSet"]["spec"]
    assert spec["volumeClaimTemplates"][0]["spec"]["storageClassName"] == "fast"


def test_changed_settings_replace_the_pod() -> None:
    def checksum(values: Mapping[str, Any]) -> str:
        template = render(values)["StatefulSet"]["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/config"])

    assert checksum({}) == checksum({})
    assert checksum({}) != checksum({"settings": {"logLevel": "debug"}})


def test_the_service_account_is_optional() -> None:
    assert "ServiceAccount" not in render({"serviceAccount": {"create": False}})
    made = render({"serviceAccount": {"annotations": {"team": "edge"}}})["ServiceAccount"]
    assert made["automountServiceAccountToken"] is False
    assert made["metadata"]["annotations"] == {"team": "edge"}


@pytest.mark.parametrize(
    "values",
    [
        {"setings": {}},
        {"settings": {"workerCount": 0}},
        {"settings": {"logLevel": "verbose"}},
        {"settings": {"workerMemoryBytes": "8Gi"}},
        {"artifacts": {"store": "s3"}},
        {"artifacts": {"store": "s3", "s3": {"url": "http://s3:9000"}}},
        {"artifacts": {"store": "gcs"}},
        {"service": {"grpcPort": 70000}},
        {"persistence": {"size": "much"}},
        {"image": {"digest": "sha256:1"}},
    ],
    ids=str,
)
def test_values_that_cannot_be_meant_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(helm_python.HelmValuesError):
        render(values)


def test_the_tag_is_the_version_of_the_service() -> None:
    metadata = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert metadata["appVersion"] == __version__
    (container,) = pod_of(render({}))["containers"]
    assert container["image"].endswith(f":{__version__}")


def test_notes_tell_how_to_reach_the_service() -> None:
    chart = helm_python.Chart.load(str(CHART))
    texts = chart.render({"persistence": {"enabled": False}}, name="demo", namespace="models")
    (notes,) = [text for name, text in texts.items() if name.endswith("NOTES.txt")]
    assert "port-forward service/demo-tightfit 50051" in notes
    assert "are lost when the pod ends" in notes


def documented_values() -> list[tuple[str, str]]:
    """Return (path, comment) of every value that a comment starting with `# --` describes."""
    rows, stack, comment = list[tuple[str, str]](), list[tuple[int, str]](), ""
    for line in (CHART / "values.yaml").read_text().splitlines():
        stripped = line.strip()
        if stripped.startswith("# -- "):
            comment = stripped.removeprefix("# -- ")
            continue
        match = re.match(r"^( *)([A-Za-z0-9]+):", line)
        if match is None:
            continue
        indent = len(match[1])
        stack = [entry for entry in stack if entry[0] < indent] + [(indent, match[2])]
        if comment:
            rows.append((".".join(name for _, name in stack), comment))
            comment = ""
    return rows


def leaves(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in values.items():
        path = f"{prefix}{key}"
        found += leaves(value, f"{path}.") if isinstance(value, dict) and value else [path]
    return found


def test_every_value_is_described_once_and_the_readme_repeats_it() -> None:
    rows = documented_values()
    described = [path for path, _ in rows]
    assert len(set(described)) == len(described)
    for leaf in leaves(yaml.safe_load((CHART / "values.yaml").read_text())):
        assert any(leaf == path or leaf.startswith(f"{path}.") for path in described), leaf
    readme = (CHART / "README.md").read_text()
    for path, comment in rows:
        assert re.search(
            rf"^\| `{re.escape(path)}` \|.*\| {re.escape(comment)} \|$", readme, re.MULTILINE
        ), path
