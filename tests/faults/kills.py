"""Kill parts of a deployment at random moments while jobs run, and look at what the jobs leave behind.

    PYTHONPATH=tests python tests/faults/kills.py [--parts replica worker postgres s3 ray] [--jobs 20]
        [--kills 10] [--seed 0] [--json benchmarks/results/faults.json]

All parts are real processes that are sent SIGKILL and started again after a pause that the seed draws. Before
each kill jobs are added until `--jobs` of them are not final. Ends with 1 where something was not as it must be.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fakes import postgres_server
from fakes.ray_cluster import RayCluster
from faults.deployment import NAMES, Deployment, Work, children, deployment, is_worker, merge

PATIENCE_SECONDS = 300.0
SECOND_NODE = "127.0.0.3"
MOST_DOWN_SECONDS = {"replica": 2.0, "worker": 0.0, "postgres": 4.0, "s3": 4.0, "ray": 2.0}
"""Longest pause between a kill and the start, by part; a replica starts its workers itself."""
Strike = Callable[[Deployment], None]


def kill_replica(at: Deployment) -> None:
    server = at.replicas[at.chance.choice(NAMES)]
    server.kill()
    time.sleep(at.chance.uniform(0, MOST_DOWN_SECONDS["replica"]))
    server.start()


def kill_worker(at: Deployment) -> None:
    busy = _busy(at)
    while True:
        pids = [pid for server in at.replicas.values() for pid in children(server.pid)]
        workers = [pid for pid in pids if is_worker(pid)]
        chosen = [pid for pid in workers if pid in busy] or workers
        if chosen:
            break
        time.sleep(0.1)
    with suppress(ProcessLookupError):
        os.kill(at.chance.choice(chosen), signal.SIGKILL)


def _busy(at: Deployment) -> set[int]:
    pids: set[int] = set()
    for line in at.ledger.read_text().splitlines():
        what, _, _, _, pid = line.split()
        (pids.add if what == "begin" else pids.discard)(int(pid))
    return pids


def kill_postgres(at: Deployment) -> None:
    at.postgres.kill()
    time.sleep(at.chance.uniform(0, MOST_DOWN_SECONDS["postgres"]))
    at.postgres.start()


def kill_s3(at: Deployment) -> None:
    at.gateway.kill()
    time.sleep(at.chance.uniform(0, MOST_DOWN_SECONDS["s3"]))
    at.gateway.start_again()


class RayNodes:
    """A head, and a second node that is killed and started again."""

    def __init__(self) -> None:
        self.cluster = RayCluster.start(cpus=2)
        self._second = self.cluster.add_node(SECOND_NODE)

    def kill(self, at: Deployment) -> None:
        self._second.kill()
        self.cluster.nodes.remove(self._second)
        time.sleep(at.chance.uniform(0, MOST_DOWN_SECONDS["ray"]))
        self._second = self.cluster.add_node(SECOND_NODE)

    def settings(self, folder: Path) -> dict[str, str]:
        return {
            "TIGHTFIT_EXECUTOR": "ray",
            "TIGHTFIT_RAY_ADDRESS": self.cluster.address,
            "TIGHTFIT_RAY_TOKEN_FILE": self.cluster.token_file,
            "TIGHTFIT_RAY_NODE_DIR": str(folder / "nodes"),
            # what each worker reserves of its node
            "TIGHTFIT_WORKER_MEMORY_BYTES": str(512 << 20),
            # two nodes of two CPUs are shared by two replicas
            "TIGHTFIT_WORKER_COUNT": "2",
        }


@contextmanager
def stricken(
    folder: Path, parts: Sequence[str], *, work: Work, seed: int
) -> Iterator[tuple[Deployment, dict[str, Strike]]]:
    """Yield a deployment, and by part what kills it and starts it again."""
    strikes: dict[str, Strike] = {
        "replica": kill_replica,
        "worker": kill_worker,
        "postgres": kill_postgres,
        "s3": kill_s3,
    }
    with ExitStack() as stack:
        settings: dict[str, str] = {}
        if "ray" in parts:
            nodes = RayNodes()
            stack.callback(nodes.cluster.stop)
            settings = nodes.settings(folder)
            strikes["ray"] = nodes.kill
        made = stack.enter_context(deployment(folder, work=work, seed=seed, settings=settings))
        yield made, {part: strikes[part] for part in parts}


def reason_missing(part: str) -> str:
    """Return why a part cannot be killed on this machine, or ""."""
    if reason := postgres_server.reason_missing():
        return reason
    if part == "ray" and importlib.util.find_spec("ray") is None:
        return "Ray is not installed: pip install -c constraints.txt -e '.[ray]'"
    named = os.environ.get("TIGHTFIT_S3_SERVER")
    if part == "s3" and not named:
        return "TIGHTFIT_S3_SERVER names no script that starts an S3 gateway"
    return ""


def run(folder: Path, parts: Sequence[str], *, work: Work, kills: int, seed: int) -> dict[str, Any]:
    """Kill so often, each part in its turn, and return what was found."""
    with stricken(folder, parts, work=work, seed=seed) as (at, strikes):
        at.prepare(2 * work.jobs)
        began = time.monotonic()
        running: list[int] = []
        moments: list[float] = []
        for number in range(kills):
            at.submit(max(0, work.jobs - at.unfinished()))
            time.sleep(at.chance.uniform(0.2, 4 * work.unit_seconds))
            running.append(at.unfinished())
            moments.append(time.monotonic() - began)
            part = parts[number % len(parts)]
            strikes[part](at)
            print(f"{part}: kill {number + 1}, {running[-1]} jobs were at work", flush=True)
        at.wait(PATIENCE_SECONDS)
        seconds = time.monotonic() - began
        found = at.check()
    problems = found.problems()
    if min(running, default=0) == 0:
        problems.append("a kill came when no job ran")
    return {
        "part": " and ".join(parts),
        "kills": kills,
        "jobs_at_work_when_killed": running,
        "seconds_of_kills": [round(moment, 1) for moment in moments],
        "seconds": round(seconds, 1),
        "seed": seed,
        "work": {
            "unit_seconds": work.unit_seconds,
            "workers_per_replica": 2 if "ray" in parts else work.workers,
            "lease_seconds": work.lease_seconds,
        },
        "store": "s3" if at.gateway.url else "folder",
        **found.as_json(),
        "problems": problems,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Kill parts of a deployment while jobs run.")
    parser.add_argument("--parts", nargs="+", default=list(MOST_DOWN_SECONDS))
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--unit-seconds", type=float, default=1.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    work = replace(Work(), jobs=arguments.jobs, unit_seconds=arguments.unit_seconds)
    code = 0
    for part in arguments.parts:
        if reason := reason_missing(part):
            print(f"{part}: left out: {reason}", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory(prefix="tightfit-kills-") as folder:
            found = run(Path(folder), [part], work=work, kills=arguments.kills, seed=arguments.seed)
        print({key: value for key, value in found.items() if value}, flush=True)
        if arguments.json:
            merge(arguments.json, f"kill {part}", found)
        code |= bool(found["problems"])
    return code


if __name__ == "__main__":
    sys.exit(main())
