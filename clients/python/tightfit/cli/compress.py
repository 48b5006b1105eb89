"""`tightfit compress`: the main job."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from tightfit import quantities
from tightfit.cli import exit_codes, options, outputs, watching
from tightfit.cli.display import TransferLine
from tightfit.cli.inputs import check_files
from tightfit.client import Client
from tightfit.names import last_segment
from tightfit.specs import compression_spec
from tightfit.v1 import budget_pb2, hardware_pb2, job_pb2
from tightfit.words import FORMATS, QUANTITIES, TECHNIQUES, VERIFICATIONS, check_word

_SEARCH = "Search"


def compress(
    model: Annotated[Path, typer.Argument(help="ONNX, TFLite or .pt2 file.", show_default=False)],
    target: options.Target,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="dataset.yaml",
            help="Dataset to train and to measure on; without one, accuracy is agreement with the "
            "model on inputs made from it.",
        ),
    ] = None,
    max_latency: options.MaxLatency = None,
    max_energy: options.MaxEnergy = None,
    max_ram: options.MaxRam = None,
    max_size: options.MaxSize = None,
    min_accuracy: options.MinAccuracy = None,
    max_accuracy_drop: options.MaxAccuracyDrop = None,
    objective: Annotated[
        str,
        typer.Option(
            metavar="|".join(QUANTITIES),
            help="What is made best inside the budget.",
            rich_help_panel=_SEARCH,
        ),
    ] = "accuracy",
    max_trials: Annotated[
        int | None,
        typer.Option(min=1, help="Trials that the search may run.", rich_help_panel=_SEARCH),
    ] = None,
    max_time: Annotated[
        str | None,
        typer.Option(
            metavar="10m",
            help="Time that the search may take; the best so far is the result.",
            rich_help_panel=_SEARCH,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Of every random choice.", rich_help_panel=_SEARCH)
    ] = 0,
    technique: Annotated[
        list[str] | None,
        typer.Option(
            "--technique",
            metavar="|".join(TECHNIQUES),
            help="May be used; repeat for several.  [default: the search chooses]",
            rich_help_panel=_SEARCH,
        ),
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="|".join(FORMATS),
            help="Format of the result.  [default: what the target's runtime loads]",
        ),
    ] = None,
    verify: options.Verify = "none",
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="DIR",
            help="Folder for model, recipe.json, result.json and report.html.",
        ),
    ] = None,
    server: options.Server = None,
    local: options.Local = False,
    data_dir: options.DataDir = None,
    json_: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Compress a model until it fits a device's budget, and keep it as accurate as can be.

    Exit codes: 0 it fits, 2 usage, 3 budget not met, 4 job failed, 5 server unavailable.
    """
    budget = options.budget_of(
        max_latency=max_latency,
        max_energy=max_energy,
        max_ram=max_ram,
        max_size=max_size,
        min_accuracy=min_accuracy,
        max_accuracy_drop=max_accuracy_drop,
    )
    check_word(objective, QUANTITIES, field="--objective")
    for name in technique or ():
        check_word(name, TECHNIQUES, field="--technique")
    check_word(verify, VERIFICATIONS, field="--verify")
    if format_ is not None:
        check_word(format_, FORMATS, field="--format")
    seconds = quantities.parse_duration_s(max_time, option="--max-time") if max_time else None
    wanted = options.target_of(target)
    check_files(model, data)
    if output is not None:
        outputs.prepare(output)
    with options.connected(server, local=local, data_dir=data_dir, show_log=verbose) as client:
        job = _create(
            client,
            model,
            data,
            target=wanted,
            budget=budget,
            objective=objective,
            max_trials=max_trials,
            max_seconds=seconds,
            output_format=format_ or "",
            seed=seed,
            techniques=technique or (),
            verify=verify,
        )
        device = job.spec.hardware_spec.name or target
        title = f"{model.name} for {device}, job {last_segment(job.name)}"
        with watching.cancelling_on_interrupt(client, job.name) as interruption:
            events = watching.watch(client, job, title=title, is_json=json_, verbose=verbose)
        code = watching.finish(
            client,
            job.name,
            events,
            model_file=model.name,
            folder=output,
            is_json=json_,
            command=["tightfit", *sys.argv[1:]],
        )
    raise typer.Exit(exit_codes.INTERRUPTED if interruption.was_asked else code)


def _create(
    client: Client,
    model: Path,
    data: Path | None,
    *,
    target: str | hardware_pb2.HardwareSpec,
    budget: budget_pb2.Budget,
    objective: str,
    max_trials: int | None,
    max_seconds: float | None,
    output_format: str,
    seed: int,
    techniques: Sequence[str],
    verify: str,
) -> job_pb2.CompressionJob:
    """Upload what is needed and queue the job."""
    if isinstance(target, str):
        # an unknown target is known before hundreds of megabytes are sent
        client.get_target(target)
    uploaded = client.upload_model(model, on_progress=TransferLine("model"))
    dataset = ""
    if data is not None:
        dataset = client.upload_dataset(data, on_progress=TransferLine("dataset")).name
    return client.create_job(
        compression_spec(
            model=uploaded.name,
            target=target,
            dataset=dataset,
            budget=budget,
            objective=objective,
            max_trials=max_trials,
            max_seconds=max_seconds,
            output_format=output_format,
            seed=seed,
            techniques=techniques,
            verify=verify,
        )
    )
