"""The servers' pods: locked down, probed, drained, spread, and each with the storage of its mode."""

from __future__ import annotations

from typing import Any

import pytest

from helm_chart import SCENARIOS, Rendered, rendered
from tightfit_service.api.server import LIVENESS


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_pod_is_locked_down(name: str) -> None:
    for kind, pod in rendered(name).pods():
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"], kind
        assert "hostNetwork" not in pod
        assert not [volume for volume in pod.get("volumes", []) if "hostPath" in volume]


@pytest.mark.parametrize("name", SCENARIOS)
def test_no_pod_has_a_token_but_the_one_of_rays_autoscaler(name: str) -> None:
    with_token = [
        kind for kind, pod in rendered(name).pods() if pod["automountServiceAccountToken"]
    ]
    assert with_token == (["RayCluster"] if name == "ray" else [])


def test_no_rights_are_given_to_anything() -> None:
    for name in SCENARIOS:
        assert not rendered(name).kinds() & {"Role", "RoleBinding", "ClusterRole"}


def test_the_service_account_is_optional() -> None:
    assert "ServiceAccount" not in rendered("ephemeral").kinds()
    made = Rendered({"serviceAccount": {"annotations": {"team": "edge"}}}).one("ServiceAccount")
    assert made["automountServiceAccountToken"] is False
    assert made["metadata"]["annotations"] == {"team": "edge"}


def test_pods_outlive_their_drain_and_are_probed_on_the_port_without_tls() -> None:
    chart = Rendered({"settings": {"drainSeconds": 120}, "service": {"healthPort": 6000}})
    assert chart.pod["terminationGracePeriodSeconds"] > 120
    assert chart.environment()["TIGHTFIT_HEALTH_LISTEN"] == "0.0.0.0:6000"
    for probe in ("startupProbe", "readinessProbe"):
        assert chart.container[probe]["grpc"] == {"port": 6000}
    assert chart.container["livenessProbe"]["grpc"] == {"port": 6000, "service": LIVENESS}
    startup = chart.container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == 300


