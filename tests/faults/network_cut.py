"""Cut the network between the service and its stores while jobs run, and see that they go on afterwards.

    PYTHONPATH=tests python tests/faults/network_cut.py [--jobs 6] [--seconds 60] [--json FILE]

Runs in a network namespace of its own (as root, on Linux), in which packets to and from the ports of
PostgreSQL and the S3 gateway are dropped in silence, as by a switch that has lost its power. Clients still
reach the replicas.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fakes import postgres_server
from faults.deployment import NAMES, Work, deployment, merge
from tightfit import Client
from tightfit.connection import Patience
from tightfit.errors import TightfitError

INSIDE = "TIGHTFIT_FAULTS_NAMESPACE"
PATIENCE_SECONDS = 300.0


def reason_missing() -> str:
    """Return why no network can be cut on this machine, or ""."""
    if os.getuid() != 0 or not sys.platform.startswith("linux"):
        return "a network namespace needs root on Linux"
    for program in ("unshare", "ip", "iptables"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    if subprocess.run(["unshare", "-n", "true"], check=False, capture_output=True).returncode:
        return "this kernel grants no network namespace"
    return postgres_server.reason_missing()


@contextmanager
def cut(*ports: int) -> Iterator[None]:
    """Drop every packet to and from the ports, in this process's network namespace."""
    assert os.environ.get(INSIDE), "only in a namespace of its own"
    rules = [
        ["OUTPUT", "-p", "tcp", side, str(port), "-j", "DROP"]
        for port in ports
        for side in ("--dport", "--sport")
    ]
    for rule in rules:
        subprocess.run(["iptables", "-I", *rule], check=True)
    try:
        yield
    finally:
        for rule in rules:
            subprocess.run(["iptables", "-D", *rule], check=True)


def run(folder: Path, *, work: Work, seconds: float, seed: int) -> dict[str, Any]:
    """Cut both stores off for so long, and return what was found."""
    with deployment(folder, work=work, seed=seed) as at:
        at.submit(work.jobs)
        time.sleep(2 * work.unit_seconds)
        ports = [at.postgres.port]
        if at.gateway.url:
            ports.append(urllib.parse.urlsplit(at.gateway.url).port or 80)
        running = at.unfinished()
        began = time.monotonic()
        answers = []
        with cut(*ports):
            with Client(
                at.replicas["a"].address,
                patience=Patience(total_seconds=1.0),
                timeout_seconds=seconds / 2,
            ) as client:
                answers.append(answer(client, at.jobs[0]))
            time.sleep(max(0.0, seconds - (time.monotonic() - began)))
        cut_seconds = time.monotonic() - began
        mended = time.monotonic()
        until_answer = answered_again(at.replicas["a"].address, at.jobs[0], mended)
        at.wait(PATIENCE_SECONDS)
        until_end = time.monotonic() - mended
        alive = all(server.is_running for server in at.replicas.values())
        found = at.check()
    problems = found.problems()
    if not alive:
        problems.append("a replica ended")
    return {
        "cut_seconds": round(cut_seconds, 1),
        "stores": ["PostgreSQL", *(["S3 gateway"] if at.gateway.url else [])],
        "jobs_at_work_when_cut": running,
        "get_job_meanwhile": answers[0],
        "answered_again_after_seconds": round(until_answer, 1),
        "all_jobs_ended_after_seconds": round(until_end, 1),
        **found.as_json(),
        "problems": problems,
    }


def answer(client: Client, job: str) -> str:
    """Return how a call ends while the stores are away."""
    began = time.monotonic()
    try:
        client.get_job(job)
    except TightfitError as error:
        return f"{type(error).__name__} after {time.monotonic() - began:.1f} s"
    return "answered"


def answered_again(address: str, job: str, since: float) -> float:
    """Return the seconds until a call is answered."""
    while True:
        with Client(address, timeout_seconds=5.0) as client:
            if answer(client, job) == "answered":
                return time.monotonic() - since
        assert time.monotonic() < since + PATIENCE_SECONDS, NAMES
        time.sleep(0.2)


def in_namespace(arguments: Sequence[str]) -> int:
    """Run this script in a network namespace of its own, in which loopback is up."""
    shell = 'ip link set lo up && exec "$@"'
    command = ["unshare", "-n", "sh", "-c", shell, "sh", sys.executable, __file__, *arguments]
    return subprocess.run(command, env={**os.environ, INSIDE: "1"}, check=False).returncode


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description="Cut the network between service and stores.")
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(given)
    if reason := reason_missing():
        print(reason, file=sys.stderr)
        return 1
    if not os.environ.get(INSIDE):
        return in_namespace(given)
    with tempfile.TemporaryDirectory(prefix="tightfit-network-") as folder:
        found = run(
            Path(folder),
            work=Work(jobs=arguments.jobs, unit_seconds=2.0),
            seconds=arguments.seconds,
            seed=arguments.seed,
        )
    print(found)
    if arguments.json:
        merge(arguments.json, "network cut", found)
    return int(bool(found["problems"]))


if __name__ == "__main__":
    sys.exit(main())
