"""Two servers on one database whose jobs want the same units of work at the same time: each is computed once."""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from running_server import RunningServer
from tightfit import compression_spec
from tightfit.v1 import budget_pb2, job_pb2

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"
SERVICE = Path(__file__).parents[1] / "faults" / "scripted_service.py"
UNIT_SECONDS = 0.5
LEASE_SECONDS = 3.0
WAIT_SECONDS = 120.0
ORDERLY_ENDS = (
    job_pb2.CompressionJob.STATE_SUCCEEDED,
    job_pb2.CompressionJob.STATE_INFEASIBLE,
)

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]


class Site:
    """Servers `a` and `b` on one SQLite file and one folder of artifacts, each of which runs a job at a time."""

    def __init__(self, folder: Path) -> None:
        self.ledger = folder / "ledger"
        self.ledger.touch()
        self.hold = folder / "hold"
        """While it exists, no trial goes on."""
        self.hold.touch()
        self._database = folder / "state.db"
        self.servers = {
            name: RunningServer(
                folder / name,
                program=(str(SERVICE), str(self.ledger), str(UNIT_SECONDS), "0"),
                environment={
                    "TIGHTFIT_DATABASE_URL": f"sqlite:///{self._database}",
                    "TIGHTFIT_ARTIFACT_DIR": str(folder / "shared"),
                    "TIGHTFIT_REPLICA_NAME": name,
                    "TIGHTFIT_LEASE_SECONDS": str(LEASE_SECONDS),
                    "TIGHTFIT_CONCURRENT_JOBS": "1",
                    "TIGHTFIT_WORKER_COUNT": "1",
                },
            )
            for name in "ab"
        }

    def sql(self, query: str) -> list[tuple[str, ...]]:
        """Return what the database says."""
        with closing(sqlite3.connect(self._database)) as connection:
            return connection.execute(query).fetchall()

    def submit_twice(self) -> list[str]:
        """Ask for the same twice."""
        with self.servers["a"].client() as client:
            spec = compression_spec(
                model=client.upload_model(EXAMPLE / "digits.onnx").name,
                dataset=client.upload_dataset(EXAMPLE / "dataset.yaml").name,
                target="nucleo-h7a3zi-q",
                budget=budget_pb2.Budget(max_latency_ms=0.1),
                max_trials=4,
                seed=1,
            )
            return [client.create_job(spec).name for _ in range(2)]

    def ends(self, jobs: list[str], *, at: str) -> list[int]:
        """Wait until jobs are final, and return their states."""
        with self.servers[at].client() as client:
            return [client.wait(job).state for job in jobs]

    def counted(self, what: str) -> Counter[str]:
        """Return how often workers began or ended which unit."""
        lines = (line.split() for line in self.ledger.read_text().splitlines())
        return Counter(f"{line[1]} {line[2]}" for line in lines if line[0] == what)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    for server in made.servers.values():
        server.start()
    yield made
    for server in made.servers.values():
        if server.is_running:
            assert server.stop() == 0


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end, "what was waited for did not happen"
        time.sleep(0.05)


def both_run(site: Site) -> bool:
    """Whether each server has one of the jobs."""
    rows = site.sql("SELECT owner FROM job_leases WHERE expire_time IS NOT NULL")
    return {owner.partition("/")[0] for (owner,) in rows} == {"a", "b"}


def test_what_both_want_is_computed_once(site: Site) -> None:
    jobs = site.submit_twice()
    until(lambda: both_run(site))
    site.hold.unlink()
    assert all(state in ORDERLY_ENDS for state in site.ends(jobs, at="a"))
    begun = site.counted("begin")
    assert sum(unit.startswith("trial") for unit in begun) > 1
    assert set(begun.values()) == {1}
    assert site.counted("end") == begun
    assert site.sql("SELECT * FROM unit_claims") == []


def test_what_a_killed_server_had_is_computed_by_the_other(site: Site) -> None:
    jobs = site.submit_twice()
    until(lambda: both_run(site))

    def claims_of_trials() -> list[tuple[str, ...]]:
        running = site.counted("begin") - site.counted("end")
        if not any(unit.startswith("trial") for unit in running):
            return []
        return site.sql("SELECT owner FROM unit_claims")

    until(lambda: bool(claims_of_trials()))
    doomed = site.sql("SELECT owner FROM unit_claims")[0][0].partition("/")[0]
    site.servers[doomed].kill()
    site.hold.unlink()
    (other,) = {"a", "b"} - {doomed}
    assert all(state in ORDERLY_ENDS for state in site.ends(jobs, at=other))
    begun, ended = site.counted("begin"), site.counted("end")
    assert set(ended.values()) == {1}
    assert set(begun) == set(ended)
    # only what the killed server had begun was begun again
    assert sum(begun.values()) <= len(begun) + 1
