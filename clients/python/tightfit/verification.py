"""Checking results: whether files are those that a deployment vouched for, and what it said of them.

A result's folder holds `provenance.dsse.json`: an in-toto statement in a signed DSSE envelope. See
`docs/provenance.md` for what it says and for what a signature does and does not prove.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tightfit.errors import InvalidInputError
from tightfit.json_file import read_json_file
from tightfit.signed_envelope import Envelope, read_envelope, signer
from tightfit.summary import shown_trial

PROVENANCE_FILE = "provenance.dsse.json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://tightfit.dev/provenance/compression/v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
_BLOCK_BYTES = 1 << 20
_CLAIMED_FIGURES = ("latency_ms", "energy_mj", "peak_ram_bytes")


@dataclass(frozen=True)
class Verification:
    """What was found out about a result's folder.

    Attributes:
        key_id: Of the key that signed; "" where no signature was valid.
        is_trusted: Whether that key is one of those that the caller trusts.
        mismatches: What is not as it was signed, each in one line; empty when all is well.
        covered: Files that are as they were signed.
        uncovered: Files in the folder of which the statement says nothing.
        claims: The predicate of the statement.
    """

    key_id: str
    is_trusted: bool
    mismatches: tuple[str, ...]
    covered: tuple[str, ...]
    uncovered: tuple[str, ...]
    claims: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_valid(self) -> bool:
        """Whether everything that was signed is as it was signed."""
        return not self.mismatches


def verify_folder(folder: Path, *, trusted_keys: bytes = b"") -> Verification:
    """Check a result's folder against its signed statement.

    Args:
        folder: As `tightfit compress -o` wrote it.
        trusted_keys: Public keys in PEM, one after the other. Without any, the key that the statement
            brings along is used: this shows that nothing was changed since it was signed, not by whom.

    Raises:
        InvalidInputError: No statement there, or one that cannot be read; keys that cannot be read.
        UnsupportedError: `cryptography` is not installed.
    """
    envelope = read_envelope(folder / PROVENANCE_FILE)
    key_id, why_not = signer(envelope, trusted_keys)
    if why_not:
        return Verification(
            key_id="",
            is_trusted=False,
            mismatches=(f"{PROVENANCE_FILE}: {why_not}",),
            covered=(),
            uncovered=_files(folder),
        )
    statement = _statement(envelope)
    claims = statement["predicate"]
    digests = {name: _digest(folder / name) for name in _files(folder)}
    mismatches, covered = _check_subjects(statement["subject"], digests)
    for name, check in (("recipe.json", _check_recipe), ("result.json", _check_result)):
        if name in digests:
            found = check(read_json_file(folder / name), claims)
            mismatches.extend(f"{name}: {line}" for line in found)
            if not found:
                covered.append(name)
    return Verification(
        key_id=key_id,
        is_trusted=bool(trusted_keys),
        mismatches=tuple(mismatches),
        covered=tuple(sorted(covered)),
        uncovered=tuple(
            sorted(set(digests) - set(covered) - {line.partition(":")[0] for line in mismatches})
        ),
        claims=claims,
    )


def canonical(value: Any) -> bytes:
    """Return the one spelling of plain JSON data: sorted keys, no spaces, UTF-8, whole floats as integers."""
    return json.dumps(
        _whole(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {str(key): _whole(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_whole(item) for item in value]
    return value


def _statement(envelope: Envelope) -> dict[str, Any]:
    """Return the signed statement.

    Raises:
        InvalidInputError: It is signed, but says something of another kind.
    """
    try:
        statement = json.loads(envelope.payload)
        is_ours = (
            envelope.payload_type == PAYLOAD_TYPE
            and statement["_type"] == STATEMENT_TYPE
            and statement["predicateType"] == PREDICATE_TYPE
            and isinstance(statement["predicate"], dict)
            and bool(statement["subject"])
            and all(item["name"] and item["digest"]["sha256"] for item in statement["subject"])
            and bool(_signed(statement["predicate"]))
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        is_ours = False
    if not is_ours:
        raise InvalidInputError(
            f"{PROVENANCE_FILE} is signed, but is no statement about a compressed model",
            field=PROVENANCE_FILE,
            remedy="update the client; it reads " + PREDICATE_TYPE,
        )
    return dict(statement)


def _files(folder: Path) -> tuple[str, ...]:
    """Return all files below the folder but the statement itself, by their path in it."""
    return tuple(
        sorted(
            path.relative_to(folder).as_posix()
            for path in folder.rglob("*")
            if path.is_file() and path.relative_to(folder).as_posix() != PROVENANCE_FILE
        )
    )


def _digest(path: Path) -> str:
    running = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            running.update(block)
    return running.hexdigest()


def _check_subjects(
    subjects: Sequence[Mapping[str, Any]], digests: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """Return what is missing or changed, and the files that are as they were signed."""
    mismatches, covered = [], []
    for subject in subjects:
        name, wanted = str(subject["name"]), str(subject["digest"]["sha256"])
        if digests.get(name) == wanted:
            covered.append(name)
        elif name in digests:
            mismatches.append(f"{name}: has sha-256 {digests[name]}, signed was {wanted}")
        else:
            renamed = [path for path, digest in digests.items() if digest == wanted]
            covered.extend(renamed)
            if not renamed:
                mismatches.append(f"{name}: is missing (signed was sha-256 {wanted})")
    return mismatches, covered


def _check_recipe(recipe: Any, claims: Mapping[str, Any]) -> list[str]:
    wanted = (claims.get("recipe") or {}).get("content")
    found = [] if canonical(recipe) == canonical(wanted) else ["differs from the recipe signed"]
    try:
        return [*found, *_strangers(recipe, claims)]
    except (KeyError, TypeError, AttributeError):
        return found or ["is not a recipe as this client writes it"]


def _strangers(recipe: Mapping[str, Any], claims: Mapping[str, Any]) -> list[str]:
    """Return a line for each teacher of a recipe's trainings that the statement does not list."""
    taught = {
        str(digest)
        for step in recipe["steps"]
        for digest in step.get("parameters", {}).get("teachers") or ()
    }
    return [
        f"was trained with a teacher that was not signed, {_brief(digest)}"
        for digest in sorted(taught - set(_signed_teachers(claims)))
    ]


