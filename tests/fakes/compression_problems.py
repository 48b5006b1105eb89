"""Compression problems in the shape of well-known networks, with a made-up but realistic cost model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tightfit_service.domain.budget import Quantity
from tightfit_service.domain.network import Width, WidthTerm
from tightfit_service.search.problem import (
    CompressionProblem,
    GroupChoice,
    MemoryRow,
    NodeChoice,
)

Cost = Callable[[int, int], Mapping[Quantity, float]]


def width(*terms: tuple[str, int], fixed: int = 0) -> Width:
    """Return fixed + sum(multiplier * kept)."""
    return Width(fixed=fixed, terms=tuple(WidthTerm(group_id=g, multiplier=m) for g, m in terms))


def conv_cost(positions: int, kernel: int, *, depthwise: bool = False) -> Cost:
    """Return a convolution's cost on a core that works on four output channels at once."""

    def cost(in_channels: int, out_channels: int) -> Mapping[Quantity, float]:
        padded = -(-out_channels // 4) * 4
        weights = kernel * out_channels * (1 if depthwise else in_channels)
        macs = positions * kernel * padded * (1 if depthwise else in_channels)
        return {
            Quantity.LATENCY: 0.01 + macs * 4e-6 + positions * in_channels * 1e-6,
            Quantity.ENERGY: macs * 1e-6,
            Quantity.SIZE: weights + 8 * out_channels,
        }

    return cost


def choice(group_id: str, units: int, *, level_count: int = 8, weight: float = 1.0) -> GroupChoice:
    """Return even levels with a convex loss that grows with the share removed."""
    levels = sorted(
        {max(1, round(units * step / level_count)) for step in range(1, level_count + 1)}
    )
    losses = tuple(weight * 0.02 * (1 - level / units) ** 2 / (level / units) for level in levels)
    return GroupChoice(group_id=group_id, levels=tuple(levels), accuracy_loss=losses)


def resnet20(*, level_count: int = 8, latency_share: float = 0.5) -> CompressionProblem:
    """Return a ResNet-20 whose shortcuts pad channels, so that later stages contain earlier groups."""
    groups, nodes, memory = [], [], []
    stream = width(("stem", 1))
    groups.append(choice("stem", 16, level_count=level_count, weight=3.0))
    nodes.append(
        NodeChoice(
            node="stem",
            input_width=width(fixed=3),
            output_width=stream,
            cost=conv_cost(1024, 9),
        )
    )
    terms = [("stem", 1)]
    for stage, (units, size) in enumerate(((16, 1024), (32, 256), (64, 64))):
        for block in range(3):
            name = f"s{stage}b{block}"
            inner = width((name, 1))
            before = stream
            if stage and block == 0:
                groups.append(choice(f"grow{stage}", units // 2, level_count=level_count))
                terms.append((f"grow{stage}", 1))
                stream = width(*terms)
            groups.append(choice(name, units, level_count=level_count))
            nodes.append(
                NodeChoice(
                    node=f"{name}a",
                    input_width=before,
                    output_width=inner,
                    cost=conv_cost(size, 9),
                )
            )
            nodes.append(
                NodeChoice(
                    node=f"{name}b", input_width=inner, output_width=stream, cost=conv_cost(size, 9)
                )
            )
            memory.append(
                MemoryRow(
                    node=f"{name}b",
                    fixed_bytes=2000.0,
                    tensors=((before, float(size)), (inner, float(size)), (stream, float(size))),
                )
            )
    nodes.append(
        NodeChoice(
            node="head", input_width=stream, output_width=width(fixed=10), cost=conv_cost(1, 1)
        )
    )
    return limited(groups, nodes, memory, latency_share=latency_share)


def mobilenet(*, level_count: int = 8, latency_share: float = 0.5) -> CompressionProblem:
    """Return 14 pairs of depthwise and pointwise convolutions."""
    units = [32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024]
    sizes = [2304, 2304, 576, 576, 144, 144, *[36] * 6, 9, 9]
    groups = [choice("g0", units[0], level_count=level_count)]
    nodes = [
        NodeChoice(
            node="stem",
            input_width=width(fixed=3),
            output_width=width(("g0", 1)),
            cost=conv_cost(sizes[0], 9),
        )
    ]
    memory = []
    for index in range(1, len(units)):
        before, after = width((f"g{index - 1}", 1)), width((f"g{index}", 1))
        groups.append(choice(f"g{index}", units[index], level_count=level_count))
        nodes.append(
            NodeChoice(
                node=f"dw{index}",
                input_width=before,
                output_width=before,
                cost=conv_cost(sizes[index], 9, depthwise=True),
            )
        )
        nodes.append(
            NodeChoice(
                node=f"pw{index}",
                input_width=before,
                output_width=after,
                cost=conv_cost(sizes[index], 1),
            )
        )
        memory.append(
            MemoryRow(
                node=f"pw{index}",
                fixed_bytes=0.0,
                tensors=((before, float(sizes[index])), (after, float(sizes[index]))),
            )
        )
    return limited(groups, nodes, memory, latency_share=latency_share)


def densenet(*, layers: int = 24, latency_share: float = 0.5) -> CompressionProblem:
    """Return one dense block: every layer reads the concatenation of all layers before it."""
    groups, nodes, memory = [], [], []
    terms: list[tuple[str, int]] = []
    for index in range(layers):
        name = f"l{index}"
        before = width(*terms, fixed=3)
        groups.append(choice(name, 24 if index == 0 else 12, level_count=6))
        nodes.append(
            NodeChoice(
                node=name,
                input_width=before,
                output_width=width((name, 1)),
                cost=conv_cost(256, 9),
            )
        )
        terms.append((name, 1))
        memory.append(
            MemoryRow(node=name, fixed_bytes=0.0, tensors=((width(*terms, fixed=3), 256.0),))
        )
    nodes.append(
        NodeChoice(
            node="head",
            input_width=width(*terms, fixed=3),
            output_width=width(fixed=10),
            cost=conv_cost(1, 1),
        )
    )
    return limited(groups, nodes, memory, latency_share=latency_share)


def limited(
    groups: list[GroupChoice],
    nodes: list[NodeChoice],
    memory: list[MemoryRow],
    *,
    latency_share: float,
) -> CompressionProblem:
    """Return the problem with latency at a share of the full network's, RAM and size at three quarters."""
    free = CompressionProblem(groups=tuple(groups), nodes=tuple(nodes), memory=tuple(memory))
    full = free.costs({group.group_id: group.levels[-1] for group in groups})
    limits = {
        Quantity.LATENCY: full[Quantity.LATENCY] * latency_share,
        Quantity.RAM: full[Quantity.RAM] * 0.75,
        Quantity.SIZE: full[Quantity.SIZE] * 0.75,
    }
    return CompressionProblem(
        groups=free.groups,
        nodes=free.nodes,
        memory=free.memory,
        limits={quantity: limit for quantity, limit in limits.items() if limit > 0},
    )
