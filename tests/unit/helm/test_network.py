"""The network policies: calls and scrapes in from who is named, and out to what a server needs."""

from __future__ import annotations

from typing import Any

import pytest

from helm_chart import Rendered, rendered

CLIENTS = [{"podSelector": {"matchLabels": {"app": "ci"}}}]


def policy(values: dict[str, Any], name: str = "demo-tightfit") -> dict[str, Any]:
    spec = Rendered(values).one("NetworkPolicy", name)["spec"]
    assert isinstance(spec, dict)
    return spec


def ports(rule: dict[str, Any]) -> list[Any]:
    return [port["port"] for port in rule.get("ports", [])]


def test_the_servers_are_what_the_policy_is_about() -> None:
    chart = rendered("replicated")
    spec = chart.one("NetworkPolicy", "demo-tightfit")["spec"]
    assert spec["podSelector"]["matchLabels"] == chart.server["spec"]["selector"]["matchLabels"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]


def test_calls_come_from_clients_and_scrapes_from_monitoring() -> None:
    grpc, metrics = policy({"networkPolicy": {"clients": CLIENTS}})["ingress"]
    assert ports(grpc) == ["grpc"]
    assert CLIENTS[0] in grpc["from"]
    assert ports(metrics) == ["metrics"]
    names = metrics["from"][0]["namespaceSelector"]["matchLabels"]
    assert names == {"kubernetes.io/metadata.name": "monitoring"}


def test_who_names_nobody_lets_in_only_the_test_of_the_release() -> None:
    (only,) = policy({"networkPolicy": {"clients": [], "monitoring": []}})["ingress"]
    (peer,) = only["from"]
    assert peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "test"


def test_servers_reach_names_database_and_store_and_nothing_else() -> None:
    dns, database, store = rendered("large").one("NetworkPolicy", "compress")["spec"]["egress"]
    assert ports(dns) == [53, 53]
    assert database == {
        "to": [{"ipBlock": {"cidr": "10.20.0.0/24"}}],
        "ports": [{"port": 5432, "protocol": "TCP"}],
    }
    assert store == {
        "to": [{"ipBlock": {"cidr": "10.30.0.0/24"}}],
        "ports": [{"port": 9443, "protocol": "TCP"}],
    }


@pytest.mark.parametrize(
    ("url", "port"),
    [
        ("https://s3.example.com", 443),
        ("http://s3.example.com", 80),
        ("http://s3.example.com:9000", 9000),
        ("https://s3.example.com:9443/", 9443),
    ],
)
def test_the_port_of_the_store_is_that_of_its_url(url: str, port: int) -> None:
    *_, store = policy({"artifacts": {"s3": {"url": url}}})["egress"]
    assert ports(store) == [port]


def test_a_port_that_is_given_counts() -> None:
    *_, store = policy({"networkPolicy": {"s3": {"port": 7480}}})["egress"]
    assert ports(store) == [7480]


def test_embedded_servers_reach_names_only() -> None:
    spec = rendered("embedded").one("NetworkPolicy", "demo-tightfit")["spec"]
    assert [ports(rule) for rule in spec["egress"]] == [[53, 53]]


def test_the_identity_provider_is_reached_where_there_is_one() -> None:
    rules = rendered("ray").one("NetworkPolicy", "demo-tightfit")["spec"]["egress"]
    assert [443] in [ports(rule) for rule in rules]
    assert [443] not in [
        ports(rule) for rule in policy({"artifacts": {"s3": {"url": "http://s3"}}})["egress"]
    ]


def test_more_egress_can_be_allowed() -> None:
    rule = {"ports": [{"port": 443, "protocol": "TCP"}]}
    assert policy({"networkPolicy": {"extraEgress": [rule]}})["egress"][-1] == rule


def test_migrations_reach_the_database_and_nothing_reaches_them() -> None:
    spec = policy({}, "demo-tightfit-migrate")
    assert "ingress" not in spec
    assert "Ingress" in spec["policyTypes"]
    assert [ports(rule) for rule in spec["egress"]] == [[53, 53], [5432]]
    job = rendered("replicated").one("Job")["spec"]["template"]["metadata"]["labels"]
    assert spec["podSelector"]["matchLabels"].items() <= job.items()


def test_migrations_may_pass_before_they_run() -> None:
    chart = rendered("replicated")
    job = chart.one("Job")["metadata"]["annotations"]
    policy = chart.one("NetworkPolicy", "demo-tightfit-migrate")["metadata"]["annotations"]
    assert policy["helm.sh/hook"] == job["helm.sh/hook"]
    assert int(policy["helm.sh/hook-weight"]) < int(job.get("helm.sh/hook-weight", "0"))


def test_a_ray_cluster_speaks_with_itself_and_listens_to_servers() -> None:
    chart = rendered("ray")
    spec = chart.one("NetworkPolicy", "demo-tightfit-ray")["spec"]
    cluster = {"podSelector": {"matchLabels": {"ray.io/cluster": "demo-tightfit-ray"}}}
    servers = {"podSelector": {"matchLabels": chart.server["spec"]["selector"]["matchLabels"]}}
    inside, clients, scrapes = spec["ingress"]
    assert inside == {"from": [cluster]}
    assert (clients["from"], ports(clients)) == ([servers], [10001])
    assert ports(scrapes) == [8080]
    # nodes hold no secrets, and reach neither database nor store
    dns, within = spec["egress"]
    assert ports(dns) == [53, 53]
    assert within == {"to": [cluster]}


def test_servers_reach_the_client_server_of_ray_and_no_other_port_of_it() -> None:
    rules = rendered("ray").one("NetworkPolicy", "demo-tightfit")["spec"]["egress"]
    (to_ray,) = [rule for rule in rules if "ray.io/cluster" in str(rule)]
    assert ports(to_ray) == [10001]
    assert to_ray["to"][0]["podSelector"]["matchLabels"]["ray.io/node-type"] == "head"
    existing = rendered("existing-ray").one("NetworkPolicy", "demo-tightfit")["spec"]["egress"]
    assert [10001] in [ports(rule) for rule in existing]


def test_policies_can_be_left_out() -> None:
    assert "NetworkPolicy" not in rendered("ephemeral").kinds()
