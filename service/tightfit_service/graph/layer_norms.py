"""Layer normalizations that exporters for older operator sets spell out, written as one node."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, helper

from tightfit_service.graph.node_chains import NodeChains
from tightfit_service.graph.structure import (
    Array,
    Shape,
    attribute,
    default_opset,
    initializers,
    remove_dead_code,
    replace_nodes,
    set_initializer,
    tensor_shapes,
    unique_name,
)

_OPSET = 17
"""The first with LayerNormalization."""


@dataclass(frozen=True)
class _Norm:
    """What spells one layer normalization out.

    Attributes:
        source: The tensor that is normalized along its last axis.
        last: The node that gives the output.
        epsilon: Added to the variance.
        scale: Per channel, behind the division; None where there is none.
        shift: Per channel, behind that.
    """

    source: str
    last: NodeProto
    epsilon: float
    scale: Array | None = None
    shift: Array | None = None


def write_layer_norms(model: ModelProto) -> None:
    """Replace, in place, each `(x - mean) / sqrt(variance + epsilon) * scale + shift` by one node, named as its last.

    Scale and shift, constants per channel, may be absent (J. Ba et al., "Layer Normalization", 2016). Only those
    along the last axis are, in operator sets with LayerNormalization, and where nothing else reads what comes in
    between. Runtimes compute them at once; in 8 bits each of the nodes would round.
    """
    if default_opset(model) < _OPSET or all(node.op_type != "Sqrt" for node in model.graph.node):
        return
    chains, shapes = NodeChains(model), tensor_shapes(model)
    found = (_norm(chains, shapes, node) for node in model.graph.node)
    norms = {norm.last.name: norm for norm in found if norm is not None}
    if not norms:
        return
    taken = {name for node in model.graph.node for name in node.output} | set(initializers(model))
    nodes = []
    for node in model.graph.node:
        norm = norms.get(node.name)
        nodes.append(node if norm is None else _written(model, norm, shapes, taken))
    replace_nodes(model.graph, nodes)
    remove_dead_code(model)


def _written(
    model: ModelProto, norm: _Norm, shapes: dict[str, Shape], taken: set[str]
) -> NodeProto:
    """Return the one node, its constants added to the graph."""
    channels = shapes[norm.source][-1]
    scale = np.ones(channels, np.float32) if norm.scale is None else norm.scale
    operands = [norm.source]
    for part, value in (("scale", scale), ("shift", norm.shift)):
        if value is not None:
            operands.append(unique_name(f"{norm.last.output[0]}.{part}", taken))
            set_initializer(model, operands[-1], value)
    return helper.make_node(
        "LayerNormalization",
        operands,
        list(norm.last.output),
        name=norm.last.name,
        axis=-1,
        epsilon=norm.epsilon,
    )


def _norm(chains: NodeChains, shapes: dict[str, Shape], division: NodeProto) -> _Norm | None:
    """Return the normalization around a division of the difference from the mean, if it is one."""
    if division.op_type != "Div":
        return None
    difference = chains.maker(division.input[0])
    root = _only_maker(chains, division.input[1], "Sqrt", division)
    total = None if root is None else _only_maker(chains, root.input[0], "Add", root)
    epsilon = None if total is None else chains.added(total)
    if difference is None or difference.op_type != "Sub" or total is None or epsilon is None:
        return None
    variance = _mean_before(chains, shapes, chains.variable(total), total)
    square = None if variance is None else chains.maker(variance.input[0])
    mean = _mean_before(chains, shapes, difference.input[1], difference)
    source = str(difference.input[0])
    if square is None or mean is None or mean.input[0] != source:
        return None
    if not _is_square(chains, square, difference) or chains.only_reader(square) is not variance:
        return None
    if not chains.is_read_by(difference, (square, division)):
        return None
    return _with_affine(chains, shapes, _Norm(source, division, epsilon))


def _with_affine(chains: NodeChains, shapes: dict[str, Shape], norm: _Norm) -> _Norm:
    """Return a normalization with the product and the sum per channel behind it, as far as there are any."""
    channels = shapes[norm.source][-1]
    last = norm.last
    found: dict[str, Array] = {}
    for op_type, part in (("Mul", "scale"), ("Add", "shift")):
        following = chains.only_reader(last)
        if following is None or following.op_type != op_type:
            continue
        value = _per_channel(chains, shapes, following, last, channels)
        if value is not None:
            last, found[part] = following, value
    return _Norm(norm.source, last, norm.epsilon, found.get("scale"), found.get("shift"))


def _per_channel(
    chains: NodeChains, shapes: dict[str, Shape], node: NodeProto, before: NodeProto, channels: int
) -> Array | None:
    """Return the constant per channel that a node combines a tensor with, None where it is none."""
    other = next((name for name in node.input if name != before.output[0]), "")
    value = chains.constant(other)
    rank = len(shapes.get(before.output[0], ()))
    if value is None or value.ndim > rank or value.size != (value.shape or (1,))[-1]:
        return None
    if value.size not in (1, channels):
        return None
    return np.broadcast_to(value.reshape(-1), (channels,)).astype(np.float32)


def _only_maker(chains: NodeChains, name: str, op_type: str, reader: NodeProto) -> NodeProto | None:
    """Return what computes a tensor for one reader alone, None where it is of another type."""
    node = chains.maker(name)
    is_one = node is not None and node.op_type == op_type and chains.only_reader(node) is reader
    return node if is_one else None


def _mean_before(
    chains: NodeChains, shapes: dict[str, Shape], name: str, reader: NodeProto
) -> NodeProto | None:
    """Return the node that computes, for one reader alone, a mean over the last axis, which it keeps."""
    node = _only_maker(chains, name, "ReduceMean", reader)
    if node is None or node.input[0] not in shapes or not attribute(node, "keepdims", 1):
        return None
    # an input from opset 18 on
    axes = attribute(node, "axes") if len(node.input) == 1 else chains.constant(node.input[1])
    last = len(shapes[node.input[0]]) - 1
    return node if axes is not None and list(axes) in ([-1], [last]) else None


def _is_square(chains: NodeChains, node: NodeProto, source: NodeProto) -> bool:
    name = source.output[0]
    if node.op_type == "Mul":
        return list(node.input) == [name, name]
    return node.op_type == "Pow" and node.input[0] == name and chains.is_number(node.input[1], 2.0)
