"""Rectifiers that stand behind what only moves numbers, computed where the numbers are."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import ModelProto, NodeProto

from tightfit_service.graph.fusion import PRODUCTS
from tightfit_service.graph.node_chains import NodeChains
from tightfit_service.graph.structure import replace_nodes, unique_name

_COMPUTING = PRODUCTS | {"Add", "BatchNormalization", "Div", "Mul", "Sub"}
_MOVING = frozenset(
    {
        "DepthToSpace", "Expand", "Flatten", "Gather", "MaxPool", "Reshape", "Slice", "SpaceToDepth",
        "Squeeze", "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
"""They commute with functions of single numbers that do not fall."""


@dataclass(frozen=True)
class _Motion:
    """A rectifier that is computed earlier.

    Attributes:
        rectifier: The node.
        last: The node that it reads.
        sources: What computes its numbers.
    """

    rectifier: NodeProto
    last: NodeProto
    sources: tuple[NodeProto, ...]


def move_rectifiers(model: ModelProto) -> None:
    """Compute, in place, each Relu and each Clip by constants that stands behind movement or Concat before it.

    Outputs do not change. Runtimes compute rectifiers with the product or the sum right before them; behind
    movement they are a pass of their own, and 8 bits are spent on numbers that are cut off.
    """
    chains = NodeChains(model)
    found = (_motion(chains, node) for node in model.graph.node)
    motions = [motion for motion in found if motion is not None]
    if not motions:
        return
    taken = {name for node in model.graph.node for name in (node.name, *node.output)}
    taken |= {tensor.name for tensor in model.graph.initializer}
    behind: dict[str, NodeProto] = {}
    for motion in motions:
        for source in motion.sources:
            behind[source.name] = _computed_behind(source, motion.rectifier, taken)
        motion.last.output[0] = motion.rectifier.output[0]
    moved = {motion.rectifier.name for motion in motions}
    nodes = []
    for node in model.graph.node:
        if node.name not in moved:
            nodes.append(node)
        if node.name in behind:
            nodes.append(behind[node.name])
    replace_nodes(model.graph, nodes)


def _computed_behind(source: NodeProto, rectifier: NodeProto, taken: set[str]) -> NodeProto:
    """Return a rectifier that gives the output of a node its name; the node's own gets another."""
    node = NodeProto()
    node.CopyFrom(rectifier)
    node.name = unique_name(f"{source.name}/{rectifier.name}", taken)
    node.output[0] = source.output[0]
    source.output[0] = node.input[0] = unique_name(f"{source.output[0]}/unrectified", taken)
    return node


def _motion(chains: NodeChains, node: NodeProto) -> _Motion | None:
    is_clip = node.op_type == "Clip" and all(
        chains.number(name) is not None for name in node.input[1:] if name
    )
    if node.op_type != "Relu" and not is_clip:
        return None
    last = chains.maker(node.input[0])
    if last is None or last.op_type in _COMPUTING:
        return None
    sources = _sources(chains, last)
    return None if sources is None else _Motion(node, last, sources)


def _sources(chains: NodeChains, node: NodeProto) -> tuple[NodeProto, ...] | None:
    """Return what computes the numbers of a node's output; None where others read any of them on the way."""
    if chains.only_reader(node) is None or len(node.output) != 1:
        return None
    if node.op_type in _COMPUTING:
        return (node,)
    if node.op_type != "Concat" and node.op_type not in _MOVING:
        return None
    read = node.input if node.op_type == "Concat" else node.input[:1]
    found: list[NodeProto] = []
    for name in read:
        maker = chains.maker(name)
        sources = None if maker is None else _sources(chains, maker)
        if sources is None:
            return None
        found += sources
    return tuple(found) if len({source.name for source in found}) == len(found) else None
