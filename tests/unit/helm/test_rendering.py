"""Every scenario of the chart renders to manifests that Kubernetes and the operators accept."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

from helm_chart import (
    CHART,
    KUBERNETES_VERSIONS,
    SCENARIOS,
    Rendered,
    apart,
    lint,
    rendered,
    scenario,
    templates,
)
from tightfit_service import __version__

SCHEMAS = {
    schema["properties"]["kind"]["const"]: schema
    for schema in (
        json.loads(path.read_text()) for path in (Path(__file__).parent / "schemas").glob("*.json")
    )
}
"""Of the operators' kinds, after their documentation; kubernetes_validate has none."""
TLS = {"tls": {"existingSecret": "tls"}}
INSECURE = {"auth": {"allowInsecure": True}}
README = runpy.run_path(str(CHART.parent / "readme.py"))


def test_the_chart_lints_clean() -> None:
    report = apart(lint)
    assert not report["errors"], report


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_gives_valid_manifests(name: str, version: str) -> None:
    for manifest in rendered(name).manifests:
        _validate(manifest, version)


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_the_pods_of_a_ray_cluster_are_valid(version: str) -> None:
    specs = [spec for kind, spec in rendered("ray").pods() if kind == "RayCluster"]
    assert len(specs) == 3
    for spec in specs:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}, "spec": spec}
        _validate(pod, version)


def _validate(manifest: dict[str, Any], version: str) -> None:
    # their grammars take seconds to load, which collecting these tests is not worth
    import jsonschema
    import kubernetes_validate

    if manifest["kind"] in SCHEMAS:
        jsonschema.validate(manifest, SCHEMAS[manifest["kind"]])
    else:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_the_scenarios_make_every_kind_between_them() -> None:
    made = set[str]()
    for name in SCENARIOS:
        made |= rendered(name).kinds()
    assert made == {
        "Certificate",
        "ConfigMap",
        "Deployment",
        "HorizontalPodAutoscaler",
        "Job",
        "NetworkPolicy",
        "Pod",
        "PodDisruptionBudget",
        "PrometheusRule",
        "RayCluster",
        "ScaledObject",
        "Service",
        "ServiceAccount",
        "ServiceMonitor",
        "StatefulSet",
    }
    assert set(SCHEMAS) < made


@pytest.mark.parametrize("name", SCENARIOS)
def test_no_two_manifests_have_one_name(name: str) -> None:
    manifests = rendered(name).manifests
    names = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests]
    assert len(set(names)) == len(names)


def test_names_fit_however_long_the_release_is() -> None:
    texts = apart(templates, scenario("ray"), "a" * 53)
    for text in texts.values():
        for name in re.findall(r"^ *name: (a+\S*)$", text, re.MULTILINE):
            assert len(name) <= 63
            assert not name.endswith("-")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "database.existingSecret"),
        ({"database": {"existingSecret": "db"}}, "artifacts.s3.url"),
        ({"mode": "embedded"}, "tls.existingSecret"),
        ({"mode": "embedded", **TLS, "auth": {"required": False}}, "auth.required"),
        (
            {"mode": "embedded", **INSECURE, "metrics": {"tls": {"enabled": True}}},
            "needed with metrics.tls.enabled",
        ),
        ({"mode": "embedded", "tls": {"certManager": {"enabled": True}}}, "issuerName"),
        ({"mode": "embedded", **TLS, "auth": {"oidc": {"issuer": "https://i"}}}, "jwksUrl"),
        (
            {"database": {"existingSecret": "db"}, "artifacts": {"store": "folder"}},
            "artifacts.store must be s3",
        ),
        (
            {"mode": "embedded", **TLS, "autoscaling": {"kind": "hpa"}},
            "autoscaling.kind must be none",
        ),
        (
            {"mode": "embedded", **TLS, "autoscaling": {"minReplicas": 9, "maxReplicas": 3}},
            "autoscaling.minReplicas is above",
        ),
        ({"mode": "embedded", **TLS, "ray": {"enabled": True}}, "ray.auth.existingSecret"),
        (
            {"mode": "embedded", **TLS, "ray": {"enabled": True, "auth": {"existingSecret": "r"}}},
            "ray.version",
        ),
    ],
    ids=lambda item: item if isinstance(item, str) else "",
)
def test_what_is_missing_is_named_with_its_remedy(values: dict[str, Any], message: str) -> None:
    with pytest.raises(helm_python.HelmError, match=message):
        Rendered(values, base=None)


