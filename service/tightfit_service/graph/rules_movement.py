"""Index propagation through data movement: the operator is run on labels instead of values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import NodeProto

from tightfit_service.graph.axis_runs import matching_axes
from tightfit_service.graph.channel_classes import IntArray
from tightfit_service.graph.propagation_state import (
    NoRuleError,
    Propagation,
    SliceRole,
    input_name,
)
from tightfit_service.graph.rules_values import attach_constants
from tightfit_service.graph.structure import Shape, attribute

# A label array larger than this comes of a reshape over very many positions; tracking it would cost
# more than the channels are worth.
_MAX_LABELS = 1 << 22


def reshape(state: Propagation, node: NodeProto) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: the same labels in row-major order."""
    if any(name in state.labels for name in node.input[1:]):
        raise NoRuleError(f"{node.op_type} to a computed shape has no pruning rule")
    source, target = state.shape(node.input[0]), state.shape(node.output[0])
    if int(np.prod(source)) != int(np.prod(target)) or not all((*source, *target)):
        raise NoRuleError(f"{node.op_type} between shapes that do not match")
    channels = state.axes.get(node.input[0])
    axis = next(
        (outs[-1] for ins, outs in matching_axes(source, target) if outs and channels in ins), None
    )
    array = reshaped(state.labels[node.input[0]], source, target)
    heads = state.head_axes.get(node.name)
    if heads is not None and heads in state.varying_axes(array):
        # A head goes as a whole: its channels, of queries, keys and values, are one unit.
        array = array.swapaxes(0, heads)
        state.classes.unite(array, array[(slice(None), *(slice(1),) * (array.ndim - 1))])
        array = array.swapaxes(0, heads)
    state.assign(node.output[0], array, axis=axis)


def reshaped(array: IntArray, source: Shape, target: Shape) -> IntArray:
    """Reshape compact labels; only axes that are merged or split with a varying one are expanded."""
    full: list[int] = []
    result: list[int] = []
    for ins, outs in matching_axes(source, target):
        varies = any(array.shape[axis] > 1 for axis in ins)
        full.extend(source[axis] if varies else 1 for axis in ins)
        result.extend(target[axis] if varies else 1 for axis in outs)
    if int(np.prod(full)) > _MAX_LABELS:
        raise NoRuleError("a reshape over this many positions has no pruning rule")
    return np.broadcast_to(array, full).reshape(result)


def transpose(state: Propagation, node: NodeProto) -> None:
    """Permute the axes."""
    array = state.labels[node.input[0]]
    order = attribute(node, "perm") or list(range(array.ndim))[::-1]
    channels = state.axes.get(node.input[0])
    axis = None if channels is None else order.index(channels)
    state.assign(node.output[0], array.transpose(order), axis=axis)


def slice_(state: Propagation, node: NodeProto) -> None:
    """Take a range along each axis that varies."""
    array = state.labels[node.input[0]]
    for axis, span in slice_ranges(state, node).items():
        if array.shape[axis] > 1:
            array = array[(slice(None),) * axis + (span,)]
    state.assign(node.output[0], array, axis=state.axes.get(node.input[0]))


def slice_ranges(state: Propagation, node: NodeProto) -> dict[int, slice]:
    """Return the Python slice per axis that a Slice node takes.

    Raises:
        NoRuleError: Its bounds are computed.
    """
    shape = state.shape(node.input[0])
    if state.opset < 10:
        starts = attribute(node, "starts", [])
        ends = attribute(node, "ends", [])
        axes = attribute(node, "axes") or list(range(len(starts)))
        steps = [1] * len(starts)
    else:
        starts = state.constant(node, 1, "start").reshape(-1).tolist()
        ends = state.constant(node, 2, "end").reshape(-1).tolist()
        axes = list(range(len(starts)))
        if input_name(node, 3):
            axes = state.constant(node, 3, "axes").reshape(-1).tolist()
        steps = [1] * len(starts)
        if input_name(node, 4):
            steps = state.constant(node, 4, "step").reshape(-1).tolist()
    ranges: dict[int, slice] = {}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        position = int(axis) % len(shape)
        size = shape[position]
        if step < 0 and end < -size:
            # numpy has no other way to say "down to the first element included".
            ranges[position] = slice(int(start), None, int(step))
        else:
            ranges[position] = slice(int(start), int(end), int(step))
    return ranges


def pad(state: Propagation, node: NodeProto) -> None:
    """Padded channels are new labels: they vanish when what they are added to does."""
    before, after = pad_amounts(state, node)
    array = state.labels[node.input[0]]
    shape = state.shape(node.input[0])
    varying = state.varying_axes(array)
    if not varying and array.ndim > 1 and shape[1] == 1:
        varying = [1]
    for axis in varying:
        if not before[axis] and not after[axis]:
            continue
        if attribute(node, "mode", "constant") != "constant":
            raise NoRuleError("Pad that mirrors channels has no pruning rule")
        vector = state.vector(node.input[0], axis)
        vector = vector[max(0, -before[axis]) : len(vector) - max(0, -after[axis])]
        front = state.classes.fresh(max(0, before[axis]))
        back = state.classes.fresh(max(0, after[axis]))
        state.assign_vector(node.output[0], axis, np.concatenate([front, vector, back]))
        return
    state.assign(node.output[0], array, axis=state.axes.get(node.input[0]))


