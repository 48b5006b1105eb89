"""Writes what was measured of faults, load and size into docs/reliability.md.

The figures are those of benchmarks/results/faults.json (tests/faults/*.py --json), and of load.json, memory.json,
scaling.json and scaling_database.json (the scripts of these names beside this one, --json); nothing is typed
in by hand. `--check` changes nothing and ends with 1 where the page differs from the results.

Usage: python benchmarks/reliability_page.py [--check]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
RESULTS = Path(__file__).parent / "results"

_PARTS = {
    "replica": "service replica",
    "worker": "worker process",
    "postgres": "PostgreSQL",
    "s3": "S3 gateway",
    "ray": "Ray node",
}


def page(text: str, found: Mapping[str, Any]) -> str:
    """Return the text of the page with all that stands between markers made anew."""
    faults, load = found["faults"], found["load"]
    parts = {
        "kills": kills(faults),
        "network": network(faults["network cut"]),
        "disk": disk(faults["disk full"]),
        "clock": clock(faults["clock jump"]),
        "poison": poison(faults["poison"]),
        "hostile": hostile(faults["hostile inputs"]),
        "rolling": rolling(faults["rolling restart"]),
        "calls": calls(load),
        "watches": watches(load),
        "held": held(load),
        "memory": memory(found["memory"]),
        "scaling": scaling(found["scaling"]),
        "scheduler": scheduler(found["scaling_database"]),
    }
    for name, content in parts.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        head, has_begin, rest = text.partition(begin)
        _, has_end, tail = rest.partition(end)
        if not has_begin or not has_end:
            raise ValueError(f"no markers for {name}")
        text = f"{head}{begin}\n{content}\n{end}{tail}"
    return text


def kills(faults: dict[str, Any]) -> str:
    """Return the table of killed parts."""
    lines = [
        (
            "| killed | times | jobs | ended in order | trials | begun again once finished | computed "
            "twice | lost midway | artifacts read back | corrupt or missing | orphans: found, announced, "
            "left |"
        ),
        "|---" * 11 + "|",
    ]
    for part, title in _PARTS.items():
        row = faults.get(f"kill {part}")
        if row is None:
            continue
        orderly = sum(row["states"].get(state, 0) for state in ("SUCCEEDED", "INFEASIBLE"))
        damaged = len(row["artifacts_corrupt"]) + len(row["artifacts_missing"])
        cells = [
            title,
            row["kills"],
            row["jobs"],
            orderly,
            row["trials_finished"],
            len(row["trials_begun_after_they_were_finished"]),
            row["trials_computed_twice"],
            row["trials_lost_midway"],
            row["artifacts_referenced"],
            damaged,
            (
                f"{row['artifacts_orphaned']}, {row['orphans_announced_by_dry_run']}, "
                f"{row['orphans_after_collection'] + row['remains_after_collection']}"
            ),
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    rows = [faults[f"kill {part}"] for part in _PARTS if f"kill {part}" in faults]
    lines += ["", *(_work(row) for row in rows), *_errors(rows)]
    return "\n".join(lines)


def _work(row: dict[str, Any]) -> str:
    running, work = row["jobs_at_work_when_killed"], row["work"]
    return (
        f"- {_PARTS[row['part']]}: {min(running)} to {max(running)} jobs were at work at each kill; "
        f"trials of {work['unit_seconds']:g} s on {work['workers_per_replica']} workers per replica, "
        f"leases of {work['lease_seconds']:g} s, {row['seconds']:.0f} s in all."
    )


def _errors(rows: list[dict[str, Any]]) -> list[str]:
    found = [(row, error) for row in rows for error in row["errors"]]
    if not found:
        return []
    return [
        "",
        "Not in order:",
        "",
        *(f"- {_PARTS[row['part']]}: {error}" for row, error in found),
    ]


def network(row: dict[str, Any]) -> str:
    """Return what came of a cut network."""
    return (
        f"{' and '.join(row['stores'])} were cut off from both replicas for {row['cut_seconds']:.0f} s "
        f"while {row['jobs_at_work_when_cut']} jobs ran. A call meanwhile: "
        f"{row['get_job_meanwhile']}. Calls were answered {row['answered_again_after_seconds']:.1f} s "
        f"after the network was back, and all jobs had ended {row['all_jobs_ended_after_seconds']:.0f} s "
        f"after it: {_states(row['states'])}. Of {row['trials_finished']} trials "
        f"{len(row['trials_begun_after_they_were_finished'])} began again once they were finished and "
        f"{row['trials_computed_twice']} were computed twice; "
        f"{len(row['artifacts_corrupt']) + len(row['artifacts_missing'])} of "
        f"{row['artifacts_referenced']} artifacts were corrupt or missing."
    )


def disk(row: dict[str, Any]) -> str:
    """Return what came of a full disk."""
    return (
        f"The disk of a server ({row['disk_bytes'] >> 20} MiB, SQLite and artifacts on it) was full to "
        f"the last byte for {row['seconds_full']:.0f} s while {row['jobs']} jobs ran. Reading calls were "
        f"answered; an upload was refused: `{row['upload_meanwhile']}`. {row['jobs_at_work_when_freed']} "
        f"jobs waited. All had ended {row['all_jobs_ended_after_seconds']:.0f} s after there was room "
        f"again: {_states(row['states'])}; {len(row['artifacts_corrupt'])} artifacts were corrupt."
    )


def clock(row: dict[str, Any]) -> str:
    """Return what came of a clock that jumps."""
    jumps = ", ".join(f"{jump['clock_is_ahead_by_hours']:+g} h" for jump in row["jumps"])
    changed = sum(jump["changed_hands"] for jump in row["jumps"])
    return (
        f"The clock of one of two replicas jumped ({jumps}) while it ran {row['jobs_of_replicas']['a']} "
        f"jobs and the other {row['jobs_of_replicas']['b']}; each setting lasted three leases. "
        f"{changed} jobs changed hands; {row['trials_begun']} trials began and "
        f"{row['trials_finished']} finished; {_states(row['states'])}. Times of events are those of the "
        f"replica that told them: here they lie {row['hours_between_the_times_of_events']:.1f} h apart."
    )


def poison(row: dict[str, Any]) -> str:
    """Return what came of models that kill their workers."""
    tries = ", ".join(map(str, row["tries_of_the_unit"]))
    return (
        f"{row['poisoned_jobs']} jobs whose trials kill their worker were each given up "
        f"(tries: {tries}); of the others: {_states(row['other_jobs'])}. The error of a job that was "
        f"given up:\n\n> {row['evidence'][0]}"
    )


def hostile(row: dict[str, Any]) -> str:
    """Return how inputs that mean harm were answered."""
    answers: dict[str, dict[str, int]] = row["answers"]
    codes = sorted({code for found in answers.values() for code in found} - {"OK"})
    lines = [
        " | ".join(["| kind", "inputs", "harmless (OK)", *codes]) + " |",
        "|---" * (3 + len(codes)) + "|",
    ]
    lines += [
        " | ".join(
            map(
                str,
                [f"| {kind}", sum(found.values()), found.get("OK", 0)]
                + [found.get(code, 0) for code in codes],
            )
        )
        + " |"
        for kind, found in answers.items()
    ]
    total = sum(sum(found.values()) for found in answers.values())
    lines += [
        "",
        (
            f"{total} inputs in {row['seconds'] / 60:.0f} min, one after the other; "
            f"{len(row['problems'])} were answered otherwise than as the caller's fault, and the server "
            f"took a good model afterwards. The server held at most {row['server_bytes'] >> 20} MiB, "
            f"with its workers {row['all_bytes'] >> 20} MiB."
        ),
    ]
    return "\n".join(lines)


def rolling(row: dict[str, Any]) -> str:
    """Return what came of a rolling restart."""
    made = ", ".join(f"{count} {name}" for name, count in row["calls"].items())
    return (
        f"{row['clients']} clients called while two replicas were restarted in turn, {row['restarts']} "
        f"restarts of {min(row['seconds_of_restarts']):.0f} to {max(row['seconds_of_restarts']):.0f} s: "
        f"{made}. {row['calls_failed']} calls failed; half were answered within "
        f"{row['median_call_ms']:.0f} ms, the slowest in {row['slowest_call_seconds']:.1f} s. The jobs "
        f"that ran: {_states(row['states'])}."
    )


def calls(load: dict[str, Any]) -> str:
    """Return the table of call times."""
    lines = ["| call | clients | calls | per second | p50 | p99 |", "|---|---|---|---|---|---|"]
    rounds = [(f"round {number}", found) for number, found in enumerate(load["calls"], 1)]
    if "polling" in load:
        pauses = f"a call every {load['pause_seconds']:.0f} s each"
        rounds.insert(0, (pauses, load["polling"]))
    for title, found in rounds:
        lines += [
            f"| {name} | {title} | {row['count']} | {row['per_second']:.0f} | {row['p50_ms']:.0f} ms | "
            f"{row['p99_ms']:.0f} ms |"
            for name, row in found.items()
        ]
    head = (
        f"{load['clients']} clients at once on one replica with {load['database']}, "
        f"{load['queued_jobs_at_the_start']} jobs in the queue and more with each CreateJob, pages of "
        f"{load['page']}. Server, database and clients shared {load['cores']} cores; the load average "
        f"was {load['load_average_before'][0]:.1f} before."
    )
    return "\n".join([head, "", *lines])


def watches(load: dict[str, Any]) -> str:
    """Return the table of open watches."""
    lines = [
        "| round | streams | all open after | GetJob meanwhile, p50 | p99 | saw the end | the last after |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {number} | {row['watches']} | {row['open_seconds']:.1f} s | "
        f"{row['get_job_meanwhile_p50_ms']:.0f} ms | {row['get_job_meanwhile_p99_ms']:.0f} ms | "
        f"{row['saw_the_end']} | {row['last_saw_it_after_seconds']:.1f} s |"
        for number, row in enumerate(load["watches"], 1)
    ]
    return "\n".join(lines)


def held(load: dict[str, Any]) -> str:
    """Return the table of memory and file descriptors."""
    lines = ["| after round | resident memory | file descriptors |", "|---|---|---|"]
    lines += [
        f"| {number or 'warm-up'} | {row['resident_mebibytes']:.0f} MiB | {row['file_descriptors']} |"
        for number, row in enumerate(load["held"])
    ]
    # the first round opens the first watches of the server's life
    early, last = load["held"][1], load["held"][-1]
    lines += [
        "",
        (
            f"From the first round to the last memory grew by "
            f"{last['resident_mebibytes'] - early['resident_mebibytes']:.1f} MiB and file descriptors by "
            f"{last['file_descriptors'] - early['file_descriptors']}."
        ),
    ]
    return "\n".join(lines)


def memory(found: dict[str, Any]) -> str:
    """Return the table of what a server holds over a database with many jobs."""
    lines = ["| after | resident memory | file descriptors |", "|---|---|---|"]
    lines += [
        f"| {name} | {row['resident_mebibytes']:.0f} MiB | {row['file_descriptors']} |"
        for name, row in found["held"].items()
    ]
    lines += [
        "",
        (
            f"Over {found['jobs_in_the_database']} jobs of {found['projects']} projects in the database, "
            f"{found['jobs_listed']} were listed in pages of {found['page']} and {found['jobs_run']} were "
            f"run, {found['jobs_ended_in_order']} to an end in order: {found['beginning_mebibytes']:.0f} "
            f"MiB at the beginning, {found['middle_mebibytes']:.0f} MiB in the middle, "
            f"{found['end_mebibytes']:.0f} MiB at the end."
        ),
    ]
    return "\n".join(lines)


def scaling(found: dict[str, Any]) -> str:
    """Return the table of trials per hour."""
    lines = [
        "| executor | workers | trials (or steps) | per hour | efficiency | CPU of the service per trial |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['executor']} | {row['workers']} | {row['trials']} | {row['trials_per_hour']:.0f} | "
        f"{row['efficiency']:.2f} | {_service_cpu(row)} |"
        for row in found["rates"]
    ]
    return "\n".join(lines)


def _service_cpu(row: dict[str, Any]) -> str:
    # plain processes have no service
    cpu_ms = row.get("service_cpu_ms_per_trial")
    return "" if cpu_ms is None else f"{cpu_ms:.0f} ms"


def scheduler(found: dict[str, Any]) -> str:
    """Return the tables of single calls on a full database and of what a trial costs."""
    few, many = found["single_calls_with_few_jobs"], found["single_calls"]
    lines = [
        f"| call | p50, {found['queued'] + 1_000} jobs | p99 | p50, {found['jobs']} jobs | p99 |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {few[name]['p50_ms']:.1f} ms | {few[name]['p99_ms']:.1f} ms | "
        f"{row['p50_ms']:.1f} ms | {row['p99_ms']:.1f} ms |"
        for name, row in many.items()
    ]
    replica = found["replica"]
    cost, beats = replica["overhead_per_trial"], replica["heartbeats_of_all_leases"]
    claims = replica["claims_while_all_workers_were_free"]
    lines += [
        "",
        (
            "The jobs were stored at once; what PostgreSQL does while as many come over months was done "
            f"before anything was timed: {', '.join(found['after_filling'])}."
        ),
        "",
        (
            f"One replica with {replica['workers']} workers that only wait, {found['queued']} jobs in the "
            f"queue of {found['projects']} projects, {found['jobs']} jobs in the database: a trial of "
            f"{replica['trial_seconds']:.0f} s takes {cost['p50_ms']:.0f} ms longer than its work at the "
            f"median and {cost['p99_ms']:.0f} ms at the 99th percentile ({cost['count']} trials), with "
            f"{replica['statements_per_trial']:.1f} statements per trial, its share of claims and "
            f"heartbeats included. A claim "
            f"takes {claims['p50_ms']:.0f} ms ({claims['p99_ms']:.0f}), a heartbeat of all leases "
            f"{beats['p50_ms']:.0f} ms ({beats['p99_ms']:.0f}). Load average: "
            f"{replica['load_average'][0]:.1f}."
        ),
    ]
    return "\n".join(lines)


def _states(states: dict[str, int]) -> str:
    return ", ".join(
        f"{count} {name.removeprefix('STATE_')}" for name, count in sorted(states.items())
    )


def results() -> dict[str, Any]:
    """Return what was measured, by the name of its file."""
    return {
        name: json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("faults", "load", "memory", "scaling", "scaling_database")
    }


def main() -> int:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    is_check = parser.parse_args().check
    old = PAGE.read_text(encoding="utf-8")
    new = page(old, results())
    if is_check and new != old:
        print(
            f"{PAGE} differs from the results: run python benchmarks/reliability_page.py",
            file=sys.stderr,
        )
        return 1
    if not is_check:
        PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
