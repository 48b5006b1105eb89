"""`tightfit jobs`: the jobs of a server."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tightfit.cli import exit_codes, options, outputs, tables, watching
from tightfit.cli.option_groups import with_groups
from tightfit.cli.service import Service
from tightfit.names import last_segment
from tightfit.quantities import format_duration
from tightfit.result_file import build_result
from tightfit.summary import COST_BY_QUANTITY
from tightfit.v1 import job_pb2
from tightfit.words import check_word, job_state_word

app = typer.Typer(help="The jobs of a server.", no_args_is_help=True)
_STATES = ("queued", "running", "succeeded", "infeasible", "failed", "cancelled")
_UNREADABLE = "UNREADABLE_RECORD"
_STATE_STYLES = {"SUCCEEDED": "green", "INFEASIBLE": "red", "FAILED": "red", "RUNNING": "cyan"}
Job = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job.", show_default=False)]
Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="DIR", help="Fetch the job's files into this folder."),
]


@app.command("list")
@with_groups
def list_jobs(
    *,
    state: Annotated[
        str | None,
        typer.Option(metavar="STATE", help=f"Only jobs in this state: {', '.join(_STATES)}."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Show at most so many.")] = 50,
    service: Service,
    json_: options.Json = False,
) -> None:
    """List jobs, newest first."""
    states = []
    if state is not None:
        check_word(state, _STATES, field="--state")
        states = [job_pb2.CompressionJob.State.Value(f"STATE_{state.upper()}")]
    with service.connected() as client:
        found = [
            build_result(job, (), ())
            for job in itertools.islice(client.list_jobs(states=states), limit)
        ]
    if json_:
        print(json.dumps([_brief(result) for result in found], indent=2))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("JOB", "STATE", "TARGET", "BUDGET", "CREATED", "TOOK"):
        table.add_column(heading, no_wrap=True)
    for result in found:
        spent = result["job"]["elapsed_seconds"]
        table.add_row(
            last_segment(result["job"]["name"]),
            Text(result["state"].lower(), style=_STATE_STYLES.get(result["state"], "")),
            result["target"]["name"],
            _budget_text(result["budget"]),
            (result["job"]["create_time"] or "")[:19].replace("T", " "),
            format_duration(spent) if spent is not None else "",
        )
    tables.print_wide(table)
    for result in found:
        if result["job"]["error_reason"] == _UNREADABLE:
            print(f"{last_segment(result['job']['name'])}: {result['job']['error']}")


@app.command("show")
@with_groups
def show_job(
    *,
    job: Job,
    output: Output = None,
    service: Service,
    json_: options.Json = False,
) -> None:
    """Show a job as it stands; with -o, fetch its files."""
    if output is not None:
        outputs.prepare(output)
    with service.connected() as client:
        found = client.get_job(job)
        is_final = job_state_word(found.state) not in ("QUEUED", "RUNNING")
        # the events of a job that still runs would have to be waited for
        events = list(client.watch_job(found.name)) if is_final else []
        result = watching.result_of(client, found.name, events, model_file="")
        written = outputs.write(output, result, client) if output is not None else []
    if json_:
        print(json.dumps(result, indent=2))
        return
    console = Console(highlight=False)
    console.print(tables.outcome(result), crop=False)
    if output is not None:
        console.print(f"\nwritten to {output}: {', '.join(written)}", markup=False, soft_wrap=True)


@app.command("watch")
@with_groups
def watch_job(
    *,
    job: Job,
    output: Output = None,
    service: Service,
    json_: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Watch a job to its end; the exit codes are those of `compress`. Ctrl-C leaves it running."""
    if output is not None:
        outputs.prepare(output)
    with service.connected(show_log=verbose) as client:
        found = client.get_job(job)
        title = f"{found.spec.hardware_spec.name}, job {last_segment(found.name)}"
        events = watching.watch(client, found, title=title, is_json=json_, verbose=verbose)
        code = watching.finish(
            client, found.name, events, model_file="", folder=output, is_json=json_
        )
    raise typer.Exit(code)


@app.command("cancel")
@with_groups
def cancel_job(job: Job, service: Service) -> None:
    """Cancel a job; what it found until then stays."""
    with service.connected() as client:
        state = job_state_word(client.cancel_job(job).state).lower()
    print(f"job {last_segment(job)} is {state}")


@app.command("delete")
@with_groups
def delete_job(job: Job, service: Service) -> None:
    """Delete a job that has ended, with its trials and events."""
    with service.connected() as client:
        client.delete_job(job)
    print(f"job {last_segment(job)} is deleted")
    raise typer.Exit(exit_codes.OK)


def _brief(result: dict[str, Any]) -> dict[str, Any]:
    keys = ("job", "state", "model", "dataset", "budget", "objective", "target", "seed")
    return {key: result[key] for key in keys}


def _budget_text(budget: dict[str, Any]) -> str:
    parts = [
        f"{cost.name} ≤ {cost.show(budget[cost.budget])}"
        for cost in COST_BY_QUANTITY.values()
        if budget[cost.budget] is not None
    ]
    if budget["min_accuracy"] is not None:
        parts.append(f"accuracy ≥ {budget['min_accuracy']:g}")
    if budget["max_accuracy_drop"] is not None:
        parts.append(f"drop ≤ {budget['max_accuracy_drop']:g}")
    return ", ".join(parts)
