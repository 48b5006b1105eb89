"""Einsums that are products of matrices, written as such.

Runtimes run an Einsum as it stands, turn and copy its operands each time, and have no integer kernel
for it; no pass or emulator has to know what a MatMul between two Transposes is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx import ModelProto, NodeProto, helper

from tightfit_service.graph.einsum_terms import einsum_terms
from tightfit_service.graph.products import Shapes
from tightfit_service.graph.structure import (
    initializers,
    remove_dead_code,
    replace_nodes,
    set_initializer,
    tensor_shapes,
    unique_name,
)


@dataclass(frozen=True)
class _Product:
    """How operands are turned so that their product is an Einsum's result, itself turned.

    Attributes:
        places: Of the first and second operand of the product among the Einsum's inputs.
        orders: Permutations of both operands.
        result: Permutation of the product.
    """

    places: tuple[int, int]
    orders: tuple[tuple[int, ...], tuple[int, ...]]
    result: tuple[int, ...]

    @property
    def turns(self) -> int:
        """How many of the three are turned at all."""
        return sum(_turns(order) for order in (*self.orders, self.result))


def write_einsums_as_products(model: ModelProto) -> None:
    """Replace, in place, each Einsum of two operands that sums over one axis by MatMul and Transposes.

    The MatMul keeps the node's name. Others, such as those over several axes or of one operand, stay.
    """
    einsums = [node for node in model.graph.node if node.op_type == "Einsum"]
    shapes = tensor_shapes(model) if einsums else {}
    found = {node.name: _product(node, shapes) for node in einsums}
    products = {name: product for name, product in found.items() if product is not None}
    if not products:
        return
    writer = _Writer(model)
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        product = products.get(node.name)
        nodes += [node] if product is None else writer.written(node, product)
    replace_nodes(model.graph, nodes)
    remove_dead_code(model)


class _Writer:
    """Makes the nodes of products, with names that nothing in the graph has."""

    def __init__(self, model: ModelProto) -> None:
        self._model = model
        self._values = initializers(model)
        self._taken = {name for node in model.graph.node for name in (node.name, *node.output)}
        self._taken |= set(self._values)

    def written(self, node: NodeProto, product: _Product) -> list[NodeProto]:
        """Return what takes the place of an Einsum, in order."""
        nodes: list[NodeProto] = []
        operands = []
        for side, place, order in zip(
            ("left", "right"), product.places, product.orders, strict=True
        ):
            source = node.input[place]
            if _turns(order) and source in self._values:
                value = self._values[source].transpose(order)
                source = unique_name(f"{node.name}/{side}", self._taken)
                set_initializer(self._model, source, value)
            elif _turns(order):
                name = unique_name(f"{node.name}/{side}", self._taken)
                nodes.append(_transpose(name, source, name, order))
                source = name
            operands.append(source)
        output = node.output[0]
        behind = []
        if _turns(product.result):
            name = unique_name(f"{node.name}/turned", self._taken)
            output = unique_name(f"{node.name}/product", self._taken)
            behind.append(_transpose(name, output, node.output[0], product.result))
        return [*nodes, helper.make_node("MatMul", operands, [output], name=node.name), *behind]


def _turns(order: Sequence[int]) -> bool:
    return list(order) != list(range(len(order)))


def _transpose(name: str, source: str, target: str, order: Sequence[int]) -> NodeProto:
    return helper.make_node("Transpose", [source], [target], name=name, perm=list(order))


def _product(node: NodeProto, shapes: Shapes) -> _Product | None:
    """Return the way with the fewest turns, None where the equation is no product of two matrices."""
    if len(node.input) != 2 or any(name not in shapes for name in node.input):
        return None
    found = einsum_terms(node, [len(shapes[name]) for name in node.input])
    if found is None:
        return None
    terms, result = found
    ways = [
        way
        for places in ((0, 1), (1, 0))
        if (way := _way(terms[places[0]], terms[places[1]], result, places)) is not None
    ]
    return min(ways, key=lambda way: way.turns, default=None)


def _way(first: str, second: str, result: str, places: tuple[int, int]) -> _Product | None:
    batch = [letter for letter in result if letter in first and letter in second]
    rows = [letter for letter in result if letter in first and letter not in second]
    columns = [letter for letter in result if letter in second and letter not in first]
    summed = [letter for letter in first if letter not in result]
    is_product = len(summed) == len(columns) == 1 and (len(rows) == 1 if batch else bool(rows))
    if not is_product or set(second) - set(result) != set(summed):
        return None
    made = [*batch, *rows, *columns]
    return _Product(
        places=places,
        orders=(
            tuple(first.index(letter) for letter in (*batch, *rows, *summed)),
            tuple(second.index(letter) for letter in (*batch, *summed, *columns)),
        ),
        result=tuple(made.index(letter) for letter in result),
    )
