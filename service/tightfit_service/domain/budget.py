"""What the result must meet (budget), what is optimised inside it, and what the search may spend."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable
from dataclasses import dataclass

from tightfit_service.domain.errors import InvalidBudgetError


class Quantity(enum.StrEnum):
    """A property of the result that can be limited or optimised."""

    LATENCY = "latency"
    """Latency of one inference, milliseconds."""
    ENERGY = "energy"
    """Energy of one inference, millijoules."""
    RAM = "ram"
    """Peak RAM, bytes."""
    SIZE = "size"
    """Flash occupied by the model, bytes."""
    ACCURACY = "accuracy"
    """Metric on the evaluation set, fraction in [0, 1]."""
    DOWNLOAD = "download"
    """Packed file that is downloaded, bytes; it can be limited, and is no objective."""


_UNITS = {Quantity.LATENCY: "ms", Quantity.ENERGY: "mJ"}


def quantity_text(quantity: Quantity, value: float) -> str:
    """Return a value of a quantity, in its unit, as people read it: `20.5 ms`, `131072 bytes`, `0.9140`."""
    if quantity is Quantity.ACCURACY:
        return f"{value:.4f}"
    if quantity in _UNITS:
        return f"{value:.4g} {_UNITS[quantity]}"
    return f"{value:.0f} bytes"


class LimitSource(enum.StrEnum):
    """Who asked for a limit."""

    USER = "user"
    TARGET = "target"
    """Implied by the target: a model that exceeds its RAM or flash cannot run there."""


@dataclass(frozen=True, kw_only=True)
class Constraint:
    """One hard limit: a maximum for costs, a minimum for accuracy.

    `limit` is in the unit of the quantity (ms, mJ, bytes, fraction). For ACCURACY exactly one of
    `limit` (floor) and `max_drop` (floor relative to the baseline) is given.
    """

    quantity: Quantity
    limit: float | None = None
    max_drop: float | None = None
    source: LimitSource = LimitSource.USER

    def __post_init__(self) -> None:
        """Refuse limits that cannot be meant.

        Raises:
            InvalidBudgetError: Not finite, zero, negative, or a fraction outside (0, 1].
        """
        name = self.field_name
        if (self.limit is None) == (self.max_drop is None):
            raise InvalidBudgetError(
                f"give exactly one of a limit and a maximal drop for {self.quantity}",
                field=name,
                remedy="state either the floor or the drop",
            )
        value = self.limit if self.limit is not None else self.max_drop
        assert value is not None
        if self.max_drop is not None:
            if self.quantity is not Quantity.ACCURACY:
                raise InvalidBudgetError(
                    f"a maximal drop makes no sense for {self.quantity}",
                    field=name,
                    remedy="limit costs by a maximum",
                )
            if not 0 <= value < 1:
                raise InvalidBudgetError(
                    f"max_accuracy_drop is {value}, outside [0, 1)",
                    field=name,
                    remedy="give a fraction: 0.01 allows one percentage point",
                )
            return
        if not math.isfinite(value) or value <= 0:
            raise InvalidBudgetError(
                f"{name} is {value}; a limit must be a positive number",
                field=name,
                remedy="leave the limit out if the quantity does not matter",
            )
        if self.quantity is Quantity.ACCURACY and value > 1:
            raise InvalidBudgetError(
                f"min_accuracy is {value}, above 1",
                field=name,
                remedy="give a fraction: 0.95 means 95 %",
            )

    @property
    def field_name(self) -> str:
        """Path of the request field that this constraint came from."""
        return {
            Quantity.LATENCY: "budget.max_latency_ms",
            Quantity.ENERGY: "budget.max_energy_mj",
            Quantity.RAM: "budget.max_ram_bytes",
            Quantity.SIZE: "budget.max_size_bytes",
            Quantity.DOWNLOAD: "budget.max_download_bytes",
            Quantity.ACCURACY: (
                "budget.max_accuracy_drop" if self.max_drop is not None else "budget.min_accuracy"
            ),
        }[self.quantity]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """All hard limits on the result; they hold together."""

    constraints: tuple[Constraint, ...] = ()

    def __post_init__(self) -> None:
        """Refuse two limits of one source on one quantity.

        Raises:
            InvalidBudgetError: A quantity is limited twice.
        """
        seen: set[tuple[Quantity, LimitSource]] = set()
        for constraint in self.constraints:
            key = (constraint.quantity, constraint.source)
            if key in seen:
                raise InvalidBudgetError(
                    f"{constraint.quantity} is limited twice",
                    field=constraint.field_name,
                    remedy="keep one limit per quantity (min_accuracy or max_accuracy_drop, not both)",
                )
            seen.add(key)

    def limit_of(self, quantity: Quantity) -> float | None:
        """Return the tightest maximum for a cost quantity, or None when it is free."""
        limits = [
            c.limit for c in self.constraints if c.quantity is quantity and c.limit is not None
        ]
        return min(limits) if limits else None

    def accuracy_floor(self, baseline_accuracy: float | None) -> float | None:
        """Return the least accuracy allowed, or None when it is free.

        Args:
            baseline_accuracy: Accuracy of the model as it came; needed for a maximal drop.
        """
        floors: list[float] = []
        for constraint in self.constraints:
            if constraint.quantity is not Quantity.ACCURACY:
                continue
            if constraint.limit is not None:
                floors.append(constraint.limit)
            elif constraint.max_drop is not None and baseline_accuracy is not None:
                floors.append(baseline_accuracy - constraint.max_drop)
        return max(floors) if floors else None

    def with_constraints(self, extra: Iterable[Constraint]) -> Budget:
        """Return this budget with more constraints."""
        return Budget(constraints=(*self.constraints, *extra))


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is made best inside the budget; accuracy is maximised, costs are minimised."""

    quantity: Quantity = Quantity.ACCURACY


@dataclass(frozen=True, kw_only=True)
class SearchLimits:
    """What the search itself may spend."""

    max_trials: int = 12
    max_seconds: float = 840.0

    def __post_init__(self) -> None:
        """Refuse limits that leave no room for a single trial.

        Raises:
            InvalidBudgetError: Not positive, or beyond what the service schedules.
        """
        if not 1 <= self.max_trials <= 10_000:
            raise InvalidBudgetError(
                f"max_trials is {self.max_trials}, outside [1, 10000]",
                field="search_limits.max_trials",
                remedy="allow at least one trial",
            )
        if not (math.isfinite(self.max_seconds) and 1 <= self.max_seconds <= 30 * 86_400):
            raise InvalidBudgetError(
                f"max_seconds is {self.max_seconds}, outside [1, {30 * 86_400}]",
                field="search_limits.max_time",
                remedy="allow at least a second; an hour is 1h",
            )
