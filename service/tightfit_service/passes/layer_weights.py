"""Weights of layers as matrices whose rows run as a runtime's kernels read them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto

from tightfit_service.application.ports import ChangedLayer
from tightfit_service.domain.errors import InvalidRequestError
from tightfit_service.graph.model_file import copy_model, save_model, shown
from tightfit_service.graph.structure import (
    Array,
    attribute,
    initializers,
    set_initializer,
    sorted_model_nodes,
)

Rows = npt.NDArray[np.float32]
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

_WORTHWHILE_SHARE = 0.01
"""Of all weights: what a smaller layer would save is not worth the accuracy that it risks."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerWeight:
    """The weight of a convolution or dense layer.

    Attributes:
        name: Of the initializer; several nodes may read it.
        value: As the graph stores it.
        axes: Axes of `value` in the order of a kernel's memory.
        row_axes: How many of them make up the rows.
        input_axis: Axis of `value` along which the layer's input channels lie, None for depthwise
            convolutions, whose channels are those of axis 0.
    """

    node: NodeProto
    name: str
    value: Array
    axes: tuple[int, ...]
    row_axes: int
    input_axis: int | None

    def rows(self, values: Array | None = None) -> Rows:
        """Return the weight, or values of its shape, as (rows, contiguous elements).

        TFLite's kernels, which CMSIS-NN and XNNPACK follow, keep convolutions as (out, height, width,
        in), depthwise ones as (height, width, channels) and dense layers as (out, in).
        """
        ordered = (self.value if values is None else values).transpose(self.axes)
        count = int(np.prod(ordered.shape[: self.row_axes]))
        return np.ascontiguousarray(ordered).reshape(count, -1)

    def restored(self, rows: Rows) -> Array:
        """Return rows in the shape that the graph stores."""
        ordered = rows.reshape([self.value.shape[axis] for axis in self.axes])
        return np.ascontiguousarray(ordered.transpose(np.argsort(self.axes)))


def layer_weights(model: ModelProto) -> dict[str, LayerWeight]:
    """Return the constant float weights of products, by node name, in topological order."""
    values = initializers(model)
    found = {}
    for node in sorted_model_nodes(model):
        if node.op_type not in PRODUCTS or node.domain or len(node.input) < 2:
            continue
        weight = values.get(node.input[1])
        if weight is None or weight.dtype != np.float32 or weight.ndim < 2 or weight.size == 0:
            continue
        axes, row_axes, input_axis = _memory_order(node, weight)
        found[node.name] = LayerWeight(
            node=node,
            name=node.input[1],
            value=weight,
            axes=axes,
            row_axes=row_axes,
            input_axis=input_axis,
        )
    return found


def _memory_order(node: NodeProto, weight: Array) -> tuple[tuple[int, ...], int, int | None]:
    spatial = tuple(range(2, weight.ndim))
    if node.op_type == "Conv":
        if weight.shape[1] == 1 and int(attribute(node, "group", 1)) > 1:
            return (*spatial, 1, 0), len(spatial), None
        return (0, *spatial, 1), 1, 1
    if node.op_type == "ConvTranspose":
        return (1, *spatial, 0), 1, 0
    if node.op_type == "Gemm" and attribute(node, "transB", 0):
        return (0, 1), 1, 1
    # (..., in, out); a stack of matrices is one after another
    leading = tuple(range(weight.ndim - 2))
    return (*leading, weight.ndim - 1, weight.ndim - 2), weight.ndim - 1, weight.ndim - 2


def largest_layers(weights: Mapping[str, LayerWeight]) -> tuple[str, ...]:
    """Return the layers that hold a hundredth of all weights or more each, in topological order.

    A weight that several nodes read counts for the first of them.
    """
    first: dict[str, str] = {}
    for node, weight in weights.items():
        first.setdefault(weight.name, node)
    total = sum(weights[node].value.size for node in first.values())
    return tuple(
        node for node in first.values() if weights[node].value.size >= _WORTHWHILE_SHARE * total
    )


def replace_weight(model: ModelProto, weight: LayerWeight, rows: Rows) -> None:
    """Store rows as the weight of all nodes that read it, in place."""
    set_initializer(model, weight.name, weight.restored(rows).astype(np.float32))


def each_alone(
    before: ModelProto, after: ModelProto, nodes: Iterable[str]
) -> Iterator[ChangedLayer]:
    """Yield, for each node, `before` with the weight that the node reads in `after`."""
    own, changed = layer_weights(before), layer_weights(after)
    for node in nodes:
        weight, value = own[node], changed[node].value
        model = copy_model(before)
        set_initializer(model, weight.name, value)
        yield ChangedLayer(
            node=node, graph=save_model(model), error=relative_error(weight.value, value)
        )


def relative_error(before: Array, after: Array) -> float:
    """Return the squared difference against the squared weights, in [0, 1]; 0 where all are zero."""
    size = float(np.square(before, dtype=np.float64).sum())
    difference = float(np.square(before.astype(np.float64) - after).sum())
    return min(difference / size, 1.0) if size else 0.0


def checked_nodes(
    weights: Mapping[str, LayerWeight], parameters: Mapping[str, Any]
) -> dict[str, Mapping[str, Any]]:
    """Return the choice for each node of `{"nodes": {node: {...}}}`; the choices are not looked into.

    Raises:
        InvalidRequestError: Another key, a node without such a weight, a choice that is no mapping.
    """
    for key in parameters:
        if key != "nodes":
            raise refused(f"unknown key {key!r}", f"parameters.{key}", "the only key is `nodes`")
    nodes = parameters.get("nodes", {})
    if not isinstance(nodes, Mapping):
        raise refused("nodes is no mapping", "parameters.nodes", "map node names to choices")
    for name, choice in nodes.items():
        field = f"parameters.nodes[{name}]"
        if name not in weights:
            raise refused(
                f"the graph has no layer {shown(str(name))} with a constant float weight",
                field,
                "name a Conv, a ConvTranspose, a Gemm or a MatMul",
            )
        if not isinstance(choice, Mapping):
            raise refused(
                f"the choice for {shown(name)} is no mapping", field, "map keys to values"
            )
    return dict(nodes)


def refused(message: str, field: str, remedy: str) -> InvalidRequestError:
    """Return the error for a parameter at fault."""
    return InvalidRequestError(message, field=field, remedy=remedy)


def whole_number(choice: Mapping[str, Any], key: str, field: str, *, low: int, high: int) -> int:
    """Return an integer of a choice.

    Raises:
        InvalidRequestError: It is missing, no integer, or out of range.
    """
    value = choice.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise refused(
            f"{key} is {value!r}", f"{field}.{key}", f"give a whole number from {low} to {high}"
        )
    return value
