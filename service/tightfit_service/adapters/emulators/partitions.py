"""Which operators of a network an accelerator runs, and what leaving it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tightfit_service.domain.errors import UnsupportedError
from tightfit_service.domain.hardware import Accelerator, NumberFormat, Placement
from tightfit_service.domain.network import NetworkProfile, Operator

DEFAULT_TRANSFER_MB_S = 5_000.0
"""Of accelerators that share memory with the cores: caches are written back and read again."""


@dataclass(frozen=True, kw_only=True)
class Partition:
    """Operators in schedule order that run on one side without a break.

    Attributes:
        on_accelerator: Whether they run on the accelerator.
        operators: The operators.
        entering_bytes: Activations that come over from the other side.
    """

    on_accelerator: bool
    operators: tuple[Operator, ...]
    entering_bytes: float


def computed_format(accelerator: Accelerator, operator: Operator) -> NumberFormat:
    """Return the format that the accelerator computes an operator in."""
    given = NumberFormat.FLOAT32
    if operator.activation_bits <= 8:
        given = NumberFormat.INT8
    elif operator.activation_bits == 16 and operator.weight_bits == 8:
        given = NumberFormat.INT16X8
    return accelerator.computed_format(given)


def partitions(network: NetworkProfile, accelerator: Accelerator) -> tuple[Partition, ...]:
    """Return the network's partitions in the order in which they run.

    Raises:
        UnsupportedError: The accelerator's compiler refuses networks with such an operator.
    """
    sides = _sides(network.operators, accelerator)
    bits = {
        name: max(op.activation_bits, 8)
        for op in network.operators
        for name in (*op.inputs, *op.outputs)
    }
    written_on: dict[str, bool] = dict.fromkeys(network.inputs, False)
    found: list[Partition] = []
    start = 0
    for end in range(1, len(sides) + 1):
        if end < len(sides) and sides[end] == sides[start]:
            continue
        inside = network.operators[start:end]
        made = {name for op in inside for name in op.outputs}
        entering = {
            name
            for op in inside
            for name in op.inputs
            if name not in made and written_on.get(name, False) != sides[start]
        }
        found.append(
            Partition(
                on_accelerator=sides[start],
                operators=tuple(inside),
                entering_bytes=sum(
                    math.prod(network.tensors.get(name, (0,))) * bits[name] / 8 for name in entering
                ),
            )
        )
        written_on |= dict.fromkeys(made, sides[start])
        start = end
    return tuple(found)


def transfer_ms(accelerator: Accelerator, transferred_bytes: float) -> float:
    """Return the milliseconds of one change of sides."""
    rate = accelerator.transfer_mb_s or DEFAULT_TRANSFER_MB_S
    return transferred_bytes / (rate * 1e3) + accelerator.transfer_us / 1e3


def _sides(operators: Sequence[Operator], accelerator: Accelerator) -> list[bool]:
    places = accelerator.placements(
        (operator.kind, computed_format(accelerator, operator)) for operator in operators
    )
    for operator, place in zip(operators, places, strict=True):
        if place is Placement.REFUSED:
            raise UnsupportedError(
                f"{accelerator.name or accelerator.kind} does not run {operator.op_type} "
                f"({operator.node}), and nothing else runs it instead",
                field="hardware_target",
                remedy="replace the operator, or choose a target whose cores take over",
            )
    return [place is Placement.ACCELERATOR for place in places]
