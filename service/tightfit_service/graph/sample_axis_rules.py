"""Rules that follow the samples through operators with axes of their own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from onnx import NodeProto

from tightfit_service.graph.sample_axis import (
    FRONT,
    NoPlaceError,
    SampleAxes,
    layout_of,
    moved,
)
from tightfit_service.graph.sample_axis_lookups import gather, gather_elements, gather_nd
from tightfit_service.graph.structure import attribute

Rule = Callable[[SampleAxes, NodeProto], None]
_SOFTMAX_ALONG_ONE_AXIS = 13
"""Since this opset a Softmax works along one axis; before, along all from it on."""


def _constant_integers(g: SampleAxes, node: NodeProto, index: int) -> list[int] | None:
    """Return the values of an input, None where it is left out."""
    if index >= len(node.input) or not node.input[index]:
        return None
    if node.input[index] not in g.constants:
        raise NoPlaceError(f"its input {node.input[index]!r} is computed")
    return [int(item) for item in g.constants[node.input[index]].reshape(-1)]


def _only_data(g: SampleAxes, node: NodeProto) -> None:
    for name in node.input[1:]:
        if g.has_samples(name):
            raise NoPlaceError(f"its input {name!r} differs between samples")


def elementwise(g: SampleAxes, node: NodeProto) -> None:
    """One tensor, value by value; further inputs are bounds and the like."""
    _only_data(g, node)
    g.emit(node, [g.home(node.input[0])[1], *node.input[1:]], g.place(node.input[0]))


def broadcasting(g: SampleAxes, node: NodeProto) -> None:
    """Several tensors, value by value."""
    rank = len(g.shapes[node.output[0]])
    place = g.common_place(node.input, rank)
    g.emit(node, [g.aligned(name, rank, place) for name in node.input], place)


def matmul(g: SampleAxes, node: NodeProto) -> None:
    """A matrix per sample, or rows per sample and one matrix for all."""
    left, right = (g.shapes[name] for name in node.input)
    rank = len(g.shapes[node.output[0]])
    if len(right) == 2 and not g.has_samples(node.input[1]):
        place = g.place_beside(node.input[0], [len(left) - 1])
        g.emit(node, [g.view(node.input[0], place), node.input[1]], place)
        return
    if min(len(left), len(right)) < 2:
        raise NoPlaceError("it multiplies with a vector")
    place = g.common_place(node.input, rank, barred=(rank - 2, rank - 1))
    g.emit(node, [g.aligned(name, rank, place) for name in node.input], place)


def gemm(g: SampleAxes, node: NodeProto) -> None:
    """A dense layer over one row per sample stays; over several it becomes MatMul and Add."""
    data, weights, *bias = node.input
    if g.has_samples(weights) or any(g.has_samples(name) for name in bias):
        raise NoPlaceError("its weights differ between samples")
    rows = g.shapes[data][0]
    flat_bias = all(math.prod(g.shapes[name]) == (g.shapes[name] or (1,))[-1] for name in bias)
    if attribute(node, "transA", 0) == 0 and rows == 1 and flat_bias:
        g.emit(node, [g.view(data, 0), weights, *bias], 0)
        return
    factors = (attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0))
    if attribute(node, "transA", 0) or factors != (1.0, 1.0) or weights not in g.constants:
        raise NoPlaceError("it transposes or scales what differs between samples")
    place = g.place_beside(data, [1])
    matrix = weights
    if attribute(node, "transB", 0):
        matrix = g.constant(f"{weights}.transposed", g.constants[weights].T)
    inputs = [g.view(data, place), matrix]
    if not bias:
        g.define(node.output[0], g.emit_plain("MatMul", inputs), place)
        return
    product = g.emit_plain("MatMul", inputs)
    g.define(node.output[0], g.emit_plain("Add", [product, bias[0]]), place)


def samplewise(g: SampleAxes, node: NodeProto) -> None:
    """Operators that are made for batches: images that are more than one per sample join them."""
    _only_data(g, node)
    data = node.input[0]
    count = g.shapes[data][0]
    if count == 1:
        g.emit(node, [g.view(data, 0), *node.input[1:]], 0)
        return
    if len(node.output) != 1:
        raise NoPlaceError("it has several outputs")
    image, result = g.shapes[data][1:], g.shapes[node.output[0]]
    merged = g.reshaped(g.view(data, FRONT), (-1, count, *image), (-1, *image))
    g.emit(node, [merged, *node.input[1:]], 0)
    split = g.reshaped(node.output[0], (-1, *result[1:]), (-1, *result))
    g.define(node.output[0], split, FRONT)


def reshape(g: SampleAxes, node: NodeProto) -> None:
    """Reshape, Flatten, Squeeze and Unsqueeze: memory stays, and the samples with it."""
    data, result = node.input[0], g.shapes[node.output[0]]
    layout, physical = g.home(data)
    outside = math.prod(layout[: layout.index(-1)])
    reached = [math.prod(result[:axis]) for axis in range(len(result))]
    fits = [a for a, size in enumerate(result) if size == 1 and reached[a] == outside]
    place = fits[0] if fits else 0 if result[:1] == (1,) else FRONT
    if not fits and outside != 1:
        physical, layout = g.view(data, FRONT), layout_of(g.shapes[data], FRONT)
    wanted = layout_of(result, place)
    if wanted != layout:
        physical = g.reshaped(physical, layout, wanted)
    g.define(node.output[0], physical, place)


def transpose(g: SampleAxes, node: NodeProto) -> None:
    """The samples go where their axis goes."""
    data = node.input[0]
    order = attribute(node, "perm") or list(range(len(g.shapes[node.input[0]])))[::-1]
    place = g.place(data)
    if place == FRONT:
        g.emit(node, [g.home(data)[1]], FRONT, perm=[0, *(axis + 1 for axis in order)])
    else:
        g.emit(node, [g.home(data)[1]], order.index(place))


def concat(g: SampleAxes, node: NodeProto) -> None:
    """What is the same for all samples is added into zeros: x + 0 is exact."""
    rank = len(g.shapes[node.input[0]])
    axis = int(attribute(node, "axis", 0)) % rank
    place = g.common_place(node.input, rank, barred=(axis,))
    along = axis + (place == FRONT)
    width = rank + (place == FRONT)
    if all(g.has_samples(name) for name in node.input):
        g.emit(node, [g.view(name, place) for name in node.input], place, axis=along)
        return
    if any(not g.has_samples(name) and name not in g.constants for name in node.input):
        raise NoPlaceError("it joins what differs between samples with computed values")
    kind = next(g.constants[name] for name in node.input if name in g.constants).dtype
    whole = np.concatenate(
        [g.constants.get(name, np.zeros(g.shapes[name], kind)) for name in node.input], axis
    )
    parts: list[str] = []
    waiting = 0
    amounts: list[list[int]] = []
    for name in node.input:
        size = g.shapes[name][axis]
        if g.has_samples(name):
            parts.append(g.view(name, place))
            amounts.append([waiting, 0])
            waiting = 0
        elif amounts:
            amounts[-1][1] += size
        else:
            waiting += size
    for index, (before, behind) in enumerate(amounts):
        if before or behind:
            pads = [0] * (2 * width)
            pads[along], pads[width + along] = before, behind
            parts[index] = g.emit_plain("Pad", [parts[index], g.sizes(f"{node.name}.pads", pads)])
    joined = g.emit_plain("Concat", parts, axis=along) if len(parts) > 1 else parts[0]
    constant = g.constant(f"{node.name}.constant", whole)
    g.define(node.output[0], g.emit_plain("Add", [joined, constant]), place)


def along_axis(g: SampleAxes, node: NodeProto) -> None:
    """Split and TopK: one axis, named by an attribute, stays an axis."""
    _only_data(g, node)
    axis = int(attribute(node, "axis", 0 if node.op_type == "Split" else -1)) % len(
        g.shapes[node.input[0]]
    )
    place = g.place_beside(node.input[0], [axis])
    inputs = [g.view(node.input[0], place), *node.input[1:]]
    g.emit(node, inputs, place, axis=moved([axis], place)[0])


def from_axis_on(g: SampleAxes, node: NodeProto) -> None:
    """Softmax and layer normalisation."""
    _only_data(g, node)
    rank = len(g.shapes[node.input[0]])
    old = node.op_type != "LayerNormalization" and g.opset < _SOFTMAX_ALONG_ONE_AXIS
    axis = int(attribute(node, "axis", 1 if old else -1)) % rank
    many = old or node.op_type == "LayerNormalization"
    place = g.place_beside(node.input[0], range(axis, rank) if many else [axis])
    inputs = [g.view(node.input[0], place), *node.input[1:]]
    g.emit(node, inputs, place, axis=moved([axis], place)[0])


def cumulative(g: SampleAxes, node: NodeProto) -> None:
    """A running sum, whose axis is an input."""
    _only_data(g, node)
    axes = [axis % len(g.shapes[node.input[0]]) for axis in _constant_integers(g, node, 1) or [0]]
    place = g.place_beside(node.input[0], axes)
    axis = g.constant(f"{node.name}.axis", np.asarray(moved(axes, place)[0], dtype=np.int64))
    g.emit(node, [g.view(node.input[0], place), axis], place)


def reduction(g: SampleAxes, node: NodeProto) -> None:
    """Sums, means and the like, within each sample."""
    rank = len(g.shapes[node.input[0]])
    single = node.op_type in {"ArgMax", "ArgMin"}
    listed = _constant_integers(g, node, 1) or attribute(node, "axes")
    if single:
        listed = [int(attribute(node, "axis", 0))]
    if not listed and attribute(node, "noop_with_empty_axes", 0):
        elementwise(g, node)
        return
    axes = [axis % rank for axis in listed] if listed else list(range(rank))
    place = g.place_beside(node.input[0], axes)
    renamed = moved(axes, place)
    left = place
    if place != FRONT and not attribute(node, "keepdims", 1):
        left -= sum(axis < place for axis in axes)
    inputs = [g.view(node.input[0], place)]
    if single:
        g.emit(node, inputs, left, axis=renamed[0])
    elif g.opset >= (13 if node.op_type == "ReduceSum" else 18):  # which have axes as an input
        g.emit(node, [*inputs, g.sizes(f"{node.name}.axes", renamed)], left)
    else:
        g.emit(node, inputs, left, axes=renamed)


def pad(g: SampleAxes, node: NodeProto) -> None:
    """Nothing is padded along the samples."""
    _only_data(g, node)
    amounts = _constant_integers(g, node, 1)
    if amounts is None or len(node.input) > 3:
        raise NoPlaceError("its amounts are computed, or for chosen axes")
    rank = len(g.shapes[node.input[0]])
    padded = [axis for axis in range(rank) if amounts[axis] or amounts[rank + axis]]
    place = g.place_beside(node.input[0], padded)
    if place == FRONT:
        amounts = [0, *amounts[:rank], 0, *amounts[rank:]]
    inputs = [g.view(node.input[0], place), g.sizes(f"{node.name}.pads", amounts)]
    g.emit(node, [*inputs, *node.input[2:]], place)


def cut(g: SampleAxes, node: NodeProto) -> None:
    """Slice: what it takes whole along the samples' axis is not cut there."""
    _only_data(g, node)
    starts, ends, axes, steps = (_constant_integers(g, node, index) for index in range(1, 5))
    if starts is None or ends is None:
        raise NoPlaceError("its ends are computed")
    data, rank = node.input[0], len(g.shapes[node.input[0]])
    axes = [axis % rank for axis in axes] if axes else list(range(len(starts)))
    rows = list(zip(starts, ends, axes, steps or [1] * len(starts), strict=True))
    place = g.place(data)
    whole = place != FRONT and g.shapes[node.output[0]][place] == 1
    if whole:
        rows = [row for row in rows if row[2] != place]
    else:
        place = g.place_beside(data, axes)
    if not rows:
        g.define(node.output[0], g.view(data, place), place)
        return
    rows = [(a, b, axis + (place == FRONT), step) for a, b, axis, step in rows]
    inputs = [g.sizes(f"{node.name}.rows", column) for column in zip(*rows, strict=True)]
    g.emit(node, [g.view(data, place), *inputs], place)


