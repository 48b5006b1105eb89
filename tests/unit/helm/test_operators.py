"""What operators act on: scaling with the queue, monitoring, and the Ray cluster."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from helm_chart import CHART, Rendered, rendered
from tightfit_service.settings import load_settings

OPERATORS = {"ServiceMonitor", "PrometheusRule", "ScaledObject", "RayCluster"}


def test_operators_are_needed_only_where_they_are_asked_for() -> None:
    assert not rendered("replicated").kinds() & OPERATORS
    assert not rendered("embedded").kinds() & OPERATORS


def test_an_hpa_follows_the_queue_and_gives_up_servers_slowly() -> None:
    chart = rendered("ray")
    spec = chart.one("HorizontalPodAutoscaler")["spec"]
    assert spec["scaleTargetRef"]["name"] == chart.server["metadata"]["name"]
    (metric,) = spec["metrics"]
    assert metric["external"]["metric"]["name"] == "tightfit_jobs_queued"
    assert metric["external"]["target"] == {"type": "AverageValue", "averageValue": "4"}
    assert spec["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 1800
    # The HPA owns the number; a Deployment that repeats it would undo the scaling at each upgrade.
    assert "replicas" not in chart.server["spec"]


def test_keda_asks_prometheus_for_the_queue() -> None:
    chart = rendered("large")
    spec = chart.one("ScaledObject")["spec"]
    assert spec["scaleTargetRef"]["name"] == chart.server["metadata"]["name"]
    (trigger,) = spec["triggers"]
    assert trigger["metadata"]["query"] == (
        'max(tightfit_jobs{state="queued",namespace="models",service="compress"})'
    )
    assert trigger["authenticationRef"] == {"name": "prometheus"}
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (2, 10)


def test_every_server_is_scraped_once() -> None:
    chart = rendered("large")
    monitor = chart.one("ServiceMonitor")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    selector = monitor["spec"]["selector"]["matchLabels"].items()
    chosen = [
        service["metadata"]["name"]
        for service in chart.all("Service")
        if selector <= service["metadata"]["labels"].items()
    ]
    assert chosen == ["compress"]
    (endpoint,) = monitor["spec"]["endpoints"]
    (port,) = (
        port
        for port in chart.one("Service", "compress")["spec"]["ports"]
        if port["name"] == endpoint["port"]
    )
    assert port["targetPort"] == "metrics"


def test_metrics_are_scraped_as_they_are_served() -> None:
    (endpoint,) = rendered("large").one("ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["scheme"] == "https"
    assert endpoint["tlsConfig"]["keySecret"] == {"name": "prometheus-tls", "key": "tls.key"}
    settings = load_settings({}, rendered("large").environment())
    assert settings.metrics_tls
    assert settings.metrics_client_ca_file == "/etc/tightfit/tls/ca.crt"
    monitor = {"serviceMonitor": {"enabled": True}}
    (plain,) = Rendered({"metrics": monitor}).one("ServiceMonitor")["spec"]["endpoints"]
    assert not {"scheme", "tlsConfig"} & set(plain)
    secured = Rendered({"metrics": {"tls": {"enabled": True}, **monitor}})
    (endpoint,) = secured.one("ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["tlsConfig"]["serverName"] == "demo-tightfit.models.svc"
    (volume,) = [volume for volume in secured.pod["volumes"] if volume["name"] == "tls"]
    secret = {"name": volume["secret"]["secretName"], "key": "ca.crt"}
    assert endpoint["tlsConfig"]["ca"] == {"secret": secret}
    assert not load_settings({}, secured.environment()).metrics_client_ca_file


def test_the_rules_are_those_of_the_file() -> None:
    rules = yaml.safe_load((CHART / "files" / "rules.yaml").read_text())
    assert rendered("large").one("PrometheusRule")["spec"] == rules


def test_the_dashboard_is_that_of_the_file() -> None:
    made = rendered("large").one("ConfigMap", "compress-dashboard")
    assert made["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert made["metadata"]["annotations"] == {"grafana_folder": "Models"}
    dashboard = json.loads((CHART / "files" / "dashboard.json").read_text())
    assert json.loads(made["data"]["tightfit.json"]) == dashboard


def test_ray_is_given_a_token_everywhere_and_no_other_secret() -> None:
    chart = rendered("ray")
    specs = [spec for kind, spec in chart.pods() if kind == "RayCluster"]
    for spec in specs:
        (container,) = spec["containers"]
        secrets = [entry for entry in container["env"] if "valueFrom" in entry]
        assert [entry["name"] for entry in secrets] == ["RAY_AUTH_TOKEN"]
        assert {"name": "RAY_AUTH_MODE", "value": "token"} in container["env"]
        assert "envFrom" not in container
    settings = load_settings({}, chart.environment())
    assert settings.executor == "ray"
    assert settings.ray_address == "ray://demo-tightfit-ray-head-svc.models.svc:10001"
    assert settings.ray_token_file == "/etc/tightfit/ray/auth_token"
    assert settings.gpus_per_unit == 0.5
    (volume,) = [volume for volume in chart.pod["volumes"] if volume["name"] == "ray"]
    assert volume["secret"]["secretName"] == "tightfit-ray"


def test_ray_runs_the_image_of_the_service_and_keeps_work_off_the_head() -> None:
    chart = rendered("ray")
    cluster = chart.one("RayCluster")["spec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    images = {spec["containers"][0]["image"] for kind, spec in chart.pods() if kind == "RayCluster"}
    assert images == {chart.container["image"]}
    assert cluster["enableInTreeAutoscaling"] is True


def test_groups_of_ray_workers_follow_the_values() -> None:
    groups = rendered("ray").one("RayCluster")["spec"]["workerGroupSpecs"]
    cpu, gpu = groups
    assert (cpu["groupName"], cpu["replicas"], cpu["maxReplicas"]) == ("cpu", 2, 8)
    pod = gpu["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pod["nodeSelector"] == {"pool": "gpu"}


@pytest.mark.parametrize("name", ["ray-head", "ray-worker"])
def test_ray_is_probed_without_tools_that_the_image_lacks(name: str) -> None:
    containers = [
        spec["containers"][0]
        for kind, spec in rendered("ray").pods()
        if kind == "RayCluster" and spec["containers"][0]["name"] == name
    ]
    assert containers
    for container in containers:
        for probe in ("readinessProbe", "livenessProbe"):
            assert set(container[probe]) >= {"tcpSocket"}
    workers = rendered("ray").one("RayCluster")["spec"]["workerGroupSpecs"]
    for group in workers:
        port = int(group["rayStartParams"]["node-manager-port"])
        assert group["template"]["spec"]["containers"][0]["livenessProbe"]["tcpSocket"] == {
            "port": port
        }


def test_a_cluster_that_exists_is_used_as_it_is() -> None:
    chart = rendered("existing-ray")
    assert "RayCluster" not in chart.kinds()
    settings = load_settings({}, chart.environment())
    assert settings.ray_address == "ray://ray.compute.svc:10001"
    assert settings.ray_token_file == "/etc/tightfit/ray/auth_token"


def test_scaling_is_only_for_replicas() -> None:
    values: dict[str, Any] = {"autoscaling": {"kind": "keda", "minReplicas": 3, "maxReplicas": 3}}
    assert Rendered(values).one("ScaledObject")["spec"]["minReplicaCount"] == 3
