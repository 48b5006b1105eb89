"""`tightfit doctor` and probes against a whole server in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from running_server import RunningServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    running = RunningServer(tmp_path / "data").start()
    yield running
    running.stop()


def _doctor(server: RunningServer) -> tuple[int, dict[str, dict[str, str]]]:
    done = subprocess.run(
        [sys.executable, "-m", "tightfit", "doctor", "--json", f"--server={server.address}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    return done.returncode, {item["subject"]: item for item in json.loads(done.stdout)}


def test_a_server_is_examined_while_it_is_well_and_when_its_store_is_gone(
    server: RunningServer,
) -> None:
    code, found = _doctor(server)
    assert code == 0, found
    assert {item["outcome"] for item in found.values()} <= {"ok", "warn"}
    assert {"connection", "clock", "versions", "database", "artifacts", "workers"} <= set(found)
    assert found["signing key"]["side"] == "server"
    assert found["database"]["message"].startswith("SQLite 3")

    (server.data_dir / "artifacts").rename(server.data_dir / "gone")
    code, found = _doctor(server)
    assert code == 1
    assert found["artifacts"]["outcome"] == "fail"
    assert found["artifacts"]["remedy"]
    assert found["database"]["outcome"] == "ok"
