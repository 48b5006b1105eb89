"""Which number format every node of a graph is to compute in."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import ModelProto

from tightfit_service.application.ports import QuantizationSettings
from tightfit_service.domain.errors import InvalidRequestError
from tightfit_service.domain.hardware import NumberFormat
from tightfit_service.graph.fusion import PRODUCTS, fused_graph
from tightfit_service.graph.logarithms import logarithms

INTEGER_FORMATS = frozenset({NumberFormat.INT8, NumberFormat.INT16X8, NumberFormat.INT4})

FLOAT_OPERATORS = frozenset({"Softmax", "LogSoftmax"})
"""Left in float: in int8 their outputs tie at 1/256 steps, and they cost next to nothing."""


def formats_by_node(
    model: ModelProto, settings: QuantizationSettings
) -> Mapping[str, NumberFormat]:
    """Return the format of every node: its own, that of the operator it is fused into, or the default.

    Logarithms and what only they read stay in float where the default is an integer format.

    Raises:
        InvalidRequestError: A format for a node that the graph does not have.
    """
    default = settings.number_format
    formats = {node.name: default for node in model.graph.node}
    if default in INTEGER_FORMATS:
        formats.update(dict.fromkeys(logarithms(model), NumberFormat.FLOAT32))
    for name, number_format in settings.node_formats.items():
        if name not in formats:
            raise InvalidRequestError(
                f"there is no node {name!r} to compute in {number_format}",
                field="quantization.node_formats",
                remedy="use node names of the working graph",
            )
    if not settings.node_formats:
        return formats
    for item in fused_graph(model).operators:
        own = settings.node_formats.get(item.node.name)
        if own is not None:
            formats.update(dict.fromkeys((item.node.name, *item.fused), own))
    return {**formats, **settings.node_formats}


def quantizable_nodes(model: ModelProto) -> tuple[str, ...]:
    """Return the nodes whose format matters: products with constant weights, in schedule order."""
    fused = fused_graph(model)
    return tuple(
        item.node.name
        for item in fused.operators
        if item.node.op_type in PRODUCTS
        and len(item.node.input) > 1
        and item.node.input[1] in fused.constants
    )
