"""Normalizations of freshly converted TFLite files, in as few operators as they take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tightfit_service.adapters.formats.tflite_file import TfliteFile
from tightfit_service.adapters.formats.tflite_spelling import pairwise


def scale_differences(file: TfliteFile) -> None:
    """Write `x * r + (0 - m * r)` as `(x - m) * r` where x - m is squared for the variance; outputs do not change.

    So the converter spells what normalizes by the mean m and r, one over the standard deviation. In 8 bits
    both summands may be many times their sum.
    """
    for square in file.operators("SQUARED_DIFFERENCE"):
        found = _scaled(file, square)
        if found is None:
            continue
        operands = [int(item) for item in square.inputs]
        difference = file.add_tensor_like(operands[0], file.shape(operands[0]))
        written = {
            id(square): [
                pairwise(file, "SUB", operands, difference),
                pairwise(file, "MUL", [difference] * 2, int(square.outputs[0])),
            ],
            id(found.total): [
                pairwise(
                    file,
                    "MUL",
                    [difference, found.inverse],
                    int(found.total.outputs[0]),
                    activation=found.total.builtinOptions.fusedActivationFunction,
                )
            ],
        }
        file.graph.operators = [
            part for item in file.graph.operators for part in written.get(id(item), [item])
        ]
    file.remove_dead()


@dataclass(frozen=True)
class _Scaled:
    """The sum that ends a normalization, and one over the standard deviation, as a tensor."""

    total: Any
    inverse: int


def _scaled(file: TfliteFile, square: Any) -> _Scaled | None:
    """Return how what differs from a mean is normalized, None where it is not, or otherwise."""
    source, mean = int(square.inputs[0]), _before_reshape(file, int(square.inputs[1]))
    for product in file.consumers(source):
        if not _is_plain(file, product, "MUL"):
            continue
        inverse, scaled = _other(product, source), int(product.outputs[0])
        shifted = {mean, _before_reshape(file, inverse)}
        for total in file.consumers(scaled):
            if file.operator_name(total) == "ADD" and _is_minus_product(
                file, _other(total, scaled), shifted
            ):
                return _Scaled(total, inverse)
    return None


def _is_minus_product(file: TfliteFile, tensor: int, factors: set[int]) -> bool:
    """Whether a tensor is zero minus the product of two others, in another shape or not."""
    minus = file.producer(_before_reshape(file, tensor))
    if minus is None or not _is_plain(file, minus, "SUB") or not _is_zero(file, minus.inputs[0]):
        return False
    product = file.producer(int(minus.inputs[1]))
    return (
        product is not None
        and _is_plain(file, product, "MUL")
        and {int(item) for item in product.inputs} == factors
    )


def _other(operator: Any, tensor: int) -> int:
    """Return what an operator of two operands takes beside a tensor."""
    first, second = (int(item) for item in operator.inputs)
    return second if first == tensor else first


def _is_plain(file: TfliteFile, operator: Any, name: str) -> bool:
    return file.operator_name(operator) == name and not file.is_activated(operator)


def _before_reshape(file: TfliteFile, tensor: int) -> int:
    operator = file.producer(tensor)
    if operator is None or file.operator_name(operator) != "RESHAPE":
        return tensor
    return int(operator.inputs[0])


def _is_zero(file: TfliteFile, tensor: int) -> bool:
    value = file.constant(tensor)
    return value is not None and not np.any(value)
