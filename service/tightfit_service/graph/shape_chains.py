"""Finding the parts of a graph that compute on constants or on shapes, not on data."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import ModelProto, NodeProto

from tightfit_service.graph.model_file import subgraphs
from tightfit_service.graph.structure import graph_outputs

_SHAPE_READERS = frozenset({"Shape", "Size"})
# A dequantized constant is a quantized weight, and random values are none twice.
_NEVER_FOLDED = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "RandomNormal",
        "RandomUniform",
        "RandomNormalLike",
        "RandomUniformLike",
        "Multinomial",
        "Bernoulli",
    }
)


@dataclass(frozen=True, kw_only=True)
class ShapeReader:
    """A node outside all shape chains whose input `index` is the result `name` of one."""

    node: str
    index: int
    name: str
    is_reshape_target: bool


def constant_chains(model: ModelProto) -> tuple[list[NodeProto], list[str]]:
    """Return the nodes that depend on constants only, and those of their results that others read.

    Nodes must be in topological order.
    """
    known = {tensor.name for tensor in model.graph.initializer}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if _is_plain(node) and node.input and all(not name or name in known for name in node.input):
            nodes.append(node)
            known.update(node.output)
    made = {name for node in nodes for name in node.output if name}
    inside = {node.name for node in nodes}
    read = set(graph_outputs(model))
    for node in model.graph.node:
        if node.name not in inside:
            read.update(node.input)
            for body in subgraphs(node):
                read.update(name for inner in body.node for name in inner.input)
    return nodes, sorted(made & read)


def shape_chains(model: ModelProto) -> list[ShapeReader]:
    """Return the readers of values that depend on inputs only through the shapes of tensors.

    Nodes must be in topological order.
    """
    known = {tensor.name for tensor in model.graph.initializer}
    derived: set[str] = set()
    readers: list[ShapeReader] = []
    for node in model.graph.node:
        on_shapes = all(not name or name in known or name in derived for name in node.input)
        if not node.domain and node.op_type in _SHAPE_READERS:
            derived.update(node.output)
        elif _is_plain(node) and on_shapes and any(name in derived for name in node.input):
            derived.update(name for name in node.output if name)
        else:
            readers.extend(
                ShapeReader(
                    node=node.name,
                    index=index,
                    name=name,
                    is_reshape_target=node.op_type == "Reshape" and index == 1,
                )
                for index, name in enumerate(node.input)
                if name in derived
            )
    return readers


def _is_plain(node: NodeProto) -> bool:
    return (
        not node.domain
        and node.op_type not in _NEVER_FOLDED
        and next(subgraphs(node), None) is None
    )
