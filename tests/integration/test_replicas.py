"""Two servers on one PostgreSQL: they share the queue, and one goes on with what the other left."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fakes.postgres_server import PostgresServer, reason_missing, running_postgres
from running_server import RunningServer
from tightfit import Client, compression_spec
from tightfit.v1 import budget_pb2, job_pb2, trial_pb2

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"
TARGET = "nucleo-h7a3zi-q"
LEASE_SECONDS = 3.0
WAIT_SECONDS = 240.0
ORDERLY_ENDS = (
    job_pb2.CompressionJob.STATE_SUCCEEDED,
    # on a busy machine the seconds of a job may not suffice to train what fits
    job_pb2.CompressionJob.STATE_INFEASIBLE,
)

pytestmark = [pytest.mark.debian, pytest.mark.slow, pytest.mark.timeout(600)]

Replicas = dict[str, RunningServer]


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    if reason := reason_missing():
        pytest.skip(reason)
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="module")
def database(postgres: PostgresServer) -> str:
    return postgres.database().rpartition("/")[2]


@pytest.fixture(scope="module")
def replicas(
    postgres: PostgresServer, database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Replicas]:
    """Servers `a` and `b`, each with a folder of its own, on one database and one folder of artifacts."""
    root = tmp_path_factory.mktemp("replicas")
    running: Replicas = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIGHTFIT_DATABASE_URL", postgres.url(database))
        patch.setenv("TIGHTFIT_ARTIFACT_DIR", str(root / "shared"))
        patch.setenv("TIGHTFIT_LEASE_SECONDS", str(LEASE_SECONDS))
        for name in "ab":
            patch.setenv("TIGHTFIT_REPLICA_NAME", name)
            running[name] = RunningServer(root / name).start()
        yield running
        for server in running.values():
            if server.is_running:
                assert server.stop() == 0


@pytest.fixture(autouse=True)
def _both_run(replicas: Replicas) -> None:
    """Start again what the test before killed; tests come in any order."""
    for name, server in replicas.items():
        if not server.is_running:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("TIGHTFIT_REPLICA_NAME", name)
                server.start()


def spec(client: Client, *, seed: int, share: float = 0.5) -> job_pb2.CompressionSpec:
    model = client.upload_model(EXAMPLE / "digits.onnx")
    dataset = client.upload_dataset(EXAMPLE / "dataset.yaml")
    int8 = client.estimate(model.name, TARGET).estimates[-1].cost.estimated_latency_ms.value
    return compression_spec(
        model=model.name,
        dataset=dataset.name,
        target=TARGET,
        budget=budget_pb2.Budget(max_latency_ms=share * int8),
        max_trials=1,
        max_seconds=30,
        seed=seed,
    )


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end, "what was waited for did not happen"
        time.sleep(0.05)


def owners(postgres: PostgresServer, database: str) -> dict[str, str]:
    """Return who holds which job now."""
    rows = postgres.execute(
        "SELECT job_id, owner FROM job_leases WHERE expire_time IS NOT NULL", name=database
    )
    held = (row.split("|") for row in rows.splitlines())
    return {job_id: owner.partition("/")[0] for job_id, owner in held}


def finished(client: Client, job: str) -> dict[int, trial_pb2.Trial]:
    done = trial_pb2.Trial.STATE_COMPLETED
    return {trial.index: trial for trial in client.list_trials(job) if trial.state == done}


class Watching(threading.Thread):
    """Follows a job by its stream from the beginning, on a client of its own."""

    def __init__(self, server: RunningServer, job: str) -> None:
        super().__init__(daemon=True)
        self._server, self._job = server, job
        self.events: list[tuple[float, job_pb2.JobEvent]] = []
        self.start()

    def run(self) -> None:
        with self._server.client() as client:
            for event in client.watch_job(self._job):
                self.events.append((time.monotonic(), event))

    @property
    def messages(self) -> list[str]:
        return [event.message for _, event in self.events]


def test_a_job_of_one_replica_is_watched_and_cancelled_by_the_other(
    replicas: Replicas, postgres: PostgresServer, database: str
) -> None:
    with replicas["a"].client() as client:
        name = client.create_job(spec(client, seed=1)).name
        job_id = name.rpartition("/")[2]
        until(lambda: job_id in owners(postgres, database))
        owner = owners(postgres, database)[job_id]
        other = replicas["b" if owner == "a" else "a"]
        watching = Watching(other, name)
        until(lambda: "trial 0 started" in watching.messages)
        with other.client() as far:
            began = time.monotonic()
            cancelled = far.cancel_job(name)
            seconds = time.monotonic() - began
        assert cancelled.state == job_pb2.CompressionJob.STATE_CANCELLED
        assert seconds < 5.0
        watching.join(WAIT_SECONDS)
        assert not watching.is_alive()
        sequences = [event.sequence for _, event in watching.events]
        assert sequences == list(range(1, len(sequences) + 1))
        assert watching.events[-1][1].state == job_pb2.CompressionJob.STATE_CANCELLED
        assert [event for _, event in watching.events] == list(client.watch_job(name))


def test_a_paused_replica_loses_its_job_and_writes_nothing_when_it_wakes(
    replicas: Replicas, postgres: PostgresServer, database: str
) -> None:
    with replicas["a"].client() as one, replicas["b"].client() as two:
        name = one.create_job(spec(one, seed=2)).name
        job_id = name.rpartition("/")[2]
        until(lambda: job_id in owners(postgres, database))
        owner = owners(postgres, database)[job_id]
        paused, other = (one, two) if owner == "a" else (two, one)
        until(lambda: any(e.stage == "baseline" for e in events_of(other, name)))
        os.kill(replicas[owner].pid, signal.SIGSTOP)
        try:
            until(lambda: owners(postgres, database).get(job_id, owner) != owner)
        finally:
            os.kill(replicas[owner].pid, signal.SIGCONT)
        job = other.wait(name)
        assert job.state in ORDERLY_ENDS, job.error
        until(lambda: "job.lease_lost" in replicas[owner].log())
        messages = [event.message for event in paused.watch_job(name)]
    taken = next(n for n, text in enumerate(messages) if text.startswith("taken over at"))
    assert f": {owner}/" in messages[taken]
    # what runs from there on is one course, written by one replica
    assert sum(text.startswith("trial 0 started") for text in messages[taken:]) <= 1
    assert messages.count("choosing the winner") == 1


def events_of(client: Client, name: str) -> list[job_pb2.JobEvent]:
    """Return the events so far: the stream of a running job is left when it has nothing more."""
    watching = []
    for event in client.watch_job(name):
        watching.append(event)
        if event.stage == "baseline":
            break
    return watching


def test_jobs_spread_and_outlive_a_replica_and_no_finished_trial_runs_twice(
    replicas: Replicas, postgres: PostgresServer, database: str
) -> None:
    with replicas["a"].client() as one, replicas["b"].client() as two:
        clients = [one, two]
        names = [clients[n].create_job(spec(clients[n], seed=10 + n)).name for n in range(2)]
        until(lambda: set(owners(postgres, database).values()) == {"a", "b"})
        held = owners(postgres, database)
        doomed = next(n for n in names if held.get(n.rpartition("/")[2]) == "a")
        watching = Watching(replicas["b"], doomed)
        until(lambda: bool(finished(two, doomed)))
        before = finished(two, doomed)
        replicas["a"].kill()
        for name in names:
            job = two.wait(name)
            assert job.state in ORDERLY_ENDS, job.error
        after = {name: finished(two, name) for name in names}
        courses = {name: list(two.watch_job(name)) for name in names}
    assert {index: after[doomed][index] for index in before} == before
    for name, events in courses.items():
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        messages = [event.message for event in events]
        for index in before if name == doomed else after[name]:
            assert messages.count(f"trial {index} started") == 1, name
    assert any(": a/" in event.message for event in courses[doomed])
    watching.join(WAIT_SECONDS)
    assert [event for _, event in watching.events] == courses[doomed]
