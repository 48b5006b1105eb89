"""Give a deployment models that kill the workers of their trials, among others that do not.

    PYTHONPATH=tests python tests/faults/poison.py [--jobs 6] [--poisoned 2] [--json FILE]

A poisoned job must be given up after three tries of a unit, and say how the worker died; the others must
end as if nothing had been.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fakes import postgres_server
from faults.deployment import (
    EXAMPLE,
    ORDERLY,
    PROJECT,
    Deployment,
    State,
    Work,
    deployment,
    merge,
    spec,
)
from faults.scripted_worker import POISON

MOST_TRIES = 3


def submit_poisoned(at: Deployment, count: int) -> list[str]:
    """Queue jobs whose trials kill their workers; return their names."""
    names = []
    for number in range(count):
        model = at.upload_model(bytes([number]) * 1_000 + POISON)
        with at.client() as client:
            dataset = client.upload_dataset(EXAMPLE / "dataset.yaml")
            made = client.create_job(spec(model, dataset, trials=at.work.trials))
            names.append(made.name)
    return names


def run(folder: Path, *, work: Work, poisoned: int) -> dict[str, Any]:
    """Run poisoned and other jobs together, and return what was found."""
    with deployment(folder, work=work, needs_s3=False) as at:
        at.prepare(work.jobs)
        names = submit_poisoned(at, poisoned)
        at.submit(work.jobs)
        began = time.monotonic()
        at.wait(300.0)
        seconds = time.monotonic() - began
        with at.client() as client:
            given_up = [client.get_job(name) for name in names]
        errors = [str(job.error.message) for job in given_up]
        begun = Counter(
            digest
            for what, kind, digest, *_ in map(str.split, at.ledger.read_text().splitlines())
            if what == "begin" and kind == "trial"
        )
        tries = sorted(begun.values(), reverse=True)[:poisoned]
        alive = all(server.is_running for server in at.replicas.values())
        found = at.check(collect=False)
    problems = [text for text in found.problems() if "dry run" not in text]
    if any(job.state in ORDERLY for job in given_up) or not alive:
        problems.append("a poisoned job came to an orderly end, or a replica ended")
    if any(count != MOST_TRIES for count in tries):
        problems.append(f"tries: {tries}")
    if not all("SIGKILL" in error or "signal 9" in error for error in errors):
        problems.append(f"no evidence: {errors}")
    return {
        "poisoned_jobs": poisoned,
        "ended": sorted(State.Name(job.state) for job in given_up),
        "tries_of_the_unit": tries,
        "evidence": [error.replace(PROJECT, "") for error in errors],
        "other_jobs": found.states,
        "seconds": round(seconds, 1),
        "problems": problems,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run models that kill their workers.")
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("--poisoned", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    if reason := postgres_server.reason_missing():
        print(reason, file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="tightfit-poison-") as folder:
        work = Work(jobs=arguments.jobs, unit_seconds=1.0)
        found = run(Path(folder), work=work, poisoned=arguments.poisoned)
    print(found)
    if arguments.json:
        merge(arguments.json, "poison", found)
    return int(bool(found["problems"]))


if __name__ == "__main__":
    sys.exit(main())
