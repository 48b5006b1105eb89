"""`tightfit check`: what can be said before a search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tightfit.cli import exit_codes, options, tables
from tightfit.cli.inputs import check_files, upload_inputs, upload_teachers
from tightfit.cli.limits import Limits
from tightfit.cli.option_groups import with_groups
from tightfit.cli.service import Service
from tightfit.quantities import format_percent
from tightfit.result_file import (
    budget_content,
    metrics_content,
    target_content,
    violations_content,
)
from tightfit.specs import compression_spec
from tightfit.v1 import budget_pb2, compression_pb2


@with_groups
def check(
    *,
    model: options.Model,
    target: options.Target,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="dataset.yaml", help="The dataset.")
    ] = None,
    limits: Limits,
    teacher: options.Teachers = None,
    service: Service,
    json_: options.Json = False,
) -> None:
    """Say by estimate whether a budget can be reached; nothing is trained.

    With --data the accuracy of the model as it came is measured too, also that of a quantized one.

    Exit code 0: it can, or is met already. 3: the model cannot meet it at any width.
    """
    budget = limits.budget()
    wanted = options.target_of(target)
    check_files(model, data, teacher or ())
    with service.connected() as client:
        uploaded, dataset = upload_inputs(client, model, data, target=wanted)
        spec = compression_spec(
            model=uploaded,
            target=wanted,
            dataset=dataset,
            budget=budget,
            teachers=upload_teachers(client, teacher or ()),
        )
        content = _content(client.check(spec), budget)
    if json_:
        print(json.dumps(content, indent=2))
    else:
        _show(content)
    raise typer.Exit(exit_codes.OK if content["reachable"] else exit_codes.BUDGET_NOT_MET)


def _content(
    response: compression_pb2.CheckJobResponse, budget: budget_pb2.Budget
) -> dict[str, Any]:
    return {
        "target": target_content(response.target),
        "budget": budget_content(budget),
        "baseline": metrics_content(response.baseline) if response.HasField("baseline") else None,
        "baseline_int8": metrics_content(response.baseline_int8)
        if response.HasField("baseline_int8")
        else None,
        "violations": violations_content(response.violations),
        "fits_already": response.fits_already,
        "reachable": response.reachable,
        "notes": [
            {"code": note.code, "message": note.message, "node": note.node}
            for note in response.notes
        ],
    }


def _show(content: dict[str, Any]) -> None:
    console = Console(highlight=False)
    # the table is that of a job that has not run yet
    console.print(tables.summary({"trials": [], "best": None, **content}, with_accuracy=False))
    figures = content["baseline"] or {}
    if figures.get("accuracy") is not None:
        low, high = figures.get("accuracy_low"), figures.get("accuracy_high")
        spread = f" ({format_percent(low)} to {format_percent(high)})" if low and high else ""
        console.print(
            f"accuracy as it came: {format_percent(figures['accuracy'])}{spread}, on the evaluation set"
        )
    for note in content["notes"]:
        console.print(f"note: {tables.note_text(note)}", markup=False)
    if content["fits_already"]:
        console.print("[bold green]The limits on cost are met without any pruning.[/bold green]")
    elif content["reachable"]:
        console.print("[bold]The limits on cost can be reached by estimate.[/bold]", end=" ")
        console.print("What that costs in accuracy, `tightfit compress` finds out.")
    else:
        console.print(
            "[bold red]Out of reach:[/bold red] the model misses a limit by estimate, however narrow it is made."
        )
