"""Set the clock of one of two replicas forth and back by an hour while jobs run.

    PYTHONPATH=tests python tests/faults/clock_jump.py [--jobs 8] [--hours 1] [--json FILE]

libfaketime (Debian package libfaketime) gives one replica and its workers a wall clock that is read from a file;
the monotonic clock stays what it is, as it does when a real clock is set. Leases are the database's: the
replica must neither lose a job nor take one of the other.
"""

from __future__ import annotations

import argparse
import glob
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fakes import postgres_server
from faults.deployment import NAMES, Deployment, Work, deployment, merge, until

PATIENCE_SECONDS = 300.0


def library() -> str:
    """Return where libfaketime is, or ""."""
    found = glob.glob("/usr/lib/*/faketime/libfaketime.so.1")  # noqa: PTH207  # one pattern
    return found[0] if found else ""


def reason_missing() -> str:
    """Return why no clock can be set on this machine, or ""."""
    if not library():
        return "libfaketime is not installed (Debian package libfaketime)"
    return postgres_server.reason_missing()


def owners(at: Deployment) -> dict[str, str]:
    """Return who holds which job, with the number of the claim."""
    rows = at.sql("SELECT job_id, owner, token FROM job_leases WHERE expire_time IS NOT NULL")
    cells = (row.split("|") for row in rows.splitlines())
    return {job: f"{owner.partition('/')[0]} {token}" for job, owner, token in cells}


def set_clock(file: Path, hours: float) -> None:
    partial = file.with_suffix(".partial")
    partial.write_text(f"{hours * 3600:+.0f}\n")
    partial.rename(file)


def run(folder: Path, *, work: Work, hours: float, leases: float = 3.0) -> dict[str, Any]:
    """Let the clock of replica a jump ahead, back, and to the right time; return what was found.

    Each setting lasts as many leases as `leases` says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clock = folder / "clock"
    set_clock(clock, 0)
    with deployment(folder, work=work, needs_s3=False) as at:
        at.replicas["a"].stop()
        at.replicas["a"] = at.replica(
            "a",
            environment={
                "LD_PRELOAD": library(),
                "FAKETIME_TIMESTAMP_FILE": str(clock),
                "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            },
        ).start()
        at.submit(work.jobs)
        until(lambda: len(owners(at)) == work.jobs, seconds=60, what="that all jobs run")
        before = owners(at)
        jumps = []
        for jump in (hours, -hours, 0.0):
            set_clock(clock, jump)
            time.sleep(leases * work.lease_seconds)
            held = owners(at)
            jumps.append(
                {
                    "clock_is_ahead_by_hours": jump,
                    "jobs_held": len(held),
                    "changed_hands": sum(held[job] != before[job] for job in held),
                }
            )
        at.wait(PATIENCE_SECONDS)
        lost = sum("job.lease_lost" in at.replicas[name].log() for name in NAMES)
        told = float(
            at.sql(
                "SELECT extract(epoch FROM max((document->>'time')::timestamptz)"
                " - min((document->>'time')::timestamptz)) FROM job_events"
            )
        )
        found = at.check(collect=False)
    shares = {name: sum(owner.startswith(name) for owner in before.values()) for name in NAMES}
    # which moment was first cannot be told by clocks that jump: each trial must have begun once
    found.trials_begun_after_they_were_finished = []
    problems = [text for text in found.problems() if "dry run" not in text]
    if any(jump["changed_hands"] for jump in jumps) or lost:
        problems.append("jobs changed hands")
    if found.trials_begun != found.trials_finished:
        problems.append("trials ran twice")
    if told < 1.5 * hours * 3_600 or not min(shares.values()) or not jumps[0]["jobs_held"]:
        problems.append(f"the run shows nothing: {told:.0f} s between events, {shares}, {jumps}")
    return {
        "hours": hours,
        "lease_seconds": work.lease_seconds,
        "jobs_of_replicas": shares,
        "hours_between_the_times_of_events": round(told / 3_600, 2),
        "jumps": jumps,
        "states": found.states,
        "trials_finished": found.trials_finished,
        "trials_begun": found.trials_begun,
        "problems": problems,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Set the clock of one of two replicas.")
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    if reason := reason_missing():
        print(reason, file=sys.stderr)
        return 1
    os.environ.pop("LD_PRELOAD", None)
    with tempfile.TemporaryDirectory(prefix="tightfit-clock-") as folder:
        work = Work(jobs=arguments.jobs, unit_seconds=8.0)
        found = run(Path(folder), work=work, hours=arguments.hours)
    print(found)
    if arguments.json:
        merge(arguments.json, "clock jump", found)
    return int(bool(found["problems"]))


if __name__ == "__main__":
    sys.exit(main())
