"""Files that a user names, checked before a server is started or called."""

from __future__ import annotations

from pathlib import Path

from tightfit.dataset_file import read_dataset_file
from tightfit.errors import InvalidInputError


def check_files(model: Path, data: Path | None) -> None:
    """Refuse what cannot be read.

    Raises:
        InvalidInputError: There is no model file, or the dataset file is wrong.
    """
    if not model.is_file():
        raise InvalidInputError(f"there is no file {model}", field="MODEL", remedy="check the path")
    if data is not None:
        read_dataset_file(data)
