"""Files that a user names, checked before a server is started or called."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tightfit.cli.display import TransferLine
from tightfit.client import Client
from tightfit.dataset_file import read_dataset_file
from tightfit.errors import InvalidInputError
from tightfit.v1 import hardware_pb2


def check_files(model: Path, data: Path | None = None, teachers: Sequence[Path] = ()) -> None:
    """Refuse what cannot be read.

    Raises:
        InvalidInputError: There is no such file, it is a folder, or the dataset file is wrong.
    """
    for path, field in ((model, "MODEL"), *((teacher, "--teacher") for teacher in teachers)):
        if path.is_dir():
            raise InvalidInputError(
                f"{path} is a folder", field=field, remedy="give an ONNX, TFLite or .pt2 file"
            )
        if not path.is_file():
            raise InvalidInputError(
                f"there is no file {path}", field=field, remedy="check the path"
            )
    if data is not None:
        read_dataset_file(data)


def upload_inputs(
    client: Client, model: Path, data: Path | None, *, target: str | hardware_pb2.HardwareSpec
) -> tuple[str, str]:
    """Send a model and its dataset, and return their resource names; that of no dataset is empty.

    Raises:
        NotFoundError: There is no such target: said before hundreds of megabytes are sent.
    """
    if isinstance(target, str):
        client.get_target(target)
    if sys.stderr.isatty():
        # a server that has just started takes some seconds to look into a model
        what = model.name if data is None else f"{model.name} and {data.name}"
        print(f"sending {what}; the server checks what it gets", file=sys.stderr)
    uploaded = client.upload_model(model, on_progress=TransferLine("model"))
    if data is None:
        return uploaded.name, ""
    return uploaded.name, client.upload_dataset(data, on_progress=TransferLine("dataset")).name


def upload_teachers(client: Client, teachers: Sequence[Path]) -> list[str]:
    """Send the models that training learns from besides the model, and return their resource names."""
    return [
        client.upload_model(teacher, on_progress=TransferLine(f"teacher {teacher.name}")).name
        for teacher in teachers
    ]
