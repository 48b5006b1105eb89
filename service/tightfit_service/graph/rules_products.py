"""Index propagation through convolutions and matrix products: they consume labels and make new ones."""

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
from tightfit_service.graph.rules_contractions import matmul_of_tensors
from tightfit_service.graph.structure import attribute


def conv(state: Propagation, node: NodeProto) -> None:
    """Consume the input's channels and make the output's; grouped channels are tied across groups."""
    weight = state.constant(node, 1, "weight")
    _require_constant_bias(state, node)
    source = state.vector(_activation(state, node), 1)
    groups = int(attribute(node, "group", 1))
    out_channels, in_per_group = weight.shape[:2]
    if groups == 1:
        out = state.classes.fresh(out_channels)
        state.record(node, 1, 0, out, SliceRole.OUTPUT)
        state.record(node, 1, 1, source, SliceRole.INPUT)
    elif in_per_group == 1:
        out = np.repeat(source, out_channels // groups)
        state.record(node, 1, 0, out, SliceRole.PER_CHANNEL)
    else:
        out = np.tile(state.classes.fresh(out_channels // groups), groups)
        state.record(node, 1, 0, out, SliceRole.OUTPUT)
        state.record(node, 1, 1, _across_groups(state, groups, source), SliceRole.INPUT)
    _finish(state, node, out, axis=1)


def conv_transpose(state: Propagation, node: NodeProto) -> None:
    """As `conv`, for weights of shape (in, out / groups, ...)."""
    weight = state.constant(node, 1, "weight")
    _require_constant_bias(state, node)
    source = state.vector(_activation(state, node), 1)
    groups = int(attribute(node, "group", 1))
    in_channels, out_per_group = weight.shape[:2]
    if groups == 1:
        out = state.classes.fresh(out_per_group)
        state.record(node, 1, 1, out, SliceRole.OUTPUT)
        state.record(node, 1, 0, source, SliceRole.INPUT)
    elif in_channels == groups:
        out = np.repeat(source, out_per_group)
        state.record(node, 1, 0, source, SliceRole.PER_CHANNEL)
    else:
        made = state.classes.fresh(out_per_group)
        out = np.tile(made, groups)
        state.record(node, 1, 1, made, SliceRole.OUTPUT)
        _across_groups(state, groups, source)
        state.record(node, 1, 0, source, SliceRole.INPUT)
    _finish(state, node, out, axis=1)


def gemm(state: Propagation, node: NodeProto) -> None:
    """Consume the features of the first operand; the second must be constant."""
    if attribute(node, "transA", 0):
        raise NoRuleError("Gemm with a transposed first operand has no pruning rule")
    weight = state.constant(node, 1, "weight")
    _require_constant_bias(state, node)
    out_axis = 0 if attribute(node, "transB", 0) else 1
    source = state.vector(_activation(state, node), 1)
    out = state.classes.fresh(weight.shape[out_axis])
    state.record(node, 1, out_axis, out, SliceRole.OUTPUT)
    state.record(node, 1, 1 - out_axis, source, SliceRole.INPUT)
    _finish(state, node, out, axis=1)


def matmul(state: Propagation, node: NodeProto) -> None:
    """Consume the last axis; labels that vary along another axis pass, as rows of a batch do."""
    name = input_name(node, 0)
    if name in state.labels and input_name(node, 1) in state.labels:
        matmul_of_tensors(state, node)
        return
    if state.is_constant(name):
        _matmul_from_left(state, node)
        return
    weight = state.constant(node, 1, "weight")
    rank = len(state.shape(name))
    if weight.ndim != 2 or rank < 2:
        raise NoRuleError(f"MatMul with a weight of {weight.ndim} axes has no pruning rule")
    channels = state.axes.get(name, rank - 1)
    if channels != rank - 1:
        state.assign(node.output[0], state.labels[name], axis=channels)
        return
    source = state.vector(name, rank - 1)
    out = state.classes.fresh(weight.shape[1])
    state.record(node, 1, 1, out, SliceRole.OUTPUT)
    state.record(node, 1, 0, source, SliceRole.INPUT)
    state.assign_vector(node.output[0], rank - 1, out)


def _matmul_from_left(state: Propagation, node: NodeProto) -> None:
    """A constant times a tensor: it sums over the axis before the last, where channels may be."""
    weight = state.constant(node, 0, "weight")
    name = node.input[1]
    rank = len(state.shape(name))
    if weight.ndim != 2 or rank < 2:
        raise NoRuleError(f"MatMul with a weight of {weight.ndim} axes has no pruning rule")
    if state.axes.get(name, rank - 1) != rank - 2:
        state.assign(node.output[0], state.labels[name], axis=state.axes.get(name))
        return
    source = state.vector(name, rank - 2)
    out = state.classes.fresh(weight.shape[0])
    state.record(node, 0, 0, out, SliceRole.OUTPUT)
    state.record(node, 0, 1, source, SliceRole.INPUT)
    state.assign_vector(node.output[0], rank - 2, out)


def _activation(state: Propagation, node: NodeProto) -> str:
    if node.input[0] not in state.labels:
        raise NoRuleError(f"{node.op_type} of a constant has no pruning rule")
    return node.input[0]


def _require_constant_bias(state: Propagation, node: NodeProto) -> None:
    if input_name(node, 2) and not state.is_constant(node.input[2]):
        raise NoRuleError(f"the bias of {node.op_type} is computed by the graph")


def _across_groups(state: Propagation, groups: int, source: IntArray) -> IntArray:
    """Unite the labels of equal position in all groups; return those of one group."""
    grouped = source.reshape(groups, -1)
    state.classes.unite(grouped, grouped[:1])
    first: IntArray = grouped[0]
    return first


def _finish(state: Propagation, node: NodeProto, out: IntArray, *, axis: int) -> None:
    """Attach the bias to the output's channels and give the output its labels."""
    if input_name(node, 2):
        bias = state.constants[node.input[2]]
        if bias.ndim and bias.shape[-1] == len(out):
            state.record(node, 2, bias.ndim - 1, out, SliceRole.ATTACHED)
    state.assign_vector(node.output[0], axis, out)
