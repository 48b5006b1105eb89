"""Networks as work whose time a device tells: what of an operator its time depends on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from tightfit_service.adapters.emulators.kernel_tiles import Tile, Tiles
from tightfit_service.adapters.emulators.multiples import next_multiple
from tightfit_service.adapters.emulators.onnxruntime_graph import (
    RUNTIME,
    absorbed,
    block_of,
    channels_in,
    is_blocked,
    is_island,
    reads_blocks,
    reorders,
    symmetric_tile,
    turned,
)
from tightfit_service.adapters.emulators.operator_chains import Together, operators_together
from tightfit_service.adapters.emulators.operator_process import LENGTHS
from tightfit_service.application.ports import Emulator
from tightfit_service.domain.hardware import HardwareSpec
from tightfit_service.domain.network import NetworkProfile, Operator, OperatorKind

Value = TypeVar("Value")
Kind = tuple[str | int, ...]
"""Name, further marks, and the bits of activations last. Terms of one kind share their prior."""

LEAST_WORK_SHARE = 0.05
"""Of an operator's cost, for those that another emulator takes for little more than their beginning."""
ELEMENT_MS = 3e-7
"""First guess per element that enters or leaves a network, or takes another shape: touched once at 3 a
nanosecond."""
CALL_MS = 5e-3
"""First guess of what calling the runtime takes."""
RECURRENT = {"LSTM": 4, "GRU": 3, "RNN": 1}
"""Layers that repeat a product step by step, each with its number of gates."""
PRODUCTS = frozenset(
    {
        "conv",
        "pointwise",
        "grouped_conv",
        "dilated_conv",
        "depthwise_conv",
        "wide_depthwise_conv",
        "transposed_conv",
        "dense",
        "matmul",
        *RECURRENT,
    }
)
TILED = tuple(sorted(PRODUCTS))
"""Products, in an order that does not change."""
MOST_TAPS = 25
"""Of depthwise kernels that runtimes have code of their own for: up to 5x5 in XNNPACK (its microkernels
`dwconv-3p` to `dwconv-25p`). What is wider goes another way, 25 to 50 times as slow where it was measured."""
END = 4
"""Output channels in the last, narrow vector of a pixel; what is left of them is written value by value
(`MlasRequantizeOutput` in ONNX Runtime's `mlas/lib/quantize.cpp`)."""
TOUCH_MACS = 4.0
"""First guess of what a value that is read or written takes, in products of full vectors."""
RUN_MACS = 120.0
"""First guess of what beginning a run of neighbouring values takes (pointers, the ends of loops), in products of
full vectors."""
_PARTS = frozenset({"macs", "weights", "inputs", "outputs", "taps", "ends", "pixels", "lines"})
"""Of a product, beside whole tiles: what is truly multiplied, what is moved, and what is done one by one; of data
that is moved, the runs of neighbouring values that it consists of."""
CALL, BEGIN, STEP, INPUT, OUTPUT = "call", "begin", "step", "input", "output"
_BESIDES = frozenset({CALL, BEGIN, STEP, INPUT, OUTPUT})
_NOWHERE = (0.0,) * len(LENGTHS)
_ALIKE = frozenset(
    {
        OperatorKind.RESHAPE,
        OperatorKind.TRANSPOSED_CONV,
        OperatorKind.DENSE,
        OperatorKind.MATMUL,
    }
)
"""Kinds of operators that cost alike, whatever their ONNX name."""
_WITHOUT_RUNS = frozenset({OperatorKind.ELEMENTWISE, OperatorKind.ACTIVATION})
"""Kinds whose kernels go through a tensor as one long run."""


