"""Static int8 quantization: a float ONNX graph in, an ONNX graph with QDQ pairs out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import version_converter
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from tightfit_service.application.calibration import TensorRange, calibrate
from tightfit_service.application.ports import QuantizationSettings
from tightfit_service.application.samples import Samples
from tightfit_service.domain.errors import (
    InvalidDatasetError,
    InvalidRequestError,
    UnsupportedError,
)
from tightfit_service.domain.hardware import HardwareSpec, NumberFormat
from tightfit_service.graph.batch_norm import fold_batch_norms
from tightfit_service.graph.model_file import load_model, save_model
from tightfit_service.graph.structure import (
    default_opset,
    graph_inputs,
    replace_nodes,
    sorted_model_nodes,
)

_FLOAT_OPERATORS = {"Softmax", "LogSoftmax"}
"""Left in float: in int8 their outputs tie at 1/256 steps, and they cost next to nothing."""
_BATCH_VALUES = 16 << 20
"""Activation values held at once while calibrating (64 MiB of float32)."""
_MAX_BATCH = 32
_ERRORS_ONLY = 3
_MIN_OPSET = 13
"""QuantizeLinear per channel exists from opset 13 on."""


class StaticQuantizationPass:
    """Quantizes weights per channel (symmetric) and activations per tensor (asymmetric) to int8.

    Biases become int32. BatchNorm is folded first. Nodes keep their names; a Relu or Clip whose
    clipping the integers of the node before it do anyway is dropped. Softmax stays in float.
    """

    name = "quantization"

    def applies_to(self, graph: bytes, target: HardwareSpec) -> tuple[str, ...]:
        """Return the reasons why int8 cannot help here, none when it can."""
        del graph
        if NumberFormat.INT8 in target.number_formats:
            return ()
        return (f"{target.name} does not compute in int8",)

    def quantize(
        self,
        graph: bytes,
        *,
        calibration: Samples,
        settings: QuantizationSettings,
        ranges: Mapping[str, tuple[float, float]] | None = None,
    ) -> bytes:
        """Return the graph with QDQ pairs around every node that runs in int8.

        Tensors that `ranges` names take their least and greatest value from there, as training
        fixed them; the others are calibrated.

        Raises:
            UnsupportedError: Another number format than int8, several inputs, or a graph too old
                for QDQ.
            InvalidRequestError: A float node that the graph does not have, an unknown method, or
                activations that are not finite.
            InvalidDatasetError: No calibration samples.
        """
        if settings.number_format is not NumberFormat.INT8:
            raise UnsupportedError(
                f"quantization to {settings.number_format} is not offered",
                field="quantization.number_format",
                remedy="use int8",
            )
        if len(calibration) == 0:
            raise InvalidDatasetError(
                "there are no calibration samples", field="calibration", remedy="give some hundred"
            )
        given = load_model(graph)
        if len(graph_inputs(given)) != 1:
            raise UnsupportedError(
                "only models with one input can be calibrated",
                field="model",
                remedy="export the model with a single input",
            )
        float_nodes = _float_nodes(given, settings)
        model = _prepared(given)
        spans = calibrate(lambda: activations(model, calibration), method=settings.method)
        for name, (low, high) in (ranges or {}).items():
            spans[name] = TensorRange(low=min(low, 0.0), high=max(high, 0.0))
        return _with_qdq(model, spans, settings, float_nodes)


def activations(
    model: onnx.ModelProto, samples: Samples
) -> Iterator[Mapping[str, npt.NDArray[np.float32]]]:
    """Yield the values of all float activations of a graph, a few samples at a time."""
    names, values_per_sample = _float_activations(model)
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    have = {output.name for output in observed.graph.output}
    observed.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in names
        if name not in have
    )
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        observed.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    input_name = session.get_inputs()[0].name
    wanted = [name for name in names if name != input_name]
    batch_size = max(1, min(_MAX_BATCH, _BATCH_VALUES // max(1, values_per_sample)))
    for inputs, _ in samples.batches(batch_size):
        yield {
            input_name: inputs,
            **dict(zip(wanted, session.run(wanted, {input_name: inputs}), strict=True)),
        }


def _float_activations(model: onnx.ModelProto) -> tuple[list[str], int]:
    """Return the names of float tensors that nodes pass on, and their values per sample together."""
    infos = [*model.graph.input, *model.graph.value_info, *model.graph.output]
    sizes: dict[str, int] = {}
    for info in infos:
        tensor = info.type.tensor_type
        if tensor.elem_type == onnx.TensorProto.FLOAT:
            sizes[info.name] = int(np.prod([max(1, dim.dim_value) for dim in tensor.shape.dim[1:]]))
    constants = {item.name for item in model.graph.initializer}
    produced = {name for node in model.graph.node for name in node.output}
    produced |= {info.name for info in model.graph.input}
    names = [name for name in sizes if name in produced and name not in constants]
    return names, sum(sizes[name] for name in names)


def _float_nodes(model: onnx.ModelProto, settings: QuantizationSettings) -> list[str]:
    """Return the nodes that stay in float."""
    known = {node.name for node in model.graph.node}
    for name, number_format in settings.node_formats.items():
        if name not in known:
            raise InvalidRequestError(
                f"there is no node {name!r} to keep in {number_format}",
                field="quantization.node_formats",
                remedy="use node names of the working graph",
            )
        if number_format not in (NumberFormat.INT8, NumberFormat.FLOAT32):
            raise UnsupportedError(
                f"node {name!r} cannot be quantized to {number_format}",
                field="quantization.node_formats",
                remedy="use int8 or float32",
            )
    return [n for n, f in settings.node_formats.items() if f is NumberFormat.FLOAT32]


def _prepared(given: onnx.ModelProto) -> onnx.ModelProto:
    """Fold BatchNorm, raise the opset to where QDQ is defined, and infer all shapes."""
    model = fold_batch_norms(given)
    opset = default_opset(model)
    if opset < _MIN_OPSET:
        try:
            model = version_converter.convert_version(model, _MIN_OPSET)
        except (RuntimeError, ValueError) as error:
            raise UnsupportedError(
                f"the graph's opset {opset} is too old to be quantized",
                field="model",
                remedy=f"export the model with opset {_MIN_OPSET} or above",
            ) from error
    return onnx.shape_inference.infer_shapes(model)


def _with_qdq(
    model: onnx.ModelProto,
    ranges: Mapping[str, TensorRange],
    settings: QuantizationSettings,
    float_nodes: list[str],
) -> bytes:
    operators = sorted({*QLinearOpsRegistry, *QDQRegistry} - _FLOAT_OPERATORS)
    spans: dict[str, Any] = {
        name: (np.float32(span.low), np.float32(span.high)) for name, span in ranges.items()
    }
    quantizer = QDQQuantizer(
        model,
        settings.per_channel,
        False,  # noqa: FBT003 - the library's order: all 8 bits of the weights
        QuantType.QInt8,
        QuantType.QInt8,
        TensorsData(CalibrationMethod.MinMax, spans),
        [],
        float_nodes,
        operators,
        {"WeightSymmetric": True, "ActivationSymmetric": False},
    )
    quantizer.quantize_model()
    result = quantizer.model.model
    # The library appends its nodes at the end.
    replace_nodes(result.graph, sorted_model_nodes(result))
    return save_model(result)
