"""Outputs that join values of different magnitudes, of which one scale would lose the small ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from onnx import ModelProto

from tightfit_service.application.data.activation_ranges import TensorRange
from tightfit_service.domain.hardware import NumberFormat
from tightfit_service.graph.fusion import PRODUCTS
from tightfit_service.graph.structure import consumers

_LEAST_STEPS = 16
"""Of the 256 of int8: a part with fewer has less than 4 bits left."""
_STEPS = 256


def joined_with_loss(
    model: ModelProto, formats: Mapping[str, NumberFormat], spans: Mapping[str, TensorRange]
) -> tuple[str, ...]:
    """Return each such Concat in 8 bits, and all nodes behind it.

    A detector joins boxes in pixels with scores up to 1: in steps of the boxes' scale all scores are
    0 or 1. Only a Concat that no product follows is meant; one would round its input anyway.

    Args:
        model: Nodes in topological order.
        formats: Of every node.
        spans: Of every tensor that nodes in integers read or write.
    """
    readers = consumers(model.graph)
    before_products: set[str] = set()
    for node in reversed(model.graph.node):
        following = [reader for name in node.output for reader in readers.get(name, [])]
        if any(r.op_type in PRODUCTS or r.name in before_products for r in following):
            before_products.add(node.name)
    found: dict[str, None] = {}
    behind: set[str] = set()
    for node in model.graph.node:
        loses = (
            node.op_type == "Concat"
            and formats.get(node.name) in {NumberFormat.INT8, NumberFormat.INT4}
            and node.name not in before_products
            and _coarsest(node.input, node.output[0], spans) < _LEAST_STEPS
        )
        if loses or any(name in behind for name in node.input):
            found[node.name] = None
            behind.update(node.output)
    return tuple(found)


def _coarsest(parts: Iterable[str], joined: str, spans: Mapping[str, TensorRange]) -> float:
    """Return how many steps of the joined tensor's scale the part with the fewest has."""
    if joined not in spans:
        return _STEPS
    whole = spans[joined].high - spans[joined].low
    widths = [spans[n].high - spans[n].low for n in parts if n in spans]
    # A part that is always 0 loses nothing.
    return min((_STEPS * width / whole for width in widths if width > 0.0), default=_STEPS)
