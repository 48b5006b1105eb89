"""`tightfit compress`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tightfit import quantities
from tightfit.cli import options, outputs, watching
from tightfit.cli.inputs import check_files, upload_inputs, upload_teachers
from tightfit.names import last_segment
from tightfit.specs import compression_spec
from tightfit.words import FORMATS, IMPORTANCES, QUANTITIES, TECHNIQUES, VERIFICATIONS, check_word

_SEARCH = "Search"


def compress(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="ONNX, TFLite or .pt2 file.", show_default=False)
    ],
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
    max_download: options.MaxDownload = None,
    min_accuracy: options.MinAccuracy = None,
    max_accuracy_drop: options.MaxAccuracyDrop = None,
    objective: Annotated[
        str,
        typer.Option(
            metavar="WHAT",
            help=f"What is made best inside the budget: {', '.join(QUANTITIES)}.",
            rich_help_panel=_SEARCH,
        ),
    ] = "accuracy",
    max_trials: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Trials that the search may run.  [default: 12]",
            rich_help_panel=_SEARCH,
        ),
    ] = None,
    max_time: Annotated[
        str | None,
        typer.Option(
            metavar="10m",
            help="Time that the search may take, in s, m or h; the best so far is then the result.  "
            "[default: 14m]",
            rich_help_panel=_SEARCH,
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="Seed of every random choice.", rich_help_panel=_SEARCH
        ),
    ] = 0,
    priority: Annotated[
        int,
        typer.Option(
            min=-100,
            max=100,
            metavar="N",
            help="The queued job of the project with the highest one starts first.",
            rich_help_panel=_SEARCH,
        ),
    ] = 0,
    technique: Annotated[
        list[str] | None,
        typer.Option(
            "--technique",
            metavar="NAME",
            help=f"Technique that may be used; repeat for several: {', '.join(TECHNIQUES)}.  "
            "[default: the search chooses]",
            rich_help_panel=_SEARCH,
        ),
    ] = None,
    importance: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"What the channels to remove are chosen by: {', '.join(IMPORTANCES)}.  "
            "[default: the search chooses]",
            rich_help_panel=_SEARCH,
        ),
    ] = None,
    teacher: options.Teachers = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="NAME",
            help=f"Format of the result: {', '.join(FORMATS)}.  [default: what the target's runtime loads]",
        ),
    ] = None,
    packed: options.Packed = False,
    verify: options.Verify = "none",
    output: options.Output = None,
    server: options.Server = None,
    local: options.Local = False,
    data_dir: options.DataDir = None,
    json_: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Compress a model until it fits a device's budget, and keep it as accurate as can be.

    Example: `tightfit compress model.onnx --data dataset.yaml --target nucleo-h7a3zi-q --max-latency 20ms
    --max-accuracy-drop 0.01 --local -o out`

    Exit codes: 0 it fits, 2 usage, 3 budget not met, 4 job failed, 5 server unavailable.
    """
    budget = options.budget_of(
        max_latency=max_latency,
        max_energy=max_energy,
        max_ram=max_ram,
        max_size=max_size,
        max_download=max_download,
        min_accuracy=min_accuracy,
        max_accuracy_drop=max_accuracy_drop,
    )
    check_word(objective, QUANTITIES, field="--objective")
    for name in technique or ():
        check_word(name, TECHNIQUES, field="--technique")
    if importance is not None:
        check_word(importance, IMPORTANCES, field="--importance")
    check_word(verify, VERIFICATIONS, field="--verify")
    if format_ is not None:
        check_word(format_, FORMATS, field="--format")
    seconds = quantities.parse_duration_s(max_time, option="--max-time") if max_time else None
    wanted = options.target_of(target)
    check_files(model, data, teacher or ())
    if output is not None:
        outputs.prepare(output)
    with options.connected(server, local=local, data_dir=data_dir, show_log=verbose) as client:
        uploaded, dataset = upload_inputs(client, model, data, target=wanted)
        teachers = upload_teachers(client, teacher or ())
        job = client.create_job(
            compression_spec(
                model=uploaded,
                target=wanted,
                dataset=dataset,
                budget=budget,
                objective=objective,
                max_trials=max_trials,
                max_seconds=seconds,
                output_format=format_ or "",
                seed=seed,
                techniques=technique or (),
                teachers=teachers,
                importance=importance or "",
                verify=verify,
                priority=priority,
                packed=packed,
            )
        )
        device = job.spec.hardware_spec.name or target
        title = f"{model.name} for {device}, job {last_segment(job.name)}"
        code = watching.follow(
            client,
            job,
            title=title,
            model_file=model.name,
            folder=output,
            is_json=json_,
            verbose=verbose,
        )
    raise typer.Exit(code)
