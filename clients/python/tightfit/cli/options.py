"""Options that several commands take, each for itself; those that belong together are groups."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tightfit.target_file import is_target_file, read_target_file
from tightfit.v1 import hardware_pb2
from tightfit.words import FORMATS

Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, to stdout.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show every event, and the log of --local.")
]
Model = Annotated[
    Path, typer.Argument(metavar="MODEL", help="ONNX, TFLite or .pt2 file.", show_default=False)
]
Target = Annotated[
    str,
    typer.Option(
        "--target",
        metavar="NAME|YAML",
        help="Device: a name from `tightfit targets list`, or a YAML file that describes it.",
    ),
]
Packed = Annotated[
    bool,
    typer.Option(
        "--packed",
        help="Pack the result for download as well; `tightfit unpack` restores it bit by bit.",
    ),
]
Teachers = Annotated[
    list[Path] | None,
    typer.Option(
        "--teacher",
        metavar="FILE",
        help="Model of the same inputs and classes that training learns from too; repeat for several.",
        rich_help_panel="Training",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="DIR",
        help="Folder for model, recipe.json, result.json and report.html. Those of an earlier result "
        "there are replaced; other files stay.",
    ),
]


def format_option(*, default: str) -> Any:
    """Return the option that names the format of the result; `default` says which it is otherwise."""
    return typer.Option(
        "--format",
        metavar="NAME",
        help=f"Format of the result: {', '.join(FORMATS)}.  [default: {default}]",
    )


def target_of(text: str) -> str | hardware_pb2.HardwareSpec:
    """Return the name of a target, or the description that the file holds."""
    return read_target_file(Path(text)) if is_target_file(text) else text
