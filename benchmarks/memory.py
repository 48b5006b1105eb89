"""Measures the memory of a served process over a database with many jobs, while it lists and runs jobs.

    python benchmarks/memory.py [--jobs 100000] [--runs 300] [--rounds 4] [--json FILE]

A real PostgreSQL is filled with jobs of 50 projects, all final. Then the service is started as users start
it, with workers whose results are made up (tests/faults/scripted_worker.py). After a warm-up, clients page
through the jobs of all projects and have jobs run, in as many rounds as asked for; what the server process
holds is noted before the first round, after each, and after the lists and the runs of each apart.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.load import SERVICE, settings, settled, wanted_spec
from benchmarks.scaling_database import PROJECTS, fill, settle

from fakes.postgres_server import reason_missing, running_postgres
from running_server import RunningServer
from tightfit import Client
from tightfit.v1 import job_pb2
from tightfit_service.adapters.storage.database import open_database, upgrade

PAGE = 500
CHUNK = 10_000
"""Jobs that are stored in one transaction."""
UNIT_SECONDS = 0.02
CONCURRENT_JOBS = 4
WARM_UP_RUNS = 20
State = job_pb2.CompressionJob.State


def fill_final(database: str, jobs: int) -> None:
    """Store so many jobs, none of which waits."""
    engine = open_database(database)
    upgrade(engine)
    for first in range(0, jobs, CHUNK):
        fill(engine, first, min(first + CHUNK, jobs) - 1, queued=0)
    settle(engine)
    engine.dispose()


def list_all(address: str, *, page_size: int) -> int:
    """Page through the jobs of all projects; return how many there were."""
    found = 0
    for number in range(PROJECTS):
        with Client(address, project=f"p{number}") as client:
            found += sum(1 for _ in client.list_jobs(page_size=page_size))
    return found


def run_jobs(client: Client, spec: job_pb2.CompressionSpec, *, runs: int, seed: int) -> int:
    """Have so many jobs run, no two alike; return how many ended in order.

    None is answered from the cache: each has a seed of its own.
    """
    names = []
    for number in range(runs):
        wanted = job_pb2.CompressionSpec()
        wanted.CopyFrom(spec)
        wanted.seed = seed + number
        names.append(client.create_job(wanted).name)
    ended = [client.wait(name).state for name in names]
    return sum(state in (State.STATE_SUCCEEDED, State.STATE_INFEASIBLE) for state in ended)


def measure(
    server: RunningServer, *, runs: int, rounds: int, tell: Callable[[str, Any], None]
) -> dict[str, Any]:
    """Return what the server held at the beginning, after each half of each round, and how it grew."""
    with server.client() as client:
        spec = wanted_spec(client)
        # caches and pools of connections fill
        run_jobs(client, spec, runs=WARM_UP_RUNS, seed=1)
        list_all(server.address, page_size=PAGE)
        held = {"beginning": settled(server.pid)}
        tell("beginning", held["beginning"])
        listed = ended = 0
        began = time.monotonic()
        for number in range(1, rounds + 1):
            listed += list_all(server.address, page_size=PAGE)
            held[f"round {number}, listed"] = settled(server.pid)
            tell(f"round {number}, listed", held[f"round {number}, listed"])
            ended += run_jobs(client, spec, runs=runs // rounds, seed=1_000_000 * number)
            held[f"round {number}, run"] = settled(server.pid)
            tell(f"round {number}, run", held[f"round {number}, run"])
    middle = f"round {max(1, rounds // 2)}, run"
    memory = {name: row["resident_mebibytes"] for name, row in held.items()}
    return {
        "held": held,
        "jobs_listed": listed,
        "jobs_run": rounds * (runs // rounds),
        "jobs_ended_in_order": ended,
        "seconds": round(time.monotonic() - began, 1),
        "beginning_mebibytes": memory["beginning"],
        "middle_mebibytes": memory[middle],
        "end_mebibytes": memory[f"round {rounds}, run"],
    }


def run(folder: Path, *, jobs: int, runs: int, rounds: int) -> dict[str, Any]:
    """Measure, and return what was found."""

    def tell(when: str, held: Any) -> None:
        print(f"{when:<20} {held}", flush=True)

    load_before = [round(one, 1) for one in os.getloadavg()]
    with ExitStack() as stack:
        database = stack.enter_context(running_postgres()).database()
        began = time.monotonic()
        fill_final(database, jobs)
        print(f"{jobs} jobs stored in {time.monotonic() - began:.0f} s", flush=True)
        server = RunningServer(
            folder / "data",
            program=(str(SERVICE), str(folder / "ledger"), str(UNIT_SECONDS), "0"),
            environment={
                **settings(database),
                "TIGHTFIT_CONCURRENT_JOBS": str(CONCURRENT_JOBS),
                "TIGHTFIT_WORKER_COUNT": "2",
            },
        ).start()
        stack.callback(server.stop)
        found = measure(server, runs=runs, rounds=rounds, tell=tell)
    return {
        "jobs_in_the_database": jobs,
        "projects": PROJECTS,
        "page": PAGE,
        "cores": os.cpu_count(),
        "load_average_before": load_before,
        **found,
    }


def main() -> int:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description="Measure the memory of a server over many jobs.")
    parser.add_argument("--jobs", type=int, default=100_000, help="in the database")
    parser.add_argument("--runs", type=int, default=300, help="jobs that are run in all")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if reason := reason_missing():
        print(reason, file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="tightfit-memory-") as folder:
        found = run(Path(folder), jobs=arguments.jobs, runs=arguments.runs, rounds=arguments.rounds)
    print(json.dumps({name: found[name] for name in found if name != "held"}, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if found["jobs_ended_in_order"] == found["jobs_run"] else 1


if __name__ == "__main__":
    sys.exit(main())
