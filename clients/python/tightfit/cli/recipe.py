"""`tightfit recipe`: recipes for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from tightfit.cli import exit_codes, options
from tightfit.recipe_file import differences, read_content, recipe_of

app = typer.Typer(no_args_is_help=True, help="Look at recipes and compare them.")


@app.command("show")
def show(
    recipe: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE", help="recipe.json, or a TFLite or ONNX result.", show_default=False
        ),
    ],
    json_: options.Json = False,
) -> None:
    """Show what a recipe does, step by step."""
    content = read_content(recipe)
    recipe_of(content, file=str(recipe))
    if json_:
        print(json.dumps(content, indent=2))
        return
    console = Console(highlight=False)
    console.print(
        f"for {content.get('target') or 'any target'}, {content['output_format']}, "
        f"seed {content.get('seed', 0)}, found on model {content.get('source_digest', '')[:12]}",
        markup=False,
    )
    table = Table(box=None, pad_edge=False)
    for heading in ("step", "pass", "what it does"):
        table.add_column(heading, overflow="fold")
    for number, step in enumerate(content["steps"], start=1):
        table.add_row(str(number), step["pass_name"], _words(step.get("parameters", {})))
    console.print(table)


@app.command("diff")
def diff(
    one: Annotated[
        Path,
        typer.Argument(
            metavar="ONE", help="recipe.json, or a TFLite or ONNX result.", show_default=False
        ),
    ],
    other: Annotated[
        Path, typer.Argument(metavar="OTHER", help="Another one.", show_default=False)
    ],
    json_: options.Json = False,
) -> None:
    """Show where two recipes differ. Exit code 1 when they do, as diff has it."""
    found = differences(read_content(one), read_content(other))
    if json_:
        keys = ("path", "one", "other")
        print(json.dumps([dict(zip(keys, row, strict=True)) for row in found], indent=2))
    elif not found:
        print("the recipes are the same")
    else:
        table = Table(box=None, pad_edge=False)
        for heading in ("", one.name if one.name != other.name else str(one),
                        other.name if one.name != other.name else str(other)):  # fmt: skip
            table.add_column(heading, overflow="fold")
        for row in found:
            table.add_row(*row)
        Console(highlight=False).print(table)
    raise typer.Exit(exit_codes.DIFFERENT if found else exit_codes.OK)


def _words(parameters: Mapping[str, Any]) -> str:
    """Return parameters in a line or two: how many units stay, what is done to which node."""
    keep, nodes = parameters.get("keep"), parameters.get("nodes")
    if isinstance(keep, Mapping) and all(isinstance(units, list) for units in keep.values()):
        return ", ".join(f"{group}: {len(units)} stay" for group, units in keep.items())
    if isinstance(nodes, Mapping) and all(isinstance(item, Mapping) for item in nodes.values()):
        return "; ".join(
            f"{node}: " + ", ".join(f"{key} {value}" for key, value in chosen.items())
            for node, chosen in nodes.items()
        )
    return ", ".join(
        _setting(key.replace("_", " "), value)
        for key, value in parameters.items()
        if value not in (None, {}, [], (), False)
    )


def _setting(name: str, value: Any) -> str:
    if value is True:
        return name
    return f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