@dataclass(frozen=True)
class Work:
    """An operator, a border of the network or the call itself, with first guesses of what it takes.

    Attributes:
        kind: Works of one kind share the ratios to these guesses.
        position: Shape in octaves, as `operator_process.LENGTHS` has it.
        base_ms: First guess, most often another emulator's.
        besides_ms: Of what it takes besides, by name: its time is a sum, and each part has its own ratio.
    """

    kind: Kind
    position: tuple[float, ...]
    base_ms: float
    besides_ms: tuple[tuple[str, float], ...] = ()

    @property
    def parts(self) -> tuple[tuple[Kind, float], ...]:
        """What its time is a sum of, each with the kind that shares the ratio to its first guess."""
        besides = (((name, *self.kind), guess_ms) for name, guess_ms in self.besides_ms)
        return ((self.kind, self.base_ms), *besides)


@dataclass(frozen=True)
class Unit:
    """What a runtime runs as one operator.

    Attributes:
        name: Of the operator's kind, or of what it is with others.
        works: What it does, and beginning it.
        elements: Of its output.
    """

    name: str
    works: tuple[Work, ...]
    elements: int


@dataclass(frozen=True, kw_only=True)
class WorkOf:
    """Reads the work of operators and networks off their shapes.

    Attributes:
        base: The emulator whose figures come first.
        target: What is predicted.
        least_ms: What `base` says of the least operator: most of it is no work.
        mac_ms: What `base` says of a multiply-accumulate where it is cheapest.
        tiles: What matrix kernels compute at a time, by bits of activations and the name of the kind.
    """

    base: Emulator
    target: HardwareSpec
    least_ms: float
    mac_ms: float
    tiles: Mapping[int, Tiles]

    def operator(self, operator: Operator, *, is_turned: bool = False) -> tuple[Work, ...]:
        """Return the work of an operator, and what beginning it takes whatever it computes.

        A change of shape is free but for images, whose channels may lie elsewhere in the runtime. What is
        turned reads images whose channels come last where others come first.
        """
        if operator.kind is OperatorKind.RESHAPE:
            if math.prod(operator.in_size) <= 1:
                return ()
            base_ms = elements_of(operator.in_channels, operator.in_size) * ELEMENT_MS
            return (Work(self.kind(operator), _moved_position(operator), base_ms),)
        kind = self.kind(operator)
        if is_turned and operator.kind not in _WITHOUT_RUNS:
            kind = (kind[0], "channels last", *kind[1:])
        if is_product(operator):
            work = self._product(operator, kind)
        else:
            besides = self._runs(operator)
            work = Work(kind, _moved_position(operator), self._moved_ms(operator), besides)
        if operator.op_type not in RECURRENT:
            return work, self._begin(kind)
        # every step begins anew: files have a copy of the layer per step, or runtimes a loop
        steps_ms = _steps(operator) * self.least_ms
        step = Work((STEP, operator.op_type, operator.activation_bits), _NOWHERE, steps_ms)
        return work, step, self._begin(kind)

    def kind(self, operator: Operator) -> Kind:
        """Return `kind_of` an operator, told apart by how its runtime lays its data out."""
        kind = kind_of(operator)
        if operator.kind is OperatorKind.RESHAPE:
            # runtimes with the channels first move nothing, whatever the shapes
            is_told = operator.form and self.target.runtime.name != RUNTIME
            return (kind[0], operator.form, *kind[1:]) if is_told else kind
        if symmetric_tile(operator, self.target) is not None:
            return (kind[0], "symmetric", *kind[1:])
        if is_island(operator, self.target):
            return (kind[0], "in float", *kind[1:])
        if not is_blocked(operator, self._block):
            return kind
        layout = "blocks" if reads_blocks(operator, self._block) else "into blocks"
        return (kind[0], layout, *kind[1:])

    @property
    def _block(self) -> int:
        return block_of(self.target)

    def together(self, found: Together) -> tuple[Work, Work]:
        """Return the work of operators that belong together: a kind of its own, begun once."""
        last = found.operators[-1]
        kind: Kind = (found.name, last.weight_bits, last.activation_bits)
        base_ms = sum(self._moved_ms(operator) for operator in found.operators)
        return Work(kind, _moved_position(last), base_ms), self._begin(kind)

    def network(self, network: NetworkProfile) -> list[Work]:
        """Return all that a network does."""
        works = [work for unit in self.units(network) for work in unit.works]
        bits = network_bits(network)
        for kind, names in ((INPUT, network.inputs), (OUTPUT, network.outputs)):
            count = sum(math.prod(network.tensors[name]) for name in names)
            works.append(Work((kind, bits), _touched(count), count * ELEMENT_MS))
        works.append(Work((CALL, bits), _NOWHERE, CALL_MS))
        return works

    def units(self, network: NetworkProfile) -> list[Unit]:
        """Return what a runtime runs of a network, one by one."""
        inside = absorbed(network, self.target)
        layout = turned(network, self.target)
        found = operators_together(network)
        members = {op.node for item in found for op in item.operators} | inside
        units = [
            Unit(item.name, self.together(item), _written(item.operators[-1])) for item in found
        ]
        units += [
            Unit(
                str(kind_of(op)[0]),
                self.operator(op, is_turned=op.node in layout.readers),
                _written(op),
            )
            for op in network.operators
            if op.node not in members
        ]
        bits = network_bits(network)
        for item in (*reorders(network, self.target), *layout.moves):
            kind: Kind = (item.name, bits, bits)
            moved = Work(kind, _touched(item.elements), item.elements * ELEMENT_MS)
            units.append(Unit(item.name, (moved, self._begin(kind)), item.elements))
        return units

    def _product(self, operator: Operator, kind: Kind) -> Work:
        """Return the work of a product: kernels compute whole tiles, whatever is in them.

        A tile reads its part of both matrices, and writes what comes out (K. Goto, R. van de Geijn,
        "Anatomy of high-performance matrix multiplication", ACM TOMS 34, 2008). Convolutions fetch the
        input of every tap of their kernel by itself (M. Dukhan, "The indirect convolution algorithm",
        arXiv:1907.02129). Its shape says more of its time than what `base` says of it.
        """
        found = _Matrix.of(operator)
        tile = self._tile(operator)
        touch_ms = TOUCH_MACS * self.mac_ms
        area = math.prod(operator.kernel or (1,))
        taps_ms = touch_ms * found.groups * found.rows * area if area > 1 else 0.0
        # a recurrent layer computes a row at a time, and reads its weights for each
        is_stepwise = operator.op_type in RECURRENT
        rows = found.rows if is_stepwise else tile.whole_rows(found.rows)
        readings = rows if is_stepwise else 1
        if operator.kind is OperatorKind.DEPTHWISE_CONV:
            # vectors of channels, each of which is a matrix of its own
            outputs = rows * tile.whole_columns(found.groups)
            base_ms = self.mac_ms * outputs * found.depth
            besides = {"outputs": touch_ms * outputs, "taps": taps_ms / found.groups}
        else:
            columns = found.groups * tile.whole_columns(found.columns)
            depth = float(tile.whole_depth(found.depth, area))
            if reads_blocks(operator, self._block):
                depth *= next_multiple(channels_in(operator), self._block) / channels_in(operator)
            base_ms = self.mac_ms * rows * columns * depth
            besides = {
                "macs": self.mac_ms * operator.macs,
                "weights": touch_ms * readings * columns * depth,
                "inputs": touch_ms * found.groups * found.rows * depth,
                "outputs": touch_ms * found.groups * found.rows * found.columns,
                "taps": taps_ms,
                "ends": touch_ms * found.groups * found.rows * (found.columns % END),
            }
        return Work(kind, _product_position(operator, found), base_ms, tuple(besides.items()))

    def _tile(self, operator: Operator) -> Tile:
        """Return what the kernel of a product computes at a time."""
        known = symmetric_tile(operator, self.target)
        if known is not None:
            return known
        name = str(kind_of(operator)[0])
        tile = nearest(self.tiles, operator.activation_bits)[name]
        if is_blocked(operator, self._block):
            return replace(tile, columns=self._block, narrow=self._block)
        return tile

    def _runs(self, operator: Operator) -> tuple[tuple[str, float], ...]:
        """Return what beginning the runs of values takes that moved data consists of.

        Runtimes with the channels last go through an image pixel by pixel, others line by line, and what
        works along an axis does so for each of its lines.
        """
        if operator.kind in _WITHOUT_RUNS:
            return ()
        tensors = (
            (operator.in_channels, operator.in_size),
            (operator.out_channels, operator.out_size),
        )
        pixels = max(math.prod(size) for _, size in tensors)
        if operator.line:
            lines = math.ceil(elements_of(operator.in_channels, operator.in_size) / operator.line)
        else:
            lines = max(
                max(channels, 1) * math.prod(size[:-1]) if size else 1 for channels, size in tensors
            )
        run_ms = RUN_MACS * self.mac_ms
        return (("pixels", run_ms * max(pixels, 1)), ("lines", run_ms * max(lines, 1)))

    def _begin(self, kind: Kind) -> Work:
        """Return what beginning an operator takes: of products, what their kind's kernels prepare."""
        own = kind if kind[0] in PRODUCTS else family_of(kind)
        return Work((BEGIN, *own), _NOWHERE, self.least_ms)

    def _moved_ms(self, operator: Operator) -> float:
        """Return what `base` says of an operator beyond the least one."""
        base_ms = self.base.operator_cost(operator, self.target).latency_ms
        return max(base_ms - self.least_ms, LEAST_WORK_SHARE * base_ms)


