"""Translation of TFLite operators on values: arithmetic, activations, reductions, normalization."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto

from tightfit_service.adapters.formats.tflite_reader import TfliteOperator
from tightfit_service.adapters.formats.tflite_translation import (
    TO_NCHW,
    TO_NHWC,
    Translation,
    UntranslatableError,
    onnx_type,
)

_L2_FLOOR = 1e-6
"""TFLite's reference kernel divides by at least this norm."""


class _Unary:
    """One operator of ONNX on one input."""

    def __init__(self, op_type: str, **attributes: Any) -> None:
        self._op_type, self._attributes = op_type, attributes

    def __call__(self, t: Translation, op: TfliteOperator) -> None:
        """Translate one operator."""
        t.bind(op, t.node(self._op_type, [t.read(op)], **self._attributes))


class _Binary:
    """One operator of ONNX on two inputs, broadcast, with a fused activation where there is one."""

    def __init__(self, op_type: str) -> None:
        self._op_type = op_type

    def __call__(self, t: Translation, op: TfliteOperator) -> None:
        """Translate one operator."""
        result = t.node(self._op_type, [t.read(op, 0), t.read(op, 1)])
        t.bind(op, t.activated(result, getattr(op.options, "fusedActivationFunction", 0)))


class _Clipped:
    """An activation that clips."""

    def __init__(self, low: float, high: float) -> None:
        self._bounds = (low, high)

    def __call__(self, t: Translation, op: TfliteOperator) -> None:
        """Translate one operator."""
        bounds = [t.constant(item, np.float32) for item in self._bounds]
        t.bind(op, t.node("Clip", [t.read(op), *bounds]))


def _identity(t: Translation, op: TfliteOperator) -> None:
    """Between a float and a quantized tensor, which are the same real numbers here."""
    value = t.value(op, 0)
    if value is not None:
        t.bind(op, t.constant(value))
        return
    t.bind(op, t.node("Identity", [t.read(op)]))


def _squared_difference(t: Translation, op: TfliteOperator) -> None:
    difference = t.node("Sub", [t.read(op, 0), t.read(op, 1)])
    t.bind(op, t.node("Mul", [difference, difference]))


def _square(t: Translation, op: TfliteOperator) -> None:
    t.bind(op, t.node("Mul", [t.read(op), t.read(op)]))


def _rsqrt(t: Translation, op: TfliteOperator) -> None:
    t.bind(op, t.node("Reciprocal", [t.node("Sqrt", [t.read(op)])]))


def _zeros_like(t: Translation, op: TfliteOperator) -> None:
    t.bind(op, t.node("Sub", [t.read(op), t.read(op)]))


def _add_n(t: Translation, op: TfliteOperator) -> None:
    t.bind(op, t.node("Sum", [t.read(op, position) for position in range(len(op.inputs))]))


def _floor_div(t: Translation, op: TfliteOperator) -> None:
    if t.tensor(op, 0).is_real:
        t.bind(op, t.node("Floor", [t.node("Div", [t.read(op, 0), t.read(op, 1)])]))
        return
    # ONNX rounds quotients of integers towards zero.
    wide = [t.node("Cast", [t.read(op, i)], to=TensorProto.DOUBLE) for i in (0, 1)]
    quotient = t.node("Floor", [t.node("Div", wide)])
    t.bind(op, t.node("Cast", [quotient], to=onnx_type(t.output(op))))


def _floor_mod(t: Translation, op: TfliteOperator) -> None:
    left, right = t.read(op, 0), t.read(op, 1)
    if not t.tensor(op, 0).is_real:
        t.bind(op, t.node("Mod", [left, right]))
        return
    whole = t.node("Mul", [t.node("Floor", [t.node("Div", [left, right])]), right])
    t.bind(op, t.node("Sub", [left, whole]))


def _gelu(t: Translation, op: TfliteOperator) -> None:
    source = t.read(op)
    if op.options is not None and op.options.approximate:
        cube = t.node("Mul", [t.node("Mul", [source, source]), source])
        term = t.node("Mul", [cube, t.constant(0.044715, np.float32)])
        inner = t.node("Add", [source, term])
        scaled = t.node("Mul", [inner, t.constant(math.sqrt(2 / math.pi), np.float32)])
        gate = t.node("Tanh", [scaled])
    else:
        scaled = t.node("Div", [source, t.constant(math.sqrt(2), np.float32)])
        gate = t.node("Erf", [scaled])
    shifted = t.node("Add", [gate, t.constant(1.0, np.float32)])
    product = t.node("Mul", [source, shifted])
    t.bind(op, t.node("Mul", [product, t.constant(0.5, np.float32)]))


def _leaky_relu(t: Translation, op: TfliteOperator) -> None:
    t.bind(op, t.node("LeakyRelu", [t.read(op)], alpha=float(op.options.alpha)))


def _prelu(t: Translation, op: TfliteOperator) -> None:
    t.bind(op, t.node("PRelu", [t.read(op, 0), t.read(op, 1)]))


