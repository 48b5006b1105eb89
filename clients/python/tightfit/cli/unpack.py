"""`tightfit unpack`: a packed model file as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tightfit.errors import InvalidInputError
from tightfit.packed_file import unpack as restored


def unpack(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Packed file.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Where it goes.")],
) -> None:
    """Restore a model file that was packed for download, bit by bit."""
    try:
        data = restored(file.read_bytes())
        output.write_bytes(data)
    except OSError as error:
        raise InvalidInputError(
            f"cannot read {file} or write {output}: {error.strerror or error}",
            field="FILE",
            remedy="check both paths",
        ) from error
    print(f"{output}: {len(data)} bytes, as they were before packing")