def nearest(by_bits: Mapping[int, Value], bits: int) -> Value:
    """Return what is known of so many bits, or of the nearest number of them."""
    return by_bits[min(by_bits, key=lambda own: abs(math.log2(own / bits)))]


def network_bits(network: NetworkProfile) -> int:
    """Return the widest activations of a network."""
    return max((op.activation_bits for op in network.operators), default=32)


def kind_of(operator: Operator) -> Kind:
    """Return what an operator shares its prior with: kernels of a runtime are per kind and format."""
    bits = (operator.weight_bits, operator.activation_bits)
    if operator.kind is OperatorKind.CONV:
        return (_conv_name(operator), len(operator.out_size), *bits)
    if operator.kind is OperatorKind.DEPTHWISE_CONV:
        is_wide = math.prod(operator.kernel or (1,)) > MOST_TAPS
        name = "wide_depthwise_conv" if is_wide else "depthwise_conv"
        return (name, len(operator.out_size), *bits)
    if operator.kind in _ALIKE:
        return (str(operator.kind), *bits)
    if operator.op_type == "Slice" and max(operator.stride, default=1) > 1:
        # single values apart from one another, for which few runtimes have a fast kernel
        return ("Slice with steps", *bits)
    return (operator.op_type, *([operator.form] if operator.form else []), *bits)


