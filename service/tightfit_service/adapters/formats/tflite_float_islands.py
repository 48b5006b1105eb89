"""Operators of TFLite files that LiteRT computes faster in float32 than as the file has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tightfit_service.adapters.formats.tflite_file import TfliteFile
from tightfit_service.adapters.formats.tflite_spelling import pairwise

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
        source, output = int(operator.inputs[0]), int(operator.outputs[0])
        is_integer = all(
            file.graph.tensors[item].type == schema.TensorType.INT8 for item in (source, output)
        )
        least = _LEAST_ELEMENTS.get(file.operator_name(operator))
        if least is None or not is_integer or np.prod(file.shape(source)) < least:
            operators.append(operator)
            continue
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


def multiply_powers(file: TfliteFile) -> None:
    """Write powers in float32 as products and roots where the exponent is 3 or 3 / 4; results stay.

    LiteRT computes a power number by number, from exponential and logarithm. Three quarters are those of a
    local response normalization (Krizhevsky et al., NeurIPS 2012).
    """
    operators: list[Any] = []
    for operator in file.graph.operators:
        if file.operator_name(operator) != "POW":
            operators.append(operator)
            continue
        (source, output), exponent = (
            (int(operator.inputs[0]), int(operator.outputs[0])),
            file.constant(int(operator.inputs[1])),
        )
        power = float(exponent.flat[0]) if exponent is not None and exponent.size == 1 else None
        if power == 3.0:
            square = _wide(file, output)
            operators += [
                pairwise(file, "MUL", [source, source], square),
                pairwise(file, "MUL", [square, source], output),
            ]
        elif power == 0.75:
            root, fourth = _wide(file, output), _wide(file, output)
            operators += [
                file.make_operator("SQRT", 1, [source], [root]),
                file.make_operator("SQRT", 1, [root], [fourth]),
                pairwise(file, "MUL", [root, fourth], output),
            ]
        else:
            operators.append(operator)
    file.graph.operators = operators


def _wide(file: TfliteFile, tensor: int) -> int:
    wide = file.add_tensor_like(tensor, file.shape(tensor))
    file.graph.tensors[wide].type = schema.TensorType.FLOAT32
    return wide
