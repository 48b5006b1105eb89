"""Static int8 quantization of float TFLite files, as microcontroller runtimes expect it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from tightfit_service.adapters.formats.tflite_file import TfliteFile
from tightfit_service.application.calibration import TensorRange, calibrate
from tightfit_service.application.samples import FloatArray

InputBatches = Callable[[], Iterable[FloatArray]]
"""Starts a pass over the calibration inputs, in the layout of the file."""

_TENSORWISE_OPERATORS = ("FULLY_CONNECTED",)
"""Weights of dense layers share one scale: TFLite Micro and CMSIS-NN read only the first of several
up to releases of 2024, without an error."""

_INT8_VERSIONS = {
    "ADD": 2,
    "AVERAGE_POOL_2D": 2,
    "CONCATENATION": 2,
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "DEQUANTIZE": 2,
    "FULLY_CONNECTED": 4,
    "LEAKY_RELU": 2,
    "LOGISTIC": 2,
    "MAX_POOL_2D": 2,
    "MAXIMUM": 2,
    "MEAN": 2,
    "MINIMUM": 2,
    "MUL": 2,
    "PAD": 2,
    "PADV2": 2,
    "RELU": 2,
    "RELU6": 2,
    "RESIZE_BILINEAR": 2,
    "RESIZE_NEAREST_NEIGHBOR": 2,
    "SLICE": 2,
    "SOFTMAX": 2,
    "SPLIT": 2,
    "STRIDED_SLICE": 2,
    "SUB": 2,
    "SUM": 2,
    "TANH": 2,
    "TRANSPOSE": 2,
    "TRANSPOSE_CONV": 2,
}
"""First version of an operator that takes int8 (tensorflow/lite/tools/versioning/op_version.cc);
the quantizer leaves those of the float operators, on which strict runtimes insist."""


def quantize_file(
    file: TfliteFile,
    batches: InputBatches,
    *,
    method: str,
    per_channel: bool,
    given: Mapping[str, TensorRange],
) -> TfliteFile:
    """Return the file with int8 weights and activations, int32 biases, int8 input and output.

    Args:
        file: A float file whose tensors have unique names; max-pool padding in it is changed to
            the smallest value that calibration saw.
        batches: Calibration inputs, any number at a time.
        method: Of calibration: `minmax`, `percentile` or `mse`.
        per_channel: Whether convolutions have a scale per output channel.
        given: Ranges by tensor name that replace what calibration finds.
    """
    ranges = calibrate(lambda: _activations(file, batches()), method=method)
    ranges.update(given)
    _bound_pool_padding(file, ranges)
    quantized = TfliteFile(_quantized(file.to_bytes(), ranges, per_channel=per_channel))
    for operator in quantized.graph.operators:
        name = quantized.operator_name(operator)
        code = quantized.model.operatorCodes[operator.opcodeIndex]
        first = quantized.graph.tensors[int(operator.inputs[0])]
        if first.quantization is not None and first.quantization.scale is not None:
            code.version = max(code.version, _INT8_VERSIONS.get(name, 1))
    return quantized


def _activations(
    file: TfliteFile, batches: Iterable[FloatArray]
) -> Iterator[Mapping[str, npt.NDArray[np.float32]]]:
    """Yield the values of all float activations, sample by sample, by tensor name.

    Activations are read as outputs of a copy of the file: XNNPACK computes those, whereas it does not
    work at all when an interpreter is told to preserve all tensors.
    """
    observed = TfliteFile(file.to_bytes())
    tensors = observed.graph.tensors
    computed = {int(item) for operator in observed.graph.operators for item in operator.outputs}
    wanted = sorted(index for index in computed if tensors[index].type == schema.TensorType.FLOAT32)
    observed.graph.outputs = wanted
    observed.model.signatureDefs = []
    interpreter = Interpreter(model_content=observed.to_bytes(), num_threads=1)
    interpreter.allocate_tensors()
    source = int(observed.graph.inputs[0])
    for batch in batches:
        for sample in batch:
            interpreter.set_tensor(source, sample[None])
            interpreter.invoke()
            yield {
                tensors[source].name.decode(): sample,
                **{tensors[index].name.decode(): interpreter.get_tensor(index) for index in wanted},
            }


def _bound_pool_padding(file: TfliteFile, ranges: dict[str, TensorRange]) -> None:
    """Let max pools be padded with the smallest value of their input instead of minus infinity.

    The result is the same, for every window has an element of its own, and the padded tensor has
    the range of the input instead of an infinite one.
    """
    for pad in file.operators("PADV2"):
        readers = file.consumers(pad.outputs[0])
        value = file.constant(pad.inputs[2])
        if value is None or any(file.operator_name(item) != "MAX_POOL_2D" for item in readers):
            continue
        tensors = file.graph.tensors
        low = ranges[tensors[int(pad.inputs[0])].name.decode()].low
        if float(value.reshape(-1)[0]) < low:
            file.set_constant(int(pad.inputs[2]), np.full_like(value, low))
            ranges[tensors[int(pad.outputs[0])].name.decode()] = ranges[
                tensors[int(pad.inputs[0])].name.decode()
            ]


def _quantized(data: bytes, ranges: Mapping[str, TensorRange], *, per_channel: bool) -> bytes:
    from ai_edge_quantizer import qtyping, quantizer

    granularity = qtyping.QuantGranularity
    operator_name = qtyping.TFLOperationName
    engine = quantizer.Quantizer(bytearray(data))
    engine.add_static_config(
        ".*",
        operator_name.ALL_SUPPORTED,
        activation_num_bits=8,
        weight_num_bits=8,
        weight_granularity=granularity.CHANNELWISE if per_channel else granularity.TENSORWISE,
    )
    for name in _TENSORWISE_OPERATORS:
        engine.add_static_config(
            ".*",
            operator_name[name],
            activation_num_bits=8,
            weight_num_bits=8,
            weight_granularity=granularity.TENSORWISE,
        )
    statistics: dict[str, Any] = {
        name: {
            "min": np.full((1, 1), span.low, dtype=np.float32),
            "max": np.full((1, 1), span.high, dtype=np.float32),
        }
        for name, span in ranges.items()
    }
    # The quantizer opens a debugging interpreter, which warns about its own memory use.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = engine.quantize(
            statistics, enable_progress_bar=False, enable_progress_report=False
        )
    return bytes(result.quantized_model)
