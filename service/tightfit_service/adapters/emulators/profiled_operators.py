"""What a runtime's profiler says, as the operators of the network that it ran.

Only products are told apart: they take most of a network's time, every runtime runs each of them as one
operator, and what is fused into them belongs to them. Where the runtime ran another number of products
than the network has, nothing is taken from its profile: layers were merged, or taken apart.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

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


def profiled_products(
    network: NetworkProfile, operators: Sequence[OperatorTime]
) -> list[tuple[Operator, float]]:
    """Return the products of a network with what each took in ms; none where they do not correspond.

    Args:
        network: What was run.
        operators: Of the profile, in the order of the run.
    """
    waiting = [op for op in network.operators if op.kind in _MEANINGS and op.macs]
    events = [(word, item) for item in operators if (word := _word(item.kind)) is not None]
    if len(events) != len(waiting):
        return []
    found = []
    for word, item in events:
        own = next((op for op in waiting if _corresponds(op, word, item)), None)
        if own is None:
            return []
        waiting.remove(own)
        found.append((own, item.latency_ms))
    return found


def _word(kind: str) -> str | None:
    return next((word for pattern, word in _PATTERNS if pattern.search(kind)), None)


def _corresponds(operator: Operator, word: str, item: OperatorTime) -> bool:
    if word not in _MEANINGS[operator.kind]:
        return False
    return item.output_elements in (0, elements_of(operator.out_channels, operator.out_size))