def is_product(operator: Operator) -> bool:
    """Whether it multiplies and accumulates as a matrix does."""
    return kind_of(operator)[0] in PRODUCTS and operator.macs > 0


def family_of(kind: Kind) -> Kind:
    """Return what a kind, or a part of one, is akin to: products, or data that is touched once, per format."""
    if kind[0] in _PARTS or (kind[0] == BEGIN and kind[1] in PRODUCTS):
        return (kind[0], kind[-1])
    if not is_operator(kind):
        return kind
    return ("products" if kind[0] in PRODUCTS else "moved", kind[-1])


def is_operator(kind: Kind) -> bool:
    """Whether it is a kind of operator, not what a network takes besides."""
    return kind[0] not in _BESIDES


def kind_name(kind: Kind) -> str:
    """Return a kind for people, such as `Softmax over last (8 bits)`."""
    *_, weight_bits, activation_bits = kind
    name = " ".join(part for part in kind if isinstance(part, str))
    bits = f"{activation_bits} bits"
    if weight_bits != activation_bits:
        bits = f"weights of {weight_bits} bits, activations of {activation_bits}"
    return f"{name} ({bits})"


def _conv_name(operator: Operator) -> str:
    if operator.groups > 1:
        return "grouped_conv"
    if math.prod(operator.kernel or (1,)) == 1:
        return "pointwise"
    return "dilated_conv" if max(operator.dilation, default=1) > 1 else "conv"


