"""Index propagation through operators that compute values in place: arithmetic, activations, pools."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from tightfit_service.graph.channel_classes import IntArray
from tightfit_service.graph.propagation_state import (
    NoRuleError,
    Propagation,
    SliceRole,
    input_name,
)
from tightfit_service.graph.structure import attribute


def unary(state: Propagation, node: NodeProto) -> None:
    """Pass the labels on."""
    if any(state.is_constant(name) and state.constants[name].size > 1 for name in node.input[1:]):
        raise NoRuleError(f"{node.op_type} with a parameter per channel has no pruning rule")
    if any(name in state.labels for name in node.input[1:]):
        raise NoRuleError(f"{node.op_type} with computed parameters has no pruning rule")
    for name in node.output:
        if name:
            state.assign(name, state.labels[node.input[0]], axis=state.axes.get(node.input[0]))


def elementwise(state: Propagation, node: NodeProto) -> None:
    """Unite the labels of the operands; constants with a value per channel follow them."""
    out = node.output[0]
    rank = len(state.shape(out))
    operands: list[tuple[tuple[int, ...], IntArray]] = []
    axes: list[int] = []
    for name in node.input:
        if name in state.labels:
            lead = (1,) * (rank - len(state.shape(name)))
            array = state.labels[name]
            operands.append((lead + state.shape(name), array.reshape(lead + array.shape)))
            if name in state.axes:
                axes.append(state.axes[name] + len(lead))
    varying = {axis for _, array in operands for axis in state.varying_axes(array)}
    joined: IntArray | None = None
    for shape, array in operands:
        if varying and all(shape[axis] == 1 for axis in varying):
            # Its one channel meets all channels of the others: it is needed as long as one stays.
            state.classes.freeze(array, f"{node.op_type} broadcasts it over other channels")
            continue
        if joined is not None:
            state.classes.unite(joined, array)
            joined = np.broadcast_arrays(joined, array)[0]
        else:
            joined = array
    assert joined is not None
    state.assign(out, joined, axis=axes[0] if axes else None)
    for axis in state.varying_axes(state.labels[out]):
        attach_constants(state, node, axis)


def attach_constants(state: Propagation, node: NodeProto, axis: int) -> None:
    """Let the node's constants that have a value per position of the output's axis follow it."""
    out = node.output[0]
    rank = len(state.shape(out))
    labels = state.vector(out, axis)
    for index, name in enumerate(node.input):
        if not state.is_constant(name):
            continue
        own_axis = axis - (rank - state.constants[name].ndim)
        if own_axis >= 0 and state.constants[name].shape[own_axis] > 1:
            state.record(node, index, own_axis, labels, SliceRole.ATTACHED)


def normalization(state: Propagation, node: NodeProto) -> None:
    """Pass channels on with their statistics, scale and shift (BatchNormalization, Instance...)."""
    if attribute(node, "training_mode", 0) or any(node.output[1:]):
        raise NoRuleError(f"{node.op_type} in training mode has no pruning rule")
    for index in range(1, len(node.input)):
        state.constant(node, index, "parameters")
    array = state.labels[node.input[0]]
    if node.op_type == "InstanceNormalization" and any(a > 1 for a in state.varying_axes(array)):
        # GroupNorm, written as InstanceNorm of groups: channels are positions within a group.
        state.assign(node.output[0], array, axis=state.axes.get(node.input[0]))
        return
    labels = state.vector(node.input[0], 1)
    for index in range(1, len(node.input)):
        state.record(node, index, 0, labels, SliceRole.ATTACHED)
    state.assign_vector(node.output[0], 1, labels)


def layer_normalization(state: Propagation, node: NodeProto) -> None:
    """Pass channels on with scale and shift; statistics are over those that remain."""
    if any(node.output[1:]) or any(name in state.labels for name in node.input[1:]):
        raise NoRuleError(f"{node.op_type} with several results has no pruning rule")
    state.assign(node.output[0], state.labels[node.input[0]], axis=state.axes.get(node.input[0]))
    for axis in state.varying_axes(state.labels[node.output[0]]):
        attach_constants(state, node, axis)


def group_normalization(state: Propagation, node: NodeProto) -> None:
    """As `layer_normalization`, for groups of channels, which stay equally wide."""
    groups = int(attribute(node, "num_groups", 1))
    labels = state.vector(node.input[0], 1)
    grouped = labels.reshape(groups, -1)
    state.classes.unite(grouped, grouped[:1])
    for index in range(1, len(node.input)):
        if len(state.constant(node, index, "parameters")) == len(labels):
            state.record(node, index, 0, labels, SliceRole.ATTACHED)
    state.assign_vector(node.output[0], 1, labels)


def size(state: Propagation, node: NodeProto) -> None:
    """Shape, Size: they read no values; where sizes are used, that node's rule decides."""
    state.assign_frozen(node.output[0], "it is a size")


