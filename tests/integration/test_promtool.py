"""Prometheus' own linter finds nothing wrong with the names and texts of the metrics."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from prometheus_client import generate_latest

from fakes.records import make_job
from tightfit_service.adapters.telemetry.prometheus import PrometheusTelemetry


@pytest.mark.debian
def test_promtool_has_no_complaint() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    telemetry = PrometheusTelemetry()
    telemetry.rpc_finished("tightfit.v1.CompressionService/GetJob", "OK", 0.01)
    telemetry.job_state(make_job(), None)
    telemetry.artifact_bytes("received", 10)
    telemetry.worker_restarted("killed")
    telemetry.cache_lookup(hit=True)
    telemetry.emulator_called("mcu", 0.001)
    telemetry.store_request("s3", "put", "ok", 0.01)
    telemetry.store_retried("s3", "503")
    done = subprocess.run(
        [promtool, "check", "metrics"],
        input=generate_latest(telemetry.registry),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stdout + done.stderr
