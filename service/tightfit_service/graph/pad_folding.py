"""Padding that a file has as nodes of its own, put into the convolutions behind it."""

from __future__ import annotations

from onnx import ModelProto, NodeProto

from tightfit_service.graph.node_chains import NodeChains
from tightfit_service.graph.structure import (
    attribute,
    default_opset,
    remove_dead_code,
    set_attribute,
    tensor_shapes,
)


def fold_pads(model: ModelProto) -> None:
    """Fold, in place, each Pad of zeros around images that only a convolution reads into its padding.

    Runtimes do so themselves in float32. In an integer file what stands between both keeps them apart,
    and onnxruntime pads in float32 between two conversions.
    """
    if all(node.op_type != "Pad" for node in model.graph.node):
        return
    view = _View(model)
    is_changed = False
    for node in model.graph.node:
        pad = view.pad_before(node)
        amounts = None if pad is None else view.amounts(pad)
        if pad is None or amounts is None:
            continue
        rank = len(amounts) // 2
        own = attribute(node, "pads", [0] * (2 * rank - 4))
        added = [*amounts[2:rank], *amounts[rank + 2 :]]
        set_attribute(node, "pads", [one + other for one, other in zip(own, added, strict=True)])
        set_attribute(node, "auto_pad", "NOTSET")
        node.input[0] = pad.input[0]
        is_changed = True
    if is_changed:
        remove_dead_code(model)


class _View:
    """Look-ups in a graph."""

    def __init__(self, model: ModelProto) -> None:
        self._opset = default_opset(model)
        self._shapes = tensor_shapes(model)
        self._chains = NodeChains(model)

    def pad_before(self, node: NodeProto) -> NodeProto | None:
        """Return the Pad that only this convolution reads, or None."""
        if node.op_type != "Conv" or attribute(node, "auto_pad", "NOTSET") not in {
            "NOTSET",
            "VALID",
        }:
            return None
        pad = self._chains.maker(node.input[0])
        if pad is None or pad.op_type != "Pad":
            return None
        return pad if self._chains.only_reader(pad) is not None else None

    def amounts(self, pad: NodeProto) -> list[int] | None:
        """Return what is added before and behind each axis: None unless it is zeros over spatial axes."""
        found = self._added(pad)
        rank = len(self._shapes.get(pad.input[0], ()))
        is_zero = attribute(pad, "mode", "constant") == "constant" and self._value(pad) == 0.0
        if found is None or not is_zero or len(found) != 2 * rank or min(found) < 0:
            return None
        beside = any(found[axis] or found[rank + axis] for axis in (0, 1))
        return None if beside else found

    def _added(self, pad: NodeProto) -> list[int] | None:
        if self._opset < 11:
            return list(attribute(pad, "pads", []))
        if len(pad.input) > 3 and pad.input[3]:
            return None
        found = self._chains.constant(pad.input[1])
        return None if found is None else [int(amount) for amount in found.reshape(-1)]

    def _value(self, pad: NodeProto) -> float | None:
        if self._opset < 11:
            return float(attribute(pad, "value", 0.0))
        if len(pad.input) < 3 or not pad.input[2]:
            return 0.0
        return self._chains.number(pad.input[2])