@pytest.mark.parametrize(
    "values",
    [
        {"setings": {}},
        {"mode": "clustered"},
        {"replicaCount": 0},
        {"settings": {"workerCount": 0}},
        {"settings": {"logLevel": "verbose"}},
        {"settings": {"workerMemoryBytes": "8Gi"}},
        {"settings": {"unknown": 1}},
        {"database": {"existingSecret": "postgresql://user:password@host/db"}},
        {"artifacts": {"store": "gcs"}},
        {"artifacts": {"s3": {"url": "s3.example.com"}}},
        {"auth": {"policy": {"groups": {"edge": {"*": "owner"}}}}},
        {"auth": {"oidc": {"jwksUrl": "http://login.example.com/keys"}}},
        {"service": {"grpcPort": 70000}},
        {"persistence": {"size": "much"}},
        {"image": {"digest": "sha256:1"}},
        {"autoscaling": {"kind": "vpa"}},
        {"metrics": {"serviceMonitor": {"interval": "often"}}},
        {"ray": {"workerGroups": []}},
        {"ray": {"workerGroups": [{"name": "cpu"}]}},
        {"topologySpread": [{"topologyKey": "zone"}]},
    ],
    ids=str,
)
def test_values_that_cannot_be_meant_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(helm_python.HelmValuesError):
        Rendered(values)


def test_the_image_is_the_version_of_the_service_or_a_digest() -> None:
    metadata = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert metadata["appVersion"] == __version__
    assert Rendered({}).container["image"].endswith(f":{__version__}")
    digest = "sha256:" + "0" * 64
    assert Rendered({"image": {"digest": digest}}).container["image"].endswith(f"service@{digest}")


def test_notes_tell_how_to_reach_the_service() -> None:
    notes = rendered("ephemeral").notes
    assert "port-forward service/demo-tightfit 50051" in notes
    assert "are lost when the pod ends" in notes
    assert "create-admin-key" not in notes
    assert "exec deployment/demo-tightfit -- python -m tightfit_service create-admin-key" in (
        rendered("replicated").notes
    )
    assert "a key of its own that ends with its pod" in rendered("replicated").notes
    assert "a key of its own" not in rendered("large").notes


def leaves(values: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the paths of all values that are no groups of others."""
    found = []
    for key, value in values.items():
        path = f"{prefix}{key}"
        found += leaves(value, f"{path}.") if isinstance(value, dict) and value else [path]
    return found


def test_every_value_is_described_once() -> None:
    text = (CHART / "values.yaml").read_text()
    described = [path for path, _ in README["described"](text)]
    assert len(set(described)) == len(described)
    for leaf in leaves(yaml.safe_load(text)):
        assert any(leaf == path or leaf.startswith(f"{path}.") for path in described), leaf


def test_every_value_is_in_the_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())

    def properties(node: dict[str, Any], prefix: str = "") -> set[str]:
        found = set[str]()
        for name, child in node.get("properties", {}).items():
            if f"{prefix}{name}" == "auth.policy":
                found.add("auth.policy")  # a document of its own, empty as it comes
                continue
            inner = properties(child, f"{prefix}{name}.")
            found |= inner or {f"{prefix}{name}"}
        return found

    def is_listed(leaf: str, known: set[str]) -> bool:
        return any(leaf == path or leaf.startswith(f"{path}.") for path in known)

    known = properties(schema) - {"global"}
    values = leaves(yaml.safe_load((CHART / "values.yaml").read_text()))
    assert [leaf for leaf in values if not is_listed(leaf, known)] == []
    assert [path for path in known if not any(is_listed(leaf, {path}) for leaf in values)] == []


def test_the_readme_lists_the_values_as_they_are() -> None:
    readme, values = (CHART / "README.md").read_text(), (CHART / "values.yaml").read_text()
    assert readme == README["generated"](readme, values), "run: python helm/readme.py"