def _check_result(result: Any, claims: Mapping[str, Any]) -> list[str]:
    """Return where result.json says something else than what was signed."""
    try:
        stated, signed = _stated(result), _signed(claims)
        shown = shown_trial(result)
        strangers = _strangers(shown[1]["recipe"], claims) if shown else []
    except (KeyError, TypeError, AttributeError, ValueError):
        return ["is not a result as this client writes it"]
    return [
        f"{key} is {_brief(stated[key])}, signed was {_brief(value)}"
        for key, value in signed.items()
        if canonical(stated[key]) != canonical(value)
    ] + strangers


def _brief(value: Any) -> str:
    return json.dumps(_whole(value))[:120]


def _stated(result: Mapping[str, Any]) -> dict[str, Any]:
    shown = shown_trial(result)
    trial: Mapping[str, Any] = shown[1] if shown else {}
    return {
        "job": result["job"]["name"],
        "state": result["state"],
        "model": result["model"]["digest"],
        "dataset": (result["dataset"] or {}).get("digest"),
        "teachers": list(result.get("teacher_digests", ())),
        "target": result["target"]["name"],
        "budget": {key: value for key, value in result["budget"].items() if value is not None},
        "objective": result["objective"],
        "seed": result["seed"],
        "artifact": trial["artifacts"]["model"],
        "accuracy": trial["accuracy"],
        **{f"estimated_{key}": trial[f"estimated_{key}"] for key in _CLAIMED_FIGURES},
        "flash_bytes": trial["flash_bytes"],
        "measured_latency_ms_p90": (trial["measured"] or {}).get("measured_latency_ms_p90"),
    }


def _signed(claims: Mapping[str, Any]) -> dict[str, Any]:
    estimated = claims["estimated"]
    return {
        "job": claims["job"]["name"],
        "state": claims["job"]["state"],
        "model": claims["model"]["digest"]["sha256"],
        "dataset": claims["dataset"] and claims["dataset"]["digest"]["sha256"],
        "teachers": _signed_teachers(claims),
        "target": claims["target"]["name"],
        "budget": claims["budget"],
        "objective": claims["objective"],
        "seed": claims["seed"],
        "artifact": claims["artifact"]["digest"]["sha256"],
        "accuracy": claims["accuracy"] and claims["accuracy"]["value"],
        **{f"estimated_{key}": estimated[key] for key in _CLAIMED_FIGURES},
        "flash_bytes": estimated["flash_bytes"],
        "measured_latency_ms_p90": claims["measured"]
        and claims["measured"]["measured_latency_ms_p90"],
    }


def _signed_teachers(claims: Mapping[str, Any]) -> list[str]:
    return [str(teacher["digest"]["sha256"]) for teacher in claims.get("teachers") or ()]
