"""What ONNX Runtime makes of a network before it runs it.

In float32, its layout optimizer runs a convolution on blocks as wide as a vector register where the channels allow,
and any other as a product of matrices; between both it inserts operators that lay the data out anew
(`onnxruntime/core/optimizer/nchwc_transformer.cc`, x86 only). Activations behind a convolution are computed
with it (`conv_activation_fusion.cc`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tightfit_service.adapters.emulators.kernel_tiles import Tile
from tightfit_service.domain.hardware import HardwareSpec
from tightfit_service.domain.network import NetworkProfile, Operator, OperatorKind

RUNTIME = "ONNX Runtime"
BLOCKS = (8, 16)
"""Channels in a block: as many as a vector register has numbers, without AVX-512 and with it."""
SYMMETRIC = Tile(rows=6, columns=16, narrow=16, depth=4)
"""Of convolutions of symmetric weights with AVX-512: `MlasConvSymDispatchAvx512Vnni`."""
NARROW_ROWS = 4
"""Of the same without AVX-512: `MlasConvSymDispatchAvx2`."""
ALIGNMENT = 4
"""Channels of blocked convolutions are a multiple of it (`channel_alignment` there)."""
_CONVOLUTIONS = frozenset({OperatorKind.CONV, OperatorKind.DEPTHWISE_CONV})
_TAKES_BLOCKS = frozenset({OperatorKind.POOL, OperatorKind.GLOBAL_POOL, OperatorKind.RESIZE})
_JOINS_BLOCKS = frozenset(
    {
        "Add", "Mul", "Sum", "Concat", "BatchNormalization", "Relu", "Sigmoid", "Tanh", "HardSigmoid",
        "HardSwish",
    }
)  # fmt: skip
"""Operators that pass blocks on where all that they read are blocks; HardSwish is run as HardSigmoid and Mul."""
_MINDS_NOT = frozenset(
    {
        OperatorKind.POOL,
        OperatorKind.GLOBAL_POOL,
        OperatorKind.ELEMENTWISE,
        OperatorKind.ACTIVATION,
        OperatorKind.PAD,
        OperatorKind.CONCAT,
        OperatorKind.SLICE,
        OperatorKind.RESIZE,
    }
)
"""Operators that compute on channels wherever they come."""
_ABSORBED = frozenset({"Relu", "Clip", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid"})


@dataclass(frozen=True)
class Reorder:
    """A tensor of so many elements that is laid out anew by an operator of this name."""

    name: str
    elements: int


def block_of(target: HardwareSpec) -> int:
    """Return the channels in a block on a target, 0 where its runtime has no blocks (`MlasNchwcGetBlockSize`)."""
    if not _is_on_x86(target):
        return 0
    narrow, wide = BLOCKS
    return wide if target.has_avx512 else narrow


def is_blocked(operator: Operator, block: int) -> bool:
    """Whether a convolution is computed in blocks."""
    is_candidate = operator.kind in _CONVOLUTIONS and len(operator.out_size) == 2
    if not block or not is_candidate or operator.activation_bits != 32:
        return False
    ins, outs, groups = channels_in(operator), operator.out_channels, operator.groups
    if groups == 1:
        return ins < block or ins % ALIGNMENT == 0
    if ins == 1 and outs == groups:
        return outs % ALIGNMENT == 0
    return ins % block == 0 and (outs // groups) % block == 0


def reads_blocks(operator: Operator, block: int) -> bool:
    """Whether it is, and its input is in blocks too: one of few channels is read as it comes."""
    is_direct = operator.groups == 1 and channels_in(operator) < block
    return is_blocked(operator, block) and not is_direct


def channels_in(operator: Operator) -> int:
    """Return the input channels of each group, by the products: a profile may not know a network's axes."""
    window = math.prod(operator.kernel or (1,)) * math.prod(operator.out_size or (1,))
    return max(round(operator.macs / (window * max(operator.out_channels, 1))), 1)


def symmetric_tile(operator: Operator, target: HardwareSpec) -> Tile | None:
    """Return the tile of an int8 convolution that is computed without a matrix made of its input first, or None.

    `MlasConvSymPackWSize` in `mlas/lib/convsym.cpp` says which are: depthwise ones whose channels fill
    vectors, and dense ones of multiples of few channels. All others go through a general product of
    matrices, or a plain loop.
    """
    if (
        not _is_on_x86(target)
        or operator.kind not in _CONVOLUTIONS
        or operator.activation_bits != 8
    ):
        return None
    ins, outs = channels_in(operator), operator.out_channels
    if operator.groups > 1:
        is_symmetric = ins == 1 and outs == operator.groups and outs % SYMMETRIC.columns == 0
    else:
        aligned = SYMMETRIC.depth if target.has_avx512 else 2 * SYMMETRIC.depth
        is_symmetric = (
            outs >= SYMMETRIC.columns and ins % SYMMETRIC.depth == 0 and outs % aligned == 0
        )
    if not is_symmetric:
        return None
    return SYMMETRIC if target.has_avx512 else replace(SYMMETRIC, rows=NARROW_ROWS)