def per_channel(state: Propagation, node: NodeProto) -> None:
    """Pass the channel axis on through pooling and resizing over the spatial axes."""
    if any(node.output[1:]):
        raise NoRuleError(f"{node.op_type} with indices as second output has no pruning rule")
    source, out = state.shape(node.input[0]), state.shape(node.output[0])
    if len(source) < 3 or source[:2] != out[:2]:
        raise NoRuleError(f"{node.op_type} over channels has no pruning rule")
    if any(name in state.labels for name in node.input[1:]):
        raise NoRuleError(f"{node.op_type} with computed sizes has no pruning rule")
    if node.op_type == "Resize" and attribute(node, "axes") is not None and input_name(node, 3):
        raise NoRuleError("Resize to sizes of chosen axes has no pruning rule")
    state.assign_vector(node.output[0], 1, state.vector(node.input[0], 1))


def reduction(state: Propagation, node: NodeProto) -> None:
    """Pass what is not reduced; over channels, the result is that of those which remain."""
    source = state.labels[node.input[0]]
    axes = attribute(node, "axes")
    if axes is None and input_name(node, 1):
        axes = state.constant(node, 1, "axes").reshape(-1).tolist()
    if not axes:
        if attribute(node, "noop_with_empty_axes", 0):
            state.assign(node.output[0], source, axis=state.axes.get(node.input[0]))
            return
        axes = range(source.ndim)
    reduced = sorted({int(axis) % source.ndim for axis in axes})
    if set(reduced) & set(state.varying_axes(source)):
        # A statistic over the channels that remain, as in LayerNorm written out.
        state.assign_frozen(node.output[0], f"{node.op_type} is over all channels")
        return
    array = source
    channels = state.axes.get(node.input[0])
    for axis in reduced:
        array = array.take([0], axis)
    if not attribute(node, "keepdims", 1):
        array = array.reshape([n for i, n in enumerate(array.shape) if i not in reduced])
        if channels is not None:
            gone = sum(axis < channels for axis in reduced)
            channels = None if channels in reduced else channels - gone
    state.assign(node.output[0], array, axis=channels)


def axis_mixing(state: Propagation, node: NodeProto) -> None:
    """Pass labels that vary along other axes than those over which the operator normalises."""
    if any(node.output[1:]) or any(name in state.labels for name in node.input[1:]):
        raise NoRuleError(f"{node.op_type} with several results has no pruning rule")
    array = state.labels[node.input[0]]
    if node.op_type == "CumSum":
        axis = int(state.constant(node, 1, "axis").reshape(-1)[0]) % array.ndim
    else:
        default = 1 if node.op_type.endswith("max") and state.opset < 13 else -1
        axis = int(attribute(node, "axis", default)) % array.ndim
    reaches_end = node.op_type.endswith("max") and state.opset < 13
    mixed = range(axis, array.ndim) if reaches_end else [axis]
    if set(mixed) & set(state.varying_axes(array)):
        state.classes.freeze(array, f"{node.op_type} mixes all channels")
    state.assign(node.output[0], array, axis=state.axes.get(node.input[0]))
