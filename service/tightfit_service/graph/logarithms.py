"""Where a graph takes logarithms of values that only they read."""

from __future__ import annotations

from onnx import ModelProto

from tightfit_service.graph.structure import consumers, graph_outputs

_LOGARITHMS = frozenset({"Log", "Softplus"})
"""Softplus is one, spelled out in TFLite files, of exponentials, whose range is as wide."""

# fmt: off
_ELEMENTWISE = frozenset({
    "Abs", "Add", "Clip", "Div", "Exp", "Max", "Mul", "Neg", "Pow", "Relu", "Sigmoid", "Sqrt", "Sub",
})
# fmt: on


def logarithms(model: ModelProto) -> tuple[str, ...]:
    """Return each Log or Softplus and the elementwise nodes that only it reads: all are for float.

    A power in decibels comes from values of many magnitudes: in steps of one size the small ones
    are zero, and their logarithm has no bound. Nodes of the graph are in order.
    """
    readers, outputs = consumers(model.graph), set(graph_outputs(model))
    found: dict[str, None] = {}
    for node in reversed(model.graph.node):
        following = readers.get(node.output[0], [])
        if node.op_type in _LOGARITHMS or (
            node.op_type in _ELEMENTWISE
            and following
            and node.output[0] not in outputs
            and all(reader.name in found for reader in following)
        ):
            found[node.name] = None
    return tuple(reversed(found))