def expand(g: SampleAxes, node: NodeProto) -> None:
    """Expand and Tile: repeated within each sample."""
    target = _constant_integers(g, node, 1)
    if target is None:
        raise NoPlaceError("its sizes are computed")
    rank = len(g.shapes[node.output[0]])
    target = [1] * (rank - len(target)) + target
    barred = [axis for axis, size in enumerate(target) if size != 1]
    place = g.common_place(node.input[:1], rank, barred=barred)
    if place == FRONT:
        target = [1, *target]
    data = g.aligned(node.input[0], rank, place)
    g.emit(node, [data, g.sizes(f"{node.name}.sizes", target)], place)


def recurrent(g: SampleAxes, node: NodeProto) -> None:
    """Layers over time, whose batch is the second axis (`layout` 0) and that of states as well."""
    if attribute(node, "layout", 0):
        raise NoPlaceError("its layout has the batch first")
    inputs = list(node.input)
    for index, name in enumerate(inputs):
        if not name:
            continue
        if index in {0, 5, 6} and g.has_samples(name) and g.shapes[name][1] == 1:
            inputs[index] = g.view(name, 1)
        elif index in {0, 5, 6} or g.has_samples(name):
            raise NoPlaceError("its first state is a constant, or its weights differ")
    g.emit(node, inputs, [2, 1, 1][: len(node.output)])