def test_servers_go_on_until_the_services_leave_them_out() -> None:
    settings = {"drainSeconds": 120}
    waiting = Rendered({"settings": settings, "preStopSeconds": 20})
    assert waiting.container["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "20"]
    at_once = Rendered({"settings": settings, "preStopSeconds": 0})
    assert "lifecycle" not in at_once.container
    period = "terminationGracePeriodSeconds"
    assert waiting.pod[period] - at_once.pod[period] == 20


def test_the_port_for_probes_is_on_no_service() -> None:
    for service in rendered("replicated").all("Service"):
        assert {port["name"] for port in service["spec"]["ports"]} == {"grpc", "metrics"}


def test_services_say_what_is_spoken() -> None:
    def spoken(name: str) -> set[str]:
        services = rendered(name).all("Service")
        return {service["spec"]["ports"][0]["appProtocol"] for service in services}

    assert spoken("replicated") == {"https"}
    assert spoken("ephemeral") == {"kubernetes.io/h2c"}


def test_a_certificate_is_asked_for_by_the_names_of_the_services() -> None:
    chart = rendered("ray")
    certificate = chart.one("Certificate")["spec"]
    (volume,) = [volume for volume in chart.pod["volumes"] if volume["name"] == "tls"]
    assert volume["secret"]["secretName"] == certificate["secretName"]
    assert certificate["issuerRef"] == {"name": "company", "kind": "ClusterIssuer"}
    assert "compress.example.com" in certificate["dnsNames"]
    for service in chart.all("Service"):
        name = service["metadata"]["name"]
        assert f"{name}.models.svc" in certificate["dnsNames"]
    assert "Certificate" not in rendered("large").kinds()


def test_services_choose_servers_only() -> None:
    chart = rendered("ray")
    labels = chart.server["spec"]["template"]["metadata"]["labels"]
    job = chart.one("Job")["spec"]["template"]["metadata"]["labels"]
    test = chart.one("Pod")["metadata"]["labels"]
    for service in chart.all("Service"):
        wanted = service["spec"]["selector"].items()
        assert wanted <= labels.items()
        assert not wanted <= job.items()
        assert not wanted <= test.items()
    headless = chart.one("Service", "demo-tightfit-headless")
    assert headless["spec"]["clusterIP"] == "None"
    assert len(Rendered({"service": {"headless": False}}).all("Service")) == 1


def test_replicas_keep_nothing_of_their_own() -> None:
    chart = rendered("replicated")
    assert chart.server["kind"] == "Deployment"
    assert chart.server["spec"]["replicas"] == 2
    assert chart.server["spec"]["strategy"]["rollingUpdate"] == {
        "maxSurge": 1,
        "maxUnavailable": 0,
    }
    assert "PersistentVolumeClaim" not in str(chart.manifests)
    data = next(volume for volume in chart.pod["volumes"] if volume["name"] == "data")
    assert data["emptyDir"] == {"sizeLimit": "20Gi"}
    budget = chart.one("PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["selector"]["matchLabels"].items() <= (
        chart.server["spec"]["template"]["metadata"]["labels"].items()
    )


def test_scratch_may_be_a_volume_that_lives_as_long_as_the_pod() -> None:
    data = next(v for v in rendered("large").pod["volumes"] if v["name"] == "data")
    claim = data["ephemeral"]["volumeClaimTemplate"]["spec"]
    assert claim["storageClassName"] == "local-nvme"
    assert claim["resources"]["requests"]["storage"] == "200Gi"


def test_replicas_are_spread_over_nodes_and_zones() -> None:
    chart = rendered("replicated")
    spread = {rule["topologyKey"]: rule for rule in chart.pod["topologySpreadConstraints"]}
    assert set(spread) == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    for rule in spread.values():
        assert (
            rule["labelSelector"]["matchLabels"]
            == (chart.server["spec"]["selector"]["matchLabels"])
        )


def test_the_database_is_migrated_before_servers_are_replaced() -> None:
    job = rendered("replicated").one("Job")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    spec = job["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert container["args"] == ["migrate"]
    # Hooks run before the release's other resources are there.
    assert "serviceAccountName" not in spec
    assert "envFrom" not in container
    references = [entry for entry in container["env"] if "valueFrom" in entry]
    assert [entry["name"] for entry in references] == ["TIGHTFIT_DATABASE_URL"]
    assert "Job" not in Rendered({"migrations": {"enabled": False}}).kinds()
    assert "Job" not in rendered("embedded").kinds()


def test_one_embedded_server_holds_the_volume() -> None:
    chart = rendered("embedded")
    spec = chart.server["spec"]
    assert chart.server["kind"] == "StatefulSet"
    assert spec["replicas"] == 1
    (claim,) = spec["volumeClaimTemplates"]
    assert claim["metadata"]["name"] == "data"
    assert claim["spec"]["resources"]["requests"]["storage"] == "20Gi"
    assert "PodDisruptionBudget" not in chart.kinds()


def test_embedded_storage_follows_the_values() -> None:
    def data_volume(values: dict[str, Any]) -> Any:
        chart = Rendered(values, base="embedded")
        assert "volumeClaimTemplates" not in chart.server["spec"]
        return next(v for v in chart.pod["volumes"] if v["name"] == "data")

    assert data_volume({"persistence": {"enabled": False}})["emptyDir"] == {}
    claim = data_volume({"persistence": {"existingClaim": "models"}})["persistentVolumeClaim"]
    assert claim == {"claimName": "models"}
    classed = Rendered({"persistence": {"storageClass": "fast"}}, base="embedded")
    assert classed.server["spec"]["volumeClaimTemplates"][0]["spec"]["storageClassName"] == "fast"


def test_everything_else_that_pods_need_can_be_said() -> None:
    pod = rendered("large").pod
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["nodeSelector"] == {"pool": "training"}
    assert pod["tolerations"][0]["key"] == "dedicated"
    assert pod["priorityClassName"] == "batch"
    assert "nodeAffinity" in pod["affinity"]
    assert {volume["name"] for volume in pod["volumes"]} == {
        "tmp",
        "data",
        "ca",
        "s3",
        "tls",
        "access",
        "provenance",
    }
    labels = rendered("large").server["spec"]["template"]["metadata"]["labels"]
    assert labels["team"] == "edge"
    assert labels["cost-centre"] == "edge"
