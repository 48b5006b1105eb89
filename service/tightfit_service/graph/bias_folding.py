"""Biases that a converter wrote as nodes of their own, put into the convolution in front of them."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto

from tightfit_service.graph.structure import (
    Array,
    consumers,
    graph_outputs,
    initializers,
    producers,
    remove_dead_code,
    replace_nodes,
    set_initializer,
)


def fold_biases_before_norms(model: ModelProto) -> None:
    """Fold, in place, the constant added per channel between a convolution and its BatchNormalization.

    The BatchNormalization can then be folded too. Convolutions keep their names; nodes are in order.
    """
    makers, readers = producers(model.graph), consumers(model.graph)
    values, outputs = initializers(model), set(graph_outputs(model))
    gone: set[str] = set()
    for node in model.graph.node:
        if node.op_type != "Add" or node.output[0] in outputs:
            continue
        following = readers.get(node.output[0], [])
        if len(following) != 1 or following[0].op_type != "BatchNormalization":
            continue
        for source, constant in (node.input, reversed(node.input)):
            conv = makers.get(source)
            if conv is None or conv.op_type != "Conv" or constant not in values:
                continue
            added = _per_channel(conv, values[constant], values)
            if added is None or len(readers[source]) != 1 or source in outputs:
                continue
            bias = values[conv.input[2]] + added if len(conv.input) > 2 else added
            name = f"{conv.name}/bias"
            while name in values:
                name += "_"
            values[name] = bias.astype(values[conv.input[1]].dtype)
            set_initializer(model, name, values[name])
            del conv.input[2:]
            conv.input.append(name)
            conv.output[0] = node.output[0]
            gone.add(node.name)
            break
    if gone:
        replace_nodes(model.graph, [node for node in model.graph.node if node.name not in gone])
        remove_dead_code(model)


def _per_channel(conv: NodeProto, constant: Array, values: dict[str, Array]) -> Array | None:
    """Return the constant as one value per output channel, shape (C,), or None where it is none."""
    weight = values.get(conv.input[1])
    if weight is None or (len(conv.input) > 2 and conv.input[2] not in values):
        return None
    if constant.size == 1:
        return np.repeat(constant.reshape(-1), len(weight))
    shape = (1,) * (weight.ndim - constant.ndim) + constant.shape
    if len(shape) != weight.ndim or shape != (1, len(weight), *(1 for _ in weight.shape[2:])):
        return None
    return constant.reshape(-1)
