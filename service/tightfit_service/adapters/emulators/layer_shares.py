"""Figures of a compiler's own rows, told by the layers of the network that they stand for.

A compiler fuses, splits and reorders operators, and names them as it likes. Products are told by their
multiply-accumulates, which no compiler changes; of other operators only the time of all of a kind is known
for sure, and is shared by the layers of that kind as an emulator would have it.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tightfit_service.adapters.emulators.operator_names import kind_of_name
from tightfit_service.domain.cost import OperatorCost
from tightfit_service.domain.network import OperatorKind

PRODUCTS = frozenset(
    {
        OperatorKind.CONV,
        OperatorKind.DEPTHWISE_CONV,
        OperatorKind.TRANSPOSED_CONV,
        OperatorKind.DENSE,
        OperatorKind.MATMUL,
        OperatorKind.RECURRENT,
    }
)
_POINTWISE = frozenset(
    {OperatorKind.ELEMENTWISE, OperatorKind.ACTIVATION, OperatorKind.NORMALIZATION}
)
_POOLS = frozenset({OperatorKind.POOL, OperatorKind.GLOBAL_POOL})


@dataclass(frozen=True, kw_only=True)
class Row:
    """One operator as a compiler lists it.

    Attributes:
        op_type: In the compiler's words.
        kind: Of operators.
        macs: Multiply-accumulates; 0 also of what belongs to the product before it.
        latency_ms: Time.
        energy_mj: Energy.
        staging_bytes: Memory in use meanwhile.
    """

    op_type: str
    kind: OperatorKind
    macs: int
    latency_ms: float
    energy_mj: float
    staging_bytes: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Shared:
    """Layers with the figures of rows, rows without a layer by themselves after them.

    Attributes:
        layers: Their sums of latency and energy are those of the rows.
        peak_node: The layer, or row, at which most memory is in use.
    """

    layers: tuple[OperatorCost, ...]
    peak_node: str


def share_rows(rows: Sequence[Row], layers: Sequence[OperatorCost], *, prefix: str) -> Shared:
    """Return the layers with what the rows say instead of their own latency and energy.

    Args:
        rows: In the order in which they run.
        layers: As an emulator has them, which names them and tells how to share.
        prefix: Of the names of rows that stand for no layer.
    """
    homes = _homes(rows, layers)
    latency = [0.0] * len(layers)
    energy = [0.0] * len(layers)
    alone: dict[str, OperatorCost] = {}
    for row, home in zip(rows, homes, strict=True):
        weights = _weights([layers[index] for index in home])
        for index, weight in zip(home, weights, strict=True):
            latency[index] += weight * row.latency_ms
            energy[index] += weight * row.energy_mj
        if not home:
            name = f"{prefix}:{row.op_type}"
            before = alone.get(name)
            alone[name] = OperatorCost(
                node=name,
                op_type=row.op_type,
                macs=row.macs + (before.macs if before else 0),
                latency_ms=row.latency_ms + (before.latency_ms if before else 0.0),
                energy_mj=row.energy_mj + (before.energy_mj if before else 0.0),
                weight_bytes=0,
            )
    told = [
        replace(layer, latency_ms=latency[index], energy_mj=energy[index])
        for index, layer in enumerate(layers)
    ]
    return Shared(
        layers=(*told, *alone.values()), peak_node=_peak_node(rows, homes, layers, prefix)
    )


def _homes(rows: Sequence[Row], layers: Sequence[OperatorCost]) -> list[tuple[int, ...]]:
    """Return the layers that each row stands for; none for what the network does not have."""
    by_class: dict[str, list[int]] = defaultdict(list)
    by_macs: dict[int, deque[int]] = defaultdict(deque)
    for index, layer in enumerate(layers):
        kind = kind_of_name(layer.op_type)
        by_class[_class(kind)].append(index)
        if kind in PRODUCTS and layer.macs:
            by_macs[layer.macs].append(index)
    homes: list[tuple[int, ...]] = []
    strangers: list[int] = []
    last: tuple[int, ...] = ()
    for place, row in enumerate(rows):
        home = tuple(by_class[_class(row.kind)])
        if row.kind in PRODUCTS:
            if row.macs and by_macs[row.macs]:
                last = (by_macs[row.macs].popleft(),)
            elif row.macs:
                last = ()
                strangers.append(place)
            home = last
        homes.append(home)
    left = tuple(sorted(index for waiting in by_macs.values() for index in waiting))
    for place in strangers:
        homes[place] = left
    return homes


def _weights(layers: Sequence[OperatorCost]) -> list[float]:
    total = sum(layer.latency_ms for layer in layers)
    if total <= 0:
        return [1 / len(layers) for _ in layers]
    return [layer.latency_ms / total for layer in layers]


def _class(kind: OperatorKind) -> str:
    """Return what kinds have in common that compilers turn into each other."""
    if kind in PRODUCTS:
        return "product"
    if kind in _POINTWISE:
        return "pointwise"
    return "pool" if kind in _POOLS else kind.value


def _peak_node(
    rows: Sequence[Row],
    homes: Sequence[Sequence[int]],
    layers: Sequence[OperatorCost],
    prefix: str,
) -> str:
    if not rows:
        return ""
    place = max(range(len(rows)), key=lambda place: rows[place].staging_bytes)
    home = homes[place]
    return layers[home[0]].node if home else f"{prefix}:{rows[place].op_type}"
