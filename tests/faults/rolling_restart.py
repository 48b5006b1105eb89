"""Restart two replicas in turn while clients call them, and count the calls that fail.

    PYTHONPATH=tests python tests/faults/rolling_restart.py [--clients 50] [--rounds 2] [--json FILE]

Each client knows both addresses, as it would by a name that leads to both, and repeats what it is allowed
to by its own service configuration. Calls that fail in spite of that are problems.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fakes import postgres_server
from faults.deployment import NAMES, Deployment, Work, deployment, merge
from tightfit import Client
from tightfit.errors import TightfitError
from tightfit.v1 import job_pb2

PAUSE_SECONDS = 0.3
"""Between two calls of one client."""
Call = Callable[[Client], object]


class Caller(threading.Thread):
    """A client that calls until it is told to end; keeps what its calls took and which failed."""

    def __init__(
        self, address: str, calls: Sequence[tuple[str, Call]], end: threading.Event
    ) -> None:
        super().__init__(daemon=True)
        self._address, self._calls, self._end = address, calls, end
        self.seconds: list[float] = []
        self.made: Counter[str] = Counter()
        self.failed: list[str] = []
        self.start()

    def run(self) -> None:
        with Client(self._address) as client:
            while not self._end.is_set():
                for name, call in self._calls:
                    began = time.perf_counter()
                    try:
                        call(client)
                    except TightfitError as error:
                        self.failed.append(f"{name}: {type(error).__name__}: {error}")
                    self.seconds.append(time.perf_counter() - began)
                    self.made[name] += 1
                    if self._end.wait(PAUSE_SECONDS):
                        return


def both(at: Deployment, first: str) -> str:
    """Return a target that leads to both replicas; connections try one before the other."""
    names = sorted(NAMES, key=lambda name: name != first)
    return "ipv4:" + ",".join(at.replicas[name].address for name in names)


@contextmanager
def calling(at: Deployment, clients: int) -> Iterator[list[Caller]]:
    """Have clients call both replicas."""
    job = at.jobs[0]
    with at.client() as client:
        wanted = client.get_job(job).spec

    def create(client: Client) -> None:
        made = client.create_job(wanted)
        assert made.state == job_pb2.CompressionJob.STATE_QUEUED

    calls: list[tuple[str, Call]] = [
        ("GetJob", lambda client: client.get_job(job)),
        ("ListJobs", lambda client: list(islice(client.list_jobs(page_size=20), 20))),
        ("CreateJob, validate_only", lambda c: c.create_job(wanted, validate_only=True)),
    ]
    end = threading.Event()
    # one client in ten queues jobs in earnest: they are answered from the cache in the end
    callers = [
        Caller(
            both(at, NAMES[number % 2]),
            calls if number % 10 else [*calls, ("CreateJob", create)],
            end,
        )
        for number in range(clients)
    ]
    try:
        yield callers
    finally:
        end.set()
        for caller in callers:
            caller.join(60)


def run(folder: Path, *, work: Work, clients: int, rounds: int) -> dict[str, Any]:
    """Restart both replicas so often, and return what the clients saw."""
    with deployment(folder, work=work, needs_s3=False) as at:
        at.submit(work.jobs)
        began = time.monotonic()
        restarts: list[float] = []
        with calling(at, clients) as callers:
            for _ in range(rounds):
                for name in NAMES:
                    time.sleep(2.0)
                    begin = time.monotonic()
                    assert at.replicas[name].stop() == 0
                    at.replicas[name].start()
                    restarts.append(round(time.monotonic() - begin, 1))
            time.sleep(2.0)
        seconds = time.monotonic() - began
        at.wait(300.0)
        found = at.check(collect=False)
    times = sorted(second for caller in callers for second in caller.seconds)
    made = sum((caller.made for caller in callers), Counter[str]())
    failed = [text for caller in callers for text in caller.failed]
    return {
        "clients": clients,
        "restarts": len(restarts),
        "seconds_of_restarts": restarts,
        "seconds": round(seconds, 1),
        "calls": dict(sorted(made.items())),
        "calls_failed": len(failed),
        "failures": sorted(set(failed))[:20],
        "slowest_call_seconds": round(times[-1], 2),
        "median_call_ms": round(times[len(times) // 2] * 1e3, 1),
        "jobs": found.jobs,
        "states": found.states,
        "problems": [*(["calls failed"] if failed else []), *_of_jobs(found.problems())],
    }


def _of_jobs(problems: Sequence[str]) -> list[str]:
    # nothing was collected, and so nothing was announced
    return [problem for problem in problems if "dry run" not in problem]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Restart two replicas in turn under load.")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    if reason := postgres_server.reason_missing():
        print(reason, file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="tightfit-rolling-") as folder:
        found = run(
            Path(folder), work=Work(jobs=8), clients=arguments.clients, rounds=arguments.rounds
        )
    print(found)
    if arguments.json:
        merge(arguments.json, "rolling restart", found)
    return int(bool(found["problems"]))


if __name__ == "__main__":
    sys.exit(main())
