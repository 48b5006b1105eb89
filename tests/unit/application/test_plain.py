"""Every dataclass of the domain and of the ports survives the way to JSON and back."""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import json
import math
import types
import typing
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest

from tightfit_service.application import ports, use_cases
from tightfit_service.application.plain import from_plain, to_plain
from tightfit_service.domain import (
    budget,
    cost,
    dataset,
    hardware,
    job,
    network,
    quantities,
    recipe,
    trial,
)
from tightfit_service.domain.budget import Budget, Constraint, Quantity, SearchLimits
from tightfit_service.domain.errors import InvalidBudgetError, InvalidRequestError
from tightfit_service.domain.hardware import HardwareSpec, Memory, Runtime
from tightfit_service.domain.quantities import Interval
from tightfit_service.domain.recipe import PassStep

MODULES = (
    budget,
    cost,
    dataset,
    hardware,
    job,
    network,
    quantities,
    recipe,
    trial,
    ports,
    use_cases,
)

# bytes travel as artifacts, never as plain data
BINARY = {ports.ImportedModel, ports.RecoveryResult, ports.ExportedModel}

TIME = datetime(2031, 2, 3, 4, 5, 6, 789012, tzinfo=timezone(timedelta(hours=2)))

VALIDATED: dict[type[Any], Any] = {
    Constraint: Constraint(quantity=Quantity.ACCURACY, max_drop=0.01),
    SearchLimits: SearchLimits(max_trials=3, max_seconds=math.pi),
    HardwareSpec: HardwareSpec(
        name="board",
        display_name="Board",
        core="cortex-m7",
        clock_mhz=280.1,
        memory=Memory(ram_bytes=1 << 20, flash_bytes=1 << 21),
        runtime=Runtime(name="tflm"),
        isa_features=("dsp", "fpu"),
    ),
}


def all_values() -> list[type[Any]]:
    return [
        kind
        for module in MODULES
        for kind in vars(module).values()
        if isinstance(kind, type)
        and dataclasses.is_dataclass(kind)
        and kind.__module__ == module.__name__
        and kind not in BINARY
    ]


def sample(kind: Any) -> Any:  # noqa: PLR0911  # one line per kind of type
    """Build a value of any annotation, every optional field filled."""
    if kind in VALIDATED:
        return VALIDATED[kind]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in {typing.Union, types.UnionType}:
        return sample(next(part for part in arguments if part is not type(None)))
    if origin is tuple:
        return (sample(arguments[0]),)
    if origin is collections.abc.Mapping:
        return {sample(arguments[0]): sample(arguments[1])}
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{f.name: sample(hints[f.name]) for f in dataclasses.fields(kind)})  # type: ignore[operator]  # a class
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return list(kind)[-1]
    simple = {str: "text ü\n", int: 1 << 60, float: 0.1, bool: True, datetime: TIME}
    return {"plain": [1, 2.5, None, "x"]} if kind is Any else simple[kind]


@pytest.mark.parametrize("kind", all_values(), ids=lambda kind: kind.__name__)
def test_value_survives_json(kind: type[Any]) -> None:
    value = sample(kind)
    wire = json.dumps(to_plain(value), allow_nan=False)
    again = from_plain(kind, json.loads(wire))
    assert again == value
    # a StrEnum equals its string; the repr tells them apart
    assert repr(again) == repr(value)


def test_optional_fields_that_are_none_stay_none() -> None:
    note = job.Relaxation(quantity=Quantity.RAM, limit=1.0, needed=None, trial_index=None)
    assert from_plain(job.Relaxation, to_plain(note)) == note


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinite_figures_survive_strict_json(value: float) -> None:
    interval = Interval(value=1.0, low=0.0, high=value)
    wire = json.dumps(to_plain(interval), allow_nan=False)
    assert from_plain(Interval, json.loads(wire)) == interval


def test_nan_survives_strict_json() -> None:
    wire = json.dumps(to_plain(Interval.exact(math.nan)), allow_nan=False)
    assert math.isnan(from_plain(Interval, json.loads(wire)).value)


def test_enums_tuples_and_numpy_scalars_inside_free_parameters_become_plain() -> None:
    step = PassStep(
        pass_name="recovery",
        parameters={
            "format": hardware.NumberFormat.INT8,
            "keep": {"conv1": (0, 2)},
            "share": np.float32(0.5),
            "count": np.int64(3),
            "on": np.bool_(True),
            "rate": math.inf,
        },
    )
    assert json.loads(json.dumps(to_plain(step), allow_nan=False))["parameters"] == {
        "format": "int8",
        "keep": {"conv1": [0, 2]},
        "share": 0.5,
        "count": 3,
        "on": True,
        "rate": "inf",
    }


def test_times_keep_their_instant() -> None:
    event = sample(job.JobEvent)
    assert from_plain(job.JobEvent, to_plain(event)).time.astimezone(UTC) == TIME.astimezone(UTC)


@pytest.mark.parametrize("value", [b"\0", bytearray(b"\0"), np.zeros(2)])
def test_binary_data_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="artifact"):
        to_plain({"weights": value})


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        (Interval, {"value": 1.0, "low": 0.0}, "high"),
        (Interval, {"value": "1.0", "low": 0.0, "high": 2.0}, "value"),
        (Interval, {"value": True, "low": 0.0, "high": 2.0}, "value"),
        (Interval, None, "Interval"),
        (Interval, [1], "Interval"),
        (quantities.Accuracy, {"value": 1, "low": 1, "high": 1, "sample_count": 2.5}, "2.5"),
        (recipe.Recipe, {"steps": "abc"}, "steps"),
        (trial.Trial, {"state": "asleep"}, "asleep"),
        (hardware.Runtime, {"name": 5}, "name"),
        (dict[str, int], {"a": "b"}, "'b'"),
    ],
)
def test_wrong_data_is_an_error_that_says_where(kind: type[Any], data: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        from_plain(kind, data)


def test_a_value_that_fails_its_own_checks_raises_its_own_error() -> None:
    data = {"constraints": [{"quantity": "ram", "limit": -1.0}]}
    with pytest.raises(InvalidBudgetError) as caught:
        from_plain(Budget, data)
    assert caught.value.field == "budget.max_ram_bytes"


def test_unknown_keys_of_a_newer_version_are_ignored() -> None:
    data = {"name": "tflm", "version": "1", "colour": "green"}
    assert from_plain(Runtime, data) == Runtime(name="tflm", version="1")
