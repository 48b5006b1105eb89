"""Networks as work whose time a device tells: what of an operator its time depends on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tightfit_service.adapters.emulators.operator_process import LENGTHS
from tightfit_service.application.ports import Emulator
from tightfit_service.domain.hardware import HardwareSpec
from tightfit_service.domain.network import NetworkProfile, Operator, OperatorKind

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
MOST_TAPS = 25
"""Of depthwise kernels that runtimes have code of their own for: up to 5x5 in XNNPACK (its microkernels
`dwconv-3p` to `dwconv-25p`). What is wider goes another way, 25 to 50 times as slow where it was measured."""
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


@dataclass(frozen=True)
class Work:
    """An operator, a border of the network or the call itself, with another emulator's figure."""

    kind: Kind
    position: tuple[float, ...]
    base_ms: float


@dataclass(frozen=True)
class Together:
    """Operators that cost otherwise together, or where they stand, than each by itself."""

    name: str
    operators: tuple[Operator, ...]


@dataclass(frozen=True, kw_only=True)
class WorkOf:
    """Reads the work of operators and networks off their shapes.

    Attributes:
        base: The emulator whose figures come first.
        target: What is predicted.
        least_ms: What `base` says of the least operator: most of it is no work.
    """

    base: Emulator
    target: HardwareSpec
    least_ms: float

    def operator(self, operator: Operator) -> tuple[Work, ...]:
        """Return the work of an operator, and what beginning it takes whatever it computes.

        A change of shape is free but for images, whose channels may lie elsewhere in the runtime.
        """
        if operator.kind is OperatorKind.RESHAPE:
            if math.prod(operator.in_size) <= 1:
                return ()
            base_ms = elements_of(operator.in_channels, operator.in_size) * ELEMENT_MS
            return (Work(kind_of(operator), _moved_position(operator), base_ms),)
        base_ms = self.base.operator_cost(operator, self.target).latency_ms
        kind = kind_of(operator)
        work = Work(kind, _position(operator), self._beyond_least(base_ms))
        if operator.op_type not in RECURRENT:
            return work, self._begin(kind)
        # every step begins anew: files have a copy of the layer per step, or runtimes a loop
        steps_ms = _steps(operator) * self.least_ms
        step = Work((STEP, operator.op_type, operator.activation_bits), _NOWHERE, steps_ms)
        return work, step, self._begin(kind)

    def together(self, found: Together) -> tuple[Work, Work]:
        """Return the work of operators that belong together: a kind of its own, begun once."""
        last = found.operators[-1]
        base_ms = sum(
            self.base.operator_cost(operator, self.target).latency_ms
            for operator in found.operators
        )
        kind: Kind = (found.name, last.weight_bits, last.activation_bits)
        work = Work(kind, _moved_position(last), self._beyond_least(base_ms))
        return work, self._begin(kind)

    def network(self, network: NetworkProfile) -> list[Work]:
        """Return all that a network does."""
        found = operators_together(network)
        members = {op.node for item in found for op in item.operators}
        works = [part for item in found for part in self.together(item)]
        works += [
            part for op in network.operators if op.node not in members for part in self.operator(op)
        ]
        bits = network_bits(network)
        for kind, names in ((INPUT, network.inputs), (OUTPUT, network.outputs)):
            count = sum(math.prod(network.tensors[name]) for name in names)
            works.append(Work((kind, bits), _touched(count), count * ELEMENT_MS))
        works.append(Work((CALL, bits), _NOWHERE, CALL_MS))
        return works

    def _begin(self, kind: Kind) -> Work:
        """Return what beginning an operator takes: products often run in a library that does it faster."""
        return Work((BEGIN, *family_of(kind)), _NOWHERE, self.least_ms)

    def _beyond_least(self, base_ms: float) -> float:
        return max(base_ms - self.least_ms, LEAST_WORK_SHARE * base_ms)


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
    return (operator.op_type, *bits)


def family_of(kind: Kind) -> Kind:
    """Return what a kind is akin to: products, or data that is moved and touched once, per format."""
    if not is_operator(kind):
        return kind
    return ("products" if kind[0] in PRODUCTS else "moved", kind[-1])


def is_operator(kind: Kind) -> bool:
    """Whether it is a kind of operator, not what a network takes besides."""
    return kind[0] not in _BESIDES


def kind_name(kind: Kind) -> str:
    """Return a kind for people, such as `GridSample (8 bits)`."""
    *_, weight_bits, activation_bits = kind
    bits = f"{activation_bits} bits"
    if weight_bits != activation_bits:
        bits = f"weights of {weight_bits} bits, activations of {activation_bits}"
    return f"{kind[0]} ({bits})"


def operators_together(network: NetworkProfile) -> list[Together]:
    """Return the GELUs and hard swishes of a network that are several operators each, and residual sums.

    A sum behind a convolution costs next to nothing where the runtime lets the convolution add (ONNX
    Runtime does in float32). The activations are x / 2 * (1 + erf(x / sqrt(2))),
    x * clip(x + 3, 0, 6) / 6, with constant factors before or behind the product, and
    x * hardsigmoid(x). Inner tensors have one reader.
    """
    return list(_Chains(network).all())


