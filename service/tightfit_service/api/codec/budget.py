"""Budgets, objectives and search limits."""

from __future__ import annotations

from tightfit.v1 import budget_pb2
from tightfit_service.api.codec import enums
from tightfit_service.api.codec.times import duration_from_proto, duration_to_proto
from tightfit_service.domain.budget import (
    Budget,
    Constraint,
    LimitSource,
    Objective,
    Quantity,
    SearchLimits,
)

_LIMIT_FIELDS = {
    "max_latency_ms": Quantity.LATENCY,
    "max_energy_mj": Quantity.ENERGY,
    "max_ram_bytes": Quantity.RAM,
    "max_size_bytes": Quantity.SIZE,
    "max_download_bytes": Quantity.DOWNLOAD,
    "min_accuracy": Quantity.ACCURACY,
}
_WHOLE = ("max_ram_bytes", "max_size_bytes", "max_download_bytes")


def budget_to_proto(budget: Budget) -> budget_pb2.Budget:
    """Return the user's limits as fields, and those of the target as a list."""
    fields = {quantity: name for name, quantity in _LIMIT_FIELDS.items()}
    message = budget_pb2.Budget()
    for constraint in budget.constraints:
        if constraint.max_drop is not None:
            message.max_accuracy_drop = constraint.max_drop
            continue
        assert constraint.limit is not None
        if constraint.source is LimitSource.TARGET:
            message.target_limits.add(
                quantity=enums.QUANTITY.to_proto(constraint.quantity), limit=constraint.limit
            )
            continue
        name = fields[constraint.quantity]
        setattr(message, name, int(constraint.limit) if name in _WHOLE else constraint.limit)
    return message


def budget_from_proto(message: budget_pb2.Budget) -> Budget:
    """Return the user's limits; what the target implies is not for a caller to say.

    Raises:
        InvalidBudgetError: A limit of zero or less, or two on one quantity.
    """
    constraints = [
        Constraint(quantity=quantity, limit=float(getattr(message, name)))
        for name, quantity in _LIMIT_FIELDS.items()
        if message.HasField(name)  # type: ignore[arg-type]  # the stubs want a literal
    ]
    if message.HasField("max_accuracy_drop"):
        constraints.append(
            Constraint(quantity=Quantity.ACCURACY, max_drop=message.max_accuracy_drop)
        )
    return Budget(constraints=tuple(constraints))


def objective_to_proto(objective: Objective) -> budget_pb2.Objective:
    """Return the objective."""
    return budget_pb2.Objective(quantity=enums.QUANTITY.to_proto(objective.quantity))


def objective_from_proto(message: budget_pb2.Objective) -> Objective:
    """Return the objective; unspecified is accuracy. Raises InvalidRequestError."""
    quantity = enums.QUANTITY.optional(message.quantity, field="objective.quantity")
    return Objective() if quantity is None else Objective(quantity=quantity)


def search_limits_to_proto(limits: SearchLimits) -> budget_pb2.SearchLimits:
    """Return the search limits."""
    return budget_pb2.SearchLimits(
        max_trials=limits.max_trials, max_time=duration_to_proto(limits.max_seconds)
    )


def search_limits_from_proto(message: budget_pb2.SearchLimits) -> SearchLimits:
    """Return the search limits, the defaults where they are absent.

    Raises:
        InvalidBudgetError: Zero, negative, or beyond what is scheduled.
    """
    default = SearchLimits()
    return SearchLimits(
        max_trials=message.max_trials if message.HasField("max_trials") else default.max_trials,
        max_seconds=(
            duration_from_proto(message.max_time)
            if message.HasField("max_time")
            else default.max_seconds
        ),
    )
