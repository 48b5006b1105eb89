"""What tells ways through one operator apart, where its type and the sizes of its tensors do not.

Runtimes have a kernel for values that lie one behind the other and another, or a detour, for those that do
not: a softmax over another axis than the last may take many times as long. And a thousand short lines take
longer than ten long ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import takewhile

from onnx import NodeProto

from tightfit_service.graph.fusion import FusedGraph
from tightfit_service.graph.structure import Shape, attribute

_MOVING = frozenset({"Concat", "Gather", "Slice", "Split"})
"""Operators that take values from along an axis."""
_COUNTING = frozenset({"ArgMax", "ArgMin", "LogSoftmax", "Softmax", "TopK"})
"""Operators that compute something of each line along an axis."""
_DEFAULT_AXIS = {"Concat": 1, "LogSoftmax": -1, "Softmax": -1, "TopK": -1}
"""Of operators whose axis is 0 where they tell none."""
_OF_TWO = frozenset({"Add", "Div", "Max", "Min", "Mul", "Pow", "Sub"})
_MOVED = ("of values", "of rows", "of images")
"""What a Transpose moves, by how many last axes stay where they are."""
_ORDERED = "in order"
"""Of changes of shape that move nothing, even where a runtime has the channels last."""
_RESHAPING = frozenset({"Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
_SLICE_AXES = 3
"""Which input of a Slice tells the axes."""


def form_of(node: NodeProto, fused: FusedGraph, channel_axis: int) -> str:
    """Return what way an operator goes, "" where its type alone tells.

    Args:
        node: The operator.
        fused: The graph that it is of.
        channel_axis: Of the operator's first input.
    """
    if node.op_type in ("Resize", "Upsample"):
        return str(attribute(node, "mode", "nearest"))
    if node.op_type in _OF_TWO:
        return _operands(node, fused)
    if node.op_type == "Transpose":
        return _moved(node, fused, channel_axis)
    if node.op_type in _RESHAPING:
        return _ORDERED if _is_in_order(_source(node, fused), channel_axis) else ""
    rank = len(_source(node, fused))
    axes = _axes(node, fused, rank)
    # runtimes normalize the last axes only
    is_told = not axes or node.op_type == "LayerNormalization"
    return "" if is_told else _along(axes, rank, channel_axis)


def _is_in_order(shape: Shape, channel_axis: int) -> bool:
    """Whether values lie as they do with the channels last: these are, or there is one of all the rest or of them."""
    behind = shape[channel_axis + 1 :]
    return math.prod(behind) <= 1 or shape[channel_axis] == 1


def _along(axes: Sequence[int], rank: int, channel_axis: int) -> str:
    """Return where the axes are that an operator works along."""
    if len(axes) > 1:
        return "over several" if channel_axis in axes else "over pixels"
    if axes[0] == rank - 1:
        return "over last"
    return "over channels" if axes[0] == channel_axis else "over others"


def line_of(node: NodeProto, fused: FusedGraph) -> int:
    """Return how many values an operator takes as one line, 0 where it has no lines of its own."""
    shape = _source(node, fused)
    if node.op_type == "Transpose":
        return math.prod(_kept_behind(node, fused))
    if node.op_type in _MOVING:
        return 0
    axes = _axes(node, fused, len(shape))
    return math.prod(shape[axis] for axis in axes) if axes else 0


def _source(node: NodeProto, fused: FusedGraph) -> Shape:
    return fused.shapes.get(node.input[0], ()) if node.input else ()


def _moved(node: NodeProto, fused: FusedGraph, channel_axis: int) -> str:
    """Return what a Transpose moves."""
    shape = _source(node, fused)
    kept = _kept_behind(node, fused)
    if len(kept) == sum(size > 1 for size in shape):
        return _ORDERED
    pixels = sum(size > 1 for size in shape[channel_axis + 1 :])
    # images that stay whole: single values are moved where a runtime has the channels last
    if len(kept) > 1 and len(kept) <= pixels:
        return "of channels"
    return _MOVED[min(len(kept), len(_MOVED) - 1)]


def _kept_behind(node: NodeProto, fused: FusedGraph) -> list[int]:
    """Return the sizes of the last axes that a Transpose leaves where they are, those of one element aside."""
    shape = _source(node, fused)
    order = attribute(node, "perm", [*reversed(range(len(shape)))]) if shape else []
    moved = [axis for axis in order if shape[axis] > 1]
    kept = takewhile(
        lambda pair: pair[0] == pair[1],
        zip(sorted(moved, reverse=True), reversed(moved), strict=True),
    )
    return [shape[axis] for axis, _ in kept]


def _operands(node: NodeProto, fused: FusedGraph) -> str:
    """Return how operands of two sizes meet."""
    shapes = [fused.shapes[name] for name in node.input if name in fused.shapes]
    if len(shapes) != 2 or shapes[0] == shapes[1]:
        return ""
    small = min(shapes, key=math.prod)
    if math.prod(small) == 1:
        return "with a number"
    return "with a row" if small[-1] > 1 else "with a column"


def _axes(node: NodeProto, fused: FusedGraph, rank: int) -> Sequence[int]:
    """Return the axes that an operator works along, in order; none where it has none or they are not known."""
    found: Sequence[int] = ()
    if node.op_type.startswith("Reduce"):
        found = _told(node, fused, 1)
    elif node.op_type == "Slice":
        found = _told(node, fused, _SLICE_AXES)
    elif node.op_type == "LayerNormalization":
        found = range(int(attribute(node, "axis", -1)) % rank, rank) if rank else ()
    elif node.op_type in _MOVING | _COUNTING:
        found = [int(attribute(node, "axis", _DEFAULT_AXIS.get(node.op_type, 0)))]
    return sorted({axis % rank for axis in found}) if rank else ()


def _told(node: NodeProto, fused: FusedGraph, place: int) -> list[int]:
    """Return axes that an attribute or a constant input tells."""
    told = attribute(node, "axes")
    if told is None and len(node.input) > place and node.input[place] in fused.constants:
        told = fused.constants[node.input[place]].ravel()
    return [] if told is None else [int(axis) for axis in told]
