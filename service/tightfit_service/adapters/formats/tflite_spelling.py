"""Operators without 16-bit kernels, spelled out in such that have them."""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tightfit_service.adapters.formats.tflite_file import TfliteFile


def spell_out(file: TfliteFile) -> None:
    """Replace squared differences and hard swishes by products and sums; outputs do not change."""
    operators: list[Any] = []
    for operator in file.graph.operators:
        name = file.operator_name(operator)
        if name == "SQUARED_DIFFERENCE":
            operators.extend(_squared_difference(file, operator))
        elif name == "HARD_SWISH":
            operators.extend(_hard_swish(file, operator))
        else:
            operators.append(operator)
    file.graph.operators = operators


def _squared_difference(file: TfliteFile, operator: Any) -> list[Any]:
    output = int(operator.outputs[0])
    difference = file.add_tensor_like(output, file.shape(output))
    return [
        _pairwise(file, "SUB", list(operator.inputs), difference),
        _pairwise(file, "MUL", [difference, difference], output),
    ]


def _hard_swish(file: TfliteFile, operator: Any) -> list[Any]:
    """Return the operators of `x * (relu6(x + 3) / 6)` (Howard et al., MobileNetV3, ICCV 2019)."""
    source, output = int(operator.inputs[0]), int(operator.outputs[0])
    shifted, gate = (file.add_tensor_like(output, file.shape(output)) for _ in range(2))
    three, sixth = (
        file.add_tensor(np.array([value], np.float32), None) for value in (3.0, 1.0 / 6.0)
    )
    relu6 = schema.ActivationFunctionType.RELU6
    return [
        _pairwise(file, "ADD", [source, three], shifted, activation=relu6),
        _pairwise(file, "MUL", [shifted, sixth], gate),
        _pairwise(file, "MUL", [source, gate], output),
    ]


def _pairwise(
    file: TfliteFile,
    name: str,
    inputs: list[int],
    output: int,
    *,
    activation: int = schema.ActivationFunctionType.NONE,
) -> Any:
    operator = file.make_operator(name, 1, [int(item) for item in inputs], [output])
    options = {"ADD": schema.AddOptionsT, "SUB": schema.SubOptionsT, "MUL": schema.MulOptionsT}
    kinds = {
        "ADD": schema.BuiltinOptions.AddOptions,
        "SUB": schema.BuiltinOptions.SubOptions,
        "MUL": schema.BuiltinOptions.MulOptions,
    }
    operator.builtinOptions = options[name]()
    operator.builtinOptionsType = kinds[name]
    operator.builtinOptions.fusedActivationFunction = activation
    return operator
