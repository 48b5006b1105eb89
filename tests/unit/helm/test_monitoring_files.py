"""Rules and dashboard ask only for metrics and labels that the service has, and every alert has its page."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from fakes.promql import metric_names, metrics_with_labels, words_of
from tightfit_service.adapters.telemetry.prometheus import PrometheusTelemetry

ROOT = Path(__file__).parents[3]
FILES = ROOT / "helm" / "tightfit" / "files"
SCRAPED = {"namespace", "job", "instance", "service", "pod"}
"""Labels that Prometheus itself adds to every series of a target."""


def _labels_by_name(registry: CollectorRegistry) -> Mapping[str, set[str]]:
    """Return every series name that the service can show, with its labels."""
    known: dict[str, set[str]] = {}
    for metric in registry._collector_to_names:
        kind = getattr(metric, "_type", "")
        if not kind:
            continue
        name, labels = metric._name, set(metric._labelnames)  # type: ignore[attr-defined]  # no public way to ask
        suffixes = {"counter": ("_total",), "histogram": ("_count", "_sum")}.get(kind, ("",))
        known.update({name + suffix: labels for suffix in suffixes})
        if kind == "histogram":
            known[name + "_bucket"] = {*labels, "le"}
    process = {"process_open_fds", "process_max_fds", "process_resident_memory_bytes"}
    return {**known, **{name: set() for name in process}}


KNOWN = _labels_by_name(PrometheusTelemetry().registry)
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((FILES / "rules.yaml").read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDED = {rule["record"]: {"namespace", "job"} for rule in RULES if "record" in rule}
DASHBOARD = json.loads((FILES / "dashboard.json").read_text())


def _panels() -> Iterator[dict[str, Any]]:
    for panel in DASHBOARD["panels"]:
        yield panel
        yield from panel.get("panels", [])


EXPRESSIONS = [
    *((rule.get("alert", rule.get("record")), rule["expr"]) for rule in RULES),
    *((p["title"], target["expr"]) for p in _panels() for target in p.get("targets", ())),
    *(
        (variable["name"], re.sub(r"label_values\((\w+), (\w+)\)", r"\1{\2=''}", query["query"]))
        for variable in DASHBOARD["templating"]["list"]
        if isinstance(query := variable["query"], dict)
    ),
]


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS, ids=lambda text: str(text)[:40])
def test_expressions_use_metrics_and_labels_that_exist(where: str, expression: str) -> None:
    known = {**KNOWN, **RECORDED}
    found = metrics_with_labels(expression)
    assert found, f"{where} asks for nothing"
    for name, labels in found:
        assert name in known, f"{where}: there is no metric {name}"
        assert labels <= known[name] | SCRAPED, f"{where}: {name} has no {labels - known[name]}"
    every = set().union(*(known[name] for name, _ in found)) | SCRAPED
    assert words_of(expression, "by", "without", "on", "ignoring") <= every, where


def test_legends_name_labels_that_their_queries_keep() -> None:
    for panel in _panels():
        for target in panel.get("targets", ()):
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            kept = words_of(target["expr"], "by") or SCRAPED
            assert named <= kept, f"{panel['title']}: {target['legendFormat']}"


def test_every_metric_of_ours_is_watched_or_shown() -> None:
    used = {name for _, expression in EXPRESSIONS for name in metric_names(expression)}
    unused = {
        name
        for name in (re.sub(r"_(bucket|count|sum)$", "", known) for known in KNOWN)
        if name.startswith("tightfit_")
        and not any(re.sub(r"_(bucket|count|sum)$", "", other) == name for other in used)
    }
    assert not unused, "give each a panel of the dashboard"


def test_panels_do_not_overlap_and_have_ids_of_their_own() -> None:
    panels = list(_panels())
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        grid = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(grid["x"], grid["x"] + grid["w"])
            for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken, panel["title"]
        assert grid["x"] + grid["w"] <= 24
        taken |= cells


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_says_how_bad_it_is_and_where_its_page_is(name: str) -> None:
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert {"summary", "description", "runbook"} == set(alert["annotations"])
    page, _, anchor = alert["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)
    assert anchor in {heading.lower() for heading in headings}
    named = set(re.findall(r"\$labels\.(\w+)", str(alert["annotations"])))
    grouped = words_of(alert["expr"], "by")
    recorded = any(name in RECORDED for name in metric_names(alert["expr"]))
    assert named <= (grouped or ({"namespace", "job"} if recorded else set()))


def test_the_page_describes_no_alert_that_is_gone() -> None:
    page = (ROOT / "docs" / "observability.md").read_text()
    assert set(re.findall(r"^#+ (Tightfit\w+)$", page, re.MULTILINE)) == set(ALERTS)


def test_every_alert_is_tested_to_fire_and_to_keep_silent() -> None:
    cases = yaml.safe_load((FILES / "rules_test.yaml").read_text())["tests"]
    checks = [check for case in cases for check in case.get("alert_rule_test", ())]
    assert {check["alertname"] for check in checks if check["exp_alerts"]} == set(ALERTS)
    assert {check["alertname"] for check in checks if not check["exp_alerts"]} == set(ALERTS)


def test_the_reading_of_expressions_finds_what_is_wrong() -> None:
    text = 'sum by (a, b) (rate(x_total{c="y_total",d!~"z"}[5m])) / on (e) x:y:z > bool 1e3 or up'
    assert metric_names(text) == {"x_total", "x:y:z", "up"}
    assert ("x_total", {"c", "d"}) in metrics_with_labels(text)
    assert words_of(text, "by", "on") == {"a", "b", "e"}


def test_types_are_told_to_prometheus_before_there_is_a_series() -> None:
    from prometheus_client import generate_latest

    page = generate_latest(PrometheusTelemetry().registry).decode()
    families = {family.name for family in text_string_to_metric_families(page)}
    assert {re.sub(r"_(total|bucket|count|sum)$", "", name) for name in KNOWN} <= {
        re.sub(r"_total$", "", family) for family in families
    }


@pytest.mark.debian
def test_promtool_accepts_rules_and_their_tests() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    for command in (["check", "rules", "rules.yaml"], ["test", "rules", "rules_test.yaml"]):
        done = subprocess.run(
            [promtool, *command], cwd=FILES, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.debian
def test_promtool_reads_the_queries_of_the_dashboard(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    queries = [t["expr"] for p in _panels() for t in p.get("targets", ())]
    rules = [{"record": f"panel:{n}", "expr": query} for n, query in enumerate(queries)]
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(
        [promtool, "check", "rules", file], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
