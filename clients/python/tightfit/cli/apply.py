"""`tightfit apply`: a recipe again, on new weights of the same architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tightfit.cli import options, outputs, watching
from tightfit.cli.inputs import check_files, upload_inputs, upload_teachers
from tightfit.cli.limits import Limits
from tightfit.cli.measuring import Measuring
from tightfit.cli.option_groups import with_groups
from tightfit.cli.service import Service
from tightfit.names import last_segment
from tightfit.recipe_file import read_recipe_file
from tightfit.specs import compression_spec
from tightfit.words import FORMATS, check_word, format_word


@with_groups
def apply(
    *,
    recipe: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE", help="recipe.json of an earlier result.", show_default=False
        ),
    ],
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="Model of the same architecture.", show_default=False),
    ],
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="dataset.yaml", help="Dataset to train and to measure on."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target", metavar="NAME|YAML", help="Device.  [default: the recipe's target]"
        ),
    ] = None,
    limits: Limits,
    teacher: options.Teachers = None,
    format_: Annotated[str | None, options.format_option(default="the recipe's format")] = None,
    packed: options.Packed = False,
    measuring: Measuring,
    output: options.Output = None,
    service: Service,
    json_: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Apply a recipe without any search, and check that the outcome meets the budget.

    Example: `tightfit apply out/recipe.json newer.onnx --data dataset.yaml --max-latency 20ms --local -o new`

    Keep `recipe.json` beside the model in version control: when the model is trained anew, the build
    applies the recipe in minutes, and fails when the budget no longer holds.

    Exit codes: 0 it fits, 2 usage, 3 budget not met, 4 job failed, 5 server unavailable.
    """
    budget = limits.budget()
    measuring.check()
    labels = measuring.labels()
    if format_ is not None:
        check_word(format_, FORMATS, field="--format")
    steps = read_recipe_file(recipe)
    wanted = options.target_of(target or steps.target)
    check_files(model, data, teacher or ())
    if output is not None:
        outputs.prepare(output, inputs=(recipe, model, *(teacher or ())))
    with service.connected(show_log=verbose) as client:
        uploaded, dataset = upload_inputs(client, model, data, target=wanted)
        spec = compression_spec(
            model=uploaded,
            target=wanted,
            dataset=dataset,
            budget=budget,
            output_format=format_ or format_word(steps.output_format),
            seed=steps.seed,
            teachers=upload_teachers(client, teacher or ()),
            verify=measuring.verify,
            runner_labels=labels,
            packed=packed,
        )
        job = client.apply_recipe(spec, steps)
        code = watching.follow(
            client,
            job,
            title=f"{recipe.name} on {model.name}, job {last_segment(job.name)}",
            model_file=model.name,
            folder=output,
            is_json=json_,
            verbose=verbose,
        )
    raise typer.Exit(code)