def _select(t: Translation, op: TfliteOperator) -> None:
    condition, like = t.shape(op, 0), t.shape(op, 1)
    fixed = t.value(op, 0)
    if fixed is not None and fixed.all() and like == t.output(op).shape:
        # A guard of litert-torch around positions, which marks those out of range by NaN.
        t.bind(op, t.node("Identity", [t.read(op, 1)]))
        return
    name = t.read(op, 0)
    if op.kind == "SELECT" and len(condition) == 1 and len(like) > 1:
        name = t.reshape(name, condition, (*condition, *(1,) * (len(like) - 1)))
    t.bind(op, t.node("Where", [name, t.read(op, 1), t.read(op, 2)]))


def _softmax(t: Translation, op: TfliteOperator) -> None:
    source = t.read(op)
    beta = float(op.options.beta) if op.options is not None else 1.0
    if beta != 1.0:
        source = t.node("Mul", [source, t.constant(beta, np.float32)])
    t.bind(op, t.node("Softmax", [source], axis=len(t.shape(op)) - 1))


def _log_softmax(t: Translation, op: TfliteOperator) -> None:
    t.bind(op, t.node("LogSoftmax", [t.read(op)], axis=len(t.shape(op)) - 1))


def _l2_normalization(t: Translation, op: TfliteOperator) -> None:
    source, axis = t.read(op), len(t.shape(op)) - 1
    norm = t.node("ReduceL2", [source], axes=[axis], keepdims=1)
    bounded = t.node("Max", [norm, t.constant(_L2_FLOOR, np.float32)])
    result = t.node("Div", [source, bounded])
    t.bind(op, t.activated(result, op.options.fusedActivationFunction))


def _local_response_normalization(t: Translation, op: TfliteOperator) -> None:
    options = op.options
    size = 2 * int(options.radius) + 1
    image = t.transpose(t.read(op), TO_NCHW)
    normed = t.node(
        "LRN",
        [image],
        size=size,
        # ONNX divides alpha by the size of the window, TFLite does not.
        alpha=float(options.alpha) * size,
        beta=float(options.beta),
        bias=float(options.bias),
    )
    t.bind(op, t.transpose(normed, TO_NHWC))


class _Reduction:
    """A reduction over constant axes."""

    def __init__(self, op_type: str) -> None:
        self._op_type = op_type

    def __call__(self, t: Translation, op: TfliteOperator) -> None:
        """Translate one operator."""
        rank = len(t.shape(op))
        axes = positive_axes(t.integers(op, 1), rank)
        keep = int(bool(op.options.keepDims))
        shape, source = t.shape(op), t.read(op)
        if rank > 1 and shape[0] == 1 and axes[:1] == [0]:
            # The batch of 1 goes: what it had is reduced sample by sample.
            left = self._reduced(t, source, axes[1:], keep) if axes[1:] else source
            sizes = tuple(size for axis, size in enumerate(shape) if axis not in axes[1:])
            t.bind(op, left if keep else t.reshape(left, sizes, t.output(op).shape))
            return
        pooled = (self._op_type, rank, axes, keep) == ("ReduceMean", 4, [1, 2], 0)
        result = self._reduced(t, source, axes, 1 if pooled else keep) if axes else source
        if pooled:
            # As other exporters spell pooling over the image.
            result = t.reshape(result, (shape[0], 1, 1, shape[3]), (shape[0], shape[3]))
        t.bind(op, result)

    def _reduced(self, t: Translation, source: str, axes: Sequence[int], keep: int) -> str:
        if self._op_type == "ReduceSum":
            return t.node("ReduceSum", [source, t.sizes(axes)], keepdims=keep)
        return t.node(self._op_type, [source], axes=list(axes), keepdims=keep)


class _LogicalReduction:
    """Any or all of booleans along constant axes, which ONNX has for numbers only."""

    def __init__(self, op_type: str) -> None:
        self._op_type = op_type

    def __call__(self, t: Translation, op: TfliteOperator) -> None:
        """Translate one operator."""
        axes = positive_axes(t.integers(op, 1), len(t.shape(op)))
        value = t.value(op, 0)
        if value is not None:
            found = (np.all if self._op_type == "ReduceMin" else np.any)(value, axis=tuple(axes))
            t.bind(op, t.constant(found.reshape(t.output(op).shape)))
            return
        numbers = t.node("Cast", [t.read(op)], to=TensorProto.INT32)
        keep = int(bool(op.options.keepDims))
        reduced = t.node(self._op_type, [numbers], axes=axes, keepdims=keep)
        t.bind(op, t.node("Cast", [reduced], to=TensorProto.BOOL))


class _ArgExtremum:
    """The position of the greatest or least value along a constant axis; the first of equals."""

    def __init__(self, op_type: str) -> None:
        self._op_type = op_type

    def __call__(self, t: Translation, op: TfliteOperator) -> None:
        """Translate one operator."""
        (axis,) = positive_axes(t.integers(op, 1), len(t.shape(op)))
        found = t.node(self._op_type, [t.read(op)], axis=axis, keepdims=0)
        wanted = onnx_type(t.output(op))
        if wanted != TensorProto.INT64:
            found = t.node("Cast", [found], to=wanted)
        t.bind(op, found)


