"""Rectifiers of freshly converted TFLite files, fused into what computes the numbers they read."""

from __future__ import annotations

from typing import Any

from ai_edge_litert import schema_py_generated as schema

from tightfit_service.adapters.formats.tflite_file import TfliteFile

_FUSED = {
    "RELU": schema.ActivationFunctionType.RELU,
    "RELU6": schema.ActivationFunctionType.RELU6,
    "RELU_N1_TO_1": schema.ActivationFunctionType.RELU_N1_TO_1,
}
_COMPUTING = ("ADD", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "MUL", "SUB")
_MOVING = frozenset(
    {
        "BATCH_TO_SPACE_ND", "DEPTH_TO_SPACE", "EXPAND_DIMS", "GATHER", "MIRROR_PAD", "PAD", "RESHAPE",
        "RESIZE_NEAREST_NEIGHBOR", "REVERSE_V2", "SLICE", "SPACE_TO_BATCH_ND", "SPACE_TO_DEPTH",
        "SQUEEZE", "STRIDED_SLICE", "TILE", "TRANSPOSE",
    }
)  # fmt: skip
"""They commute with functions of single numbers that leave 0 as it is, which some of them add."""


def fuse_rectifiers(file: TfliteFile) -> None:
    """Compute each rectifier in the operators that compute its numbers; outputs do not change.

    Where numbers are only moved or joined in between, the converter leaves it an operator of its own. In 8 bits
    few runtimes have a good kernel for that: LiteRT's takes longer than the convolution before it.
    """
    for rectifier in file.operators(*_FUSED):
        output = int(rectifier.outputs[0])
        sources = None if file.is_output(output) else _sources(file, int(rectifier.inputs[0]))
        if sources is None:
            continue
        for source in sources:
            source.builtinOptions.fusedActivationFunction = _FUSED[file.operator_name(rectifier)]
        file.replace_uses(output, int(rectifier.inputs[0]))
    file.remove_dead()


def _sources(file: TfliteFile, tensor: int) -> list[Any] | None:
    """Return the operators that compute what is moved into a tensor; None where others read it, too."""
    operator = file.producer(tensor)
    if operator is None or file.is_output(tensor) or len(file.consumers(tensor)) != 1:
        return None
    name = file.operator_name(operator)
    if name in _MOVING:
        return _sources(file, int(operator.inputs[0]))
    if name not in {"CONCATENATION", *_COMPUTING} or file.is_activated(operator):
        return None
    if name in _COMPUTING:
        return [operator]
    found = [_sources(file, int(item)) for item in operator.inputs]
    known = [sources for sources in found if sources is not None]
    return [source for sources in known for source in sources] if known == found else None
