"""QDQ pairs around the nodes that compute in integers, with onnxruntime's quantizer."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, NodeProto, version_converter
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from tightfit_service.application.data.activation_ranges import TensorRange
from tightfit_service.domain.errors import UnsupportedError
from tightfit_service.domain.hardware import NumberFormat
from tightfit_service.graph.batch_norm import fold_batch_norms
from tightfit_service.graph.fusion import PRODUCTS
from tightfit_service.graph.model_file import copy_model
from tightfit_service.graph.structure import (
    consumers,
    default_opset,
    graph_inputs,
    initializers,
    producers,
    remove_dead_code,
    replace_nodes,
    sorted_model_nodes,
)
from tightfit_service.passes.number_formats import FLOAT_OPERATORS, INTEGER_FORMATS
from tightfit_service.passes.weight_rounding import round_weight, weight_axis

_PER_CHANNEL_OPSET = 13
"""From which QuantizeLinear has an axis."""
_NARROW_OPSET = 21
"""From which QuantizeLinear and DequantizeLinear are defined for int16 and int4."""
_NARROW_IR = 10
_OWN_DOMAIN = "com.microsoft"
_NO_LOG = 4
_STATE = ort.capi.onnxruntime_pybind11_state
_REFUSALS = (RuntimeError, _STATE.Fail, _STATE.InvalidGraph, _STATE.NotImplemented)
_INT4_HALF_RANGE = 7.5
"""The library spreads a symmetric range over all 15 steps of int4."""

QUANTIZABLE = frozenset({*QLinearOpsRegistry, *QDQRegistry}) - FLOAT_OPERATORS


def prepared_for_qdq(given: ModelProto, formats: Mapping[str, NumberFormat]) -> ModelProto:
    """Fold BatchNorm, raise the opset to where QDQ is defined for the formats, infer all shapes.

    Graphs that cannot be raised to opset 21 stay below: the library then takes the operators that
    onnxruntime has of its own (domain `com.microsoft`) for int16 and int4.

    Raises:
        UnsupportedError: The graph cannot be raised to opset 13.
    """
    model = fold_batch_norms(given)
    used = set(formats.values())
    if used & INTEGER_FORMATS and default_opset(model) < _PER_CHANNEL_OPSET:
        try:
            model = version_converter.convert_version(model, _PER_CHANNEL_OPSET)
        except (RuntimeError, ValueError) as error:
            raise UnsupportedError(
                f"the graph's opset {default_opset(given)} is too old to be quantized",
                field="model",
                remedy=f"export the model with opset {_PER_CHANNEL_OPSET} or above",
            ) from error
    if used & {NumberFormat.INT16X8, NumberFormat.INT4}:
        model.ir_version = max(model.ir_version, _NARROW_IR)
        if default_opset(model) < _NARROW_OPSET:
            with contextlib.suppress(RuntimeError, ValueError):
                model = version_converter.convert_version(model, _NARROW_OPSET)
    return onnx.shape_inference.infer_shapes(model)


def activation_types(
    model: ModelProto, formats: Mapping[str, NumberFormat]
) -> dict[str, QuantType]:
    """Return the integer type of every tensor that a node in integers reads or writes.

    It is the producer's; where that computes in float, the widest that a reader wants.
    """
    makers, readers = producers(model.graph), consumers(model.graph)
    constants = {tensor.name for tensor in model.graph.initializer}
    types: dict[str, QuantType] = {}
    for name in (*graph_inputs(model), *makers):
        if not name or name in constants:
            continue
        wanted = [
            kind for node in readers.get(name, []) if (kind := _activation_type(node, formats))
        ]
        own = _activation_type(makers[name], formats) if name in makers else None
        if own is not None:
            types[name] = own
        elif wanted:
            types[name] = QuantType.QInt16 if QuantType.QInt16 in wanted else QuantType.QInt8
    return types


def with_qdq(
    model: ModelProto,
    formats: Mapping[str, NumberFormat],
    ranges: Mapping[str, TensorRange],
    *,
    per_channel: bool,
) -> ModelProto:
    """Return the model with QDQ pairs around the nodes whose format is one of integers.

    Weights are symmetric (int8, or int4 with the scale of least squared error), activations
    asymmetric (int8 or int16), biases int32. Nodes keep their names; a Relu or Clip whose clipping
    the integers of the node before it do anyway is dropped.

    Where onnxruntime refuses the standard pairs it gets those of its own domain, `com.microsoft`.

    Args:
        model: As from `prepared_for_qdq`; it is not changed.
        formats: Per node name; nodes that are missing, or in float, are left alone.
        ranges: Of every tensor that such a node reads or writes.
        per_channel: One scale per output channel of a weight, or one per tensor.
    """
    chosen = [
        node.name
        for node in model.graph.node
        if formats.get(node.name) in INTEGER_FORMATS and node.op_type in QUANTIZABLE
    ]
    if not chosen:
        return copy_model(model)
    spans: dict[str, Any] = {
        name: (np.float32(span.low), np.float32(span.high)) for name, span in ranges.items()
    }
    options = {
        "WeightSymmetric": True,
        "ActivationSymmetric": False,
        "TensorQuantOverrides": {
            **_activation_overrides(model, formats),
            **_weight_overrides(model, formats, per_channel=per_channel),
        },
    }
    result = _quantized(model, chosen, spans, options, per_channel=per_channel)
    if not _is_loadable(result):
        options["UseQDQContribOps"] = True
        result = _quantized(model, chosen, spans, options, per_channel=per_channel)
    return result


def needs_onnxruntime(model: ModelProto) -> bool:
    """Whether a model has QDQ pairs that only onnxruntime knows."""
    return any(node.domain == _OWN_DOMAIN for node in model.graph.node)


def _quantized(
    model: ModelProto,
    chosen: list[str],
    spans: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    per_channel: bool,
) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    quantizer = QDQQuantizer(
        copy,
        per_channel,
        False,  # noqa: FBT003 - the library's order: all 8 bits of the weights
        QuantType.QInt8,
        QuantType.QInt8,
        TensorsData(CalibrationMethod.MinMax, dict(spans)),
        chosen,
        [],
        sorted(QUANTIZABLE),
        # The library takes entries out of what it is given.
        deepcopy(dict(options)),
    )
    quantizer.quantize_model()
    result: ModelProto = quantizer.model.model
    _keep_in_float(result)
    # The library appends its nodes at the end.
    replace_nodes(result.graph, sorted_model_nodes(result))
    remove_dead_code(result)
    return result


def _keep_in_float(model: ModelProto) -> None:
    """Let a Softmax whose output is rounded read its input before that is rounded, in place.

    Between integers onnxruntime would run a kernel of its own, which overflows (up to 1.31) where
    the output's scale is finer than 1/256: attention over more than a few places has such outputs.
    """
    makers, readers = producers(model.graph), consumers(model.graph)
    for node in model.graph.node:
        source = makers.get(node.input[0]) if node.op_type in FLOAT_OPERATORS else None
        if source is None or source.op_type != "DequantizeLinear":
            continue
        rounding = makers.get(source.input[0])
        is_rounded = any(n.op_type == "QuantizeLinear" for n in readers.get(node.output[0], []))
        if rounding is not None and is_rounded:
            node.input[0] = rounding.input[0]


def _is_loadable(model: ModelProto) -> bool:
    """Whether onnxruntime loads a model; up to 1.31 it moves some QDQ pairs of opset 21 wrongly."""
    options = ort.SessionOptions()
    options.log_severity_level = _NO_LOG
    options.intra_op_num_threads = 1
    try:
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except _REFUSALS:
        return False
    return True


def _activation_type(node: NodeProto, formats: Mapping[str, NumberFormat]) -> QuantType | None:
    number_format = formats.get(node.name)
    if number_format not in INTEGER_FORMATS or node.op_type not in QUANTIZABLE:
        return None
    return QuantType.QInt16 if number_format is NumberFormat.INT16X8 else QuantType.QInt8


def _activation_overrides(
    model: ModelProto, formats: Mapping[str, NumberFormat]
) -> dict[str, list[dict[str, Any]]]:
    """Name the tensors of 16 bits, and those that some reader wants in another width."""
    readers = consumers(model.graph)
    overrides: dict[str, list[dict[str, Any]]] = {}
    for name, kind in activation_types(model, formats).items():
        others = {
            node.name
            for node in readers.get(name, [])
            if (wanted := _activation_type(node, formats)) is not None and wanted is not kind
        }
        if kind is QuantType.QInt8 and not others:
            continue
        entry: dict[str, Any] = {"quant_type": kind}
        if others:
            other = QuantType.QInt8 if kind is QuantType.QInt16 else QuantType.QInt16
            entry["convert"] = {"quant_type": other, "recv_nodes": others}
        overrides[name] = [entry]
    return overrides


def _weight_overrides(
    model: ModelProto, formats: Mapping[str, NumberFormat], *, per_channel: bool
) -> dict[str, list[dict[str, Any]]]:
    """Give the scales of int4 weights; those that a node in another format shares stay int8."""
    constants = initializers(model)
    readers = consumers(model.graph)
    overrides: dict[str, list[dict[str, Any]]] = {}
    for node in model.graph.node:
        if formats.get(node.name) is not NumberFormat.INT4 or node.op_type not in PRODUCTS:
            continue
        name = node.input[1]
        if name not in constants or any(
            formats.get(other.name) is not NumberFormat.INT4 for other in readers[name]
        ):
            continue
        weight = constants[name]
        axis = weight_axis(node, weight.ndim) if per_channel else None
        rounded = round_weight(weight, axis=axis, bits=4)
        half_ranges = (rounded.scales * _INT4_HALF_RANGE).astype(np.float32)
        overrides[name] = [
            {
                "quant_type": QuantType.QInt4,
                "symmetric": True,
                "rmin": -half_range,
                "rmax": half_range,
                **({} if axis is None else {"axis": axis}),
            }
            for half_range in half_ranges
        ]
    return overrides
