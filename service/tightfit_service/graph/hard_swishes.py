"""Hard swishes and hard sigmoids that exporters for older operator sets spell out, written as one node."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, helper

from tightfit_service.graph.node_chains import TOLERANCE, NodeChains
from tightfit_service.graph.structure import (
    attribute,
    default_opset,
    remove_dead_code,
    replace_nodes,
)

_SHIFT = 3.0
_MOST = 6.0
"""`x * min(max(x + 3, 0), 6) / 6` (A. Howard et al., "Searching for MobileNetV3", ICCV 2019)."""
_OPSET = 14
"""The first with HardSwish."""


def write_hard_swishes(model: ModelProto) -> None:
    """Replace, in place, spelled-out hard sigmoids and hard swishes by one node each, named as their last.

    The factor 1 / 6 may stand before or behind the product. Nothing is written in operator sets without HardSwish,
    nor where something else reads what comes in between. In 8 bits each of the nodes would round.
    """
    if default_opset(model) < _OPSET:
        return
    for write in (_spelled, _gated):
        chains = NodeChains(model)
        found = (write(chains, node) for node in model.graph.node)
        written = {node.name: node for node in found if node is not None}
        if written:
            nodes = [written.get(node.name, node) for node in model.graph.node]
            replace_nodes(model.graph, nodes)
            remove_dead_code(model)


def _spelled(chains: NodeChains, clip: NodeProto) -> NodeProto | None:
    """Return what takes the place of the last node of a chain around this Clip."""
    if not _is_six(chains, clip):
        return None
    shift = chains.maker(clip.input[0])
    if shift is None or chains.only_reader(shift) is not clip:
        return None
    source, following = chains.plus(shift, _SHIFT), chains.only_reader(clip)
    if source is None or following is None:
        return None
    if chains.times(following, 1 / _MOST) == clip.output[0]:
        return helper.make_node(
            "HardSigmoid",
            [source],
            list(following.output),
            name=following.name,
            alpha=1 / _MOST,
            beta=_SHIFT / _MOST,
        )
    other = _other_factor(following, clip)
    before = chains.maker(other)
    if before is not None and chains.times(before, 1 / _MOST) == source:
        return _hard_swish(source, following) if chains.only_reader(before) is following else None
    behind = chains.only_reader(following)
    is_scaled = behind is not None and chains.times(behind, 1 / _MOST) == following.output[0]
    return _hard_swish(source, behind) if other == source and behind and is_scaled else None


def _gated(chains: NodeChains, gate: NodeProto) -> NodeProto | None:
    """Return what takes the place of the product of a tensor and its hard sigmoid."""
    if gate.op_type != "HardSigmoid":
        return None
    settings = (attribute(gate, "alpha", 0.2), attribute(gate, "beta", 0.5))
    is_swish = np.allclose(settings, (1 / _MOST, _SHIFT / _MOST), rtol=TOLERANCE, atol=0.0)
    product = chains.only_reader(gate)
    if not is_swish or product is None or _other_factor(product, gate) != gate.input[0]:
        return None
    return _hard_swish(gate.input[0], product)


def _other_factor(product: NodeProto, factor: NodeProto) -> str:
    """Return what a product multiplies a node's output by; empty where the node is no product of two."""
    if product.op_type != "Mul" or product.input[0] == product.input[1]:
        return ""
    return str(product.input[1] if product.input[0] == factor.output[0] else product.input[0])


def _is_six(chains: NodeChains, clip: NodeProto) -> bool:
    """Whether a node is a Clip from 0 to 6."""
    return (
        clip.op_type == "Clip"
        and len(clip.input) == 3
        and chains.is_number(clip.input[1], 0.0)
        and chains.is_number(clip.input[2], _MOST)
    )


def _hard_swish(source: str, last: NodeProto) -> NodeProto:
    return helper.make_node("HardSwish", [source], list(last.output), name=last.name)
