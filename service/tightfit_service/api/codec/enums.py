"""Enums of the wire and of the domain, matched by name."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar

from tightfit.v1 import hardware_pb2, job_pb2, metrics_pb2, runner_pb2, trial_pb2
from tightfit_service.application.runners.sessions import RunnerState
from tightfit_service.domain.budget import Quantity
from tightfit_service.domain.errors import InvalidRequestError
from tightfit_service.domain.hardware import ModelFormat, NumberFormat
from tightfit_service.domain.job import JobEventKind, JobState
from tightfit_service.domain.measurement import FailureKind, Verification
from tightfit_service.domain.network import ImportanceCriterion
from tightfit_service.domain.trial import TrialRole, TrialState

E = TypeVar("E", bound=enum.StrEnum)


class EnumCodec(Generic[E]):
    """Translates one enum; every domain value has a wire value of the same name behind a prefix."""

    def __init__(self, domain: type[E], wire: Mapping[str, int], *, prefix: str) -> None:
        self._numbers = {value: wire[f"{prefix}_{value.name}"] for value in domain}
        self._values = {number: value for value, number in self._numbers.items()}
        self._prefix = prefix

    def to_proto(self, value: E | None) -> Any:
        """Return the wire number; None is UNSPECIFIED.

        The type is left open because every generated enum has a number type of its own.
        """
        return 0 if value is None else self._numbers[value]

    def from_proto(self, number: int, *, field: str) -> E:
        """Return the domain value.

        Raises:
            InvalidRequestError: UNSPECIFIED, or a number that this version does not know.
        """
        value = self._values.get(number)
        if value is None:
            known = ", ".join(f"{self._prefix}_{value.name}" for value in self._numbers)
            raise InvalidRequestError(
                f"{field} is {'not specified' if number == 0 else f'{number}, an unknown value'}",
                field=field,
                remedy=f"choose one of {known}",
            )
        return value

    def optional(self, number: int, *, field: str) -> E | None:
        """Return the domain value, or None for UNSPECIFIED. Raises as `from_proto`."""
        return None if number == 0 else self.from_proto(number, field=field)

    def several(self, numbers: Iterable[int], *, field: str) -> tuple[E, ...]:
        """Return the domain values in order. Raises as `from_proto`."""
        return tuple(self.from_proto(number, field=field) for number in numbers)


def _wire(enum_type: Any) -> Mapping[str, int]:
    return dict(enum_type.items())


QUANTITY = EnumCodec(Quantity, _wire(metrics_pb2.Quantity), prefix="QUANTITY")
NUMBER_FORMAT = EnumCodec(NumberFormat, _wire(hardware_pb2.NumberFormat), prefix="NUMBER_FORMAT")
MODEL_FORMAT = EnumCodec(ModelFormat, _wire(hardware_pb2.ModelFormat), prefix="MODEL_FORMAT")
JOB_STATE = EnumCodec(JobState, _wire(job_pb2.CompressionJob.State), prefix="STATE")
EVENT_KIND = EnumCodec(JobEventKind, _wire(job_pb2.JobEvent.Kind), prefix="KIND")
TRIAL_STATE = EnumCodec(TrialState, _wire(trial_pb2.Trial.State), prefix="STATE")
TRIAL_ROLE = EnumCodec(TrialRole, _wire(trial_pb2.Trial.Role), prefix="ROLE")
VERIFICATION = EnumCodec(Verification, _wire(job_pb2.Verification), prefix="VERIFICATION")
IMPORTANCE = EnumCodec(
    ImportanceCriterion, _wire(job_pb2.ImportanceCriterion), prefix="IMPORTANCE_CRITERION"
)
RUNNER_STATE = EnumCodec(RunnerState, _wire(runner_pb2.Runner.State), prefix="STATE")
FAILURE_KIND = EnumCodec(FailureKind, _wire(runner_pb2.WorkFailure.Kind), prefix="KIND")
