"""Exponential linear units of freshly converted TFLite files, whose exponential has no bound.

The converter spells ELU, CELU and SELU out as `select(x > 0, x, exp(x) - 1)` with factors. What the
exponential gives for positive x is never chosen, but its range is that of the tensor: rounded to 8
bits, all that is chosen becomes one value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tightfit_service.adapters.formats.tflite_file import TfliteFile

_SELECTS = ("SELECT", "SELECT_V2")
_COMPARISONS = ("GREATER", "GREATER_EQUAL")
_AFFINE = ("ADD", "MUL", "SUB")
_INVERSE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class _Unit:
    """A select of `x` with a factor where x is positive, else of a function of `exp(factor * x)`.

    Attributes:
        source: The tensor x.
        select: The operator that chooses.
        exponential: The operator EXP.
        factor: Of x in the exponent.
        steps: Operators behind the exponential with their constants, in order.
    """

    source: int
    select: Any
    exponential: Any
    factor: float
    steps: tuple[tuple[str, float], ...]


def bound_exponentials(file: TfliteFile) -> None:
    """Write ELU and CELU as TFLite's ELU, and bound the exponent of others; outputs do not change."""
    for select in file.operators(*_SELECTS):
        unit = _unit(file, select)
        if unit is None:
            continue
        scale = _elu_scale(unit)
        if scale is not None and int(select.inputs[1]) == unit.source:
            _write_elu(file, unit, scale)
        else:
            _bound(file, unit)
        file.remove_dead()


def _unit(file: TfliteFile, select: Any) -> _Unit | None:
    condition = file.producer(int(select.inputs[0]))
    if condition is None or file.operator_name(condition) not in _COMPARISONS:
        return None
    source = int(condition.inputs[0])
    if _scalar(file, int(condition.inputs[1])) != 0.0:
        return None
    steps: list[tuple[str, float]] = []
    current = file.producer(int(select.inputs[2]))
    while current is not None and file.operator_name(current) in _AFFINE:
        value = _scalar(file, int(current.inputs[1]))
        if value is None or not _is_plain(file, current):
            return None
        steps.insert(0, (file.operator_name(current), value))
        current = file.producer(int(current.inputs[0]))
    is_exponential = current is not None and file.operator_name(current) == "EXP"
    if current is None or not is_exponential or not _is_only_read_once(file, current):
        return None
    factor = _factor(file, int(current.inputs[0]), source)
    return None if factor is None else _Unit(source, select, current, factor, tuple(steps))


def _factor(file: TfliteFile, exponent: int, source: int) -> float | None:
    """Return by what positive number `source` is multiplied to give an exponent."""
    if exponent == source:
        return 1.0
    product = file.producer(exponent)
    if product is None or file.operator_name(product) != "MUL" or not _is_plain(file, product):
        return None
    value = _scalar(file, int(product.inputs[1]))
    is_positive = int(product.inputs[0]) == source and value is not None and value > 0.0
    return value if is_positive else None


def _scalar(file: TfliteFile, tensor: int) -> float | None:
    value = file.constant(tensor)
    return float(value.reshape(())) if value is not None and value.size == 1 else None


def _is_plain(file: TfliteFile, operator: Any) -> bool:
    """Whether an operator has no activation fused into it, and one reader."""
    return not file.is_activated(operator) and _is_only_read_once(file, operator)


def _is_only_read_once(file: TfliteFile, operator: Any) -> bool:
    tensor = int(operator.outputs[0])
    return len(file.consumers(tensor)) == 1 and not file.is_output(tensor)


def _elu_scale(unit: _Unit) -> float | None:
    """Return c where the unit is `c * elu(x / c)` (CELU; ELU with 1), None for others."""
    if unit.steps[:1] != (("SUB", 1.0),):
        return None
    if len(unit.steps) == 1:
        return 1.0 if unit.factor == 1.0 else None
    kind, scale = unit.steps[1]
    is_inverse = abs(scale * unit.factor - 1.0) < _INVERSE_TOLERANCE
    return scale if len(unit.steps) == 2 and kind == "MUL" and is_inverse else None


def _write_elu(file: TfliteFile, unit: _Unit, scale: float) -> None:
    result = int(unit.select.outputs[0])
    source = int(unit.exponential.inputs[0])
    if scale == 1.0:
        _replace(file, unit.select, [file.make_operator("ELU", 1, [source], [result])])
        return
    inner = file.add_tensor_like(result, file.shape(result))
    factor = file.add_tensor(np.array([scale], np.float32), None)
    product = file.make_operator("MUL", 1, [inner, factor], [result])
    product.builtinOptionsType = schema.BuiltinOptions.MulOptions
    product.builtinOptions = schema.MulOptionsT()
    elu = file.make_operator("ELU", 1, [source], [inner])
    _replace(file, unit.select, [elu, product])


def _bound(file: TfliteFile, unit: _Unit) -> None:
    """Let the exponent be 0 where it is positive, and choose by the operator that has 8-bit kernels."""
    exponent = int(unit.exponential.inputs[0])
    bounded = file.add_tensor_like(exponent, file.shape(exponent))
    zero = file.add_tensor(np.zeros(1, np.float32), None)
    minimum = file.make_operator("MINIMUM", 1, [exponent, zero], [bounded])
    minimum.builtinOptionsType = schema.BuiltinOptions.MaximumMinimumOptions
    minimum.builtinOptions = schema.MaximumMinimumOptionsT()
    unit.exponential.inputs = [bounded]
    _replace(file, unit.exponential, [minimum, unit.exponential])
    chosen = [int(item) for item in unit.select.inputs]
    select = file.make_operator("SELECT_V2", 1, chosen, [int(unit.select.outputs[0])])
    select.builtinOptionsType = schema.BuiltinOptions.SelectV2Options
    select.builtinOptions = schema.SelectV2OptionsT()
    _replace(file, unit.select, [select])


def _replace(file: TfliteFile, old: Any, new: list[Any]) -> None:
    operators = list(file.graph.operators)
    place = next(index for index, item in enumerate(operators) if item is old)
    operators[place : place + 1] = new
    file.graph.operators = operators
