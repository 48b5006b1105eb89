"""The form of every unit of work: its kind, the task it is given, the outcome it has, its identity.

A kind of unit stands in one file `<topic>_work.py`: a dataclass for its task, one for its outcome, the
`UnitKind` that joins them under a name, and the class that runs it with the ports it needs. The server
asks with `KIND.unit(task, ...)` and reads the answer with `KIND.outcome(result)`; a worker's table holds
`KIND.name: KIND.handler(run)`. What runs is a pure function of the task and the input files, and both
messages travel as plain JSON data: so a result can be remembered by the digest of its unit, and
outlives any process.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tightfit_service.application.plain import from_plain, to_plain
from tightfit_service.application.ports import (
    ProgressCallback,
    WorkHandler,
    WorkResult,
    WorkUnit,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

WORK_VERSION = 3
"""Raised when a handler's results change meaning, so that old cached results are not taken for new."""

UNIT_TIMEOUT_SECONDS = 3_600.0

TaskT = TypeVar("TaskT", bound="DataclassInstance")
OutcomeT = TypeVar("OutcomeT")


@dataclass(frozen=True)
class Nothing:
    """A task, or an outcome, of which the kind and the files say everything."""


@dataclass(frozen=True, kw_only=True)
class UnitContext:
    """What a unit may use beside its task.

    Attributes:
        inputs: Files by the names that the unit gave their digests under.
        output_dir: An empty folder.
        on_progress: Told about progress.
        outputs: The files that were made, by name.
    """

    inputs: Mapping[str, Path]
    output_dir: Path
    on_progress: ProgressCallback
    outputs: dict[str, Path] = field(default_factory=dict)

    def read(self, name: str) -> bytes:
        """Return the contents of an input."""
        return self.inputs[name].read_bytes()

    def write(self, name: str, data: bytes, *, file_name: str) -> None:
        """Make an output."""
        path = self.output_dir / file_name
        path.write_bytes(data)
        self.outputs[name] = path


@dataclass(frozen=True)
class UnitKind(Generic[TaskT, OutcomeT]):
    """A kind of unit of work: what it is called, and the types of both its messages."""

    name: str
    task_type: type[TaskT]
    outcome_type: type[OutcomeT]

    def unit(
        self,
        task: TaskT,
        *,
        project: str,
        inputs: Mapping[str, str],
        label: str,
        timeout_seconds: float = UNIT_TIMEOUT_SECONDS,
    ) -> WorkUnit:
        """Return the unit that does `task` with these inputs (digests by name)."""
        return WorkUnit(
            project=project,
            kind=self.name,
            payload=payload_of(task),
            inputs=dict(inputs),
            timeout_seconds=timeout_seconds,
            label=label,
        )

    def outcome(self, result: WorkResult) -> OutcomeT:
        """Return what a unit of this kind answered."""
        return from_plain(self.outcome_type, result.payload)

    def handler(self, run: Callable[[TaskT, UnitContext], OutcomeT]) -> WorkHandler:
        """Return `run` as a worker calls it, with plain data on both sides."""

        def handle(
            payload: Mapping[str, Any],
            inputs: Mapping[str, Path],
            output_dir: Path,
            on_progress: ProgressCallback,
        ) -> tuple[Mapping[str, Any], Mapping[str, Path]]:
            context = UnitContext(inputs=inputs, output_dir=output_dir, on_progress=on_progress)
            outcome = run(from_plain(self.task_type, payload), context)
            return to_plain(outcome), context.outputs

        return handle


def payload_of(task: DataclassInstance) -> Mapping[str, Any]:
    """Return a task as plain data, without the fields that have their defaults.

    So a new field with a default leaves the digests of all older units as they are, and their results
    known.
    """
    plain = to_plain(task)
    return {
        item.name: plain[item.name]
        for item in fields(task)
        if item.default is MISSING or getattr(task, item.name) != item.default
    }


def unit_digest(unit: WorkUnit) -> str:
    """Return the identity of a unit of work: the sha-256 of its kind, payload and input digests."""
    identity = {
        "version": WORK_VERSION,
        "kind": unit.kind,
        "payload": unit.payload,
        "inputs": dict(unit.inputs),
    }
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