@dataclass(frozen=True)
class _Matrix:
    """A product as matrix kernels see it: `groups` times (rows x depth) times (depth x columns)."""

    rows: int
    depth: float
    columns: int
    groups: int

    @classmethod
    def of(cls, operator: Operator) -> _Matrix:
        """Return the matrices of an operator that multiplies and accumulates."""
        groups = max(operator.groups, 1)
        rows, columns = math.prod(operator.out_size or (1,)), operator.out_channels // groups
        if operator.op_type in RECURRENT:
            rows, columns = round(_steps(operator)), columns * RECURRENT[operator.op_type]
        elif operator.matrices:
            groups, rows, columns = operator.matrices
        rows, columns = max(rows, 1), max(columns, 1)
        # by the products: a profile may not know which axis of a network's input has the channels
        depth = max(operator.macs / (rows * columns * groups), 1.0)
        return cls(rows=rows, depth=depth, columns=columns, groups=groups)


def _product_position(operator: Operator, matrix: _Matrix) -> tuple[float, ...]:
    """Return the shape of a product in octaves, as `operator_process.LENGTHS` has it."""
    area = math.prod(operator.kernel or (1,))
    # what a product of many matrices has in each of them, a grouped convolution in all of its groups
    together = 1 if operator.matrices else matrix.groups
    ins = max(round(matrix.depth / area * together), 1)
    outs = matrix.columns * together
    return (
        math.log2(max(operator.macs, 1)),
        math.log2(max(matrix.depth / area, 1.0)),
        math.log2(outs),
        math.log2(matrix.rows),
        math.log2(area),
        math.log2(math.prod(operator.stride or (1,))),
        math.log2(next_multiple(ins, 8) / ins),
        math.log2(next_multiple(outs, 16) / outs),
    )


def _steps(operator: Operator) -> float:
    """Return how many steps a recurrent layer takes, in both directions; profiles leave the first axis out."""
    per_step = RECURRENT[operator.op_type] * operator.out_channels * _features(operator)
    return max(operator.macs / per_step, 1.0)


def _features(operator: Operator) -> float:
    """Return how many values enter each gate of a recurrent layer in a step: the input and the state.

    The input of a step is a vector, whose axis a profile may take for the channels or for the last.
    """
    return float(elements_of(operator.in_channels, operator.in_size) + operator.out_channels)


def _moved_position(operator: Operator) -> tuple[float, ...]:
    """Return the position of what is touched once: how much goes in and comes out, in what windows."""
    read = elements_of(operator.in_channels, operator.in_size)
    written = elements_of(operator.out_channels, operator.out_size)
    return _touched(
        max(read, written),
        share=written / read,
        kernel=math.prod(operator.kernel or (1,)),
        stride=math.prod(operator.stride or (1,)),
        pixels=max(math.prod(operator.in_size), 1),
    )


def elements_of(channels: int, size: Sequence[int]) -> int:
    """Return the elements of a tensor; what a profile does not know counts as 1."""
    return max(channels, 1) * max(math.prod(size), 1)


def _written(operator: Operator) -> int:
    return elements_of(operator.out_channels, operator.out_size)


def _touched(
    elements: int, *, share: float = 1.0, kernel: int = 1, stride: int = 1, pixels: int = 1
) -> tuple[float, ...]:
    return (
        math.log2(elements + 1),
        math.log2(share),
        0.0,
        math.log2(pixels),
        math.log2(kernel),
        math.log2(stride),
        0.0,
        0.0,
    )
