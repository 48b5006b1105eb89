"""Reading JSON files of a result that somebody else may have written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tightfit.errors import InvalidInputError

MAX_JSON_BYTES = 64 << 20


def read_json_file(path: Path) -> Any:
    """Return the content of a JSON file in a result's folder.

    Raises:
        InvalidInputError: It is not there, cannot be read, is larger than `MAX_JSON_BYTES`, or is no JSON.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise unreadable(path, f"a file of less than {MAX_JSON_BYTES} bytes")
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise InvalidInputError(
            f"there is no {path.name} in {path.parent}",
            field="DIR",
            remedy="give the folder that `tightfit compress -o` wrote, from a server that signs",
        ) from error
    except OSError as error:
        raise InvalidInputError(
            f"cannot read {path}: {error.strerror or error}",
            field="DIR",
            remedy="give a folder that can be read",
        ) from error
    except (ValueError, RecursionError) as error:
        raise unreadable(path, "JSON") from error


def unreadable(path: Path, kind: str) -> InvalidInputError:
    """Return the error for a file that is not of a kind, such as `JSON`."""
    return InvalidInputError(
        f"{path} is not {kind}",
        field=path.name,
        remedy="fetch the result again with `tightfit jobs show JOB -o DIR`",
    )