def pad_amounts(state: Propagation, node: NodeProto) -> tuple[list[int], list[int]]:
    """Return the positions that a Pad node adds before and after, per axis.

    Raises:
        NoRuleError: They are computed.
    """
    rank = len(state.shape(node.input[0]))
    if state.opset < 11:
        amounts = attribute(node, "pads", [])
    else:
        amounts = state.constant(node, 1, "amount").reshape(-1).tolist()
    axes: Sequence[int] = range(rank)
    if input_name(node, 3):
        axes = [int(a) % rank for a in state.constant(node, 3, "axes").reshape(-1)]
    before, after = [0] * rank, [0] * rank
    for position, axis in enumerate(axes):
        before[axis] = int(amounts[position])
        after[axis] = int(amounts[position + len(axes)])
    return before, after


def concat(state: Propagation, node: NodeProto) -> None:
    """Join labels along the axis, or unite them where channels lie along another one."""
    out = node.output[0]
    rank = len(state.shape(out))
    axis = int(attribute(node, "axis", 1)) % rank
    arrays = [state.labels[name] for name in node.input if name in state.labels]
    across = {a for array in arrays for a in state.varying_axes(array)} - {axis}
    if across:
        joined = arrays[0].take([0], axis)
        for array in arrays:
            state.classes.unite(joined, array)
            joined = np.broadcast_arrays(joined, array.take([0], axis))[0]
        state.assign(out, joined, axis=None)
        for varying in state.varying_axes(state.labels[out]):
            attach_constants(state, node, varying)
        return
    parts: list[IntArray] = []
    for index, name in enumerate(node.input):
        if name in state.labels:
            parts.append(state.vector(name, axis))
        else:
            part = state.classes.fresh(state.shape(name)[axis])
            state.record(node, index, axis, part, SliceRole.ATTACHED)
            parts.append(part)
    state.assign_vector(out, axis, np.concatenate(parts))


def split(state: Propagation, node: NodeProto) -> None:
    """Give each output its part of the labels."""
    array = state.labels[node.input[0]]
    axis = int(attribute(node, "axis", 0)) % array.ndim
    if any(name in state.labels for name in node.input[1:]):
        raise NoRuleError("Split into computed sizes has no pruning rule")
    start = 0
    for name in node.output:
        size = state.shape(name)[axis]
        part = array
        if array.shape[axis] > 1:
            part = array.take(range(start, start + size), axis)
        state.assign(name, part, axis=state.axes.get(node.input[0]))
        start += size


def gather(state: Propagation, node: NodeProto) -> None:
    """Take positions by constant indices."""
    if node.input[0] not in state.labels:
        raise NoRuleError("Gather from a table has no pruning rule")
    indices = state.constant(node, 1, "index")
    array = state.labels[node.input[0]]
    axis = int(attribute(node, "axis", 0)) % array.ndim
    if indices.ndim > 1:
        raise NoRuleError("Gather by a matrix of indices has no pruning rule")
    if array.shape[axis] > 1:
        taken = array.take(indices, axis)
    else:
        taken = array if indices.ndim else array.squeeze(axis)
    state.assign(
        node.output[0], taken, axis=state.axes.get(node.input[0]) if indices.ndim else None
    )


def expand(state: Propagation, node: NodeProto) -> None:
    """Broadcast to a constant shape."""
    state.constant(node, 1, "shape")
    array = state.labels[node.input[0]]
    lead = (1,) * (len(state.shape(node.output[0])) - array.ndim)
    channels = state.axes.get(node.input[0])
    axis = None if channels is None else channels + len(lead)
    state.assign(node.output[0], array.reshape(lead + array.shape), axis=axis)


def tile(state: Propagation, node: NodeProto) -> None:
    """Repeat labels along the axes that vary."""
    array = state.labels[node.input[0]]
    repeats = state.constant(node, 1, "repeat count").reshape(-1).tolist()
    state.assign(
        node.output[0],
        np.tile(
            array, [n if size > 1 else 1 for n, size in zip(repeats, array.shape, strict=True)]
        ),
        axis=state.axes.get(node.input[0]),
    )


def depth_to_space(state: Propagation, node: NodeProto) -> None:
    """Unite the channels that become the pixels of one block."""
    block = int(attribute(node, "blocksize")) ** 2
    labels = state.vector(node.input[0], 1)
    if attribute(node, "mode", "DCR") == "DCR":
        grouped = labels.reshape(block, -1)
    else:
        grouped = labels.reshape(-1, block).T
    state.classes.unite(grouped, grouped[:1])
    state.assign_vector(node.output[0], 1, grouped[0])


def space_to_depth(state: Propagation, node: NodeProto) -> None:
    """Repeat the channels once per pixel of a block."""
    block = int(attribute(node, "blocksize")) ** 2
    state.assign_vector(node.output[0], 1, np.tile(state.vector(node.input[0], 1), block))