def is_island(operator: Operator, target: HardwareSpec) -> bool:
    """Whether a sum or a product of int8 values is computed in float32, between conversions of its own.

    Those with a constant are: it has another type than activations, which `QLinearAdd` and `QLinearMul` do
    not take (`qdq_transformer/selectors_actions/qdq_selectors.cc`, `BinaryNodeGroupSelector`).
    """
    return (
        target.runtime.name == RUNTIME
        and operator.activation_bits == 8
        and operator.op_type in ("Add", "Mul")
        and len(operator.inputs) == 1
    )


def _is_on_x86(target: HardwareSpec) -> bool:
    return target.runtime.name == RUNTIME and target.core == "x86-64"


def absorbed(network: NetworkProfile, target: HardwareSpec) -> frozenset[str]:
    """Return the nodes of activations that are computed with the convolution before them."""
    if target.runtime.name != RUNTIME:
        return frozenset()
    readers = Counter(name for operator in network.operators for name in operator.inputs)
    readers.update(network.outputs)
    makers = {
        operator.outputs[0]
        for operator in network.operators
        if operator.kind in _CONVOLUTIONS and operator.activation_bits == 32
    }
    return frozenset(
        operator.node
        for operator in network.operators
        if operator.op_type in _ABSORBED
        and operator.inputs[0] in makers
        and readers[operator.inputs[0]] == 1
    )


def reorders(network: NetworkProfile, target: HardwareSpec) -> Iterator[Reorder]:
    """Yield what is laid out anew between operators in blocks and others, each tensor once either way."""
    block, inside = block_of(target), absorbed(network, target)
    in_blocks: set[str] = set()
    done: set[tuple[str, str]] = set()

    def once(name: str, tensor: str) -> Iterator[Reorder]:
        if (name, tensor) not in done:
            done.add((name, tensor))
            yield Reorder(name, math.prod(network.tensors[tensor]))

    for operator in network.operators:
        sources = [name for name in operator.inputs if name in in_blocks]
        if is_blocked(operator, block):
            in_blocks.update(operator.outputs)
            if reads_blocks(operator, block):
                missing = [name for name in operator.inputs[:1] if name not in in_blocks]
                for tensor in missing:
                    yield from once("ReorderInput", tensor)
                continue
        elif sources and (
            operator.node in inside
            or _passes_on(operator, all_in_blocks=len(sources) == len(operator.inputs))
        ):
            in_blocks.update(operator.outputs)
            continue
        for tensor in sources:
            yield from once("ReorderOutput", tensor)
    for tensor in network.outputs:
        if tensor in in_blocks:
            yield from once("ReorderOutput", tensor)


def _passes_on(operator: Operator, *, all_in_blocks: bool) -> bool:
    return operator.kind in _TAKES_BLOCKS or (all_in_blocks and operator.op_type in _JOINS_BLOCKS)


@dataclass(frozen=True)
class Turned:
    """What of an int8 network has its channels last.

    Its layout optimizer (`nhwc_transformer.cc`) has convolutions compute on images whose channels come last,
    puts a Transpose on either side of each, and moves and cancels these where operators between do not mind
    (`transpose_optimization/onnx_transpose_optimization.cc`).

    Attributes:
        moves: The Transposes that are left, each tensor once either way.
        readers: Nodes other than convolutions that read images so.
    """

    moves: tuple[Reorder, ...] = ()
    readers: frozenset[str] = frozenset()


def turned(network: NetworkProfile, target: HardwareSpec) -> Turned:
    """Return what of a network has its channels last; nothing on other runtimes, or in float32."""
    if target.runtime.name != RUNTIME:
        return Turned()
    last: set[str] = set()
    readers: set[str] = set()
    moves: dict[tuple[str, str], Reorder] = {}

    def move(name: str, tensor: str) -> None:
        moves.setdefault((name, tensor), Reorder(name, math.prod(network.tensors[tensor])))

    for operator in network.operators:
        sources = [name for name in operator.inputs if name in last]
        if operator.kind in _CONVOLUTIONS and operator.activation_bits == 8:
            for name in operator.inputs[:1]:
                if name not in last:
                    move("Transpose to channels last", name)
            last.update(operator.outputs)
        elif sources and operator.kind is OperatorKind.TRANSPOSE:
            # one cancels the other, or both are one
            readers.add(operator.node)
        elif sources and operator.kind in _MINDS_NOT and len(sources) == len(operator.inputs):
            readers.add(operator.node)
            last.update(operator.outputs)
        else:
            for name in sources:
                move("Transpose to channels first", name)
    for name in network.outputs:
        if name in last:
            move("Transpose to channels first", name)
    return Turned(tuple(moves.values()), frozenset(readers))
