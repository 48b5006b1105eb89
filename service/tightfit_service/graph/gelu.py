"""GELUs that exporters spell out, found and written as one node."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from onnx import ModelProto, NodeProto, helper

from tightfit_service.graph.model_file import copy_model
from tightfit_service.graph.structure import (
    Array,
    consumers,
    graph_outputs,
    initializers,
    producers,
    replace_nodes,
)

_TOLERANCE = 1e-4


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
    view = _View(
        constants=initializers(model),
        makers=producers(model.graph),
        readers=consumers(model.graph),
        outputs=frozenset(graph_outputs(model)),
    )
    found = (view.gelu(node) for node in model.graph.node if node.op_type == "Erf")
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


@dataclass(frozen=True, kw_only=True)
class _View:
    constants: Mapping[str, Array]
    makers: Mapping[str, NodeProto]
    readers: Mapping[str, list[NodeProto]]
    outputs: frozenset[str]

    def gelu(self, erf: NodeProto) -> SpelledGelu | None:
        scaled = self.makers.get(erf.input[0])
        plus = self._only_reader(erf)
        if scaled is None or plus is None or self._only_reader(scaled) is not erf:
            return None
        source = self._times(scaled, 1 / math.sqrt(2))
        product = self._only_reader(plus)
        is_sum = plus.op_type == "Add" and self._has_number(plus, 1.0)
        if source is None or not is_sum or product is None or product.op_type != "Mul":
            return None
        other = next((name for name in product.input if name != plus.output[0]), "")
        behind = self._only_reader(product)
        if other == source and behind and self._times(behind, 0.5) == product.output[0]:
            return SpelledGelu(source=source, nodes=(scaled, erf, plus, product, behind))
        before = self.makers.get(other)
        is_half = before is not None and self._times(before, 0.5) == source
        if before is None or not is_half or self._only_reader(before) is not product:
            return None
        return SpelledGelu(source=source, nodes=(scaled, erf, plus, before, product))

    def _times(self, node: NodeProto, factor: float) -> str | None:
        """Return what the node multiplies by a number, None where it does something else."""
        if node.op_type == "Mul" and self._has_number(node, factor):
            return str(next(name for name in node.input if name not in self.constants))
        if node.op_type == "Div" and self._is_number(node.input[1], 1 / factor):
            return str(node.input[0])
        return None

    def _has_number(self, node: NodeProto, value: float) -> bool:
        return (
            sum(self._is_number(name, value) for name in node.input)
            == 1
            == len([name for name in node.input if name not in self.constants])
        )

    def _is_number(self, name: str, value: float) -> bool:
        found = self.constants.get(name)
        return (
            found is not None
            and found.size == 1
            and abs(float(found.reshape(-1)[0]) - value) < _TOLERANCE * value
        )

    def _only_reader(self, node: NodeProto) -> NodeProto | None:
        readers = self.readers.get(node.output[0], [])
        return readers[0] if len(readers) == 1 and node.output[0] not in self.outputs else None
