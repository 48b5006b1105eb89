"""Normalizations of freshly converted TFLite files, in as few operators as they take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tightfit_service.adapters.formats.tflite_file import TfliteFile
from tightfit_service.adapters.formats.tflite_spelling import pairwise


def scale_differences(file: TfliteFile) -> None:
    """Write `x * r + (0 - m * r)` as `(x - m) * r` where x - m is squared for the variance; outputs do not change.

    So the converter spells what normalizes by the mean m and r, one over the standard deviation. In 8 bits
    both summands may be many times their sum.
    """
    for total in file.operators("ADD"):
        found = _found(file, total)
        if found is None:
            continue
        operands = [int(item) for item in found.square.inputs]
        difference = file.add_tensor_like(operands[0], file.shape(operands[0]))
        written = {
            id(found.square): [
                pairwise(file, "SUB", operands, difference),
                pairwise(file, "MUL", [difference] * 2, int(found.square.outputs[0])),
            ],
            id(total): [
                pairwise(
                    file,
                    "MUL",
                    [difference, found.inverse],
                    int(total.outputs[0]),
                    activation=total.builtinOptions.fusedActivationFunction,
                )
            ],
        }
        file.graph.operators = [
            part for item in file.graph.operators for part in written.get(id(item), [item])
        ]
    file.remove_dead()


@dataclass(frozen=True)
class _Normalization:
    """The square of a difference from a mean, and one over the standard deviation, as a tensor."""

    square: Any
    inverse: int


def _found(file: TfliteFile, total: Any) -> _Normalization | None:
    """Return the normalization that a sum ends, None for other sums."""
    for first, second in _both_ways(total):
        product = _maker(file, first, "MUL")
        shift = _maker(file, _before_reshape(file, second), "SUB")
        if product is None or shift is None or not _is_zero(file, int(shift.inputs[0])):
            continue
        scaled = _maker(file, int(shift.inputs[1]), "MUL")
        if scaled is None:
            continue
        for source, inverse in _both_ways(product):
            for plain, mean in _both_ways(scaled):
                if _before_reshape(file, inverse) != plain:
                    continue
                for square in file.consumers(source):
                    if (
                        file.operator_name(square) == "SQUARED_DIFFERENCE"
                        and int(square.inputs[0]) == source
                        and _before_reshape(file, int(square.inputs[1])) == mean
                    ):
                        return _Normalization(square, inverse)
    return None


def _both_ways(operator: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    first, second = (int(item) for item in operator.inputs)
    return (first, second), (second, first)


def _maker(file: TfliteFile, tensor: int, name: str) -> Any | None:
    """Return the operator of this kind, without an activation fused into it, that computes a tensor, or None."""
    operator = file.producer(tensor)
    if operator is None or file.operator_name(operator) != name:
        return None
    none = schema.ActivationFunctionType.NONE
    return operator if operator.builtinOptions.fusedActivationFunction == none else None


def _before_reshape(file: TfliteFile, tensor: int) -> int:
    operator = file.producer(tensor)
    if operator is None or file.operator_name(operator) != "RESHAPE":
        return tensor
    return int(operator.inputs[0])


def _is_zero(file: TfliteFile, tensor: int) -> bool:
    value = file.constant(tensor)
    return value is not None and not np.any(value)
