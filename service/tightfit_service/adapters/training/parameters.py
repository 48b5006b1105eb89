"""Which constants of a graph are weights, and which are part of its formulas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from tightfit_service.adapters.training.node_view import StaticArray

FLOATS = {np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)}

KEEPS_DATA = {
    "Cast", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split",
    "Squeeze", "Tile", "Transpose", "Unsqueeze",
}  # fmt: skip
"""Operators that hand a weight on to its user: never folded, or its gradient would be cut off."""

_ALL_INPUTS = tuple(range(64))

_WEIGHTS: dict[str, tuple[int, ...]] = {
    "BatchNormalization": (1, 2),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Einsum": _ALL_INPUTS,
    "GRU": (1, 2, 3),
    "Gemm": (0, 1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LSTM": (1, 2, 3, 7),
    "LayerNormalization": (1, 2),
    "MatMul": (0, 1),
    "PRelu": (1,),
    "RMSNormalization": (1,),
    "RNN": (1, 2, 3),
}
"""Inputs that are weights when they are float initializers."""

_PARTS: dict[str, tuple[int, ...]] = {"Add": (0, 1), "Concat": _ALL_INPUTS, "Mul": (0, 1)}
"""Inputs that are weights when they look learned: biases, scales, positions, class tokens.

Other constants there belong to a formula: a single number (`x + 3` in a hard swish), the grid and
strides of a detector, zeros that fill up channels, a mask.
"""

_PREPROCESSING = {"Cast", "Div", "Mul", "Sub", "Transpose"}


def trained_names(
    nodes: Sequence[onnx.NodeProto], constants: Mapping[str, StaticArray], inputs: Sequence[str]
) -> set[str]:
    """Return initializers that are weights, also where they reach their user through a reshape.

    What scales the graph's inputs (their mean and spread) is preprocessing and stays. A table that `Gather` looks up by data is an embedding.
    """
    raw = set(inputs)
    origin: dict[str, str] = {}
    trained: set[str] = set()
    for node in nodes:
        if node.op_type == "Gather" and node.input[1] not in constants:
            _note(trained, constants, node.input[0])
        elif node.op_type in KEEPS_DATA and node.input[0] in {*constants, *origin}:
            origin[node.output[0]] = origin.get(node.input[0], node.input[0])
        names = [origin.get(name, name) for name in node.input]
        for position in _WEIGHTS.get(node.op_type, ()):
            if position < len(names):
                _note(trained, constants, names[position])
        if node.op_type in _PREPROCESSING and node.input[0] in raw:
            raw.update(node.output)
        elif node.op_type in _PARTS:
            for name in names:
                value = constants.get(name)
                if value is not None and _looks_learned(value, is_sum=node.op_type == "Add"):
                    _note(trained, constants, name)
    return trained


def _note(trained: set[str], constants: Mapping[str, StaticArray], name: str) -> None:
    value = constants.get(name)
    if value is not None and value.dtype in FLOATS:
        trained.add(name)


def _looks_learned(value: StaticArray, *, is_sum: bool) -> bool:
    """Return whether an array is a weight: not halves and wholes all through, save a bias at zero."""
    if value.size < 2 or value.dtype not in FLOATS or not np.isfinite(value).all():
        return False
    if is_sum and not value.any():
        return True
    doubled = value.astype(np.float64) * 2
    return bool((doubled != np.round(doubled)).any())
