"""Translation of TFLite operators that multiply matrices: dense layers, products, recurrent layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tightfit_service.adapters.formats.tflite_reader import TfliteOperator
from tightfit_service.adapters.formats.tflite_rules_windows import bias_of, rectified_by_range
from tightfit_service.adapters.formats.tflite_translation import Translation, UntranslatableError
from tightfit_service.graph.structure import Array

_ACTIVATIONS = {
    schema.ActivationFunctionType.NONE: "Affine",
    schema.ActivationFunctionType.RELU: "Relu",
    schema.ActivationFunctionType.TANH: "Tanh",
}


def _fully_connected(t: Translation, op: TfliteOperator) -> None:
    """Weights are (out, in); the input is flattened to rows, or keeps its axes where told to."""
    options, source, weights = op.options, t.shape(op, 0), t.shape(op, 1)
    if options.weightsFormat != schema.FullyConnectedOptionsWeightsFormat.DEFAULT:
        raise UntranslatableError("its weights are shuffled")
    name, bias = t.read(op, 0), bias_of(t, op, 2)
    if options.keepNumDims and len(source) > 2:
        result = t.node("MatMul", [name, _columns(t, op)])
        if bias:
            result = t.node("Add", [result, bias])
    else:
        rows = int(np.prod(source, dtype=np.int64)) // weights[1]
        if len(source) != 2 or source[1] != weights[1]:
            name = t.reshape(name, source, (rows, weights[1]))
        value = t.value(op, 1)
        matrix = t.read(op, 1) if value is None else t.constant(value)
        result = t.node("Gemm", [name, matrix, *([bias] if bias else [])], transB=1)
        if len(t.output(op).shape) != 2:
            result = t.reshape(result, (rows, weights[0]), t.output(op).shape)
    t.bind(op, rectified_by_range(t, op, t.activated(result, options.fusedActivationFunction)))


def _columns(t: Translation, op: TfliteOperator) -> str:
    value = t.value(op, 1)
    if value is None:
        return t.transpose(t.read(op, 1), (1, 0))
    return t.constant(np.ascontiguousarray(value.T))


def _batch_matmul(t: Translation, op: TfliteOperator) -> None:
    factors = []
    for position, is_turned in enumerate((op.options.adjX, op.options.adjY)):
        name = t.read(op, position)
        if is_turned:
            rank = len(t.shape(op, position))
            name = t.transpose(name, (*range(rank - 2), rank - 1, rank - 2))
        factors.append(name)
    t.bind(op, t.node("MatMul", factors))


def _sequence_lstm(t: Translation, op: TfliteOperator) -> None:
    """An LSTM over a sequence from a zero state; gates i, f, c, o become ONNX's i, o, f, c."""
    options = op.options
    if any(t.has(op, position) for position in (9, 10, 11, 16, 17, 20, 21, 22, 23)):
        raise UntranslatableError("it has peepholes, a projection or normalization")
    if options.cellClip or options.projClip:
        raise UntranslatableError("it clips its cells")
    if options.fusedActivationFunction != schema.ActivationFunctionType.TANH:
        raise UntranslatableError("its activation is not tanh")
    forget_last = (0, 3, 1, 2)
    weights = _stacked(t, op, [1 + gate for gate in forget_last])
    recurrent = _stacked(t, op, [5 + gate for gate in forget_last])
    bias = _stacked(t, op, [12 + gate for gate in forget_last])
    hidden = recurrent.shape[1]
    _sequence(t, op, "LSTM", weights, recurrent, bias, hidden_size=hidden)


def _sequence_rnn(t: Translation, op: TfliteOperator) -> None:
    activation = _ACTIVATIONS.get(op.options.fusedActivationFunction)
    if activation is None:
        raise UntranslatableError("its activation has no counterpart in ONNX")
    extra: dict[str, Any] = {"activations": [activation]}
    if activation == "Affine":
        extra.update(activation_alpha=[1.0], activation_beta=[0.0])
    weights, recurrent, bias = (_stacked(t, op, [position]) for position in (1, 2, 3))
    hidden = recurrent.shape[1]
    _sequence(t, op, "RNN", weights, recurrent, bias, hidden_size=hidden, **extra)


def _stacked(t: Translation, op: TfliteOperator, positions: Sequence[int]) -> Array:
    parts = []
    for position in positions:
        if not t.has(op, position):
            raise UntranslatableError("it couples its gates")
        value = t.value(op, position)
        if value is None:
            raise UntranslatableError("its weights are computed at run time")
        parts.append(value)
    return np.concatenate(parts)


def _sequence(
    t: Translation,
    op: TfliteOperator,
    op_type: str,
    weights: Array,
    recurrent: Array,
    bias: Array,
    **attributes: Any,
) -> None:
    source = t.read(op)
    if not op.options.timeMajor:
        source = t.transpose(source, (1, 0, 2))
    both = np.concatenate([bias, np.zeros_like(bias)])
    constants = [t.constant(item[None].astype(np.float32)) for item in (weights, recurrent, both)]
    result = t.node(op_type, [source, *constants], **attributes)
    result = t.node("Squeeze", [result, t.sizes([1])])
    t.bind(op, result if op.options.timeMajor else t.transpose(result, (1, 0, 2)))


RULES: Mapping[str, Any] = {
    "BATCH_MATMUL": _batch_matmul,
    "FULLY_CONNECTED": _fully_connected,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _sequence_lstm,
    "UNIDIRECTIONAL_SEQUENCE_RNN": _sequence_rnn,
}
"""How each kind of operator with matrix products is translated."""
