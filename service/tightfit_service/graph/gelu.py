"""GELUs that exporters spell out, found and written as one node."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnx import ModelProto, NodeProto, helper

from tightfit_service.graph.model_file import copy_model
from tightfit_service.graph.node_chains import NodeChains
from tightfit_service.graph.structure import replace_nodes


@dataclass(frozen=True, kw_only=True)
class SpelledGelu:
    """The nodes of one `x / 2 * (1 + erf(x / sqrt(2)))`, in order; the last one gives its output."""

    source: str
    nodes: tuple[NodeProto, ...]

    @property
    def inner(self) -> tuple[str, ...]:
        """Names of the tensors between its input and its output."""
        return tuple(node.output[0] for node in self.nodes[:-1])


def spelled_gelus(model: ModelProto) -> list[SpelledGelu]:
    """Return the GELUs of a graph whose inner tensors nothing else reads.

    The factor one half may stand before or behind the product, as exporters have it.
    """
    chains = NodeChains(model)
    found = (_gelu(chains, node) for node in model.graph.node if node.op_type == "Erf")
    return [item for item in found if item is not None]


def with_gelus(model: ModelProto) -> ModelProto:
    """Return the graph with each spelled-out GELU as one Gelu node, named as its last node."""
    gelus = spelled_gelus(model)
    if not gelus:
        return model
    last = {gelu.nodes[-1].name: gelu for gelu in gelus}
    dropped = {node.name for gelu in gelus for node in gelu.nodes}
    nodes = []
    for node in model.graph.node:
        gelu = last.get(node.name)
        if gelu is not None:
            nodes.append(helper.make_node("Gelu", [gelu.source], list(node.output), name=node.name))
        elif node.name not in dropped:
            nodes.append(node)
    result = copy_model(model)
    replace_nodes(result.graph, nodes)
    return result


def _gelu(chains: NodeChains, erf: NodeProto) -> SpelledGelu | None:
    scaled = chains.maker(erf.input[0])
    plus = chains.only_reader(erf)
    if scaled is None or plus is None or chains.only_reader(scaled) is not erf:
        return None
    source = chains.times(scaled, 1 / math.sqrt(2))
    product = chains.only_reader(plus)
    is_sum = chains.plus(plus, 1.0) is not None
    if source is None or not is_sum or product is None or product.op_type != "Mul":
        return None
    other = next((name for name in product.input if name != plus.output[0]), "")
    behind = chains.only_reader(product)
    if other == source and behind and chains.times(behind, 0.5) == product.output[0]:
        return SpelledGelu(source=source, nodes=(scaled, erf, plus, product, behind))
    before = chains.maker(other)
    is_half = before is not None and chains.times(before, 0.5) == source
    if before is None or not is_half or chains.only_reader(before) is not product:
        return None
    return SpelledGelu(source=source, nodes=(scaled, erf, plus, before, product))
