"""Rewriting of a float TFLite file into integers once formats and scales are decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from tightfit_service.adapters.formats.tflite_file import TfliteFile
from tightfit_service.adapters.formats.tflite_kernels import KERNELS, WEIGHTED, WeightSlots
from tightfit_service.adapters.formats.tflite_scales import (
    FINEST_SUMMAND,
    FLOATS,
    ScaleGroups,
    is_float,
    widened,
)
from tightfit_service.application.data.activation_ranges import TensorRange
from tightfit_service.domain.hardware import NumberFormat
from tightfit_service.graph.rounding import (
    IntegerScale,
    activation_scale,
    centred,
    rounded_activation,
    rounded_bias,
    rounded_weight,
    scales_for_bias,
    weight_scales,
)

_BITS = {NumberFormat.INT8: 8, NumberFormat.INT4: 8, NumberFormat.INT16X8: 16}
_TYPES = {8: schema.TensorType.INT8, 16: schema.TensorType.INT16}
_QUANTIZE_VERSIONS = {8: 1, 16: 2}
_DEQUANTIZE_VERSIONS = {8: 2, 16: 3}
_HALF_DEQUANTIZE_VERSION = 3


@dataclass(frozen=True, kw_only=True)
class QuantizationPlan:
    """All that is decided before a file is rewritten.

    Attributes:
        formats: Of each operator in schedule order.
        groups: Tensors that share a scale.
        ranges: Of the groups, by their roots.
        means: Of the channels of what products read, where biases are corrected.
        per_channel: Whether weights have a scale per output channel.
        input_format: That inputs of the file have where operators in integers read them.
    """

    formats: Sequence[NumberFormat]
    groups: ScaleGroups
    ranges: Mapping[int, TensorRange]
    means: Mapping[int, npt.NDArray[np.float64]]
    per_channel: bool
    input_format: NumberFormat


class Rewriter:
    """Turns operators, constants and activations of one file into their formats, in place."""

    def __init__(self, file: TfliteFile, plan: QuantizationPlan) -> None:
        """Take the file as it is, all in float."""
        self._file = file
        self._plan = plan
        self._operators: list[Any] = []
        self._stored: dict[int, IntegerScale | None] = {}
        """How each activation is stored so far; None for float."""
        self._bits: dict[int, int] = {}
        self._converted: dict[tuple[int, int, IntegerScale | None], int] = {}
        self._constants: dict[tuple[Any, ...], int] = {}

    def run(self) -> None:
        """Rewrite the file."""
        file = self._file
        operators = list(file.graph.operators)
        self._store_inputs(operators)
        for operator, number_format in zip(operators, self._plan.formats, strict=True):
            if number_format in FLOATS:
                self._keep_float(operator, is_half=number_format is NumberFormat.FLOAT16)
            else:
                self._quantize(operator, number_format)
            self._operators.append(operator)
        file.graph.operators = self._operators
        file.remove_dead()

    def _store_inputs(self, operators: Sequence[Any]) -> None:
        """Give the file's inputs the format of what reads them."""
        for item in (int(i) for i in self._file.graph.inputs):
            formats = [
                number_format
                for operator, number_format in zip(operators, self._plan.formats, strict=True)
                if item in operator.inputs and number_format not in FLOATS
            ]
            bits = _BITS.get(self._plan.input_format)
            if is_float(self._file, item) and formats and bits:
                self._store(item, bits)

    def _store(self, tensor: int, bits: int) -> IntegerScale | None:
        """Let an activation be stored in integers, float where its range is not known."""
        scale = self._plan.groups.scale(tensor, self._plan.ranges, bits=bits)
        self._stored[tensor] = scale
        if scale is not None:
            self._bits[tensor] = bits
            self._set_type(tensor, bits, scale)
        return scale

    def _set_type(self, tensor: int, bits: int, scale: IntegerScale) -> None:
        entry = self._file.graph.tensors[tensor]
        entry.type = _TYPES[bits]
        entry.quantization = quantization([scale.scale], [scale.zero_point])

    def _keep_float(self, operator: Any, *, is_half: bool) -> None:
        slots = WEIGHTED.get(self._file.operator_name(operator))
        inputs = [int(item) for item in operator.inputs]
        for place, item in enumerate(inputs):
            if item < 0:
                continue
            if is_half and slots is not None and place in {slots.weight, slots.bias}:
                inputs[place] = self._half(item)
            elif self._stored.get(item) is not None:
                inputs[place] = self._convert(item, None, 0)
        operator.inputs = inputs

    def _quantize(self, operator: Any, number_format: NumberFormat) -> None:
        file, bits = self._file, _BITS[number_format]
        name = file.operator_name(operator)
        kernel, slots = KERNELS.get(name), WEIGHTED.get(name)
        if kernel is None:
            return
        outputs = [int(item) for item in operator.outputs]
        for item in outputs:
            if is_float(file, item):
                self._store(item, bits)
        joint = self._stored.get(outputs[0]) if kernel.scale in {"input", "all"} else None
        inputs = [int(item) for item in operator.inputs]
        is_product = slots is not None and file.constant(inputs[slots.weight]) is not None
        for place, item in enumerate(inputs):
            if item < 0 or (is_product and slots and place in {slots.weight, slots.bias}):
                continue
            if file.constant(item) is not None:
                is_centred = place == kernel.centred and bits == 8
                least = self._least_span(name, outputs[0]) if bits == 8 else 0.0
                inputs[place] = self._constant(
                    item, bits, joint, is_centred=is_centred, least=least
                )
            elif item in self._stored or is_float(file, item):
                own = joint or self._plan.groups.scale(item, self._plan.ranges, bits=bits)
                inputs[place] = self._convert(item, own, bits)
        version = kernel.version(number_format)
        if is_product and slots is not None:
            has_int4 = self._product(operator, inputs, slots, number_format)
            version = kernel.int4 if has_int4 else version
            if name == "FULLY_CONNECTED":
                version = max(version, 6 if len(inputs) < 3 or inputs[2] < 0 else version)
                version = max(version, 5 if operator.builtinOptions.keepNumDims else version)
        if name in {"ADD", "SUB"} and bits == 16:
            # General scales; the flag's default stands for powers of two.
            operator.builtinOptions.potScaleInt16 = False
        operator.inputs = inputs
        file.set_version(operator, version)

    def _product(
        self, operator: Any, inputs: list[int], slots: WeightSlots, number_format: NumberFormat
    ) -> bool:
        """Quantize weight and bias; returns whether the weight has 4 bits."""
        file = self._file
        name = file.operator_name(operator)
        weight = file.constant(inputs[slots.weight])
        bias_at = inputs[slots.bias] if len(inputs) > slots.bias else -1
        found = file.constant(bias_at) if bias_at >= 0 else None
        # Converters leave axes of size 1 in some.
        bias = None if found is None else found.reshape(-1)
        source = self._stored_input(inputs[slots.data])
        assert weight is not None
        bits = 4 if number_format is NumberFormat.INT4 else 8
        is_dense = name == "FULLY_CONNECTED"
        # See the module `tflite_quantize` for why dense layers differ.
        axis = slots.axis if self._plan.per_channel and not (is_dense and bits == 8) else None
        scales = weight_scales(weight, axis=axis, bits=bits)
        if bias is not None:
            scales = scales_for_bias(scales, bias, source.scale)
        steps = rounded_weight(weight, scales, axis=axis, bits=bits)
        if bias is not None:
            mean = self._plan.means.get(int(operator.inputs[slots.data]))
            if mean is not None:
                spread = scales if axis is None else _along(scales, weight.ndim, axis)
                bias = bias - _mean_error(steps * spread - weight, mean, name)
            wide = 64 if number_format is NumberFormat.INT16X8 else 32
            steps_of_bias = rounded_bias(bias, source.scale, scales, bits=wide)
            inputs[slots.bias] = file.add_tensor(
                steps_of_bias.astype(np.int64 if wide == 64 else np.int32),
                quantization(np.float32(source.scale) * scales, [0] * scales.size),
            )
        details = quantization(scales, [0] * scales.size, axis=axis or 0)
        key = (inputs[slots.weight], bits, scales.tobytes())
        if key not in self._constants:
            self._constants[key] = file.add_tensor(steps, details, is_int4=bits == 4)
        inputs[slots.weight] = self._constants[key]
        return bits == 4

    def _stored_input(self, tensor: int) -> IntegerScale:
        details = self._file.graph.tensors[tensor].quantization
        return IntegerScale(scale=float(details.scale[0]), zero_point=int(details.zeroPoint[0]))

    def _least_span(self, name: str, output: int) -> float:
        """Return what a constant must span for kernels to take it beside what they make of it."""
        stored = self._stored.get(output)
        return 255 * stored.scale * FINEST_SUMMAND if stored and name in {"ADD", "SUB"} else 0.0

    def _constant(
        self,
        tensor: int,
        bits: int,
        joint: IntegerScale | None,
        *,
        is_centred: bool,
        least: float,
    ) -> int:
        """Return a float constant in integers, in a given scale or that of its range, which spans at least so much."""
        value = self._file.constant(tensor)
        if value is None or value.dtype != np.float32:
            return tensor
        own = TensorRange(low=float(value.min(initial=0.0)), high=float(value.max(initial=0.0)))
        span = widened(own, least)
        low, high = centred(span.low, span.high) if is_centred else (span.low, span.high)
        scale = joint or activation_scale(low, high, bits=bits)
        key = (tensor, bits, scale)
        if key not in self._constants:
            steps = rounded_activation(value, scale, bits=bits)
            kind = np.int8 if bits == 8 else np.int16
            self._constants[key] = self._file.add_tensor(
                steps.astype(kind), quantization([scale.scale], [scale.zero_point])
            )
        return self._constants[key]

    def _convert(self, tensor: int, scale: IntegerScale | None, bits: int) -> int:
        """Return the tensor in another format, behind a QUANTIZE or DEQUANTIZE where it differs."""
        stored = self._stored.get(tensor)
        if stored == scale and (scale is None or self._bits[tensor] == bits):
            return tensor
        key = (tensor, bits, scale)
        if key in self._converted:
            return self._converted[key]
        file = self._file
        made = file.add_tensor_like(tensor, file.shape(tensor))
        if scale is None:
            file.graph.tensors[made].type = schema.TensorType.FLOAT32
            name, version = "DEQUANTIZE", _DEQUANTIZE_VERSIONS[self._bits[tensor]]
        else:
            self._set_type(made, bits, scale)
            name, version = "QUANTIZE", _QUANTIZE_VERSIONS[bits]
        self._operators.append(file.make_operator(name, version, [tensor], [made]))
        self._converted[key] = made
        return made

    def _half(self, tensor: int) -> int:
        """Return a float constant that is stored in 16 bits and widened when the file is loaded."""
        file = self._file
        value = file.constant(tensor)
        if value is None or value.dtype != np.float32:
            return tensor
        key = (tensor, "half")
        if key not in self._constants:
            limit = float(np.finfo(np.float16).max)
            stored = file.add_tensor(np.clip(value, -limit, limit).astype(np.float16), None)
            wide = file.add_tensor_like(tensor, value.shape)
            operator = file.make_operator("DEQUANTIZE", _HALF_DEQUANTIZE_VERSION, [stored], [wide])
            self._operators.append(operator)
            self._constants[key] = wide
        return self._constants[key]


