"""Budgets, objectives and search limits."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tightfit_service.domain.budget import (
    Budget,
    Constraint,
    LimitSource,
    Quantity,
    SearchLimits,
    quantity_text,
)
from tightfit_service.domain.errors import InvalidBudgetError


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("quantity", list(Quantity))
def test_limits_that_cannot_be_meant_name_their_field(quantity: Quantity, limit: float) -> None:
    with pytest.raises(InvalidBudgetError) as caught:
        Constraint(quantity=quantity, limit=limit)
    assert caught.value.field.startswith("budget.")
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"quantity": Quantity.ACCURACY, "limit": 95.0}, "budget.min_accuracy"),
        ({"quantity": Quantity.ACCURACY, "max_drop": 1.0}, "budget.max_accuracy_drop"),
        ({"quantity": Quantity.ACCURACY, "max_drop": -0.1}, "budget.max_accuracy_drop"),
        ({"quantity": Quantity.LATENCY, "max_drop": 0.1}, "budget.max_latency_ms"),
        ({"quantity": Quantity.LATENCY}, "budget.max_latency_ms"),
        (
            {"quantity": Quantity.ACCURACY, "limit": 0.9, "max_drop": 0.1},
            "budget.max_accuracy_drop",
        ),
    ],
)
def test_other_bad_constraints_name_their_field(arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidBudgetError) as caught:
        Constraint(**arguments)
    assert caught.value.field == field


def test_a_quantity_is_limited_once_per_source() -> None:
    floor = Constraint(quantity=Quantity.ACCURACY, limit=0.9)
    drop = Constraint(quantity=Quantity.ACCURACY, max_drop=0.01)
    with pytest.raises(InvalidBudgetError, match="twice"):
        Budget(constraints=(floor, drop))


def test_the_tightest_limit_counts() -> None:
    budget = Budget(constraints=(Constraint(quantity=Quantity.RAM, limit=1000.0),))
    whole = budget.with_constraints(
        [Constraint(quantity=Quantity.RAM, limit=500.0, source=LimitSource.TARGET)]
    )
    assert budget.limit_of(Quantity.RAM) == 1000.0
    assert whole.limit_of(Quantity.RAM) == 500.0
    assert whole.limit_of(Quantity.LATENCY) is None


def test_a_drop_is_a_floor_below_the_baseline() -> None:
    budget = Budget(constraints=(Constraint(quantity=Quantity.ACCURACY, max_drop=0.02),))
    assert budget.accuracy_floor(0.9) == pytest.approx(0.88)
    assert budget.accuracy_floor(None) is None
    assert Budget().accuracy_floor(0.9) is None
    floor = Budget(constraints=(Constraint(quantity=Quantity.ACCURACY, limit=0.95),))
    assert floor.accuracy_floor(None) == 0.95


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"max_trials": 0}, "search_limits.max_trials"),
        ({"max_seconds": 0.5}, "search_limits.max_time"),
        ({"max_seconds": math.nan}, "search_limits.max_time"),
    ],
)
def test_a_search_without_room_is_refused(arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidBudgetError) as caught:
        SearchLimits(**arguments)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("quantity", "value", "text"),
    [
        (Quantity.LATENCY, 20.51234, "20.51 ms"),
        (Quantity.ENERGY, 0.0123456, "0.01235 mJ"),
        (Quantity.RAM, 2_097_152.0, "2097152 bytes"),
        (Quantity.SIZE, 1_000.4, "1000 bytes"),
        (Quantity.DOWNLOAD, 41_000.0, "41000 bytes"),
        (Quantity.ACCURACY, 0.91404, "0.9140"),
    ],
)
def test_values_are_told_with_their_units(quantity: Quantity, value: float, text: str) -> None:
    assert quantity_text(quantity, value) == text
