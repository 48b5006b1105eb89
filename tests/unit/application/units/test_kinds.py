"""The form of units of work: tasks and outcomes as plain data, and what makes two units the same."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tightfit_service.application.ports import WorkResult
from tightfit_service.application.units.kinds import (
    UNIT_TIMEOUT_SECONDS,
    Nothing,
    UnitContext,
    UnitKind,
    payload_of,
    unit_digest,
)
from tightfit_service.domain.errors import InvalidRequestError
from tightfit_service.domain.hardware import NumberFormat


@dataclass(frozen=True, kw_only=True)
class _Task:
    times: int
    number_format: NumberFormat | None


@dataclass(frozen=True, kw_only=True)
class _TaskOfLater(_Task):
    louder: bool = False
    words: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    lengths: tuple[int, ...]


REPEAT = UnitKind("repeat", _Task, _Outcome)
REPEAT_OF_LATER = UnitKind("repeat", _TaskOfLater, _Outcome)
TASK = _Task(times=3, number_format=NumberFormat.INT8)


def _run(task: _Task, context: UnitContext) -> _Outcome:
    context.on_progress(0.5, "half way")
    data = context.read("text")
    context.write("repeated", data * task.times, file_name="repeated.txt")
    return _Outcome(lengths=(len(data), len(data) * task.times))


def test_a_unit_goes_to_its_handler_and_back_as_plain_data(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"ab")
    unit = REPEAT.unit(TASK, project="p", inputs={"text": "1" * 64}, label="ab, three times")
    assert json.loads(json.dumps(unit.payload)) == {"times": 3, "number_format": "int8"}
    assert (unit.kind, unit.timeout_seconds) == ("repeat", UNIT_TIMEOUT_SECONDS)
    told: list[tuple[float, str]] = []
    payload, files = REPEAT.handler(_run)(
        unit.payload, {"text": source}, tmp_path, lambda share, text: told.append((share, text))
    )
    assert {name: path.read_bytes() for name, path in files.items()} == {"repeated": b"ababab"}
    assert files["repeated"].parent == tmp_path
    assert told == [(0.5, "half way")]
    answered = WorkResult(payload=json.loads(json.dumps(payload)))
    assert REPEAT.outcome(answered) == _Outcome(lengths=(2, 6))


def test_a_task_that_says_nothing_is_an_empty_payload() -> None:
    assert payload_of(Nothing()) == {}


def test_what_is_none_without_being_a_default_is_part_of_the_task() -> None:
    assert payload_of(replace(TASK, number_format=None)) == {"times": 3, "number_format": None}


def test_new_fields_with_defaults_leave_older_units_as_they_were() -> None:
    def digest(task: _TaskOfLater) -> str:
        return unit_digest(REPEAT_OF_LATER.unit(task, project="p", inputs={}, label=""))

    older = unit_digest(REPEAT.unit(TASK, project="p", inputs={}, label=""))
    later = _TaskOfLater(times=3, number_format=NumberFormat.INT8)
    assert digest(later) == older
    changed = [replace(later, louder=True), replace(later, words=("a",)), replace(later, times=4)]
    assert len({older, *(digest(task) for task in changed)}) == 4


def test_a_unit_is_known_by_what_is_asked_and_not_by_who_asks() -> None:
    unit = REPEAT.unit(TASK, project="p", inputs={"text": "1" * 64}, label="one")
    same = replace(unit, project="q", label="two", trace_parent="x", timeout_seconds=1.0)
    assert unit_digest(same) == unit_digest(unit)
    for other in (
        replace(unit, kind="repeat_louder"),
        replace(unit, inputs={"text": "2" * 64}),
        replace(unit, inputs={"words": "1" * 64}),
    ):
        assert unit_digest(other) != unit_digest(unit)


def test_a_payload_of_another_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="_Task"):
        REPEAT.handler(_run)({"times": "three"}, {}, tmp_path, lambda _share, _text: None)
