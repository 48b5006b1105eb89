"""Multiply-accumulates of operators, by the shapes of their tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from onnx import NodeProto

from tightfit_service.graph.structure import Shape, attribute

Shapes = Mapping[str, Shape]

WEIGHT_INPUTS: Mapping[str, int] = {
    "Conv": 1,
    "ConvInteger": 1,
    "ConvTranspose": 1,
    "DeformConv": 1,
    "Einsum": 1,
    "Gemm": 1,
    "MatMul": 1,
    "MatMulInteger": 1,
    "QLinearConv": 3,
    "QLinearMatMul": 3,
}
"""Which input of a product holds the weights."""
BUTTERFLY_MACS = 4
"""Real products of a complex one, the only one in each butterfly of a transform of radix 2."""


def weight_of(node: NodeProto) -> str:
    """Return the name of a product's second factor, "" where the node is no product of two."""
    index = WEIGHT_INPUTS.get(node.op_type)
    return node.input[index] if index is not None and index < len(node.input) else ""


def dense_widths(node: NodeProto, shapes: Shapes) -> tuple[int, int]:
    """Return how many values go in and come out of a layer that multiplies rows with one matrix."""
    if node.op_type == "Einsum":
        return einsum_widths(node, shapes) or (0, 0)
    rows, columns = shapes[weight_of(node)]
    return (columns, rows) if attribute(node, "transB", 0) else (rows, columns)


def macs_of(node: NodeProto, shapes: Shapes) -> int:
    """Return the multiply-accumulates of a node at batch 1; 0 where nothing is multiplied and summed.

    Interpolation, normalization and pooling have none: emulators cost them by their elements. A node whose
    shapes are not known, and the bodies of `If`, `Loop` and `Scan`, count as none.
    """
    rule = _RULES.get(node.op_type)
    if rule is None:
        return 0
    try:
        return rule(node, shapes)
    except KeyError:
        return 0


def matrices_of(node: NodeProto, shapes: Shapes) -> tuple[int, ...]:
    """Return how many products of two matrices a MatMul is, and the rows and columns of each result.

    Products with one and the same second matrix are one of more rows. Empty for all other nodes, and where
    shapes are not known.
    """
    if _RULES.get(node.op_type) is not _matmul:
        return ()
    second, result = shapes.get(weight_of(node)), shapes.get(node.output[0])
    if second is None or result is None:
        return ()
    count = math.prod(second[:-2])
    columns = second[-1] if len(second) > 1 else 1
    return count, math.prod(result) // (count * columns), columns


def einsum_macs(node: NodeProto, shapes: Shapes) -> int:
    """Return the multiply-accumulates of an Einsum, its operands multiplied from left to right.

    A pair costs the sizes of all its axes multiplied, where an axis is summed over; the letters of `...`
    are axes as well. Products without a sum are element by element, and have none.
    """
    terms, result = _einsum_axes(node, shapes)
    sizes = _einsum_sizes(node, terms, shapes)
    macs, current = 0, frozenset(terms[0])
    for index, term in enumerate(terms[1:], start=2):
        joined = current | set(term)
        current = joined & {*result, *(axis for later in terms[index:] for axis in later)}
        if current != joined:
            macs += math.prod(sizes[axis] for axis in joined)
    return macs


def einsum_widths(node: NodeProto, shapes: Shapes) -> tuple[int, int] | None:
    """Return the widths of an Einsum that is a dense layer: rows times a matrix that is its last operand.

    None for all others.
    """
    terms, result = _einsum_axes(node, shapes)
    if len(terms) != 2 or len(terms[1]) != 2:
        return None
    data, weight = terms
    summed = [axis for axis in weight if axis in data and axis not in result]
    made = [axis for axis in weight if axis in result and axis not in data]
    kept = [axis for axis in data if axis not in summed]
    if len(summed) != 1 or len(made) != 1 or not set(kept) <= set(result):
        return None
    sizes = _einsum_sizes(node, terms, shapes)
    return sizes[summed[0]], sizes[made[0]]


def _einsum_axes(node: NodeProto, shapes: Shapes) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """Return the axes of the operands and of the result; those of `...` are numbered from behind."""
    equation = str(attribute(node, "equation", "")).replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = [
        _axes(text, len(shapes[name]))
        for text, name in zip(left.split(","), node.input, strict=False)
    ]
    unnamed = max(
        (tuple(axis for axis in term if axis.isdigit()) for term in terms), key=len, default=()
    )
    if not arrow:
        letters = [axis for term in terms for axis in term if not axis.isdigit()]
        return terms, (*unnamed, *(axis for axis in sorted(letters) if letters.count(axis) == 1))
    result = tuple(
        axis for text in right.replace("...", ".") for axis in (unnamed if text == "." else text)
    )
    return terms, result


