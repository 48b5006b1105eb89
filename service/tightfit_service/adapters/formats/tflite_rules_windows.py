"""Translation of TFLite operators with windows over images: convolution, pooling, resizing, blocks.

Paddings follow `ComputePaddingHeightWidth` of TFLite's kernels: SAME covers ceil(size / stride)
positions and puts the odd pixel at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tightfit_service.adapters.formats.tflite_reader import TfliteGraph, TfliteOperator
from tightfit_service.adapters.formats.tflite_translation import (
    Translation,
    UntranslatableError,
)
from tightfit_service.graph.structure import Array

_OHWI_TO_OIHW = (0, 3, 1, 2)
_OHWI_TO_IOHW = (3, 0, 1, 2)
_DEPTHWISE_TO_OIHW = (3, 0, 1, 2)
_CONVOLUTIONS = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D"})
_KEEPS_POSITIONS = frozenset(
    {
        "ADD",
        "SUB",
        "MUL",
        "RELU",
        "RELU6",
        "RELU_N1_TO_1",
        "LOGISTIC",
        "TANH",
        "HARD_SWISH",
        "PRELU",
    }
)


def same_padding(size: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """Return TFLite's SAME padding before and after along one axis, in pixels."""
    covered = -(-size // stride)
    total = max((covered - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


@dataclass(frozen=True, kw_only=True)
class Dilation:
    """A convolution that the file runs in blocks (SPACE_TO_BATCH_ND around it).

    Attributes:
        first: Operator that spreads the image.
        last: Operator that joins it.
        block: Dilation along height and width.
        pads: Padding before and after, height and width, that spreading added.
        crops: What joining takes off again.
    """

    first: int
    last: int
    block: tuple[int, int]
    pads: tuple[tuple[int, int], tuple[int, int]]
    crops: tuple[tuple[int, int], tuple[int, int]]


def find_dilations(graph: TfliteGraph) -> dict[int, Dilation]:
    """Return, by the index of the convolution, where blocks stand for a dilation.

    TensorFlow spelled every dilated convolution like this until TFLite 2.x had dilations.
    """
    readers: dict[int, list[TfliteOperator]] = {}
    for operator in graph.operators:
        for edge in set(operator.inputs):
            readers.setdefault(edge, []).append(operator)
    found = {}
    for spread in graph.operators:
        if spread.kind != "SPACE_TO_BATCH_ND" or not spread.outputs:
            continue
        chain = _chain(spread, readers, set(graph.outputs))
        if not chain:
            continue
        sizes = [_sizes(graph, op, i) for op in (spread, chain[-1]) for i in (1, 2)]
        if [len(item) for item in sizes] != [2, 4, 2, 4] or sizes[0] != sizes[2]:
            continue
        (block, pads, _, crops) = sizes
        if min(*block, 1) < 1 or min(*pads, *crops) < 0:
            continue
        found[chain[0].index] = Dilation(
            first=spread.index,
            last=chain[-1].index,
            block=(block[0], block[1]),
            pads=((pads[0], pads[1]), (pads[2], pads[3])),
            crops=((crops[0], crops[1]), (crops[2], crops[3])),
        )
    return found


def _chain(
    spread: TfliteOperator, readers: Mapping[int, list[TfliteOperator]], outputs: set[int]
) -> list[TfliteOperator]:
    """Return the convolution behind, what follows position by position, and what joins; or nothing."""
    chain: list[TfliteOperator] = []
    edge = spread.outputs[0]
    while edge not in outputs and len(readers.get(edge, ())) == 1:
        (reader,) = readers[edge]
        wanted = _KEEPS_POSITIONS | {"BATCH_TO_SPACE_ND"} if chain else _CONVOLUTIONS
        if reader.kind not in wanted or reader.inputs[0] != edge or len(reader.outputs) != 1:
            break
        if reader.inputs.count(edge) != 1 or len(chain) > 8:
            break
        chain.append(reader)
        if reader.kind == "BATCH_TO_SPACE_ND":
            return chain
        edge = reader.outputs[0]
    return []


def _sizes(graph: TfliteGraph, operator: TfliteOperator, position: int) -> list[int]:
    if position >= len(operator.inputs) or operator.inputs[position] < 0:
        return []
    stored = graph.tensors[operator.inputs[position]].stored()
    return [] if stored is None else [int(item) for item in stored.reshape(-1)]


def conv_2d(t: Translation, op: TfliteOperator, dilation: Dilation | None = None) -> None:
    """Translate a convolution; with a dilation, one that reads the image before it was spread."""
    kernel, channels = t.shape(op, 1), t.shape(op, 0)[3]
    groups, odd = divmod(channels, kernel[3])
    if odd:
        raise UntranslatableError("its weights do not fit its input's channels")
    _convolve(t, op, _weights(t, op, _OHWI_TO_OIHW), kernel[1:3], groups, dilation)


def depthwise_conv_2d(t: Translation, op: TfliteOperator, dilation: Dilation | None = None) -> None:
    """Translate a depthwise convolution (see `conv_2d`); its weights are (1, height, width, out)."""
    kernel, channels = t.shape(op, 1), t.shape(op, 0)[3]
    _convolve(t, op, _weights(t, op, _DEPTHWISE_TO_OIHW), kernel[1:3], channels, dilation)


def _convolve(
    t: Translation,
    op: TfliteOperator,
    weights: str,
    kernel: tuple[int, ...],
    groups: int,
    dilation: Dilation | None,
) -> None:
    options = op.options
    strides = [options.strideH, options.strideW]
    dilations = [options.dilationHFactor, options.dilationWFactor]
    if dilation is not None and (strides != [1, 1] or dilations != [1, 1]):
        raise UntranslatableError("it has strides within SPACE_TO_BATCH_ND")
    is_same = options.padding == schema.Padding.SAME
    pads = []
    for axis in (0, 1):
        size = t.shape(op, 0)[1 + axis]
        both = (
            same_padding(size, kernel[axis], strides[axis], dilations[axis]) if is_same else (0, 0)
        )
        if dilation is not None:
            both = _unrolled_padding(both, dilation, axis)
        pads.append(both)
    if dilation is not None:
        dilations = list(dilation.block)
    inputs = [t.read(op, 0), weights, *_bias(t, op)]
    result = t.in_nchw(
        "Conv",
        inputs,
        kernel_shape=list(kernel),
        strides=strides,
        dilations=dilations,
        pads=[pads[0][0], pads[1][0], pads[0][1], pads[1][1]],
        group=groups,
    )
    t.bind(op, rectified_by_range(t, op, t.activated(result, options.fusedActivationFunction)))


def _unrolled_padding(within: tuple[int, int], dilation: Dilation, axis: int) -> tuple[int, int]:
    step, pads, crops = dilation.block[axis], dilation.pads[axis], dilation.crops[axis]
    before = pads[0] + within[0] * step - crops[0]
    after = pads[1] + within[1] * step - crops[1]
    if before < 0 or after < 0:
        raise UntranslatableError("its blocks are cropped by more than was padded")
    return before, after


def _weights(t: Translation, op: TfliteOperator, order: tuple[int, ...]) -> str:
    value = t.value(op, 1)
    if value is None:
        return t.transpose(t.read(op, 1), order)
    return t.constant(np.ascontiguousarray(value.transpose(order)))


def _bias(t: Translation, op: TfliteOperator, position: int = 2) -> list[str]:
    return [bias] if (bias := bias_of(t, op, position)) else []


def bias_of(t: Translation, op: TfliteOperator, position: int) -> str:
    """Return the bias as real numbers, or "" where there is none.

    Integer biases have the scale of input times weights, which some converters do not write down.
    """
    if not t.has(op, position):
        return ""
    bias = t.tensor(op, position)
    source, weights = t.tensor(op, 0).quantization, t.tensor(op, 1).quantization
    if not bias.is_real:
        stored = bias.stored()
        if stored is None or source is None or weights is None:
            raise UntranslatableError("its bias has integers without a scale")
        scales = source.scales[0].astype(np.float64) * weights.scales
        return t.constant((stored * scales).astype(np.float32))
    return t.read(op, position)


def rectified_by_range(t: Translation, op: TfliteOperator, name: str) -> str:
    """Add the ReLU that a quantized output implies whose least level stands for zero."""
    output = t.output(op)
    quantization = output.quantization
    if not output.is_integer_code or quantization is None:
        return name
    is_bare = op.options.fusedActivationFunction == schema.ActivationFunctionType.NONE
    starts_at_zero = int(quantization.zero_points[0]) == output.levels[0]
    if is_bare and starts_at_zero and len(quantization.scales) == 1:
        return t.node("Relu", [name])
    return name


def _transpose_conv(t: Translation, op: TfliteOperator) -> None:
    options = op.options
    kernel, out = t.shape(op, 1)[1:3], t.output(op).shape[1:3]
    size = t.shape(op, 2)[1:3]
    strides = [options.strideH, options.strideW]
    begins, ends, missing = [], [], []
    for axis in (0, 1):
        before = 0
        if options.padding == schema.Padding.SAME:
            before = same_padding(out[axis], kernel[axis], strides[axis])[0]
        full = strides[axis] * (size[axis] - 1) + kernel[axis]
        after = full - before - out[axis]
        begins.append(before)
        ends.append(max(after, 0))
        missing.append(max(-after, 0))
    if any(count >= max(step, 1) for count, step in zip(missing, strides, strict=True)):
        raise UntranslatableError("its output is larger than its input reaches")
    value = t.value(op, 1)
    if value is None:
        weights = t.transpose(t.read(op, 1), _OHWI_TO_IOHW)
    else:
        weights = t.constant(np.ascontiguousarray(value.transpose(_OHWI_TO_IOHW)))
    result = t.in_nchw(
        "ConvTranspose",
        [t.read(op, 2), weights, *_bias(t, op, 3)],
        kernel_shape=list(kernel),
        strides=strides,
        pads=[*begins, *ends],
        output_padding=missing,
    )
    t.bind(op, t.activated(result, options.fusedActivationFunction))


def _pool(t: Translation, op: TfliteOperator) -> None:
    options, size = op.options, t.shape(op)[1:3]
    kernel = [options.filterHeight, options.filterWidth]
    strides = [options.strideH, options.strideW]
    pads = [(0, 0), (0, 0)]
    if options.padding == schema.Padding.SAME:
        pads = [same_padding(size[i], kernel[i], strides[i]) for i in (0, 1)]
    window: dict[str, Any] = {
        "kernel_shape": kernel,
        "strides": strides,
        "pads": [pads[0][0], pads[1][0], pads[0][1], pads[1][1]],
    }
    source = t.read(op)
    if op.kind == "MAX_POOL_2D":
        result = t.in_nchw("MaxPool", [source], **window)
    elif op.kind == "L2_POOL_2D":
        squares = t.node("Mul", [source, source])
        result = t.node("Sqrt", [t.in_nchw("AveragePool", [squares], **window)])
    elif list(size) == kernel and t.output(op).shape[1:3] == (1, 1):
        result = t.in_nchw("GlobalAveragePool", [source])
    else:
        result = t.in_nchw("AveragePool", [source], **window)
    t.bind(op, t.activated(result, options.fusedActivationFunction))


def _resize(t: Translation, op: TfliteOperator) -> None:
    options = op.options
    is_nearest = op.kind == "RESIZE_NEAREST_NEIGHBOR"
    coordinates = "asymmetric"
    if options.alignCorners:
        coordinates = "align_corners"
    elif options.halfPixelCenters:
        coordinates = "half_pixel"
    settings: dict[str, Any] = {
        "mode": "nearest" if is_nearest else "linear",
        "coordinate_transformation_mode": coordinates,
    }
    if is_nearest:
        settings["nearest_mode"] = "floor" if coordinates == "asymmetric" else "round_prefer_ceil"
    before, after = t.shape(op)[1:3], t.output(op).shape[1:3]
    scales = [1.0, 1.0, *(_scale(b, a) for b, a in zip(before, after, strict=True))]
    scale = t.constant(scales, np.float32)
    t.bind(op, t.in_nchw("Resize", [t.read(op), "", scale], **settings))


def _scale(before: int, after: int) -> np.float32:
    """Return the float32 scale next to the exact one that gives the wanted size, rounded down."""
    scale = np.float32(after / before)
    while int(before * float(scale)) < after:
        scale = np.nextafter(scale, np.float32(np.inf))
    return scale


def _space_to_depth(t: Translation, op: TfliteOperator) -> None:
    t.bind(op, t.in_nchw("SpaceToDepth", [t.read(op)], blocksize=int(op.options.blockSize)))


def _depth_to_space(t: Translation, op: TfliteOperator) -> None:
    block = int(op.options.blockSize)
    t.bind(op, t.in_nchw("DepthToSpace", [t.read(op)], blocksize=block, mode="DCR"))


def _conv_3d(t: Translation, op: TfliteOperator) -> None:
    options, size = op.options, t.shape(op)[1:4]
    kernel = t.shape(op, 1)[:3]
    strides = [options.strideD, options.strideH, options.strideW]
    dilations = [options.dilationDFactor, options.dilationHFactor, options.dilationWFactor]
    pads = [(0, 0)] * 3
    if options.padding == schema.Padding.SAME:
        pads = [same_padding(size[i], kernel[i], strides[i], dilations[i]) for i in range(3)]
    weights: Array | None = t.value(op, 1)
    if weights is None:
        raise UntranslatableError("its weights are computed at run time")
    volume = t.transpose(t.read(op), (0, 4, 1, 2, 3))
    result = t.node(
        "Conv",
        [volume, t.constant(np.ascontiguousarray(weights.transpose(4, 3, 0, 1, 2))), *_bias(t, op)],
        kernel_shape=list(kernel),
        strides=strides,
        dilations=dilations,
        pads=[*(p[0] for p in pads), *(p[1] for p in pads)],
    )
    back = t.transpose(result, (0, 2, 3, 4, 1))
    t.bind(op, t.activated(back, options.fusedActivationFunction))


RULES: Mapping[str, Any] = {
    "AVERAGE_POOL_2D": _pool,
    "CONV_2D": conv_2d,
    "CONV_3D": _conv_3d,
    "DEPTHWISE_CONV_2D": depthwise_conv_2d,
    "DEPTH_TO_SPACE": _depth_to_space,
    "L2_POOL_2D": _pool,
    "MAX_POOL_2D": _pool,
    "RESIZE_BILINEAR": _resize,
    "RESIZE_NEAREST_NEIGHBOR": _resize,
    "SPACE_TO_DEPTH": _space_to_depth,
    "TRANSPOSE_CONV": _transpose_conv,
}
"""How each kind of operator with windows is translated."""
