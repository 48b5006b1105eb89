"""Activations of 8 bits without a sign, as onnxruntime's kernels on x86 want them.

On x86 onnxruntime turns signed activations into unsigned ones itself before it looks for integer kernels,
but not those that several operators read. A convolution between the two kinds has no integer kernel and
runs in float32: of a residual network every convolution that is added to another.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from tightfit_service.graph.model_file import copy_model

_OFFSET = -int(np.iinfo(np.int8).min)
_ZERO_POINT = 2
"""Place of the zero point among the inputs of both operators; graphs from the quantizer always have it."""


def with_unsigned_activations(model: ModelProto) -> ModelProto:
    """Return a model whose activations in int8 are in uint8; it computes the very same values.

    Weights, which no QuantizeLinear makes, keep their signs: kernels take unsigned by signed.
    """
    result = copy_model(model)
    graph = result.graph
    pairs = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    made = {node.output[0] for node in pairs}
    pairs += [
        node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in made
    ]
    zero_points = {node.input[_ZERO_POINT] for node in pairs}
    unsigned: dict[str, str] = {}
    for tensor in list(graph.initializer):
        if tensor.name in zero_points and tensor.data_type == TensorProto.INT8:
            shifted = numpy_helper.to_array(tensor).astype(np.int16) + _OFFSET
            unsigned[tensor.name] = f"{tensor.name}_unsigned"
            graph.initializer.append(
                numpy_helper.from_array(shifted.astype(np.uint8), unsigned[tensor.name])
            )
    for node in pairs:
        name = node.input[_ZERO_POINT]
        node.input[_ZERO_POINT] = unsigned.get(name, name)
    used = {name for node in graph.node for name in node.input}
    kept = [t for t in graph.initializer if t.name in used or t.name not in unsigned]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return result
