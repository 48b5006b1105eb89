"""The files that `-o DIR` receives."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tightfit.client import Client
from tightfit.errors import InvalidInputError
from tightfit.file_set import unpack_files
from tightfit.report import write_report
from tightfit.summary import shown_trial
from tightfit.verification import PROVENANCE_FILE
from tightfit.words import FILE_SETS, FILE_SUFFIXES, FORMATS

_CLOSEST = "closest"
_OWN_FILES = (
    *(
        f"{stem}.{FILE_SUFFIXES.get(name, name)}"
        for stem in ("model", _CLOSEST)
        for name in FORMATS
        if name not in FILE_SETS
    ),
    *(
        f"{folder}{name}"
        for folder in ("", f"{_CLOSEST}/")
        for names in FILE_SETS.values()
        for name in names
    ),
    *(f"{stem}.packed" for stem in ("model", _CLOSEST)),
    "recipe.json",
    "result.json",
    "report.html",
    PROVENANCE_FILE,
)


def prepare(folder: Path, *, inputs: Sequence[Path] = ()) -> None:
    """Make the folder, so that a job does not run for nothing.

    Args:
        folder: Where `write` will write.
        inputs: Files that the command reads: never to be replaced by what it writes.

    Raises:
        InvalidInputError: It cannot be made or written, or an input lies where a result would.
    """
    own = {(folder / name).resolve() for name in _OWN_FILES}
    for path in inputs:
        if path.resolve() in own:
            raise InvalidInputError(
                f"{path} would be replaced by the result",
                field="-o",
                remedy="give another folder: the result has a file of this name",
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".tightfit-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InvalidInputError(
            f"cannot write to {folder}: {error.strerror or error}",
            field="-o",
            remedy="give a folder that can be written",
        ) from error


def write(folder: Path, result: Mapping[str, Any], client: Client) -> list[str]:
    """Write result, report, recipe and model, and return the names of what was written.

    What an earlier run left under these names is replaced, or removed where this run has no such
    file: a model never lies beside the result of another job. Where nothing fits, the model of the
    closest trial is called `closest`, or lies in a folder of this name where it is several files that
    name each other.

    Raises:
        InvalidInputError: A file cannot be written.
    """
    try:
        for name in _OWN_FILES:
            (folder / name).unlink(missing_ok=True)
        written = []
        shown = shown_trial(result)
        if shown is not None:
            _, trial = shown
            digest = trial["artifacts"].get("model")
            format_ = trial["recipe"]["output_format"] or result["format"] or "bin"
            if digest:
                written.extend(
                    _fetch_model(folder, digest, format_, client, fits=bool(result["best"]))
                )
            if packed := trial["artifacts"].get("packed"):
                name = f"{'model' if result['best'] else _CLOSEST}.packed"
                client.download_artifact(packed, folder / name)
                written.append(name)
            _write_json(folder / "recipe.json", trial["recipe"])
            written.append("recipe.json")
            if signed := trial["artifacts"].get("provenance"):
                client.download_artifact(signed, folder / PROVENANCE_FILE)
                written.append(PROVENANCE_FILE)
        _write_json(folder / "result.json", result)
        write_report(result, folder / "report.html")
    except OSError as error:
        raise InvalidInputError(
            f"cannot write to {folder}: {error.strerror or error}",
            field="-o",
            remedy="make room there, then fetch it with `tightfit jobs show JOB -o DIR`",
        ) from error
    return [*written, "result.json", "report.html"]


def _fetch_model(
    folder: Path, digest: str, format_: str, client: Client, *, fits: bool
) -> list[str]:
    """Write the model's file, or its files, and return their names."""
    if format_ not in FILE_SETS:
        suffix = FILE_SUFFIXES.get(format_, format_)
        name = f"{'model' if fits else _CLOSEST}.{suffix}"
        client.download_artifact(digest, folder / name)
        return [name]
    archive = folder / ".tightfit-model.zip"
    try:
        client.download_artifact(digest, archive)
        into = folder if fits else folder / _CLOSEST
        files = unpack_files(archive, FILE_SETS[format_], into)
    finally:
        archive.unlink(missing_ok=True)
    return [str(path.relative_to(folder)) for path in files]


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
