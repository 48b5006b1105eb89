"""What a runtime's profiler says, as the operators of the network that it ran.

Only products are told apart: they take most of a network's time, every runtime runs each of them as one
operator, and what is fused into them belongs to them. Where the runtime ran another number of products
than the network has, nothing is taken from its profile: layers were merged, or taken apart.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations

from tightfit_service.adapters.emulators.multiples import next_multiple
from tightfit_service.adapters.emulators.onnxruntime_graph import BLOCKS
from tightfit_service.adapters.emulators.operator_work import elements_of
from tightfit_service.domain.measurement import OperatorTime
from tightfit_service.domain.network import NetworkProfile, Operator, OperatorKind

_PATTERNS = (
    (re.compile(r"deconv|conv_?transpose|transpose_?conv", re.IGNORECASE), "transposed"),
    (re.compile(r"depthwise", re.IGNORECASE), "depthwise"),
    (re.compile(r"conv(?!ert)", re.IGNORECASE), "conv"),
    (re.compile(r"fully.?connected|gemm|matmul|batch.?matrix", re.IGNORECASE), "matmul"),
)
"""In the words of XNNPACK, TensorFlow Lite and ONNX Runtime, the first that fits: `Convolution (NHWC, F32) IGEMM`."""
_MEANINGS = {
    OperatorKind.TRANSPOSED_CONV: frozenset({"transposed"}),
    # ONNX has one operator for both, XNNPACK two
    OperatorKind.DEPTHWISE_CONV: frozenset({"depthwise", "conv"}),
    # a layer over one pixel may be run as either
    OperatorKind.CONV: frozenset({"conv", "matmul"}),
    OperatorKind.DENSE: frozenset({"conv", "matmul"}),
    OperatorKind.MATMUL: frozenset({"matmul"}),
}


_WORDS = {
    OperatorKind.TRANSPOSED_CONV: "transposed",
    OperatorKind.DEPTHWISE_CONV: "conv",
    OperatorKind.CONV: "conv",
    OperatorKind.DENSE: "matmul",
    OperatorKind.MATMUL: "matmul",
}
"""In the words of ONNX, whose profiler tells the sizes of outputs."""


def profiled_products(
    network: NetworkProfile, operators: Sequence[OperatorTime]
) -> list[tuple[Operator, float]]:
    """Return the products of a network with what each took in ms; none where they do not correspond.

    Args:
        network: What was run.
        operators: Of the profile, in the order of the run.
    """
    products = [op for op in network.operators if op.kind in _MEANINGS and op.macs]
    events = [(word, item) for item in operators if (word := _word(item.kind)) is not None]
    if len(events) != len(products):
        return []
    if all(item.output_elements for _, item in events):
        return _by_outputs(network, products, events)
    is_certain = _have_certain_places(network, products)
    pairs = zip(products, events, strict=True)
    certain = [pair for pair, is_sure in zip(pairs, is_certain, strict=True) if is_sure]
    if any(word not in _MEANINGS[op.kind] for op, (word, _) in certain):
        return []
    return [(op, item.latency_ms) for op, (_, item) in certain]


def _have_certain_places(network: NetworkProfile, products: Sequence[Operator]) -> list[bool]:
    """Return of each product whether it has its place in any order that a runtime may run them in.

    XNNPACK runs branches in another order than the network and the file have them. What is alike may change
    places.
    """
    behind = _dependencies(network, products)
    return [all(_is_settled(one, other, behind) for other in products) for one in products]


def _dependencies(
    network: NetworkProfile, products: Sequence[Operator]
) -> Mapping[str, frozenset[str]]:
    """Return by tensor the nodes of the products that it depends on."""
    behind: dict[str, frozenset[str]] = {}
    nodes = {op.node for op in products}
    for op in network.operators:
        before = frozenset[str]().union(*(behind.get(name, frozenset()) for name in op.inputs))
        behind.update(dict.fromkeys(op.outputs, before | ({op.node} & nodes)))
    return behind


def _is_settled(one: Operator, other: Operator, behind: Mapping[str, frozenset[str]]) -> bool:
    """Whether two products are alike, or one depends on the other and so runs after it."""
    return (
        _shape(one) == _shape(other)
        or one.node in behind[other.outputs[0]]
        or other.node in behind[one.outputs[0]]
    )


def _shape(operator: Operator) -> tuple[object, ...]:
    return (operator.macs, operator.out_channels, operator.out_size, operator.kernel)


def _by_outputs(
    network: NetworkProfile,
    products: Sequence[Operator],
    events: Sequence[tuple[str, OperatorTime]],
) -> list[tuple[Operator, float]]:
    """Return products with what took them, by the sizes of their outputs; the order may be another one.

    Those with outputs of one size run in the order of the network where each depends on the one before. Of
    others, such as a convolution and the shortcut beside it, the one with more multiply-accumulates is taken
    to have taken longer, if all are of one kind.
    """
    waiting: dict[tuple[str, int], list[Operator]] = defaultdict(list)
    padded: dict[tuple[str, int], tuple[str, int]] = {}
    for op in products:
        key = (_WORDS[op.kind], elements_of(op.out_channels, op.out_size))
        waiting[key].append(op)
        for block in BLOCKS:
            filled_up = elements_of(next_multiple(op.out_channels, block), op.out_size)
            padded[key[0], filled_up] = key
    told: dict[tuple[str, int], list[float]] = defaultdict(list)
    for word, item in events:
        key = (word, item.output_elements)
        told[key if key in waiting else padded.get(key, key)].append(item.latency_ms)
    if {key: len(own) for key, own in waiting.items()} != {
        key: len(own) for key, own in told.items()
    }:
        return []
    behind = _dependencies(network, products)
    found: list[tuple[Operator, float]] = []
    for key, own in waiting.items():
        if all(_is_settled(one, other, behind) for one, other in combinations(own, 2)):
            found += zip(own, told[key], strict=True)
        elif len({op.kind for op in own}) == 1:
            in_order = sorted(own, key=lambda op: op.macs)
            found += zip(in_order, sorted(told[key]), strict=True)
    return found


def _word(kind: str) -> str | None:
    return next((word for pattern, word in _PATTERNS if pattern.search(kind)), None)