def _axes(text: str, rank: int) -> tuple[str, ...]:
    before, dots, behind = text.partition("...")
    count = rank - len(before) - len(behind) if dots else 0
    return (*before, *(str(count - 1 - index) for index in range(count)), *behind)


def _einsum_sizes(
    node: NodeProto, terms: Sequence[Sequence[str]], shapes: Shapes
) -> Mapping[str, int]:
    sizes: dict[str, int] = {}
    for term, name in zip(terms, node.input, strict=False):
        for axis, size in zip(term, shapes[name], strict=False):
            sizes[axis] = max(sizes.get(axis, 1), size)
    return sizes


def _convolution(node: NodeProto, shapes: Shapes) -> int:
    return math.prod(shapes[node.output[0]]) * math.prod(shapes[weight_of(node)][1:])


def _transposed_convolution(node: NodeProto, shapes: Shapes) -> int:
    return math.prod(shapes[node.input[0]]) * math.prod(shapes[weight_of(node)][1:])


def _gemm(node: NodeProto, shapes: Shapes) -> int:
    return math.prod(shapes[node.output[0]]) * dense_widths(node, shapes)[0]


def _matmul(node: NodeProto, shapes: Shapes) -> int:
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]


def _recurrent(node: NodeProto, shapes: Shapes) -> int:
    """One product with the input and one with the state per step of the sequence (axis 0)."""
    steps = shapes[node.input[0]][0] * shapes[node.input[0]][1]
    return steps * sum(math.prod(shapes[name]) for name in node.input[1:3] if name in shapes)


def _attention(node: NodeProto, shapes: Shapes) -> int:
    """Scores of queries and keys, then values weighted by them; heads side by side or an axis (ONNX 23)."""
    query, key, value = (shapes[name] for name in node.input[:3])
    if len(query) == len(value) == 3:
        heads = int(attribute(node, "q_num_heads", 1))
        width = value[2] // int(attribute(node, "kv_num_heads", heads))
        queries, keys, deep = query[1], key[1], query[2]
    else:
        heads, queries, keys = query[1], query[2], key[2]
        width, deep = value[3], heads * query[3]
    if len(node.input) > 4 and node.input[4]:
        keys += shapes[node.input[4]][2]
    return query[0] * queries * keys * (deep + heads * width)


def _fourier_transform(node: NodeProto, shapes: Shapes) -> int:
    source, result = shapes[node.input[0]], shapes[node.output[0]]
    # an attribute before opset 20, an input since
    axis = int(attribute(node, "axis", -2 if len(node.input) > 2 else 1)) % len(source)
    others = math.prod(source[:-1]) // source[axis]
    return others * transform_macs(max(source[axis], result[axis]))


def _short_time_transform(node: NodeProto, shapes: Shapes) -> int:
    _, frames, bins, _ = shapes[node.output[0]]
    length = shapes[node.input[2]][0] if len(node.input) > 2 and node.input[2] else 0
    if not length:
        length = 2 * (bins - 1) if attribute(node, "onesided", 1) else bins
    return frames * transform_macs(length)


def transform_macs(points: int) -> int:
    """Return the real products of a discrete Fourier transform.

    Powers of two by J. Cooley and J. Tukey, "An algorithm for the machine calculation of complex Fourier series",
    1965: half as many butterflies as points, per octave. Others by L. Bluestein, "A linear filtering approach to
    the computation of discrete Fourier transform", 1970: three transforms of the next power of two that holds
    both sequences, as onnxruntime does.
    """
    if points < 2:
        return 0
    octaves = (points - 1).bit_length()
    if points == 1 << octaves:
        return BUTTERFLY_MACS * points // 2 * octaves
    return 3 * transform_macs(1 << (2 * points - 2).bit_length())


_RULES: Mapping[str, Callable[[NodeProto, Shapes], int]] = {
    **dict.fromkeys(("Conv", "ConvInteger", "DeformConv", "QLinearConv"), _convolution),
    **dict.fromkeys(("MatMul", "MatMulInteger", "QLinearMatMul"), _matmul),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    "Attention": _attention,
    "ConvTranspose": _transposed_convolution,
    "DFT": _fourier_transform,
    "Einsum": einsum_macs,
    "Gemm": _gemm,
    "STFT": _short_time_transform,
}
