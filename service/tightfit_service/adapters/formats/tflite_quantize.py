"""Static quantization of float TFLite files, operator by operator.

What is rounded, and how (numbers are from `graph.rounding`, groups from `graph.quantized_tensors`):

- Activations have one scale per tensor: 8 bits asymmetric, 16 bits symmetric. Tensors that a kernel
  passes on without arithmetic (reshape, transpose, pad, slice, pooling, concat, resize) share scale
  and zero point; their range is the union of those of the tensors that are computed, each as
  calibrated. A range that training has fixed for any of them is taken instead. Sigmoid, softmax
  and tanh give fixed scales; where such a tensor is joined with others it is rescaled first. What a
  product of two activations reads second has zero point 0 in 8 bits, too, unless its scale is
  fixed: XNNPACK leaves all others to a plain loop.
- Fused into a product, addition or multiplication are its bias, its BatchNormalization and a RELU,
  RELU6 or RELU_N1_TO_1: only what comes after them is rounded.
- Weights of convolutions are symmetric with one scale per output channel, those of dense layers with
  one scale for all: TFLite Micro and CMSIS-NN of before 2025 read only the first of several without
  an error. With 4 bits dense layers, too, have one per output channel (those runtimes that know
  4-bit weights read them).
- Biases are in steps of input scale times weight scale, rounded half to even, 32 bits wide behind
  8-bit activations and 64 behind 16-bit ones. Where 32 bits do not hold it the weight's scale is raised.
- Other constants are activations with their own range.
- Operators in float get DEQUANTIZE before and QUANTIZE behind them; between 8 and 16 bits stands a
  QUANTIZE. Reshapes and the like between float operators stay in float. Inputs and outputs of the
  file have the type of the operators that read and compute them.

Which formats LiteRT 2.3 runs: `tflite_kernels`. 4-bit weights: CONV_2D, DEPTHWISE_CONV_2D and
FULLY_CONNECTED, full-integer; other weights fall back to 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tightfit_service.adapters.formats.tflite_file import TfliteFile
from tightfit_service.adapters.formats.tflite_kernels import KERNELS, WEIGHTED
from tightfit_service.adapters.formats.tflite_rewrite import QuantizationPlan, Rewriter
from tightfit_service.adapters.formats.tflite_scales import FLOATS, ScaleGroups, is_float
from tightfit_service.adapters.formats.tflite_values import tensor_values
from tightfit_service.application.data.activation_ranges import TensorRange, calibrate
from tightfit_service.application.ports import QuantizationSettings
from tightfit_service.application.samples import FloatArray
from tightfit_service.domain.hardware import NumberFormat

InputBatches = Callable[[], Iterable[Sequence[FloatArray]]]
"""Starts a pass over the calibration samples: all inputs of one sample at a time, as the file wants
them."""


@dataclass(frozen=True, kw_only=True)
class Fallback:
    """An operator that does not run in the format asked for: its place and the format it runs in."""

    place: int
    asked: NumberFormat
    taken: NumberFormat


def quantize_file(
    file: TfliteFile,
    samples: InputBatches,
    *,
    settings: QuantizationSettings,
    formats: Sequence[NumberFormat],
    given: Mapping[int, TensorRange],
) -> tuple[Fallback, ...]:
    """Rewrite a float file in place in the formats asked for.

    Args:
        file: Float, cleaned up.
        samples: Calibration inputs; not read when no operator is in integers.
        settings: Method of calibration, scales per channel, bias correction.
        formats: Of each operator in schedule order.
        given: Ranges by tensor that replace what calibration finds.

    Returns:
        Operators that no kernel runs in the format asked for.
    """
    chosen, fallbacks = _chosen(file, formats)
    groups = ScaleGroups(file, chosen)
    ranges: dict[int, TensorRange] = {}
    means: dict[int, npt.NDArray[np.float64]] = {}
    if any(item not in FLOATS for item in chosen):
        wanted = groups.sources - given.keys()
        calibrated = calibrate(
            lambda: (
                {str(index): value for index, value in sample.items() if index in wanted}
                for sample in tensor_values(file, samples())
            ),
            method=settings.method,
            percentile=settings.percentile,
        )
        spans = {int(name): span for name, span in calibrated.items()}
        ranges = groups.ranges(spans, given)
        if settings.bias_correction:
            means = _channel_means(file, samples())
    plan = QuantizationPlan(
        formats=chosen,
        groups=groups,
        ranges=ranges,
        means=means,
        per_channel=settings.per_channel,
        input_format=settings.number_format,
    )
    Rewriter(file, plan).run()
    return fallbacks


def _chosen(
    file: TfliteFile, formats: Sequence[NumberFormat]
) -> tuple[list[NumberFormat], tuple[Fallback, ...]]:
    """Return the formats that operators can run in, and what is not as asked."""
    chosen: list[NumberFormat] = []
    fallbacks: list[Fallback] = []
    for place, (operator, asked) in enumerate(zip(file.graph.operators, formats, strict=True)):
        taken = _runnable(file, operator, asked)
        if taken is not asked:
            fallbacks.append(Fallback(place=place, asked=asked, taken=taken))
        chosen.append(taken)
    _keep_movement_in_float(file, chosen)
    return chosen, tuple(fallbacks)


def _runnable(file: TfliteFile, operator: object, asked: NumberFormat) -> NumberFormat:
    inputs = [int(item) for item in operator.inputs]  # type: ignore[attr-defined]
    outputs = [int(item) for item in operator.outputs]  # type: ignore[attr-defined]
    computes = any(item >= 0 and is_float(file, item) for item in (*inputs, *outputs))
    if asked in FLOATS or not computes:
        return asked
    name = file.operator_name(operator)
    kernel, slots = KERNELS.get(name), WEIGHTED.get(name)
    if kernel is None or not kernel.version(asked):
        return NumberFormat.FLOAT32
    if slots is not None and file.constant(inputs[slots.weight]) is None:
        return asked if name == "FULLY_CONNECTED" else NumberFormat.FLOAT32
    # Integer division by a computed number has no answer where that is rounded to zero.
    if name == "DIV" and file.constant(inputs[1]) is None:
        return NumberFormat.FLOAT32
    is_narrow = asked is NumberFormat.INT4 and slots is not None
    return NumberFormat.INT8 if is_narrow and not kernel.int4 else asked


def _keep_movement_in_float(file: TfliteFile, formats: list[NumberFormat]) -> None:
    """Let operators that only move data stay in float between others that compute in it."""
    operators = file.graph.operators
    place_of = {int(item): place for place, op in enumerate(operators) for item in op.outputs}
    readers: dict[int, list[int]] = {}
    for place, operator in enumerate(operators):
        for item in operator.inputs:
            readers.setdefault(int(item), []).append(place)
    changed = True
    while changed:
        changed = False
        for place, operator in enumerate(operators):
            kernel = KERNELS.get(file.operator_name(operator))
            if formats[place] in FLOATS or kernel is None or kernel.scale not in {"input", "all"}:
                continue
            before = [place_of[int(item)] for item in operator.inputs if int(item) in place_of]
            behind = [other for item in operator.outputs for other in readers.get(int(item), [])]
            around = [formats[other] in FLOATS for other in (*before, *behind)]
            if before and behind and all(around):
                formats[place] = NumberFormat.FLOAT32
                changed = True


def _channel_means(
    file: TfliteFile, samples: Iterable[Sequence[FloatArray]]
) -> dict[int, npt.NDArray[np.float64]]:
    """Return the mean of each channel (last axis) of what products read, by tensor."""
    wanted = {
        int(operator.inputs[WEIGHTED[file.operator_name(operator)].data])
        for operator in file.operators(*WEIGHTED)
    }
    totals: dict[int, npt.NDArray[np.float64]] = {}
    count = 0
    for sample in tensor_values(file, samples):
        count += 1
        for index in wanted & sample.keys():
            value = sample[index]
            mean = value.reshape(-1, value.shape[-1]).mean(axis=0, dtype=np.float64)
            totals[index] = totals.get(index, 0.0) + mean
    return {index: total / max(count, 1) for index, total in totals.items()}
