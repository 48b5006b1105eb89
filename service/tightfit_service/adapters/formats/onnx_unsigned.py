"""Activations of 8 bits without a sign, as onnxruntime's kernels on x86 want them.

On x86 onnxruntime turns signed activations into unsigned ones itself before it looks for integer kernels,
but not those that several operators read. A convolution between the two kinds has no integer kernel and
runs in float32: of a residual network every convolution that is added to another.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from tightfit_service.graph.model_file import copy_model
from tightfit_service.graph.structure import consumers, graph_outputs, remove_dead_code

_OFFSET = -int(np.iinfo(np.int8).min)
_ZERO_POINT = 2
"""Place of the zero point among the inputs of both operators."""


def with_unsigned_activations(model: ModelProto) -> ModelProto:
    """Return a model whose activations in int8 are in uint8; it computes the very same values.

    Weights, which no QuantizeLinear makes, keep their signs: kernels take unsigned by signed. So do integers that
    anything but a DequantizeLinear reads: those are the graph's own.
    """
    result = copy_model(model)
    graph = result.graph
    signed = {t.name: t for t in graph.initializer if t.data_type == TensorProto.INT8}
    unsigned: dict[str, TensorProto] = {}
    readers, outputs = consumers(graph), set(graph_outputs(result))
    for node in graph.node:
        own = readers.get(node.output[0], [])
        if (
            node.op_type != "QuantizeLinear"
            or _zero_point(node) not in signed
            or node.output[0] in outputs
            or any(reader.op_type != "DequantizeLinear" for reader in own)
        ):
            continue
        zero_point = signed[_zero_point(node)]
        shifted = unsigned.setdefault(zero_point.name, _shifted(zero_point))
        for pair in (node, *own):
            pair.input[_ZERO_POINT] = shifted.name
    graph.initializer.extend(unsigned.values())
    remove_dead_code(result)
    return result


def _zero_point(node: NodeProto) -> str:
    """Return the name of a zero point, which is empty where it is left out."""
    return node.input[_ZERO_POINT] if len(node.input) > _ZERO_POINT else ""


def _shifted(zero_point: TensorProto) -> TensorProto:
    """Return a zero point in uint8 that stands for the same numbers."""
    values = numpy_helper.to_array(zero_point).astype(np.int16) + _OFFSET
    return numpy_helper.from_array(values.astype(np.uint8), f"{zero_point.name}_unsigned")
