"""Folding of BatchNormalization into the convolution or matrix product in front of it."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto

from tightfit_service.graph.model_file import copy_model
from tightfit_service.graph.structure import (
    Array,
    attribute,
    consumers,
    graph_outputs,
    initializers,
    producers,
    remove_dead_code,
    replace_nodes,
    set_initializer,
)

FOLDABLE = frozenset({"Conv", "ConvTranspose", "Gemm"})


def foldable_batch_norms(model: ModelProto) -> dict[str, str]:
    """Return, per BatchNormalization node that can be folded, the node it folds into (by name).

    It can when its parameters are constants and nothing else reads the product's output.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    makers = producers(model.graph)
    readers = consumers(model.graph)
    outputs = set(graph_outputs(model))
    foldable: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type != "BatchNormalization" or attribute(node, "training_mode", 0):
            continue
        source = makers.get(node.input[0])
        if (
            source is not None
            and source.op_type in FOLDABLE
            and all(name in constants for name in node.input[1:5])
            and all(name in constants for name in source.input[1:] if name)
            and len(readers[node.input[0]]) == 1
            and node.input[0] not in outputs
        ):
            foldable[node.name] = source.name
    return foldable


def fold_batch_norms(model: ModelProto) -> ModelProto:
    """Return the model with every foldable BatchNormalization folded away.

    The product keeps its node name and takes over the BatchNormalization's output name. Arithmetic
    is in float64; weights that other nodes share are copied first.
    """
    result = copy_model(model)
    foldable = foldable_batch_norms(result)
    if not foldable:
        return result
    by_name = {node.name: node for node in result.graph.node}
    values = initializers(result)
    uses = {name: len(nodes) for name, nodes in consumers(result.graph).items()}
    for norm_name, source_name in foldable.items():
        norm, source = by_name[norm_name], by_name[source_name]
        scale, shift = affine_of(norm, values)
        weight = values[source.input[1]].astype(np.float64)
        bias = (
            values[source.input[2]].astype(np.float64)
            if len(source.input) > 2 and source.input[2]
            else np.zeros_like(scale)
        )
        if source.op_type == "Gemm":
            bias = bias * attribute(source, "beta", 1.0)
            for item in [item for item in source.attribute if item.name == "beta"]:
                source.attribute.remove(item)
        new_weight = _scaled_weight(source, weight, scale)
        new_bias = np.broadcast_to(bias.reshape(-1), scale.shape) * scale + shift
        weight_name = _own(source, 1, values, uses)
        bias_name = _own(source, 2, values, uses)
        dtype = values[norm.input[1]].dtype
        for name, value in ((weight_name, new_weight), (bias_name, new_bias)):
            values[name] = value.astype(dtype)
            set_initializer(result, name, values[name])
        source.output[0] = norm.output[0]
    replace_nodes(result.graph, [n for n in result.graph.node if n.name not in foldable])
    remove_dead_code(result)
    return result


def affine_of(norm: NodeProto, values: dict[str, Array]) -> tuple[Array, Array]:
    """Return scale and shift per channel (float64) that a BatchNormalization applies in inference."""
    gamma, beta, mean, variance = (values[name].astype(np.float64) for name in norm.input[1:5])
    scale = gamma / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
    return scale, beta - mean * scale


def _scaled_weight(source: NodeProto, weight: Array, scale: Array) -> Array:
    """Return the weight with each output channel multiplied by its scale."""
    if source.op_type == "Gemm":
        return weight * (scale[:, None] if attribute(source, "transB", 0) else scale[None, :])
    spatial = (1,) * (weight.ndim - 2)
    if source.op_type == "Conv":
        return weight * scale.reshape(-1, 1, *spatial)
    # ConvTranspose weights are (in, out / groups, ...); the inputs of a group stand together.
    groups = int(attribute(source, "group", 1))
    grouped = weight.reshape(groups, -1, *weight.shape[1:])
    return (grouped * scale.reshape(groups, 1, -1, *spatial)).reshape(weight.shape)


def _own(node: NodeProto, index: int, values: dict[str, Array], uses: dict[str, int]) -> str:
    """Return the name of a parameter that this node may change, made unique to it if shared."""
    while len(node.input) <= index:
        node.input.append("")
    name = node.input[index]
    if name and uses.get(name, 0) <= 1:
        return name
    stem = f"{node.name}.{'weight' if index == 1 else 'bias'}"
    unique = stem
    suffix = 1
    while unique in values:
        suffix += 1
        unique = f"{stem}_{suffix}"
    node.input[index] = unique
    return unique
