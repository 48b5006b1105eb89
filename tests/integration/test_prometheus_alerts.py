"""A real Prometheus scrapes a real server, and a real Alertmanager tells a webhook what is wrong."""

from __future__ import annotations

import http
import json
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from fakes.ports import free_port
from running_server import RunningServer
from tightfit.errors import TightfitError
from tightfit.v1 import compression_pb2, compression_pb2_grpc

RULES = Path(__file__).parents[2] / "helm" / "tightfit" / "files" / "rules.yaml"
DASHBOARD = RULES.with_name("dashboard.json")
PATIENCE_SECONDS = 90.0
pytestmark = pytest.mark.debian


class _Webhook:
    """Takes what Alertmanager sends."""

    def __init__(self) -> None:
        self.alerts: list[dict[str, Any]] = []
        alerts = self.alerts

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                alerts.extend(json.loads(body)["alerts"])
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                return

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextmanager
def _running(command: list[str], log: Path) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def _sooner(rules: dict[str, Any]) -> dict[str, Any]:
    """Return the rules as they are but for how long a state must last and how often it is looked at."""
    for group in rules["groups"]:
        group["interval"] = "1s"
        for rule in group["rules"]:
            if "for" in rule:
                rule["for"] = "2s"
    return rules


@pytest.fixture
def webhook() -> Iterator[_Webhook]:
    running = _Webhook()
    yield running
    running.stop()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    running = RunningServer(tmp_path / "data").start()
    yield running
    running.stop()


@pytest.fixture
def prometheus(tmp_path: Path, server: RunningServer, webhook: _Webhook) -> Iterator[str]:
    """The address of a Prometheus that scrapes the server and alerts the webhook."""
    for program, package in (
        ("prometheus", "prometheus"),
        ("prometheus-alertmanager", "prometheus-alertmanager"),
    ):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (Debian package {package})")
    port, alert_port = free_port(), free_port()
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(_sooner(yaml.safe_load(RULES.read_text()))))
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "alerting": {
            "alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{alert_port}"]}]}]
        },
        "scrape_configs": [
            {"job_name": "tightfit", "static_configs": [{"targets": [server.metrics_address]}]}
        ],
    }
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config))
    route = {"receiver": "webhook", "group_wait": "0s", "group_interval": "1s", "group_by": ["..."]}
    receivers = [{"name": "webhook", "webhook_configs": [{"url": webhook.url}]}]
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump({"route": route, "receivers": receivers}))
    with (
        _running(
            [
                "prometheus-alertmanager",
                f"--config.file={tmp_path / 'alerts.yaml'}",
                f"--storage.path={tmp_path / 'alertmanager'}",
                f"--web.listen-address=127.0.0.1:{alert_port}",
                "--cluster.listen-address=",
            ],
            tmp_path / "alertmanager.log",
        ),
        _running(
            [
                "prometheus",
                f"--config.file={tmp_path / 'prometheus.yaml'}",
                f"--storage.tsdb.path={tmp_path / 'prometheus'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=warn",
            ],
            tmp_path / "prometheus.log",
        ),
    ):
        yield f"http://127.0.0.1:{port}"


def _query(prometheus: str, expression: str) -> list[dict[str, Any]]:
    query = urllib.parse.urlencode({"query": expression})
    try:
        with urllib.request.urlopen(f"{prometheus}/api/v1/query?{query}", timeout=10) as answer:
            result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.SERVICE_UNAVAILABLE:  # it reads its files first
            return []
        raise
    except urllib.error.URLError as error:
        if isinstance(error.reason, ConnectionRefusedError):
            return []
        raise
    return result


def _nothing() -> None:
    return


def _wait_for(
    prometheus: str, expression: str, *, meanwhile: Callable[[], object] = _nothing
) -> list[dict[str, Any]]:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := _query(prometheus, expression)):
        assert time.monotonic() < deadline, f"never true: {expression}"
        meanwhile()
        time.sleep(0.2)
    return found


def test_a_server_whose_database_is_gone_raises_an_alert(
    server: RunningServer, prometheus: str, webhook: _Webhook
) -> None:
    with server.client() as client, pytest.raises(TightfitError):
        client.get_job("none")
    _wait_for(prometheus, 'up{job="tightfit"} == 1')
    _wait_for(prometheus, 'tightfit_dependency_up{dependency="database"} == 1')
    assert not _query(prometheus, 'ALERTS{alertname="TightfitDependencyDown"}')

    # every file of the database is replaced by one that is no database
    for path in server.data_dir.glob("state.db*"):
        path.write_bytes(b"this is no database" * 1000)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not [a for a in webhook.alerts if a["labels"]["alertname"] == "TightfitDependencyDown"]:
        assert time.monotonic() < deadline, webhook.alerts
        time.sleep(0.2)

    (alert, *_) = [
        a for a in webhook.alerts if a["labels"]["alertname"] == "TightfitDependencyDown"
    ]
    assert alert["status"] == "firing"
    assert alert["labels"]["dependency"] == "database"
    assert alert["labels"]["severity"] == "critical"
    assert alert["annotations"]["summary"] == "tightfit cannot reach its database"
    assert server.metrics_address in alert["annotations"]["description"]
    assert alert["annotations"]["runbook"] == "docs/observability.md#tightfitdependencydown"


def test_the_queries_of_the_dashboard_find_what_the_server_shows(
    server: RunningServer, prometheus: str
) -> None:
    with grpc.insecure_channel(server.address) as channel:
        stub = compression_pb2_grpc.CompressionServiceStub(channel)
        request = compression_pb2.ListJobsRequest(parent="projects/default")
        _wait_for(
            prometheus,
            "job:tightfit_rpc_errors:ratio_rate5m == 0",
            meanwhile=lambda: stub.ListJobs(request),
        )

    answered = 0
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"].replace("$namespace", ".*").replace("$job", ".*")
            answered += bool(_query(prometheus, expression))
    # what is about jobs, trials and devices has no series before there are any
    assert answered >= 15
