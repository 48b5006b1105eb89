"""Operators without good kernels, spelled out in such that have them."""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tightfit_service.adapters.formats.tflite_file import TfliteFile


def spell_out(file: TfliteFile, *, has_swish: bool) -> None:
    """Replace squared differences, and hard swishes unless `has_swish`, by products and sums; outputs do not change.

    In 8 bits LiteRT has plain loops for both. A normalization that is spelled out has the difference already,
    and of the sum and the products of a hard swish LiteRT makes one table.
    """
    differences = {
        tuple(int(item) for item in operator.inputs): operator
        for operator in file.operators("SUB")
        if not file.is_activated(operator)
    }
    operators: dict[int, Any] = {}
    for operator in file.graph.operators:
        name = file.operator_name(operator)
        parts = [operator]
        if name == "SQUARED_DIFFERENCE":
            inputs, output = tuple(int(item) for item in operator.inputs), int(operator.outputs[0])
            if inputs not in differences:
                differences[inputs] = _difference(file, inputs, output)
            # one that there is may come only later
            known = differences[inputs]
            difference = int(known.outputs[0])
            parts = [known, pairwise(file, "MUL", [difference, difference], output)]
        elif name == "HARD_SWISH" and not has_swish:
            parts = _hard_swish(file, operator)
        for part in parts:
            operators.setdefault(id(part), part)
    file.graph.operators = list(operators.values())


def multiply_powers(file: TfliteFile) -> None:
    """Write powers in float32 as products and roots where the exponent is 3 or 3 / 4; results stay.

    LiteRT computes a power number by number, from exponential and logarithm. Three quarters are those of a
    local response normalization (Krizhevsky et al., NeurIPS 2012).
    """
    file.graph.operators = [
        part for operator in file.graph.operators for part in (_power(file, operator) or [operator])
    ]


def _power(file: TfliteFile, operator: Any) -> list[Any]:
    """Return the operators of a power in order; none where it stays, and for others."""
    if file.operator_name(operator) != "POW":
        return []
    exponent = file.constant(int(operator.inputs[1]))
    power = float(exponent.flat[0]) if exponent is not None and exponent.size == 1 else None
    source, output = int(operator.inputs[0]), int(operator.outputs[0])
    if power == 3.0:
        square = file.add_tensor_like(output, file.shape(output))
        return [
            pairwise(file, "MUL", [source, source], square),
            pairwise(file, "MUL", [square, source], output),
        ]
    if power == 0.75:
        root, fourth = (file.add_tensor_like(output, file.shape(output)) for _ in range(2))
        return [
            file.make_operator("SQRT", 1, [source], [root]),
            file.make_operator("SQRT", 1, [root], [fourth]),
            pairwise(file, "MUL", [root, fourth], output),
        ]
    return []


def _difference(file: TfliteFile, inputs: tuple[int, ...], like: int) -> Any:
    return pairwise(file, "SUB", list(inputs), file.add_tensor_like(like, file.shape(like)))


def _hard_swish(file: TfliteFile, operator: Any) -> list[Any]:
    """Return the operators of `x * (relu6(x + 3) / 6)` (Howard et al., MobileNetV3, ICCV 2019)."""
    source, output = int(operator.inputs[0]), int(operator.outputs[0])
    shifted, gate = (file.add_tensor_like(output, file.shape(output)) for _ in range(2))
    three, sixth = (
        file.add_tensor(np.array([value], np.float32), None) for value in (3.0, 1.0 / 6.0)
    )
    relu6 = schema.ActivationFunctionType.RELU6
    return [
        pairwise(file, "ADD", [source, three], shifted, activation=relu6),
        pairwise(file, "MUL", [shifted, sixth], gate),
        pairwise(file, "MUL", [source, gate], output),
    ]


def pairwise(
    file: TfliteFile,
    name: str,
    inputs: list[int],
    output: int,
    *,
    activation: int = schema.ActivationFunctionType.NONE,
) -> Any:
    """Return a new ADD, MUL or SUB of two tensors; the caller puts it into the schedule."""
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
