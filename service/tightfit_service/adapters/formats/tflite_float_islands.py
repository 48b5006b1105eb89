"""Operators of integer TFLite files that LiteRT computes faster in float32, between conversions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from tightfit_service.adapters.formats.tflite_file import TfliteFile

_LEAST_ELEMENTS: Mapping[str, int] = {
    "ABS": 256,
    "AVERAGE_POOL_2D": 256,
    "RELU": 256,
    "RELU6": 256,
    "RSQRT": 16,
    "SOFTMAX": 256,
    "SQRT": 256,
}
"""Operators that LiteRT has a plain loop for in 8 bits, and XNNPACK vectors in float32, with how many numbers
they take for the loop to cost more than two conversions."""
_DEQUANTIZE_VERSION = 2


def compute_in_float(file: TfliteFile) -> list[Any]:
    """Put conversions around operators of 8 bits that LiteRT is faster at in float32; tensors keep their scales.

    What stands between operators is rounded as before: results differ by no more than the integer kernels'
    own tables and approximations do.

    Returns:
        Those operators.
    """
    operators: list[Any] = []
    found: list[Any] = []
    for operator in file.graph.operators:
        if not _is_slow(file, operator):
            operators.append(operator)
            continue
        source, output = int(operator.inputs[0]), int(operator.outputs[0])
        before, behind = _wide(file, source), _wide(file, output)
        operator.inputs[0], operator.outputs[0] = before, behind
        operators += [
            file.make_operator("DEQUANTIZE", _DEQUANTIZE_VERSION, [source], [before]),
            operator,
            file.make_operator("QUANTIZE", 1, [behind], [output]),
        ]
        found.append(operator)
    file.graph.operators = operators
    return found


def _is_slow(file: TfliteFile, operator: Any) -> bool:
    least = _LEAST_ELEMENTS.get(file.operator_name(operator))
    return (
        least is not None
        and file.graph.tensors[int(operator.inputs[0])].type == schema.TensorType.INT8
        and math.prod(file.shape(int(operator.inputs[0]))) >= least
    )


def _wide(file: TfliteFile, tensor: int) -> int:
    wide = file.add_tensor_like(tensor, file.shape(tensor))
    file.graph.tensors[wide].type = schema.TensorType.FLOAT32
    return wide
