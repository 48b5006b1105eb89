"""Correction of biases by the mean error that rounding weights makes (Nagel et al., ICCV 2019, 4.2)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, NodeProto

from tightfit_service.application.samples import Samples
from tightfit_service.graph.model_file import copy_model
from tightfit_service.graph.structure import (
    Array,
    attribute,
    initializers,
    producers,
    set_initializer,
    tensor_shapes,
)
from tightfit_service.passes.rounding_error import output_errors

_BIASED = frozenset({"Conv", "ConvTranspose", "Gemm"})
_INT32 = np.iinfo(np.int32)


def with_biases(model: ModelProto) -> ModelProto:
    """Return the model with a bias, of zeros where there was none, for every product that may have one."""
    result = copy_model(model)
    constants = initializers(result)
    shapes = tensor_shapes(result)
    for node in result.graph.node:
        shape = shapes.get(node.output[0]) if node.output else None
        if (
            node.op_type not in _BIASED
            or node.input[1] not in constants
            or shape is None
            or (len(node.input) > 2 and node.input[2])
        ):
            continue
        name = f"{node.name}.zero_bias"
        set_initializer(result, name, np.zeros(shape[1], dtype=np.float32))
        node.input[:] = [node.input[0], node.input[1], name]
    return result


def corrected(
    quantized: ModelProto, model: ModelProto, samples: Samples
) -> tuple[ModelProto, tuple[str, ...]]:
    """Return the quantized model with shifted biases, and the nodes that could not be corrected.

    The error of a node is measured on the samples with the weights that the integers stand for and
    the inputs of the float model: one run of the float network with two copies of every product. What
    rounded activations add is left alone, for their errors are centred.

    Args:
        quantized: A graph with QDQ pairs whose nodes have the names of `model`.
        model: The float graph, from `with_biases`, shapes inferred.
        samples: Calibration samples.
    """
    result = copy_model(quantized)
    makers = producers(result.graph)
    constants = initializers(result)
    rounded: dict[str, Array] = {}
    skipped: list[str] = []
    for node in result.graph.node:
        source = makers.get(node.input[1]) if len(node.input) > 1 else None
        if source is None or source.op_type != "DequantizeLinear":
            continue
        if source.input[0] not in constants:
            continue
        if node.op_type in _BIASED and _bias_source(node, makers, constants) is not None:
            rounded[node.name] = dequantized(source, constants)
        elif node.op_type in _BIASED or node.op_type == "MatMul":
            skipped.append(node.name)
    errors = output_errors(model, rounded, samples)
    for node in result.graph.node:
        if node.name in errors:
            shift = errors[node.name].mean / attribute(node, "beta", 1.0)
            _shift_bias(result, node, makers, constants, shift)
    return result, tuple(skipped)


def dequantized(node: NodeProto, constants: Mapping[str, Array]) -> Array:
    """Return what a DequantizeLinear of constants computes, in float64.

    Args:
        node: The DequantizeLinear, per tensor or along its axis.
        constants: Initializers of its graph.
    """
    values, scale = (constants[name].astype(np.float64) for name in node.input[:2])
    zero = constants[node.input[2]].astype(np.float64) if len(node.input) > 2 else np.zeros(1)
    shape = [1] * values.ndim
    if scale.size > 1:
        shape[attribute(node, "axis", 1)] = -1
    return np.asarray((values - zero.reshape(shape)) * scale.reshape(shape))


def _bias_source(
    node: NodeProto, makers: Mapping[str, NodeProto], constants: Mapping[str, Array]
) -> NodeProto | None:
    """Return the DequantizeLinear that makes the node's bias from int32, or None."""
    source = makers.get(node.input[2]) if len(node.input) > 2 else None
    if source is None or source.op_type != "DequantizeLinear":
        return None
    return source if source.input[0] in constants else None


def _shift_bias(
    model: ModelProto,
    node: NodeProto,
    makers: Mapping[str, NodeProto],
    constants: Mapping[str, Array],
    shift: Array,
) -> None:
    source = _bias_source(node, makers, constants)
    assert source is not None
    values, scale = constants[source.input[0]], constants[source.input[1]].astype(np.float64)
    steps = np.broadcast_to(np.round(shift / scale), values.shape)
    moved = np.clip(values.astype(np.float64) - steps, _INT32.min, _INT32.max)
    set_initializer(model, source.input[0], moved.astype(np.int32))
