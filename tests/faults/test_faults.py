"""Samples of the faults: few kills and short outages; the scripts beside this file do more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fakes import postgres_server
from faults import clock_jump, disk_full, kills, network_cut, poison, rolling_restart
from faults.deployment import Work

pytestmark = [pytest.mark.debian, pytest.mark.long, pytest.mark.timeout(600)]

FOLDER = Path(__file__).parent


@pytest.fixture(autouse=True)
def _needs_postgres() -> None:
    if reason := postgres_server.reason_missing():
        pytest.skip(reason)


def script(name: str, *arguments: str) -> None:
    """Run a script that needs a namespace of its own."""
    done = subprocess.run(
        [sys.executable, FOLDER / name, *arguments], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4_000:] + done.stderr[-4_000:]


def test_jobs_outlive_the_death_of_every_part(tmp_path: Path) -> None:
    parts = [
        part for part in ("replica", "worker", "postgres", "s3") if not kills.reason_missing(part)
    ]
    work = Work(jobs=6, unit_seconds=1.0)
    found = kills.run(tmp_path, parts, work=work, kills=len(parts), seed=1)
    assert found["problems"] == []
    assert found["trials_finished"] >= 2 * work.jobs


def test_jobs_outlive_the_death_of_a_ray_node(tmp_path: Path) -> None:
    if reason := kills.reason_missing("ray"):
        pytest.skip(reason)
    work = Work(jobs=4, unit_seconds=1.0)
    assert kills.run(tmp_path, ["ray"], work=work, kills=1, seed=1)["problems"] == []


def test_jobs_wait_for_the_network() -> None:
    if reason := network_cut.reason_missing():
        pytest.skip(reason)
    script("network_cut.py", "--jobs=4", "--seconds=10")


def test_jobs_wait_for_room_on_the_disk() -> None:
    if reason := disk_full.reason_missing():
        pytest.skip(reason)
    script("disk_full.py", "--seconds=5")


def test_a_clock_that_jumps_moves_no_job(tmp_path: Path) -> None:
    if reason := clock_jump.reason_missing():
        pytest.skip(reason)
    # long leases, for on a busy machine a replica may be late by seconds whatever its clock says
    work = Work(jobs=4, unit_seconds=8.0, lease_seconds=9.0)
    assert clock_jump.run(tmp_path, work=work, hours=1.0, leases=1.25)["problems"] == []


def test_a_model_that_kills_its_worker_is_given_up_and_others_go_on(tmp_path: Path) -> None:
    work = Work(jobs=3, unit_seconds=0.5)
    assert poison.run(tmp_path, work=work, poisoned=1)["problems"] == []


def test_no_call_fails_while_replicas_are_restarted(tmp_path: Path) -> None:
    found = rolling_restart.run(tmp_path, work=Work(jobs=4), clients=20, rounds=1)
    assert found["problems"] == []
    assert sum(found["calls"].values()) > 100
