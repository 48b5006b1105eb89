"""Where activations live while a network runs on a microcontroller: one memory point per operator."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tightfit_service.adapters.emulators.kernel_scratch import (
    CMSIS_NN_SCRATCH,
    FLOAT_BITS,
    X_CUBE_AI_SCRATCH,
    ScratchRule,
    scratch_of,
)
from tightfit_service.adapters.emulators.multiples import next_multiple
from tightfit_service.domain.cost import MemoryPoint
from tightfit_service.domain.network import NetworkProfile, Operator, OperatorKind

_OVERLAY_KINDS: Mapping[OperatorKind, str] = {
    OperatorKind.ELEMENTWISE: "elementwise",
    OperatorKind.ACTIVATION: "elementwise",
    OperatorKind.NORMALIZATION: "elementwise",
    OperatorKind.SOFTMAX: "elementwise",
    OperatorKind.DEPTHWISE_CONV: "depthwise",
    OperatorKind.POOL: "pool",
    OperatorKind.GLOBAL_POOL: "pool",
    OperatorKind.PAD: "pad",
}
_WINDOWED = frozenset({"conv", "strided", "pointwise", "depthwise"})
_FLOAT_IN_PLACE = _WINDOWED | {"pool", "elementwise", "pad"}
_RELABELLING = frozenset({"QuantizeLinear", "DequantizeLinear"})
"""Converting the number format at the border of the network; done by the caller or in place, but for
results that are returned in float32."""
_FLOAT_BYTES = FLOAT_BITS / 8


@dataclass(frozen=True, kw_only=True)
class ArenaStyle:
    """How a runtime lays out its arena.

    Attributes:
        in_place: Kinds of operators whose output may grow over an input that nothing reads afterwards: `conv`
            (larger than 1x1, stride 1), `strided` (other strides), `pointwise`, `depthwise`, `pool`,
            `elementwise`, `pad`.
        growth_limit: Outputs of windowed operators larger than this many times their input get
            memory of their own all the same.
        slack_rows: Rows of output kept between what a windowed operator writes and what it reads.
        scratch: What kernels need beside the tensors.
        pads_convolutions: Whether the input of a convolution is padded in memory before it runs.
        fuses_pad: Whether padding operators of the network are done inside the operator that follows.
        fuses_pool: Whether a convolution and the pooling of separate windows that follows are one operator,
            which keeps only as many rows between them as a window is high.
        fuses_global_pool: Whether the same goes for a pooling over the whole image, all rows being kept.
        fragmentation: Bytes of the arena per byte of tensors and scratch, for the gaps that a planner leaves.
        operator_bytes: Bookkeeping that stays in the arena, per operator.
        channel_bytes: Requantisation parameters that stay in the arena, per output channel.
        constant_bytes: Everything else.
        channel_multiple: Tensors are stored with their channels rounded up to multiples of it.
        unrounded: Names of tensors that are not.
        widened: ONNX operators of 8 bits that are computed in float32 between conversions: what they read and
            write is there as integers and in float32 meanwhile.
    """

    in_place: Collection[str] = ()
    growth_limit: float = math.inf
    slack_rows: float = 0.0
    scratch: ScratchRule = field(default_factory=ScratchRule)
    pads_convolutions: bool = False
    fuses_pad: bool = True
    fuses_pool: bool = False
    fuses_global_pool: bool = False
    fragmentation: float = 1.0
    operator_bytes: float = 0.0
    channel_bytes: float = 0.0
    constant_bytes: float = 0.0
    channel_multiple: int = 1
    unrounded: Collection[str] = ()
    widened: Collection[str] = ()


TFLM_STYLE = ArenaStyle(
    scratch=CMSIS_NN_SCRATCH,
    # Eval tensors, nodes and op data; a multiplier and a shift of 4 bytes each per channel
    # (tensorflow/lite/micro/kernels/conv_common.cc).
    operator_bytes=160.0,
    channel_bytes=8.0,
    constant_bytes=1_500.0,
    fuses_pad=False,
)
"""TensorFlow Lite for Microcontrollers: a greedy planner over whole tensors; nothing in place but reshapes."""


def x_cube_ai_style(
    *,
    in_place: Collection[str],
    growth_limit: float,
    pads_convolutions: bool,
    fragmentation: float = 1.0,
) -> ArenaStyle:
    """Return the style of X-CUBE-AI, but for what the network.c that it generates does not tell.

    In network.c, pads are operators whose output ends where their input ended; outputs in place start
    one row of output before their input; pooling after a convolution is a layer `conv2d_nl_pool` with
    a scratch of as many rows as a window is high. When outputs go in place is the planner's choice:
    that is told by the RAM that it reports (`benchmarks/arena_fitting.py`).
    """
    return ArenaStyle(
        in_place=frozenset({*in_place, "pool", "elementwise", "pad"}),
        growth_limit=growth_limit,
        slack_rows=1.0,
        scratch=X_CUBE_AI_SCRATCH,
        pads_convolutions=pads_convolutions,
        fuses_pad=False,
        fuses_pool=True,
        fragmentation=fragmentation,
    )


def x_cube_ai_float_style(release: float) -> ArenaStyle:
    """Return the style of X-CUBE-AI for networks in float32.

    Read off the reports that the tool writes (`network_generate_report.txt`, which lists layers, scratch and
    the size of the arena) for public float32 networks (`benchmarks/arena_reports.py`): convolutions are in
    place, one row of output before their input; inputs are not padded in memory. Releases 8.x run
    convolution and pooling as two layers and give outputs larger than their input memory of their own; those before
    fuse poolings over the whole image as well; those from 9.1 on keep one patch.

    Args:
        release: Such as 8.1; 0 where it is not known, which is planned like those before 8.
    """
    is_eight = 8 <= release < 9
    patch_ratio = X_CUBE_AI_SCRATCH.float_patch_ratio if release > 9 else 0.0
    return ArenaStyle(
        in_place=_FLOAT_IN_PLACE,
        growth_limit=1.0 if is_eight else 4.0,
        slack_rows=1.0,
        scratch=replace(X_CUBE_AI_SCRATCH, float_patch_ratio=patch_ratio),
        fuses_pad=False,
        fuses_pool=not is_eight,
        fuses_global_pool=release < 8,
    )


def memory_points(network: NetworkProfile, style: ArenaStyle) -> tuple[MemoryPoint, ...]:
    """Return the memory in use while each operator runs; operators without memory traffic are left out.

    A tensor is live from the operator that writes it to the last that reads it. Arena planners place
    tensors in shared memory; where they leave gaps is not modelled, only a factor for them.
    """
    operators, root, pools = _executed(network, style)
    sizes = _tensor_bytes(network, style)
    last: dict[str, int] = {}
    born = dict.fromkeys(network.inputs, -1)
    for i, operator in enumerate(operators):
        for name in operator.outputs:
            # several may write parts of one
            born.setdefault(name, i)
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
        if style.pads_convolutions:
            _pad_input(operator, live, dying, root)
        pool = pools.get(operator.node)
        _place_output(operator, live, dying, sizes, style, row_bytes=_row_bytes(pool or operator))
        if operator.op_type in style.widened and operator.activation_bits == 8:
            for name in dict.fromkeys(
                root.get(n, n) for n in (*operator.inputs, *operator.outputs)
            ):
                live[name] += _FLOAT_BYTES * sizes.get(name, 0)
        scratch = _place_scratch(operator, live, root, style)
        if pool is not None:
            live[operator.outputs[0]] += _window_rows(operator, pool) * _row_bytes(operator)
        points.append(
            MemoryPoint(
                node=operator.node,
                fixed_bytes=persistent + scratch * style.fragmentation,
                tensor_bytes={name: size * style.fragmentation for name, size in live.items()},
            )
        )
    return tuple(points)


def _executed(
    network: NetworkProfile, style: ArenaStyle
) -> tuple[Sequence[Operator], Mapping[str, str], Mapping[str, Operator]]:
    """Return what runs: operators, tensors that are another one renamed, poolings inside convolutions.

    The second is that other tensor by name, the third is by the node of the convolution that holds the
    pooling.
    """
    root: dict[str, str] = {}
    operators: list[Operator] = []
    pools: dict[str, Operator] = {}
    readers = Counter(name for operator in network.operators for name in operator.inputs)
    readers.update(network.outputs)
    for operator in network.operators:
        relabels = (
            operator.kind is OperatorKind.RESHAPE
            or (operator.op_type in _RELABELLING and not _returns_floats(operator, network))
            or (operator.kind is OperatorKind.PAD and style.fuses_pad)
        )
        if relabels and operator.inputs and operator.outputs:
            source = operator.inputs[0]
            for name in operator.outputs:
                root[name] = root.get(source, source)
        elif (
            operators
            and operators[-1].node not in pools
            and _continues(operators[-1], operator, readers, style)
        ):
            pools[operators[-1].node] = operator
            operators[-1] = replace(operators[-1], outputs=operator.outputs)
        else:
            operators.append(operator)
    return operators or list(network.operators), root, pools


def _returns_floats(operator: Operator, network: NetworkProfile) -> bool:
    """Whether the operator writes a result of the network in float32, which takes memory of its own."""
    return operator.op_type == "DequantizeLinear" and not set(operator.outputs).isdisjoint(
        network.outputs
    )


def _continues(
    first: Operator, second: Operator, readers: Mapping[str, int], style: ArenaStyle
) -> bool:
    """Whether the second is a pooling that the style fuses with a convolution that nothing else reads."""
    follows = second.inputs == first.outputs and readers[first.outputs[0]] == 1
    if first.kind is not OperatorKind.CONV or not follows:
        return False
    if second.kind is OperatorKind.POOL:
        separate = bool(second.kernel) and second.stride[:1] == second.kernel[:1]
        return style.fuses_pool and math.prod(first.kernel) > 1 and separate
    whole = math.prod(second.out_size) == 1 and second.out_channels == first.out_channels
    return style.fuses_global_pool and second.kind is OperatorKind.GLOBAL_POOL and whole


def _window_rows(convolution: Operator, pool: Operator) -> int:
    """Return the rows of a convolution that the pooling inside it needs at a time."""
    if pool.kind is OperatorKind.POOL:
        return pool.kernel[0]
    return convolution.out_size[0] if convolution.out_size else 1


def _tensor_bytes(network: NetworkProfile, style: ArenaStyle) -> dict[str, int]:
    bits = dict.fromkeys(network.tensors, 8)
    for operator in network.operators:
        for name in (*operator.inputs, *operator.outputs):
            bits[name] = max(operator.activation_bits, 8)
        if _returns_floats(operator, network):
            bits.update(dict.fromkeys(operator.outputs, FLOAT_BITS))
    return {
        name: -(-math.prod(_stored(name, shape, style)) * bits[name] // 8)
        for name, shape in network.tensors.items()
    }


def _stored(name: str, shape: Sequence[int], style: ArenaStyle) -> Sequence[int]:
    """Return the shape in memory of a tensor, its channels second."""
    multiple = style.channel_multiple
    if multiple == 1 or len(shape) < 2 or name in style.unrounded:
        return shape
    return (shape[0], next_multiple(shape[1], multiple), *shape[2:])


def _pad_input(
    operator: Operator, live: dict[str, float], dying: Collection[str], root: Mapping[str, str]
) -> None:
    """Let the input grow to its padded size, or add a padded copy where others still read it."""
    windowed = operator.kind in (OperatorKind.CONV, OperatorKind.DEPTHWISE_CONV)
    if not windowed or not operator.inputs or not operator.in_size or not operator.out_size:
        return
    padded = [
        max(size, (out - 1) * stride + kernel)
        for size, out, stride, kernel in zip(
            operator.in_size, operator.out_size, operator.stride, operator.kernel, strict=False
        )
    ]
    name = root.get(operator.inputs[0], operator.inputs[0])
    growth = math.prod(padded) / math.prod(operator.in_size)
    if growth > 1 and name in live:
        live[name] *= growth if name in dying else 1 + growth


def _place_output(
    operator: Operator,
    live: dict[str, float],
    dying: Sequence[str],
    sizes: Mapping[str, int],
    style: ArenaStyle,
    *,
    row_bytes: float,
) -> None:
    """Add the outputs to the live tensors, over the largest dying input where the style allows."""
    for name in operator.outputs:
        live[name] = float(sizes.get(name, 0))
    kind = _overlay_kind(operator)
    if not dying or not operator.outputs or kind not in style.in_place:
        return
    source = max(dying, key=lambda name: live[name])
    output = operator.outputs[0]
    if kind in _WINDOWED and live[output] > style.growth_limit * live[source]:
        return
    live[min((source, output), key=lambda name: live[name])] = 0.0
    if kind in _WINDOWED:
        live[output] += style.slack_rows * row_bytes


def _overlay_kind(operator: Operator) -> str:
    if operator.op_type == "DequantizeLinear":
        return "other"
    if operator.kind is not OperatorKind.CONV:
        return _OVERLAY_KINDS.get(operator.kind, "other")
    if max(operator.stride, default=1) > 1:
        return "strided"
    return "pointwise" if math.prod(operator.kernel) == 1 else "conv"


def _row_bytes(operator: Operator) -> float:
    """Return the bytes of one row of output; sequences are as high as long, and one wide."""
    width = operator.out_size[-1] if len(operator.out_size) > 1 else 1
    return width * operator.out_channels * max(operator.activation_bits, 8) / 8


def _place_scratch(
    operator: Operator, live: dict[str, float], root: Mapping[str, str], style: ArenaStyle
) -> float:
    """Add an operator's scratch to the tensors whose channels it grows with; return what is left over.

    Booked there, it shrinks with the widths when a planner scales tensors.
    """
    scratch = scratch_of(operator, style.scratch)
    left_over = scratch.fixed
    for names, amount in (
        (operator.inputs, scratch.of_input),
        (operator.outputs, scratch.of_output),
    ):
        name = root.get(names[0], names[0]) if names else ""
        if name in live:
            live[name] += amount
        else:
            left_over += amount
    return left_over
