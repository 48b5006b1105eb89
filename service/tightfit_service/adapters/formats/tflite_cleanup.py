"""Clean-up of freshly converted TFLite files: layout changes, explicit padding and slices undone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from tightfit_service.adapters.formats.tflite_exponentials import bound_exponentials
from tightfit_service.adapters.formats.tflite_file import TfliteFile
from tightfit_service.adapters.formats.tflite_norms import scale_differences
from tightfit_service.adapters.formats.tflite_rectifiers import fuse_rectifiers

_TO_NCHW = (0, 3, 1, 2)
_TO_NHWC = (0, 2, 3, 1)
_SHUFFLE = ["TRANSPOSE", "RESHAPE", "TRANSPOSE", "RESHAPE", "TRANSPOSE"]
_ELEMENTWISE = (
    "ABS", "ELU", "EXP", "GELU", "HARD_SWISH", "LEAKY_RELU", "LOGISTIC", "RELU", "RELU6",
    "RELU_0_TO_1", "RELU_N1_TO_1", "TANH",
)  # fmt: skip
_PAIRWISE = ("ADD", "DIV", "MAXIMUM", "MINIMUM", "MUL", "PRELU", "SUB")
"""Operators of two inputs, followed where the second one is constant."""
_CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")


def clean_up(file: TfliteFile) -> None:
    """Remove what the conversion from NCHW left behind; outputs do not change.

    1. Padding and element by element work between two layout changes that undo each other is done
       in the other layout.
    2. Layout changes that undo each other are dropped, others that follow each other are merged.
    3. A PAD that pads as `SAME` does is given back to its convolution or greatest-value pooling.
    4. A layout change before a flattening moves into the weights of the dense layer behind it.
    5. A layout change before a reduction is left out, and the axes are renamed.
    6. Strided slices that follow each other, one axis each, become one.
    7. Channels are shuffled where they are, last.
    8. Rectifiers are fused into what computes their numbers, moved in between or not.
    9. Normalizations scale the difference from the mean that they have computed.
    10. A change to NCHW right before an output is left out: that output is NHWC from then on.

    Before all that, exponential linear units become ones whose exponent is bounded.
    """
    bound_exponentials(file)
    changed = True
    while changed:
        changed = _sink_transposes(file) or _merge_transposes(file)
        file.remove_dead()
    while _turn_shuffles(file):
        file.remove_dead()
    _give_padding_back(file)
    _flatten_channels_last(file)
    _reduce_channels_last(file)
    while _merge_slices(file):
        file.remove_dead()
    fuse_rectifiers(file)
    scale_differences(file)
    _leave_outputs_channels_last(file)
    file.remove_dead()


def _leave_outputs_channels_last(file: TfliteFile) -> None:
    for place, tensor in enumerate(file.graph.outputs):
        last = file.producer(int(tensor))
        if last is None or _permutation(file, last) != _TO_NCHW:
            continue
        source = int(last.inputs[0])
        if file.consumers(int(tensor)) or file.is_output(source) or source in file.graph.inputs:
            continue
        outputs = [int(item) for item in file.graph.outputs]
        outputs[place] = source
        file.channels_last_outputs.add(place)
        file.graph.outputs = outputs
        for signature in file.model.signatureDefs or []:
            for entry in signature.outputs or []:
                if int(entry.tensorIndex) == int(tensor):
                    entry.tensorIndex = source


def _permutation(file: TfliteFile, operator: Any) -> tuple[int, ...] | None:
    if file.operator_name(operator) != "TRANSPOSE":
        return None
    value = file.constant(operator.inputs[1])
    return None if value is None else tuple(int(axis) for axis in value)


def _sink_transposes(file: TfliteFile) -> bool:
    """Move a layout change from before an operator to behind it where one that undoes it is waiting."""
    for operator in file.operators("PAD", "PADV2", *_ELEMENTWISE, *_PAIRWISE):
        before = file.producer(operator.inputs[0])
        order = None if before is None else _permutation(file, before)
        if before is None or order is None or not _takes_any_order(file, operator, len(order)):
            continue
        if _leads_to(file, int(operator.outputs[0]), _inverse(order)):
            _swap(file, before, operator, order)
            return True
    return False


def _takes_any_order(file: TfliteFile, operator: Any, rank: int) -> bool:
    """Whether an operator with its first input turned can do its work with its constants turned."""
    name = file.operator_name(operator)
    if name in _ELEMENTWISE:
        return True
    other = file.constant(operator.inputs[1])
    if name not in _PAIRWISE:
        return other is not None
    return other is not None and (other.ndim == rank or other.size == 1)


def _leads_to(file: TfliteFile, tensor: int, order: tuple[int, ...]) -> bool:
    """Whether a layout change reads the tensor, or what operators that may be turned make of it."""
    readers = file.consumers(tensor)
    if any(_permutation(file, reader) == order for reader in readers):
        return True
    return (
        len(readers) == 1
        and not file.is_output(tensor)
        and (
            file.operator_name(readers[0]) in {"PAD", "PADV2", *_ELEMENTWISE, *_PAIRWISE}
            and int(readers[0].inputs[0]) == tensor
            and _takes_any_order(file, readers[0], len(order))
            and _leads_to(file, int(readers[0].outputs[0]), order)
        )
    )


def _swap(file: TfliteFile, before: Any, operator: Any, order: tuple[int, ...]) -> None:
    old_output = int(operator.outputs[0])
    shape = file.shape(old_output)
    inverse = _inverse(order)
    new_output = file.add_tensor_like(old_output, tuple(shape[axis] for axis in inverse))
    inputs = [int(before.inputs[0]), *(int(item) for item in operator.inputs[1:])]
    value = file.constant(inputs[1]) if len(inputs) > 1 else None
    if value is not None and file.operator_name(operator) in _PAIRWISE:
        if value.size > 1:
            inputs[1] = file.add_tensor(value.transpose(inverse), None)
    elif value is not None:
        inputs[1] = file.add_constant(np.asarray(value[list(inverse)], dtype=np.int32))
    operator.inputs, operator.outputs = inputs, [new_output]
    behind = schema.OperatorT()
    behind.opcodeIndex = before.opcodeIndex
    behind.builtinOptionsType = before.builtinOptionsType
    behind.builtinOptions = before.builtinOptions
    behind.inputs = [new_output, int(before.inputs[1])]
    behind.outputs = [old_output]
    operators = list(file.graph.operators)
    operators.insert(operators.index(operator) + 1, behind)
    file.graph.operators = operators


def _turn_shuffles(file: TfliteFile) -> bool:
    """Shuffle channels where they are, last, instead of first and back.

    `NCHW, split C into (g, c), swap, merge, NHWC` becomes `split C, swap, merge`.
    """
    for last in file.operators("TRANSPOSE"):
        chain = [last]
        while len(chain) < len(_SHUFFLE):
            before = file.producer(chain[0].inputs[0])
            if before is None or len(file.consumers(before.outputs[0])) != 1:
                break
            chain.insert(0, before)
        if [file.operator_name(item) for item in chain] != _SHUFFLE:
            continue
        orders = [_permutation(file, chain[place]) for place in (0, 2, 4)]
        split, merged = (file.shape(chain[place].outputs[0]) for place in (1, 3))
        if orders != [_TO_NCHW, (0, 2, 1, 3, 4), _TO_NHWC] or split[3:] != merged[2:]:
            continue
        if split[0] != merged[0] or split[1] * split[2] != merged[1]:
            continue
        batch, groups, each, height, width = split
        _reshape_to(file, chain[1], int(chain[0].inputs[0]), (batch, height, width, groups, each))
        swapped = (batch, height, width, each, groups)
        order = file.add_constant(np.asarray((0, 1, 2, 4, 3), dtype=np.int32))
        chain[2].inputs = [int(chain[1].outputs[0]), order]
        chain[2].outputs = [file.add_tensor_like(int(chain[2].outputs[0]), swapped)]
        _reshape_to(file, chain[3], int(chain[2].outputs[0]), (batch, height, width, merged[1]))
        file.replace_uses(int(last.outputs[0]), int(chain[3].outputs[0]))
        return True
    return False


def _reshape_to(file: TfliteFile, reshape: Any, source: int, shape: tuple[int, ...]) -> None:
    value = np.asarray(shape, dtype=np.int32)
    reshape.inputs = [source, file.add_constant(value)]
    reshape.outputs = [file.add_tensor_like(int(reshape.outputs[0]), shape)]
    if reshape.builtinOptions is not None:
        reshape.builtinOptions.newShape = value


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(axis) for axis in np.argsort(order))


def _merge_transposes(file: TfliteFile) -> bool:
    for second in file.operators("TRANSPOSE"):
        first = file.producer(second.inputs[0])
        if first is None:
            continue
        outer, inner = _permutation(file, second), _permutation(file, first)
        if outer is None or inner is None:
            continue
        order = tuple(inner[axis] for axis in outer)
        source = int(first.inputs[0])
        if order != tuple(range(len(order))):
            second.inputs = [source, file.add_constant(np.asarray(order, dtype=np.int32))]
            return True
        if not file.is_output(second.outputs[0]):
            file.replace_uses(int(second.outputs[0]), source)
            return True
    return False


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Return what `SAME` pads before and behind an axis (as TensorFlow defines it)."""
    reach = (kernel - 1) * dilation + 1
    total = max(0, (-(-size // stride) - 1) * stride + reach - size)
    return total // 2, total - total // 2


def _give_padding_back(file: TfliteFile) -> None:
    for operator in file.operators("MAX_POOL_2D", *_CONVOLUTIONS):
        options = operator.builtinOptions
        pad = file.producer(operator.inputs[0])
        if pad is None or options.padding != schema.Padding.VALID:
            continue
        if file.operator_name(operator) == "MAX_POOL_2D":
            is_empty = _pads_with_nothing(file, pad)
            kernel, dilation = [options.filterHeight, options.filterWidth], (1, 1)
        else:
            is_empty = file.operator_name(pad) == "PAD"
            kernel = list(file.shape(operator.inputs[1])[1:3])
            dilation = (options.dilationHFactor, options.dilationWFactor)
        pads = file.constant(pad.inputs[1]) if is_empty else None
        source = file.shape(pad.inputs[0])
        if pads is None or len(source) != 4:
            continue
        wanted = [
            (0, 0),
            same_padding(source[1], kernel[0], options.strideH, dilation[0]),
            same_padding(source[2], kernel[1], options.strideW, dilation[1]),
            (0, 0),
        ]
        if [tuple(int(item) for item in row) for row in pads] == wanted:
            options.padding = schema.Padding.SAME
            operator.inputs = [int(pad.inputs[0]), *(int(i) for i in operator.inputs[1:])]


def _pads_with_nothing(file: TfliteFile, operator: Any) -> bool:
    """Whether an operator pads with a number below all others, which no maximum will be."""
    value = file.constant(operator.inputs[2]) if file.operator_name(operator) == "PADV2" else None
    return value is not None and bool((value <= np.finfo(np.float32).min).all())


def _flatten_channels_last(file: TfliteFile) -> None:
    """Flatten the channels-last tensor itself, and put the dense layer's weights in its order."""
    for dense in file.operators("FULLY_CONNECTED"):
        reshape = file.producer(dense.inputs[0])
        if reshape is None or file.operator_name(reshape) != "RESHAPE":
            continue
        transpose = file.producer(reshape.inputs[0])
        order = None if transpose is None else _permutation(file, transpose)
        weights = file.constant(dense.inputs[1])
        if transpose is None or order is None or order[0] != 0 or weights is None:
            continue
        shape = file.shape(reshape.inputs[0])
        readers = file.consumers(reshape.outputs[0])
        if len(readers) != 1 or shape[0] != 1 or weights.shape[1] != math.prod(shape):
            continue
        if len(file.consumers(dense.inputs[1])) != 1 or file.is_output(reshape.outputs[0]):
            continue
        # Rows hold the weights in the transposed order; sort them back to the source's.
        back = (0, *(axis + 1 for axis in _inverse(order)))
        sorted_back = weights.reshape(-1, *shape).transpose(back).reshape(weights.shape)
        file.set_constant(int(dense.inputs[1]), sorted_back)
        reshape.inputs = [int(transpose.inputs[0]), *(int(item) for item in reshape.inputs[1:])]


def _reduce_channels_last(file: TfliteFile) -> None:
    for reduction in file.operators("MEAN", "SUM", "REDUCE_MAX"):
        transpose = file.producer(reduction.inputs[0])
        order = None if transpose is None else _permutation(file, transpose)
        axes = file.constant(reduction.inputs[1])
        if transpose is None or order is None or axes is None or reduction.builtinOptions.keepDims:
            continue
        reduced = {int(axis) % len(order) for axis in axes.reshape(-1)}
        remaining = [order[axis] for axis in range(len(order)) if axis not in reduced]
        if remaining == sorted(remaining):
            renamed = np.asarray(sorted(order[axis] for axis in reduced), dtype=np.int32)
            reduction.inputs = [int(transpose.inputs[0]), file.add_constant(renamed)]


def _merge_slices(file: TfliteFile) -> bool:
    for second in file.operators("STRIDED_SLICE"):
        first = file.producer(second.inputs[0])
        if first is None or file.operator_name(first) != "STRIDED_SLICE":
            continue
        inner, outer = _slice_of(file, first), _slice_of(file, second)
        if inner is None or outer is None:
            continue
        begin = inner[0] + inner[1] * outer[0]
        stride = inner[1] * outer[1]
        count = np.asarray(file.shape(second.outputs[0]), dtype=np.int64)
        end = begin + stride * (count - 1) + 1
        second.inputs = [
            int(first.inputs[0]),
            *(file.add_constant(item.astype(np.int32)) for item in (begin, end, stride)),
        ]
        return True
    return False


def _slice_of(
    file: TfliteFile, operator: Any
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
    """Return begin and stride of a plain forward slice, or None for any other."""
    options = operator.builtinOptions
    begin, stride = file.constant(operator.inputs[1]), file.constant(operator.inputs[3])
    masks = (
        options.beginMask,
        options.endMask,
        options.ellipsisMask,
        options.newAxisMask,
        options.shrinkAxisMask,
    )
    if any(masks) or begin is None or stride is None or (begin < 0).any() or (stride < 1).any():
        return None
    return begin.astype(np.int64), stride.astype(np.int64)
