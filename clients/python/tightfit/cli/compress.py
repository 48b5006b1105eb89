"""`tightfit compress`: the main job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from tightfit import quantities
from tightfit.cli import options, outputs, watching
from tightfit.cli.inputs import check_files, upload_inputs, upload_teachers
from tightfit.cli.limits import Limits
from tightfit.cli.measuring import Measuring
from tightfit.cli.option_groups import with_groups
from tightfit.cli.service import Service
from tightfit.names import last_segment
from tightfit.specs import compression_spec
from tightfit.words import FORMATS, IMPORTANCES, QUANTITIES, TECHNIQUES, check_word

_PANEL = "Search"


@dataclass(frozen=True, kw_only=True)
class Search:
    """How the best inside the budget is looked for."""

    objective: Annotated[
        str,
        typer.Option(
            metavar="WHAT",
            help=f"What is made best inside the budget: {', '.join(QUANTITIES)}.",
            rich_help_panel=_PANEL,
        ),
    ] = "accuracy"
    max_trials: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Trials that the search may run.  [default: 12]",
            rich_help_panel=_PANEL,
        ),
    ] = None
    max_time: Annotated[
        str | None,
        typer.Option(
            metavar="10m",
            help="Time that the search may take, in s, m or h; the best so far is then the result.  "
            "[default: 14m]",
            rich_help_panel=_PANEL,
        ),
    ] = None
    seed: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="Seed of every random choice.", rich_help_panel=_PANEL
        ),
    ] = 0
    priority: Annotated[
        int,
        typer.Option(
            min=-100,
            max=100,
            metavar="N",
            help="The queued job of the project with the highest one starts first.",
            rich_help_panel=_PANEL,
        ),
    ] = 0
    technique: Annotated[
        list[str] | None,
        typer.Option(
            "--technique",
            metavar="NAME",
            help=f"Technique that may be used; repeat for several: {', '.join(TECHNIQUES)}.  "
            "[default: the search chooses]",
            rich_help_panel=_PANEL,
        ),
    ] = None
    importance: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"What the channels to remove are chosen by: {', '.join(IMPORTANCES)}.  "
            "[default: the search chooses]",
            rich_help_panel=_PANEL,
        ),
    ] = None

    def check(self) -> None:
        """Refuse words that are not offered.

        Raises:
            InvalidInputError: One is not; names the nearest that is.
        """
        check_word(self.objective, QUANTITIES, field="--objective")
        for name in self.technique or ():
            check_word(name, TECHNIQUES, field="--technique")
        if self.importance is not None:
            check_word(self.importance, IMPORTANCES, field="--importance")

    def max_seconds(self) -> float | None:
        """Return the time that the search may take; None leaves it to the server.

        Raises:
            InvalidInputError: A time without a unit, or one that is not positive.
        """
        if not self.max_time:
            return None
        return quantities.parse_duration_s(self.max_time, option="--max-time")


@with_groups
def compress(
    *,
    model: options.Model,
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
    limits: Limits,
    search: Search,
    teacher: options.Teachers = None,
    format_: Annotated[
        str | None, options.format_option(default="what the target's runtime loads")
    ] = None,
    packed: options.Packed = False,
    measuring: Measuring,
    output: options.Output = None,
    service: Service,
    json_: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Compress a model until it fits a device's budget, and keep it as accurate as can be.

    Example: `tightfit compress model.onnx --data dataset.yaml --target nucleo-h7a3zi-q --max-latency 20ms
    --max-accuracy-drop 0.01 --local -o out`

    Exit codes: 0 it fits, 2 usage, 3 budget not met, 4 job failed, 5 server unavailable.
    """
    budget = limits.budget()
    search.check()
    measuring.check()
    labels = measuring.labels()
    if format_ is not None:
        check_word(format_, FORMATS, field="--format")
    seconds = search.max_seconds()
    wanted = options.target_of(target)
    check_files(model, data, teacher or ())
    if output is not None:
        outputs.prepare(output, inputs=(model, *(teacher or ())))
    with service.connected(show_log=verbose) as client:
        uploaded, dataset = upload_inputs(client, model, data, target=wanted)
        spec = compression_spec(
            model=uploaded,
            target=wanted,
            dataset=dataset,
            budget=budget,
            objective=search.objective,
            max_trials=search.max_trials,
            max_seconds=seconds,
            output_format=format_ or "",
            seed=search.seed,
            techniques=search.technique or (),
            teachers=upload_teachers(client, teacher or ()),
            importance=search.importance or "",
            verify=measuring.verify,
            runner_labels=labels,
            priority=search.priority,
            packed=packed,
        )
        job = client.create_job(spec)
        device = job.spec.hardware_spec.name or target
        code = watching.follow(
            client,
            job,
            title=f"{model.name} for {device}, job {last_segment(job.name)}",
            model_file=model.name,
            folder=output,
            is_json=json_,
            verbose=verbose,
        )
    raise typer.Exit(code)