class _Chains:
    """Look-ups along the tensors of a network."""

    def __init__(self, network: NetworkProfile) -> None:
        self._operators = network.operators
        self._outputs = frozenset(network.outputs)
        self._makers = {name: op for op in network.operators for name in op.outputs}
        readers: dict[str, list[Operator]] = {}
        for op in network.operators:
            for name in op.inputs:
                readers.setdefault(name, []).append(op)
        self._readers: Mapping[str, Sequence[Operator]] = readers

    def all(self) -> Iterator[Together]:
        for operator in self._operators:
            if operator.op_type == "Erf":
                scaled = self._makers.get(operator.inputs[0])
                plus = self._reader(operator, "Add")
                if scaled is None or plus is None or len(scaled.inputs) != 1:
                    continue
                found = self._product(plus, scaled.inputs[0])
                if found is not None:
                    yield Together("spelled Gelu", (scaled, operator, plus, *found))
            elif operator.op_type == "HardSigmoid":
                product = self._reader(operator, "Mul")
                if product is not None and set(product.inputs) == {
                    operator.inputs[0],
                    operator.outputs[0],
                }:
                    yield Together("gated HardSigmoid", (operator, product))
            elif operator.op_type == "Add" and operator.fused and len(operator.inputs) == 1:
                found = self._product(operator, operator.inputs[0])
                if found is not None:
                    yield Together("spelled HardSwish", (operator, *found))
            elif operator.op_type == "Add" and any(map(self._ends_in, operator.inputs)):
                # an activation behind it is one more pass in some runtimes
                activation = " and activation" if operator.fused else ""
                yield Together(f"Add{activation} behind a convolution", (operator,))

    def _ends_in(self, name: str) -> bool:
        """Whether a tensor is what a convolution makes for one reader alone."""
        maker = self._makers.get(name)
        return (
            maker is not None
            and maker.kind in (OperatorKind.CONV, OperatorKind.DEPTHWISE_CONV)
            and len(self._readers[name]) == 1
            and name not in self._outputs
        )

    def _product(self, gate: Operator, source: str) -> tuple[Operator, ...] | None:
        """Return what multiplies a gate by the source, with a constant factor anywhere around."""
        factors: list[Operator] = []
        following = self._reader(gate, "Mul", "Div")
        if following is not None and len(following.inputs) == 1:
            factors.append(following)
            gate, following = following, self._reader(following, "Mul")
        if following is None or len(following.inputs) != 2:
            return None
        other = next(name for name in following.inputs if name not in gate.outputs)
        if other != source:
            before = self._makers.get(other)
            if before is None or before.inputs != (source,) or before.op_type not in ("Mul", "Div"):
                return None
            factors.append(before)
        behind = self._reader(following, "Mul", "Div")
        if not factors and behind is not None and len(behind.inputs) == 1:
            return (following, behind)
        return (*factors, following) if factors else None

    def _reader(self, operator: Operator, *op_types: str) -> Operator | None:
        name = operator.outputs[0]
        readers = self._readers.get(name, ())
        if len(readers) != 1 or name in self._outputs or readers[0].op_type not in op_types:
            return None
        return readers[0]


def _conv_name(operator: Operator) -> str:
    if operator.groups > 1:
        return "grouped_conv"
    if math.prod(operator.kernel or (1,)) == 1:
        return "pointwise"
    return "dilated_conv" if max(operator.dilation, default=1) > 1 else "conv"


def _position(operator: Operator) -> tuple[float, ...]:
    """Return the shape of an operator in octaves, as `operator_process.LENGTHS` has it."""
    if kind_of(operator)[0] not in PRODUCTS:
        return _moved_position(operator)
    outs, pixels = max(operator.out_channels, 1), max(math.prod(operator.out_size or (1,)), 1)
    area = math.prod(operator.kernel or (1,))
    of_group = max(operator.in_channels / max(operator.groups, 1), 1.0)
    if operator.op_type in RECURRENT:
        of_group, pixels = _features(operator), round(_steps(operator))
    elif operator.kind in (OperatorKind.CONV, OperatorKind.DEPTHWISE_CONV):
        # by the products: a profile may not know which axis of a network's input has the channels
        of_group = max(operator.macs / (outs * pixels * area), 1.0)
    ins = round(of_group * max(operator.groups, 1))
    return (
        math.log2(max(operator.macs, 1)),
        math.log2(of_group),
        math.log2(outs),
        math.log2(pixels),
        math.log2(area),
        math.log2(math.prod(operator.stride or (1,))),
        math.log2(-(-ins // 8) * 8 / ins),
        math.log2(-(-outs // 16) * 16 / outs),
    )


def _steps(operator: Operator) -> float:
    """Return how many steps a recurrent layer takes, in both directions; profiles leave the first axis out."""
    per_step = RECURRENT[operator.op_type] * operator.out_channels * _features(operator)
    return max(operator.macs / per_step, 1.0)


def _features(operator: Operator) -> float:
    """Return how many values enter each gate of a recurrent layer in a step: the input and the state."""
    return float((operator.in_size or (1,))[-1] + operator.out_channels)


def _moved_position(operator: Operator) -> tuple[float, ...]:
    """Return the position of what is touched once: how much goes in and comes out, in what windows."""
    read = elements_of(operator.in_channels, operator.in_size)
    written = elements_of(operator.out_channels, operator.out_size)
    return _touched(
        max(read, written),
        share=written / read,
        kernel=math.prod(operator.kernel or (1,)),
        stride=math.prod(operator.stride or (1,)),
    )


def elements_of(channels: int, size: Sequence[int]) -> int:
    """Return the elements of a tensor; what a profile does not know counts as 1."""
    return max(channels, 1) * max(math.prod(size), 1)


def _touched(
    elements: int, *, share: float = 1.0, kernel: int = 1, stride: int = 1
) -> tuple[float, ...]:
    return (
        math.log2(elements + 1),
        math.log2(share),
        0.0,
        0.0,
        math.log2(kernel),
        math.log2(stride),
        0.0,
        0.0,
    )
