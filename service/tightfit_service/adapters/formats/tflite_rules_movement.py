"""Translation of TFLite operators that move data: shapes, slices, joins, padding, indices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from onnx import TensorProto

from tightfit_service.adapters.formats.tflite_reader import TfliteOperator
from tightfit_service.adapters.formats.tflite_rules_values import positive_axes
from tightfit_service.adapters.formats.tflite_translation import (
    Translation,
    UntranslatableError,
    onnx_type,
)

_TO_START = -(1 << 31)
_LONGEST_RANGE = 1 << 20


def _reshape(t: Translation, op: TfliteOperator) -> None:
    """The declared shape is the target, however the file spells it (also computed from shapes)."""
    value = t.value(op, 0)
    if value is not None:
        t.bind(op, t.constant(value.reshape(t.output(op).shape)))
        return
    picked = _picked_channels(t, op)
    if picked is not None:
        t.bind(op, picked)
        return
    name, source, batch = t.read(op), t.shape(op), t.batch_axis(op)
    if batch and source[: batch + 1] == (1,) * (batch + 1):
        # One step of a sequence with time first: the samples come after the step.
        name = t.node("Squeeze", [name, t.sizes(range(batch))])
        source = source[batch:]
    t.bind(op, t.reshape(name, source, t.output(op).shape))


def _picked_channels(t: Translation, op: TfliteOperator) -> str | None:
    """Return a Gather along axis 1 where the file moves it to the front and back by reshapes.

    So litert-torch spells `index_select`. With a batch of 1 no Transpose is needed; with a free one
    the reshapes would mix samples and channels.
    """
    gather = t.producer(op.inputs[0])
    if gather is None or gather.kind != "GATHER_ND":
        return None
    front, positions = t.producer(gather.inputs[0]), t.value(gather, 1)
    if front is None or front.kind != "RESHAPE" or positions is None:
        return None
    source, picked = t.shape(front), t.output(op).shape
    if len(source) < 2 or source[0] != 1 or positions.shape[1:] != (1,):
        return None
    if t.output(front).shape != (source[1], 1, *source[2:]):
        return None
    if picked != (1, len(positions), *source[2:]):
        return None
    chosen = t.constant(positions.reshape(-1), np.int64)
    return t.node("Gather", [t.read(front), chosen], axis=1)


def _transpose(t: Translation, op: TfliteOperator) -> None:
    order = t.integers(op, 1)
    if sorted(positive_axes(order, len(t.shape(op)))) != list(range(len(order))):
        raise UntranslatableError("its permutation names an axis twice")
    t.bind(op, t.transpose(t.read(op), [axis % len(order) for axis in order]))


def _concatenation(t: Translation, op: TfliteOperator) -> None:
    (axis,) = positive_axes([op.options.axis], len(t.shape(op)))
    joined = t.node("Concat", [t.read(op, i) for i in range(len(op.inputs))], axis=axis)
    t.bind(op, t.activated(joined, op.options.fusedActivationFunction))


def _split(t: Translation, op: TfliteOperator) -> None:
    (axis,) = positive_axes(t.integers(op, 0), len(t.shape(op, 1)))
    _parted(t, op, t.read(op, 1), axis)


def _split_v(t: Translation, op: TfliteOperator) -> None:
    (axis,) = positive_axes(t.integers(op, 2), len(t.shape(op, 0)))
    _parted(t, op, t.read(op, 0), axis)


def _parted(t: Translation, op: TfliteOperator, source: str, axis: int) -> None:
    sizes = [t.output(op, i).shape[axis] for i in range(len(op.outputs))]
    parts = t.nodes("Split", [source, t.sizes(sizes)], len(sizes), axis=axis)
    for position, part in enumerate(parts):
        t.bind(op, part, position)


def _pack(t: Translation, op: TfliteOperator) -> None:
    rank = len(t.output(op).shape)
    (axis,) = positive_axes([op.options.axis], rank)
    parts = [t.node("Unsqueeze", [t.read(op, i), t.sizes([axis])]) for i in range(len(op.inputs))]
    t.bind(op, t.node("Concat", parts, axis=axis))


def _unpack(t: Translation, op: TfliteOperator) -> None:
    shape = t.shape(op)
    (axis,) = positive_axes([op.options.axis], len(shape))
    count = len(op.outputs)
    parts = t.nodes("Split", [t.read(op), t.sizes([1] * count)], count, axis=axis)
    for position, part in enumerate(parts):
        t.bind(op, t.node("Squeeze", [part, t.sizes([axis])]), position)


def _slice(t: Translation, op: TfliteOperator) -> None:
    begin, size, shape = t.integers(op, 1), t.integers(op, 2), t.shape(op)
    if not len(begin) == len(size) == len(shape):
        raise UntranslatableError("it does not name a range for each axis")
    ranges = [
        (axis, start, whole if length == -1 else start + length, 1)
        for axis, (start, length, whole) in enumerate(zip(begin, size, shape, strict=True))
    ]
    t.bind(op, _sliced(t, t.read(op), ranges, shape))


def _strided_slice(t: Translation, op: TfliteOperator) -> None:
    options = op.options
    if getattr(options, "offset", False):
        raise UntranslatableError("its ends are given as offsets")
    specs = list(zip(*(t.integers(op, i) for i in (1, 2, 3)), strict=True))
    shape = t.shape(op)
    ellipsis, added = options.ellipsisMask, options.newAxisMask
    taken = sum(1 for i in range(len(specs)) if not (ellipsis >> i & 1 or added >> i & 1))
    ranges: list[tuple[int, int, int, int]] = []
    axis = 0
    for position, (begin, end, step) in enumerate(specs):
        bit = 1 << position
        if ellipsis & bit:
            axis += len(shape) - taken
            continue
        if added & bit:
            continue
        if step == 0 or axis >= len(shape):
            raise UntranslatableError("its ranges do not fit its input")
        if options.shrinkAxisMask & bit:
            start = begin % shape[axis]
            ranges.append((axis, start, start + 1, 1))
        else:
            first = (0 if step > 0 else shape[axis] - 1) if options.beginMask & bit else begin
            last = (shape[axis] if step > 0 else _TO_START) if options.endMask & bit else end
            ranges.append((axis, first, last, step))
        axis += 1
    sliced = _sliced(t, t.read(op), ranges, shape)
    if added or options.shrinkAxisMask:
        kept = list(shape)
        for axis, first, last, step in ranges:
            kept[axis] = len(
                range(*slice(first, None if last == _TO_START else last, step).indices(shape[axis]))
            )
        sliced = t.reshape(sliced, kept, t.output(op).shape)
    t.bind(op, sliced)


def _sliced(
    t: Translation, name: str, ranges: list[tuple[int, int, int, int]], shape: tuple[int, ...]
) -> str:
    """Slice along the axes that are not taken whole, so that the batch is left alone."""
    cut = [
        item
        for item in ranges
        if not (item[3] == 1 and item[1] in {0, -shape[item[0]]} and item[2] >= shape[item[0]])
    ]
    if not cut:
        return t.node("Identity", [name])
    axes, starts, ends, steps = (list(column) for column in zip(*cut, strict=True))
    return t.node("Slice", [name, *(t.sizes(item) for item in (starts, ends, axes, steps))])


def _pad(t: Translation, op: TfliteOperator) -> None:
    pairs = _pairs(t, op)
    inputs = [t.read(op), t.sizes([*(p[0] for p in pairs), *(p[1] for p in pairs)])]
    if op.kind == "PADV2":
        value = t.value(op, 2)
        if value is None or value.size != 1:
            raise UntranslatableError("the value it pads with is computed at run time")
        inputs.append(t.constant(value.reshape(())))
    t.bind(op, t.node("Pad", inputs, mode="constant"))


def _mirror_pad(t: Translation, op: TfliteOperator) -> None:
    pairs, source = _pairs(t, op), t.read(op)
    if op.options.mode == schema.MirrorPadMode.REFLECT:
        sizes = t.sizes([*(p[0] for p in pairs), *(p[1] for p in pairs)])
        t.bind(op, t.node("Pad", [source, sizes], mode="reflect"))
        return
    # ONNX has no symmetric padding: the ends are cut out, turned round and joined on.
    result = source
    for axis, (before, after) in enumerate(pairs):
        size = t.shape(op)[axis]
        parts = [result]
        if before:
            parts.insert(0, _turned(t, result, axis, before - 1, _TO_START))
        if after:
            parts.append(_turned(t, result, axis, size - 1, size - 1 - after))
        if len(parts) > 1:
            result = t.node("Concat", parts, axis=axis)
    t.bind(op, result)


def _turned(t: Translation, name: str, axis: int, first: int, last: int) -> str:
    # A negative end counts from the back: one before the first position is spelled far out.
    ranges = [[first], [last if last >= 0 else _TO_START], [axis], [-1]]
    return t.node("Slice", [name, *(t.sizes(item) for item in ranges)])


def _pairs(t: Translation, op: TfliteOperator) -> list[tuple[int, int]]:
    flat = t.integers(op, 1)
    pairs = list(zip(flat[::2], flat[1::2], strict=True))
    if len(pairs) != len(t.shape(op)) or any(min(pair) < 0 for pair in pairs):
        raise UntranslatableError("its padding does not name two sizes for each axis")
    return pairs


def _gather(t: Translation, op: TfliteOperator) -> None:
    if op.options.batchDims:
        raise UntranslatableError("it gathers with batch dimensions")
    (axis,) = positive_axes([op.options.axis], len(t.shape(op)))
    t.bind(op, t.node("Gather", [t.read(op, 0), t.read(op, 1)], axis=axis))


def _gather_nd(t: Translation, op: TfliteOperator) -> None:
    positions = t.value(op, 1)
    if positions is not None and positions.shape[1:] == (1,):
        chosen = t.constant(positions.reshape(-1), np.int64)
        t.bind(op, t.node("Gather", [t.read(op, 0), chosen], axis=0))
        return
    indices = t.node("Cast", [t.read(op, 1)], to=TensorProto.INT64)
    t.bind(op, t.node("GatherND", [t.read(op, 0), indices]))


def _embedding_lookup(t: Translation, op: TfliteOperator) -> None:
    t.bind(op, t.node("Gather", [t.read(op, 1), t.read(op, 0)], axis=0))


def _one_hot(t: Translation, op: TfliteOperator) -> None:
    values = [t.value(op, 3), t.value(op, 2)]
    if any(item is None for item in values):
        raise UntranslatableError("its values are computed at run time")
    both = t.constant(np.stack([np.asarray(item).reshape(()) for item in values]))
    depth = t.sizes(t.integers(op, 1))
    t.bind(op, t.node("OneHot", [t.read(op, 0), depth, both], axis=int(op.options.axis)))


def _tile(t: Translation, op: TfliteOperator) -> None:
    t.bind(op, t.node("Tile", [t.read(op), t.sizes(t.integers(op, 1))]))


def _broadcast_to(t: Translation, op: TfliteOperator) -> None:
    target = t.output(op).shape
    rank = len(t.shape(op))
    # 1 keeps the size that is there, so the free batch too.
    offset = len(target) - rank
    kept = [
        1 if i >= offset and t.shape(op)[i - offset] == size else size
        for i, size in enumerate(target)
    ]
    t.bind(op, t.node("Expand", [t.read(op), t.sizes(kept)]))


def _fill(t: Translation, op: TfliteOperator) -> None:
    t.bind(op, t.node("Expand", [t.read(op, 1), t.sizes(t.output(op).shape)]))


def _shape(t: Translation, op: TfliteOperator) -> None:
    found = t.node("Shape", [t.read(op)])
    wanted = onnx_type(t.output(op))
    if wanted != TensorProto.INT64:
        found = t.node("Cast", [found], to=wanted)
    t.bind(op, found)


def _rank(t: Translation, op: TfliteOperator) -> None:
    t.bind(op, t.constant(len(t.shape(op)), np.int32))


def _range(t: Translation, op: TfliteOperator) -> None:
    values = [np.asarray(t.value(op, i)) for i in range(3)]
    if any(item.dtype == object or item.size != 1 for item in values):
        raise UntranslatableError("its ends are computed at run time")
    (count,) = t.output(op).shape
    if count > _LONGEST_RANGE:
        raise UntranslatableError(f"it counts further than {_LONGEST_RANGE}")
    start, _, step = (item.reshape(()) for item in values)
    t.bind(op, t.constant(start + step * np.arange(count).astype(step.dtype), start.dtype))


def _reverse(t: Translation, op: TfliteOperator) -> None:
    axes = positive_axes(t.integers(op, 1), len(t.shape(op)))
    columns = ([-1] * len(axes), [_TO_START] * len(axes), axes, [-1] * len(axes))
    t.bind(op, t.node("Slice", [t.read(op), *(t.sizes(item) for item in columns)]))


RULES: Mapping[str, Any] = {
    "BROADCAST_TO": _broadcast_to,
    "CONCATENATION": _concatenation,
    "EMBEDDING_LOOKUP": _embedding_lookup,
    "EXPAND_DIMS": _reshape,
    "FILL": _fill,
    "GATHER": _gather,
    "GATHER_ND": _gather_nd,
    "MIRROR_PAD": _mirror_pad,
    "ONE_HOT": _one_hot,
    "PACK": _pack,
    "PAD": _pad,
    "PADV2": _pad,
    "RANGE": _range,
    "RANK": _rank,
    "RESHAPE": _reshape,
    "REVERSE_V2": _reverse,
    "SHAPE": _shape,
    "SLICE": _slice,
    "SPLIT": _split,
    "SPLIT_V": _split_v,
    "SQUEEZE": _reshape,
    "STRIDED_SLICE": _strided_slice,
    "TILE": _tile,
    "TRANSPOSE": _transpose,
    "UNPACK": _unpack,
}
"""How each kind of operator that moves data is translated."""
