"""Residual blocks: branches of a graph that are added to what they read, and could be left out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto

from tightfit_service.graph.fusion import PRODUCTS
from tightfit_service.graph.structure import (
    Array,
    attribute,
    consumers,
    graph_outputs,
    initializers,
    names_read,
    producers,
    sorted_model_nodes,
    tensor_shapes,
)

_JOINS = frozenset({"Add", "Sum"})
_WEIGHTED = PRODUCTS | {"LSTM", "GRU", "RNN"}


@dataclass(frozen=True, kw_only=True)
class ResidualBlock:
    """A branch that reads a tensor and is added to the same tensor, unchanged on the other way.

    Attributes:
        block_id: Name of the node that adds.
        shortcut: The tensor that the branch starts from and is added to.
        branch: The tensor that is added to it.
        output: What the sum is called.
        nodes: Names of the nodes that nothing but this block needs, in topological order.
    """

    block_id: str
    shortcut: str
    branch: str
    output: str
    nodes: tuple[str, ...]


def residual_blocks(model: ModelProto) -> tuple[ResidualBlock, ...]:
    """Return the blocks that can be left out, in topological order. Deterministic.

    A block is an Add (or a Sum of two) of equal shapes, one of whose operands depends on the other,
    with a layer that has weights in between, none of whose inner tensors is read outside. That covers
    basic and bottleneck blocks, pre-activation, inverted residuals, and the attention and
    feed-forward halves of transformer layers. Blocks around other blocks are not listed: leaving out
    the inner ones comes first.

    Raises:
        InvalidModelError: The graph has a cycle or contradicting shapes.
    """
    nodes = sorted_model_nodes(model)
    shapes = tensor_shapes(model)
    constants = {tensor.name for tensor in model.graph.initializer}
    outputs = set(graph_outputs(model))
    makers = producers(model.graph)
    readers = consumers(model.graph)
    order = {node.name: index for index, node in enumerate(nodes)}
    found: list[ResidualBlock] = []
    for node in nodes:
        names = [name for name in node.input if name]
        if node.domain or node.op_type not in _JOINS or len(set(names)) != 2:
            continue
        same = len({shapes.get(name) for name in (*names, node.output[0])}) == 1
        if not same or names[0] not in shapes or set(names) & constants:
            continue
        if node.output[0] in outputs:
            continue
        for shortcut, branch in (names, names[::-1]):
            inner = _branch(node, shortcut, branch, makers, readers, outputs)
            if inner is None or not any(item.op_type in _WEIGHTED for item in inner.values()):
                continue
            found.append(
                ResidualBlock(
                    block_id=node.name,
                    shortcut=shortcut,
                    branch=branch,
                    output=node.output[0],
                    nodes=tuple(sorted(inner, key=order.__getitem__)),
                )
            )
            break
    joins = {block.block_id for block in found}
    return tuple(block for block in found if not joins & set(block.nodes))


def _branch(
    join: NodeProto,
    shortcut: str,
    branch: str,
    makers: Mapping[str, NodeProto],
    readers: Mapping[str, list[NodeProto]],
    outputs: set[str],
) -> dict[str, NodeProto] | None:
    """Return the nodes that only serve the branch, by name, or None where it is no such branch.

    They are those in front of `branch` all of whose results stay inside; the branch must depend on
    the shortcut, and everything between the two must be among them.
    """
    inner: dict[str, NodeProto] = {}
    pending = [branch]
    while pending:
        node = makers.get(pending.pop())
        if node is None or node.name in inner or shortcut in node.output:
            continue
        made = [name for name in node.output if name]
        users = {reader.name for name in made for reader in readers.get(name, [])}
        if set(made) & outputs or not users <= {*inner, join.name}:
            continue
        inner[node.name] = node
        pending.extend(names_read(node))
    # What depends on the shortcut and reaches the branch from outside makes it more than a branch.
    entered = {name for node in inner.values() for name in names_read(node)}
    if shortcut not in entered:
        return None
    made_inside = {name for node in inner.values() for name in node.output}
    from_outside = entered - made_inside - {shortcut}
    if any(_depends(name, shortcut, makers) for name in from_outside):
        return None
    return inner


def _depends(name: str, source: str, makers: Mapping[str, NodeProto]) -> bool:
    """Whether a tensor is computed from another one."""
    pending, seen = [name], set()
    while pending:
        current = pending.pop()
        if current == source:
            return True
        if current in seen or current not in makers:
            continue
        seen.add(current)
        pending.extend(names_read(makers[current]))
    return False


def branch_shares(model: ModelProto, blocks: tuple[ResidualBlock, ...]) -> dict[str, float]:
    """Return, per block, which share of the sum the branch is likely to make, in [0, 1], from weights.

    Second moments are carried through the graph as in mean-field signal propagation (Poole et al.,
    "Exponential expressivity in deep neural networks through transient chaos", NeurIPS 2016): inputs
    at 1, layers multiply by the mean squared norm of their filters, normalisations set their own
    scale, rectifiers halve, sums add. No data is seen, so this ranks blocks and predicts no accuracy.
    """
    values = initializers(model)
    moments: dict[str, float] = {}
    for node in sorted_model_nodes(model):
        reads = [moments.get(name, 1.0) for name in node.input if name and name not in values]
        moment = _moment(node, reads, values)
        for name in node.output:
            moments[name] = moment
    shares = {}
    for block in blocks:
        branch, shortcut = moments.get(block.branch, 1.0), moments.get(block.shortcut, 1.0)
        shares[block.block_id] = math.sqrt(branch / max(branch + shortcut, 1e-300))
    return shares


def _moment(node: NodeProto, reads: list[float], values: Mapping[str, Array]) -> float:
    """Return the second moment of what a node makes from those of what it reads."""
    first = reads[0] if reads else 1.0
    kind = node.op_type
    if kind in {"BatchNormalization", "LayerNormalization", "InstanceNormalization"}:
        own = [values[name].astype(np.float64) for name in node.input[1:3] if name in values]
        return float(sum(np.mean(value**2) for value in own)) if own else 1.0
    if kind in PRODUCTS and len(node.input) > 1 and node.input[1] in values:
        weight = values[node.input[1]].astype(np.float64)
        by_output = kind == "Conv" or (kind == "Gemm" and attribute(node, "transB", 0))
        count = weight.shape[0] if by_output else weight.shape[-1]
        if kind == "ConvTranspose":
            count = int(weight.shape[1] * attribute(node, "group", 1))
        return float(first * float((weight**2).sum()) / max(count, 1))
    if kind in {"Relu", "Clip"}:
        return first / 2
    if kind in {"Softmax", "Sigmoid", "HardSigmoid", "Tanh"}:
        return min(first, 1.0)
    if kind in {"Add", "Sub", "Sum"} and len(reads) > 1:
        return sum(reads)
    return first
