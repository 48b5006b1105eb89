"""Teachers beside the original as inputs of units of work: their working graphs, in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

_PREFIX = "teacher"


def teacher_inputs(digests: Sequence[str]) -> Mapping[str, str]:
    """Return the inputs of a unit for working graphs of these digests."""
    return {f"{_PREFIX}{number}": digest for number, digest in enumerate(digests)}


def teacher_graphs(inputs: Mapping[str, Path]) -> tuple[bytes, ...]:
    """Return the working graphs among the inputs of a unit, in order."""
    count = sum(name.startswith(_PREFIX) for name in inputs)
    return tuple(inputs[f"{_PREFIX}{number}"].read_bytes() for number in range(count))
