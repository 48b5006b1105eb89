"""`tightfit verify`: whether a result is what a server signed, and what it said."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tightfit.cli import exit_codes, options
from tightfit.errors import InvalidInputError
from tightfit.quantities import format_bytes, format_energy, format_latency, format_percent
from tightfit.verification import Verification, verify_folder


def verify(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Folder that `compress -o` wrote.", show_default=False),
    ],
    key: Annotated[
        list[Path] | None,
        typer.Option(
            "--key",
            metavar="PEM",
            help="File of public keys that are trusted; repeat for several.  [default: the key that "
            "the result brings along, which proves that nothing was changed but not who signed]",
        ),
    ] = None,
    json_: options.Json = False,
) -> None:
    """Check the signature of a result and the digests of its files, and show what is claimed of it.

    Exit codes: 0 all that was signed is as it was signed, 2 usage, 3 something is not.
    """
    found = verify_folder(folder, trusted_keys=b"".join(_read(path) for path in key or ()))
    if json_:
        print(json.dumps(_content(found), indent=2))
    else:
        _show(found)
    raise typer.Exit(exit_codes.OK if found.is_valid else exit_codes.NOT_AS_SIGNED)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInputError(
            f"cannot read {path}: {error.strerror or error}",
            field="--key",
            remedy="give a file of public keys; `tightfit-service public-keys` prints them",
        ) from error


def _content(found: Verification) -> dict[str, Any]:
    return {
        "valid": found.is_valid,
        "trusted": found.is_trusted and found.is_valid,
        "key_id": found.key_id,
        "mismatches": list(found.mismatches),
        "covered": list(found.covered),
        "uncovered": list(found.uncovered),
        "claims": found.claims,
    }


def _show(found: Verification) -> None:
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for line in found.mismatches:
        console.print(_printable(f"DIFFERS   {line}"))
    for name in found.covered:
        console.print(_printable(f"as signed {name}"))
    for name in found.uncovered:
        console.print(_printable(f"unsigned  {name}"))
    if found.key_id:
        whose = "a key that you gave" if found.is_trusted else "a key that came with the result"
        console.print(f"\nsigned by {whose}, {found.key_id}")
        if not found.is_trusted:
            console.print("whose key that is was not checked: give the server's with --key")
        for line in _claims(found.claims):
            console.print(_printable(line))
    console.print("\nverified" if found.is_valid else "\nNOT as signed")


def _printable(line: str) -> str:
    """Return the line without what a terminal would obey: anybody may have written the statement."""
    return "".join(sign if sign.isprintable() else "?" for sign in line)


def _claims(claims: Mapping[str, Any]) -> list[str]:
    """Return what the statement says, for people."""
    job, estimated = claims["job"], claims["estimated"]
    dataset = claims["dataset"]
    accuracy = claims["accuracy"]
    budget = ", ".join(f"{key} {value:g}" for key, value in sorted(claims["budget"].items()))
    lines = [
        f"claims: {job['name']} ended {job['state']} at {job['end_time'][:19]}",
        f"  made of model {claims['model']['digest']['sha256']}",
        f"  and dataset   {dataset['digest']['sha256'] if dataset else 'none'}",
        *(f"  taught by     {item['digest']['sha256']}" for item in claims.get("teachers") or ()),
        f"  for {claims['target']['name']}, seed {claims['seed']}, budget: {budget or 'none'}",
        f"  estimated latency {_range(estimated['latency_ms'], format_latency)}",
        f"  estimated energy  {_range(estimated['energy_mj'], format_energy)}",
        f"  estimated RAM     {_range(estimated['peak_ram_bytes'], format_bytes)}",
    ]
    if accuracy:
        lines.append(f"  accuracy {format_percent(accuracy['value'])}")
    measured = claims["measured"]
    if measured:
        lines.append(f"  measured: p90 {format_latency(measured['measured_latency_ms_p90'])}")
    return lines


def _range(estimate: Mapping[str, float], show: Any) -> str:
    return f"{show(estimate['value'])} (at most {show(estimate['high'])})"
