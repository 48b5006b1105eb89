"""Where activations live while a network runs on a microcontroller: one memory point per operator."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tightfit_service.domain.cost import MemoryPoint
from tightfit_service.domain.network import NetworkProfile, Operator, OperatorKind

_IN_PLACE = frozenset(
    {
        OperatorKind.ELEMENTWISE,
        OperatorKind.ACTIVATION,
        OperatorKind.NORMALIZATION,
        OperatorKind.SOFTMAX,
    }
)
FLOAT_BITS = 32
FLOAT_ROWS = 1.0
"""Rows of input and of output that a convolution in floating point keeps aside where it works in place."""
_RELABELLING = frozenset({"QuantizeLinear", "DequantizeLinear"})
"""Converting the number format at the border of the network; done by the caller or in place."""


@dataclass(frozen=True, kw_only=True)
class ArenaStyle:
    """How a runtime lays out its arena.

    Attributes:
        kept_share: Share of the smaller of an operator's largest dying input and its output that
            needs memory of its own, by `conv`, `pointwise`, `depthwise`, `pool`, `elementwise`; 1 keeps
            both whole, 0 lets the output grow over the input as it is consumed.
        patch_ratio: Scratch bytes per byte of one gathered filter patch.
        row_ratio: Scratch bytes per byte of one input row plus one output row of a convolution.
        operator_bytes: Bookkeeping that stays in the arena, per operator.
        channel_bytes: Requantisation parameters that stay in the arena, per output channel.
        constant_bytes: Everything else.
        fuses_pad: Whether padding is done inside the operator that follows.
    """

    kept_share: Mapping[str, float] = field(default_factory=dict)
    patch_ratio: float = 4.0
    row_ratio: float = 0.0
    operator_bytes: float = 0.0
    channel_bytes: float = 0.0
    constant_bytes: float = 0.0
    fuses_pad: bool = True


TFLM_STYLE = ArenaStyle(
    # Two patches widened to int16 (CMSIS-NN arm_convolve_s8_get_buffer_size: 2 * 2 * patch bytes).
    patch_ratio=4.0,
    # Eval tensors, nodes and op data; a multiplier and a shift of 4 bytes each per channel
    # (tensorflow/lite/micro/kernels/conv_common.cc).
    operator_bytes=160.0,
    channel_bytes=8.0,
    constant_bytes=1_500.0,
    fuses_pad=False,
)
"""TensorFlow Lite for Microcontrollers: a greedy planner over whole tensors; nothing in place but reshapes."""


def memory_points(network: NetworkProfile, style: ArenaStyle) -> tuple[MemoryPoint, ...]:
    """Return the memory in use while each operator runs; operators without memory traffic are left out.

    A tensor is live from the operator that writes it to the last that reads it. Arena planners place
    tensors in shared memory; fragmentation is not modelled, and is zero on chains.
    """
    operators, root = _executed(network, style)
    sizes = _tensor_bytes(network)
    last: dict[str, int] = {}
    born = dict.fromkeys(network.inputs, -1)
    for i, operator in enumerate(operators):
        for name in operator.outputs:
            born[name] = i
        for name in operator.inputs:
            last[root.get(name, name)] = i
    for name in network.outputs:
        last[root.get(name, name)] = len(operators)
    persistent = style.constant_bytes + sum(
        style.operator_bytes + (style.channel_bytes * op.out_channels if op.weight_count else 0.0)
        for op in operators
    )
    points = []
    for i, operator in enumerate(operators):
        live = {
            name: float(sizes.get(name, 0))
            for name, start in born.items()
            if start < i <= last.get(name, -1)
        }
        dying = [
            name
            for name in dict.fromkeys(root.get(n, n) for n in operator.inputs)
            if last.get(name) == i and name in live
        ]
        _place_output(operator, live, dying, sizes, style)
        fixed = persistent + _place_scratch(operator, live, root, style)
        points.append(MemoryPoint(node=operator.node, fixed_bytes=fixed, tensor_bytes=live))
    return tuple(points)


def _executed(
    network: NetworkProfile, style: ArenaStyle
) -> tuple[Sequence[Operator], Mapping[str, str]]:
    """Return the operators that run, and for each tensor that is another under a new name, that other."""
    root: dict[str, str] = {}
    operators = []
    for operator in network.operators:
        relabels = (
            operator.kind is OperatorKind.RESHAPE
            or operator.op_type in _RELABELLING
            or (operator.kind is OperatorKind.PAD and style.fuses_pad)
        )
        if relabels and operator.inputs and operator.outputs:
            source = operator.inputs[0]
            for name in operator.outputs:
                root[name] = root.get(source, source)
        else:
            operators.append(operator)
    return operators or list(network.operators), root


def _tensor_bytes(network: NetworkProfile) -> dict[str, int]:
    bits = dict.fromkeys(network.tensors, 8)
    for operator in network.operators:
        for name in (*operator.inputs, *operator.outputs):
            bits[name] = max(operator.activation_bits, 8)
    return {name: -(-math.prod(shape) * bits[name] // 8) for name, shape in network.tensors.items()}


def _place_output(
    operator: Operator,
    live: dict[str, float],
    dying: Sequence[str],
    sizes: Mapping[str, int],
    style: ArenaStyle,
) -> None:
    """Add the outputs to the live tensors, overlapping the largest dying input as the style allows."""
    for name in operator.outputs:
        live[name] = float(sizes.get(name, 0))
    kept = style.kept_share.get(_overlay_kind(operator), 1.0)
    if not dying or not operator.outputs or kept >= 1.0:
        return
    largest = max(dying, key=lambda name: sizes.get(name, 0))
    smaller = min((largest, operator.outputs[0]), key=lambda name: sizes.get(name, 0))
    live[smaller] *= kept


def _overlay_kind(operator: Operator) -> str:
    if operator.kind in _IN_PLACE:
        return "elementwise"
    if operator.kind is OperatorKind.DEPTHWISE_CONV:
        return "depthwise"
    if operator.kind in (OperatorKind.POOL, OperatorKind.GLOBAL_POOL):
        return "pool"
    if operator.kind is OperatorKind.CONV:
        single = math.prod(operator.kernel) == 1 and max(operator.stride, default=1) == 1
        return "pointwise" if single else "conv"
    return "other"


def _place_scratch(
    operator: Operator, live: dict[str, float], root: Mapping[str, str], style: ArenaStyle
) -> float:
    """Add a convolution's scratch to the tensors whose channels it grows with; return what is left over.

    Patches and input rows are as deep as the input, output rows as the output: booked there, they
    shrink with the widths when a planner scales tensors.
    """
    if operator.kind not in (OperatorKind.CONV, OperatorKind.DEPTHWISE_CONV):
        return 0.0
    element = max(operator.activation_bits, 8) / 8
    is_float = operator.activation_bits >= FLOAT_BITS
    of_input, of_output = 0.0, 0.0
    # Kernels in floating point read patches where they lie: nothing is widened.
    if operator.kind is OperatorKind.CONV and not is_float:
        patch = math.prod(operator.kernel) * operator.in_channels // max(operator.groups, 1)
        of_input += style.patch_ratio * patch
    if operator.in_size and operator.out_size:
        rows = min(style.row_ratio, FLOAT_ROWS if is_float else math.inf) * element
        of_input += rows * operator.in_size[-1] * operator.in_channels
        of_output += rows * operator.out_size[-1] * operator.out_channels
    left_over = 0.0
    for names, scratch in ((operator.inputs, of_input), (operator.outputs, of_output)):
        name = root.get(names[0], names[0]) if names else ""
        if name in live:
            live[name] += scratch
        else:
            left_over += scratch
    return left_over
