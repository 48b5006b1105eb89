"""Index propagation through products of two tensors (attention) and through recurrent layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import NodeProto

from tightfit_service.graph.channel_classes import IntArray
from tightfit_service.graph.einsum_terms import einsum_terms
from tightfit_service.graph.propagation_state import (
    NoRuleError,
    Propagation,
    SliceRole,
    input_name,
)
from tightfit_service.graph.structure import attribute

RECURRENT_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
"""Matrices that lie one after another along axis 1 of the weights of a recurrent layer."""


def einsum(state: Propagation, node: NodeProto) -> None:
    """Labels follow their letters: a product of two tensors, or of a tensor and a weight."""
    found = einsum_terms(node, [len(state.shape(name)) for name in node.input])
    if found is None or len(found[0]) != 2:
        raise NoRuleError("Einsum with this equation has no pruning rule")
    terms, result = found
    if all(name in state.labels for name in node.input):
        contraction(state, node, terms, result)
    else:
        _einsum_with_weight(state, node, terms, result)


def matmul_of_tensors(state: Propagation, node: NodeProto) -> None:
    """A MatMul of two computed tensors, as a contraction over the last axis of the first."""
    ranks = [len(state.shape(name)) for name in node.input]
    if min(ranks) < 2:
        raise NoRuleError("MatMul with a vector has no pruning rule")
    batch = "".join(chr(ord("a") + index) for index in range(max(ranks) - 2))
    one, other = batch[len(batch) + 2 - ranks[0] :], batch[len(batch) + 2 - ranks[1] :]
    contraction(state, node, [f"{one}YZ", f"{other}ZX"], f"{batch}YX")


def contraction(state: Propagation, node: NodeProto, terms: Sequence[str], result: str) -> None:
    """Unite labels along axes that two computed tensors share, and carry those that remain.

    Where an axis is summed over, the same positions go from both tensors. An operand whose
    positions along a shared axis have no labels cannot shrink, so that those of the other stay.
    """
    vectors: dict[str, IntArray] = {}
    for index, (name, term) in enumerate(zip(node.input, terms, strict=True)):
        partner = 1 - index
        for axis in state.varying_axes(state.labels[name]):
            letter, vector = term[axis], state.vector(name, axis)
            if letter in terms[partner]:
                meets = terms[partner].index(letter)
                if state.shape(node.input[partner])[meets] != len(vector):
                    state.classes.freeze(vector, f"{node.op_type} broadcasts over it")
                elif meets not in state.varying_axes(state.labels[node.input[partner]]):
                    state.classes.freeze(vector, f"{node.op_type} multiplies it with positions")
            if letter in vectors:
                state.classes.unite(vectors[letter], vector)
            vectors.setdefault(letter, vector)
    carried = [letter for letter in result if letter in vectors]
    for letter in carried[1:]:
        state.classes.freeze(vectors[letter], f"{node.op_type} makes channels along two axes")
    if carried:
        state.assign_vector(node.output[0], result.index(carried[0]), vectors[carried[0]])
    else:
        state.assign_frozen(node.output[0], f"{node.op_type} sums over all channels")


def _einsum_with_weight(
    state: Propagation, node: NodeProto, terms: Sequence[str], result: str
) -> None:
    """Sum over one axis of the tensor and make one new one, as a dense layer does."""
    index = 0 if node.input[0] in state.labels else 1
    name, term, weight_term = node.input[index], terms[index], terms[1 - index]
    state.constant(node, 1 - index, "weight")
    summed = [letter for letter in term if letter not in result]
    made = [letter for letter in weight_term if letter not in term]
    channels = state.axes.get(name, len(term) - 1)
    if len(summed) != 1 or len(made) != 1 or len(weight_term) != 2 or term[channels] != summed[0]:
        raise NoRuleError("Einsum with this equation has no pruning rule")
    source = state.vector(name, channels)
    axis = weight_term.index(made[0])
    out = state.classes.fresh(state.shape(node.input[1 - index])[axis])
    state.record(node, 1 - index, axis, out, SliceRole.OUTPUT)
    state.record(node, 1 - index, 1 - axis, source, SliceRole.INPUT)
    state.assign_vector(node.output[0], result.index(made[0]), out)


def recurrent(state: Propagation, node: NodeProto) -> None:
    """LSTM, GRU, RNN: a hidden unit is a row of every gate and a column of the recurrent weights.

    Both directions keep as many units, so that units of equal position go from both.
    """
    gates = RECURRENT_GATES[node.op_type]
    weight = state.constant(node, 1, "weight")
    recurrence = state.constant(node, 2, "recurrent weight")
    size = recurrence.shape[2]
    source = _sequence_labels(state, node.input[0], weight.shape[2])
    hidden = state.classes.fresh(size)
    state.record(node, 1, 2, source, SliceRole.INPUT)
    state.record(node, 1, 1, np.tile(hidden, gates), SliceRole.OUTPUT)
    state.record(node, 2, 1, np.tile(hidden, gates), SliceRole.OUTPUT)
    state.record(node, 2, 2, hidden, SliceRole.INPUT)
    if input_name(node, 3):
        state.constant(node, 3, "bias")
        state.record(node, 3, 1, np.tile(hidden, 2 * gates), SliceRole.ATTACHED)
    if input_name(node, 4) in state.labels:
        raise NoRuleError(f"{node.op_type} over sequences of computed length has no pruning rule")
    for index in (5, 6):
        name = input_name(node, index)
        if state.is_constant(name):
            state.record(node, index, 2, hidden, SliceRole.ATTACHED)
        elif name:
            state.classes.unite(hidden, state.vector(name, 2))
    if input_name(node, 7):
        state.constant(node, 7, "peephole weight")
        state.record(node, 7, 1, np.tile(hidden, 3), SliceRole.ATTACHED)
    for name in node.output:
        if name:
            state.assign_vector(name, len(state.shape(name)) - 1, hidden)


def _sequence_labels(state: Propagation, name: str, size: int) -> IntArray:
    """Return the labels of a sequence's features; those of its steps cannot shrink."""
    if name not in state.labels:
        raise NoRuleError("a recurrent layer over constants has no pruning rule")
    last = len(state.shape(name)) - 1
    if any(axis != last for axis in state.varying_axes(state.labels[name])):
        raise NoRuleError("a recurrent layer over channels as steps has no pruning rule")
    vector = state.vector(name, last)
    assert len(vector) == size
    return vector


def arg_position(state: Propagation, node: NodeProto) -> None:
    """ArgMax, ArgMin: the position found is the result, so that the axis keeps all of them."""
    array = state.labels[node.input[0]]
    axis = int(attribute(node, "axis", 0)) % array.ndim
    if axis in state.varying_axes(array):
        state.classes.freeze(array, f"the position that {node.op_type} finds is its result")
    array = array.take([0], axis)
    channels = state.axes.get(node.input[0])
    if not attribute(node, "keepdims", 1):
        array = array.squeeze(axis)
        if channels is not None:
            channels = None if channels == axis else channels - (channels > axis)
    state.assign(node.output[0], array, axis=channels)