def quantization(
    scales: Sequence[float] | npt.NDArray[np.float32], zero_points: Sequence[int], *, axis: int = 0
) -> Any:
    """Return quantization parameters as the schema wants them."""
    details = schema.QuantizationParametersT()
    details.scale = np.asarray(scales, dtype=np.float32)
    details.zeroPoint = np.asarray(zero_points, dtype=np.int64)
    details.quantizedDimension = axis
    return details


def _along(scales: npt.NDArray[np.float32], rank: int, axis: int) -> npt.NDArray[np.float32]:
    return scales.reshape([-1 if place == axis else 1 for place in range(rank)])


def _mean_error(
    error: npt.NDArray[Any], mean: npt.NDArray[np.float64], name: str
) -> npt.NDArray[np.float32]:
    """Return what rounded weights add to each output on average (Nagel et al., ICCV 2019).

    Borders, where padding enters instead of the input, are left out of account.
    """
    if name == "DEPTHWISE_CONV_2D":
        repeats = error.shape[-1] // mean.size
        total = error.reshape(-1, error.shape[-1]).sum(axis=0) * np.repeat(mean, repeats)
    else:
        # Grouped convolutions read a part of the channels per output.
        rows = error.reshape(error.shape[0], -1, error.shape[-1]).sum(axis=1)
        groups = max(1, mean.size // rows.shape[1])
        parts = mean.reshape(groups, -1).repeat(len(rows) // groups, axis=0)
        total = (rows * parts).sum(axis=1)
    return np.asarray(total, dtype=np.float32)