def sizes(g: SampleAxes, node: NodeProto) -> None:
    """The shape of one sample, as it was."""
    shape = list(g.shapes[node.input[0]])
    end = attribute(node, "end")
    value = np.asarray(shape[slice(attribute(node, "start", 0), end)], dtype=np.int64)
    if node.op_type == "Size":
        value = np.asarray(math.prod(shape), dtype=np.int64)
    g.emit_plain("Identity", [g.constant(f"{node.name}.value", value)], result=node.output[0])


# fmt: off
RULES: Mapping[str, Rule] = {
    **dict.fromkeys((
        "Abs", "Acos", "Asin", "Atan", "Cast", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Dropout",
        "Elu", "Erf", "Exp", "Floor", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN",
        "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid",
        "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Tan", "Tanh", "ThresholdedRelu",
    ), elementwise),
    **dict.fromkeys((
        "Add", "And", "BitShift", "Div", "Equal", "Greater", "GreaterOrEqual", "Less",
        "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum",
        "Where", "Xor",
    ), broadcasting),
    **dict.fromkeys((
        "AveragePool", "BatchNormalization", "Conv", "ConvTranspose", "DepthToSpace",
        "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "InstanceNormalization", "LRN",
        "LpPool", "MaxPool", "Resize", "SpaceToDepth", "Upsample",
    ), samplewise),
    **dict.fromkeys((
        "ArgMax", "ArgMin", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
        "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
    ), reduction),
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), reshape),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), recurrent),
    **dict.fromkeys(("LayerNormalization", "LogSoftmax", "Softmax"), from_axis_on),
    **dict.fromkeys(("Shape", "Size"), sizes),
    **dict.fromkeys(("Split", "TopK"), along_axis),
    **dict.fromkeys(("Expand", "Tile"), expand),
    "Concat": concat,
    "CumSum": cumulative,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "Gemm": gemm,
    "MatMul": matmul,
    "Pad": pad,
    "Slice": cut,
    "Transpose": transpose,
}
# fmt: on
"""How the samples pass each operator, by type."""
