"""Finding where attention splits its channels into heads, so that a whole head becomes one unit.

Queries, keys and values of width heads x size are reshaped so that heads are an axis of their own,
along which two computed tensors are multiplied as a batch. Walking back from those products to the
reshape tells which of its axes the heads are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import NodeProto

from tightfit_service.graph.axis_runs import matching_axes
from tightfit_service.graph.einsum_terms import einsum_terms
from tightfit_service.graph.structure import Array, Shape, attribute

_SHAPE_CHANGES = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten"})
_SAME_AXES = frozenset(
    {"Add", "Sub", "Mul", "Div", "Cast", "Split", "Slice", "Softmax", "Relu", "Identity", "Clip"}
)


def head_axes(
    nodes: Sequence[NodeProto], shapes: Mapping[str, Shape], constants: Mapping[str, Array]
) -> dict[str, int]:
    """Return, per Reshape that splits channels into heads, the axis of its output that they are.

    Args:
        nodes: In topological order.
        shapes: At batch 1.
        constants: Initializers by name.
    """
    makers = {name: node for node in nodes for name in node.output if name}
    pending: list[tuple[str, frozenset[int]]] = []
    for node in nodes:
        for operand, batched in _batched_operands(node, shapes, constants):
            many = frozenset(axis for axis in batched if shapes[operand][axis] > 1)
            if many:
                pending.append((operand, many))
    found: dict[str, int] = {}
    seen: set[tuple[str, frozenset[int]]] = set()
    while pending:
        item = pending.pop()
        if item in seen:
            continue
        seen.add(item)
        name, axes = item
        maker = makers.get(name)
        if maker is None or any(each and each not in shapes for each in maker.input):
            continue
        if maker.op_type in _SHAPE_CHANGES:
            before, split = _through_reshape(shapes[maker.input[0]], shapes[name], axes)
            if split is not None:
                found[maker.name] = split
            if before:
                pending.append((maker.input[0], before))
        else:
            pending.extend(_one_step_back(maker, axes, shapes, constants))
    return found


def _batched_operands(
    node: NodeProto, shapes: Mapping[str, Shape], constants: Mapping[str, Array]
) -> list[tuple[str, list[int]]]:
    """Return both operands of a product of computed tensors, with the axes that run along as a batch."""
    if len(node.input) != 2 or any(n in constants or n not in shapes for n in node.input):
        return []
    if node.op_type == "MatMul":
        return [(name, list(range(len(shapes[name]) - 2))) for name in node.input]
    if node.op_type == "Einsum":
        terms = einsum_terms(node, [len(shapes[name]) for name in node.input])
        if terms is None:
            return []
        (one, other), result = terms
        common = set(one) & set(other) & set(result)
        return [
            (name, [axis for axis, letter in enumerate(term) if letter in common])
            for name, term in zip(node.input, (one, other), strict=True)
        ]
    return []


def _through_reshape(
    source: Shape, target: Shape, axes: frozenset[int]
) -> tuple[frozenset[int], int | None]:
    """Return the axes in front of a reshape, and the one that is split off a larger axis, if any."""
    before: set[int] = set()
    split: int | None = None
    for ins, outs in matching_axes(source, target):
        tracked = [axis for axis in outs if axis in axes]
        large_ins = [axis for axis in ins if source[axis] > 1]
        large_outs = [axis for axis in outs if target[axis] > 1]
        if not tracked:
            continue
        if len(large_outs) == 1 and len(large_ins) == 1:
            before.update(large_ins)
        elif len(large_ins) == 1:
            split = tracked[-1]
    return frozenset(before), split


def _one_step_back(
    node: NodeProto,
    axes: frozenset[int],
    shapes: Mapping[str, Shape],
    constants: Mapping[str, Array],
) -> list[tuple[str, frozenset[int]]]:
    if node.op_type == "Transpose":
        order = attribute(node, "perm") or list(range(len(shapes[node.input[0]])))[::-1]
        return [(node.input[0], frozenset(order[axis] for axis in axes))]
    if node.op_type == "Gather" and shapes[node.input[1]] == ():
        gone = int(attribute(node, "axis", 0)) % len(shapes[node.input[0]])
        return [(node.input[0], frozenset(axis + (axis >= gone) for axis in axes))]
    if node.op_type in _SAME_AXES:
        rank = len(shapes[node.output[0]])
        return [
            (name, axes)
            for name in node.input
            if name and name not in constants and len(shapes[name]) == rank
        ]
    return []