def _cumsum(t: Translation, op: TfliteOperator) -> None:
    (axis,) = positive_axes(t.integers(op, 1), len(t.shape(op)))
    flags = {"exclusive": int(op.options.exclusive), "reverse": int(op.options.reverse)}
    t.bind(op, t.node("CumSum", [t.read(op), t.constant(axis, np.int64)], **flags))


def _top_k(t: Translation, op: TfliteOperator) -> None:
    (count,) = t.integers(op, 1)
    values, positions = t.nodes("TopK", [t.read(op), t.sizes([count])], 2, axis=-1)
    t.bind(op, values, 0)
    wanted = onnx_type(t.output(op, 1))
    if wanted != TensorProto.INT64:
        positions = t.node("Cast", [positions], to=wanted)
    t.bind(op, positions, 1)


def _cast(t: Translation, op: TfliteOperator) -> None:
    t.bind(op, t.node("Cast", [t.read(op)], to=onnx_type(t.output(op))))


def positive_axes(axes: Sequence[int], rank: int) -> list[int]:
    """Return axes counted from the front, each once.

    Raises:
        UntranslatableError: One is outside the rank.
    """
    if not all(-rank <= axis < rank for axis in axes):
        raise UntranslatableError(f"its axes {list(axes)[:8]} are outside of rank {rank}")
    return sorted({axis % rank for axis in axes})


RULES: Mapping[str, Any] = {
    "ABS": _Unary("Abs"),
    "ADD": _Binary("Add"),
    "ADD_N": _add_n,
    "ARG_MAX": _ArgExtremum("ArgMax"),
    "ARG_MIN": _ArgExtremum("ArgMin"),
    "CAST": _cast,
    "CEIL": _Unary("Ceil"),
    "COS": _Unary("Cos"),
    "CUMSUM": _cumsum,
    "DEQUANTIZE": _identity,
    "DIV": _Binary("Div"),
    "ELU": _Unary("Elu", alpha=1.0),
    "EQUAL": _Binary("Equal"),
    "EXP": _Unary("Exp"),
    "FLOOR": _Unary("Floor"),
    "FLOOR_DIV": _floor_div,
    "FLOOR_MOD": _floor_mod,
    "GELU": _gelu,
    "GREATER": _Binary("Greater"),
    "GREATER_EQUAL": _Binary("GreaterOrEqual"),
    "HARD_SWISH": _Unary("HardSwish"),
    "L2_NORMALIZATION": _l2_normalization,
    "LEAKY_RELU": _leaky_relu,
    "LESS": _Binary("Less"),
    "LESS_EQUAL": _Binary("LessOrEqual"),
    "LOCAL_RESPONSE_NORMALIZATION": _local_response_normalization,
    "LOG": _Unary("Log"),
    "LOGICAL_AND": _Binary("And"),
    "LOGICAL_NOT": _Unary("Not"),
    "LOGICAL_OR": _Binary("Or"),
    "LOGISTIC": _Unary("Sigmoid"),
    "LOG_SOFTMAX": _log_softmax,
    "MAXIMUM": _Binary("Max"),
    "MEAN": _Reduction("ReduceMean"),
    "MINIMUM": _Binary("Min"),
    "MUL": _Binary("Mul"),
    "NEG": _Unary("Neg"),
    "POW": _Binary("Pow"),
    "PRELU": _prelu,
    "QUANTIZE": _identity,
    "REDUCE_ALL": _LogicalReduction("ReduceMin"),
    "REDUCE_ANY": _LogicalReduction("ReduceMax"),
    "REDUCE_MAX": _Reduction("ReduceMax"),
    "REDUCE_MIN": _Reduction("ReduceMin"),
    "REDUCE_PROD": _Reduction("ReduceProd"),
    "RELU": _Unary("Relu"),
    "RELU6": _Clipped(0.0, 6.0),
    "RELU_0_TO_1": _Clipped(0.0, 1.0),
    "RELU_N1_TO_1": _Clipped(-1.0, 1.0),
    "ROUND": _Unary("Round"),
    "RSQRT": _rsqrt,
    "SELECT": _select,
    "SELECT_V2": _select,
    "SIGN": _Unary("Sign"),
    "SIN": _Unary("Sin"),
    "SOFTMAX": _softmax,
    "SQRT": _Unary("Sqrt"),
    "SQUARE": _square,
    "SQUARED_DIFFERENCE": _squared_difference,
    "SUB": _Binary("Sub"),
    "SUM": _Reduction("ReduceSum"),
    "TANH": _Unary("Tanh"),
    "TOPK_V2": _top_k,
    "ZEROS_LIKE": _zeros_like,
    "NOT_EQUAL": lambda t, op: t.bind(
        op, t.node("Not", [t.node("Equal", [t.read(op, 0), t.read(op, 1)])])
    ),
}
"""How each kind of operator on values is translated."""
