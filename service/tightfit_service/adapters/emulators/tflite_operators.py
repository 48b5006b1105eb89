"""The operators of a compiled TFLite file that stay on the core, as work to be done."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from tightfit_service.adapters.emulators.operator_names import kind_of_name
from tightfit_service.adapters.formats.tflite_file import TfliteFile
from tightfit_service.domain.network import Operator, OperatorKind

NPU_CODE = b"ethos-u"
"""Name of the custom operator that hands a command stream to the processor's driver."""

_BITS: Mapping[int, int] = {
    schema.TensorType.FLOAT32: 32,
    schema.TensorType.INT32: 32,
    schema.TensorType.FLOAT16: 16,
    schema.TensorType.INT16: 16,
}
"""Of a tensor's elements; others have 8."""
_ONNX_NAMES: Mapping[str, str] = {
    "LOGISTIC": "Sigmoid",
    "TANH": "Tanh",
    "HARD_SWISH": "HardSwish",
    "ELU": "Elu",
    "GELU": "Gelu",
}
"""Functions that emulators price by their ONNX names."""
_WEIGHTED = frozenset(
    {
        OperatorKind.CONV,
        OperatorKind.DEPTHWISE_CONV,
        OperatorKind.TRANSPOSED_CONV,
        OperatorKind.DENSE,
    }
)


@dataclass(frozen=True, kw_only=True)
class CoreWork:
    """What a compiled file leaves to the core.

    Attributes:
        operators: In schedule order, shapes as in NCHW.
        crossing_bytes: Activations that come over from the other side, per change of sides.
    """

    operators: tuple[Operator, ...]
    crossing_bytes: tuple[int, ...]


def left_on_core(data: bytes) -> CoreWork:
    """Return the operators of a compiled file that are not the accelerator's, and what crosses.

    Raises:
        ValueError: Not a TFLite file.
    """
    file = TfliteFile(data)
    made_by_npu: dict[int, bool] = {}
    operators: list[Operator] = []
    crossings: list[int] = []
    for place, item in enumerate(file.graph.operators):
        on_npu = file.model.operatorCodes[item.opcodeIndex].customCode == NPU_CODE
        entering = {i for i in _computed(file, item.inputs) if made_by_npu.get(i, on_npu) != on_npu}
        if entering:
            crossings.append(sum(_bytes(file, index) for index in entering))
        made_by_npu |= {int(index): on_npu for index in item.outputs}
        if not on_npu:
            operators.append(_operator(file, item, f"core{place}"))
    return CoreWork(operators=tuple(operators), crossing_bytes=tuple(crossings))


def _operator(file: TfliteFile, item: Any, node: str) -> Operator:
    name = file.operator_name(item)
    kind = kind_of_name(name)
    sources, output = _computed(file, item.inputs), int(item.outputs[0])
    source = sources[0] if sources else output
    given, made = file.shape(source), file.shape(output)
    weights = _weights(file, item) if kind in _WEIGHTED else ()
    bits = _bits(file, source)
    return Operator(
        node=node,
        kind=kind,
        op_type=_ONNX_NAMES.get(name, name),
        inputs=tuple(f"t{index}" for index in sources),
        outputs=tuple(f"t{int(index)}" for index in item.outputs),
        macs=_macs(kind, given, made, weights),
        in_channels=given[-1] if given else 0,
        out_channels=made[-1] if made else 0,
        in_size=given[1:-1],
        out_size=made[1:-1],
        kernel=_kernel(item, kind, weights),
        stride=_window(item, "stride"),
        groups=made[-1] if kind is OperatorKind.DEPTHWISE_CONV else 1,
        weight_count=math.prod(weights) if weights else 0,
        bias_count=made[-1] if weights and made else 0,
        weight_bits=bits,
        activation_bits=bits,
    )


def _macs(
    kind: OperatorKind, given: Sequence[int], made: Sequence[int], weights: Sequence[int]
) -> int:
    """Return multiply-accumulates from shapes in NHWC; weights are (out, height, width, in)."""
    if kind is OperatorKind.MATMUL and given:
        return math.prod(made) * given[-1]
    if not weights:
        return 0
    if kind is OperatorKind.TRANSPOSED_CONV:
        return math.prod(given) * math.prod(weights[:-1])
    if kind is OperatorKind.DEPTHWISE_CONV:
        return math.prod(made) * math.prod(weights[1:-1])
    return math.prod(made) * math.prod(weights[1:])


def _weights(file: TfliteFile, item: Any) -> tuple[int, ...]:
    """Return the shape of an operator's weights, its second input."""
    return file.shape(int(item.inputs[1])) if len(item.inputs) > 1 else ()


def _kernel(item: Any, kind: OperatorKind, weights: Sequence[int]) -> tuple[int, ...]:
    if kind is OperatorKind.POOL:
        return _window(item, "filter", "Height", "Width")
    return tuple(weights[1:-1]) if kind in _WEIGHTED and len(weights) == 4 else ()


def _window(item: Any, name: str, high: str = "H", wide: str = "W") -> tuple[int, ...]:
    """Return height and width of a stride or a filter; nothing where the operator has none."""
    options = item.builtinOptions
    sizes = [getattr(options, name + axis, None) for axis in (high, wide)]
    return tuple(int(size) for size in sizes if size is not None)


def _computed(file: TfliteFile, tensors: Sequence[int]) -> list[int]:
    """Return the tensors among an operator's inputs that are no constants."""
    buffers, graph = file.model.buffers, file.graph
    return [
        int(index)
        for index in tensors
        if index >= 0 and not _has_data(buffers[graph.tensors[index].buffer])
    ]


def _bits(file: TfliteFile, tensor: int) -> int:
    return _BITS.get(file.graph.tensors[tensor].type, 8)


def _bytes(file: TfliteFile, tensor: int) -> int:
    return math.prod(file.shape(tensor)) * _bits(file, tensor) // 8


def _has_data(buffer: Any) -> bool:
    return buffer.data is not None and len(buffer.data) > 0
