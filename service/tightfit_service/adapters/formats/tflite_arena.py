"""Memory that a TFLite interpreter needs for activations, planned as microcontroller runtimes plan it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ai_edge_litert import schema_py_generated as schema

from tightfit_service.adapters.formats.tflite_file import TfliteFile

_ALIGNMENT = 16
_BYTES = {
    schema.TensorType.FLOAT32: 4,
    schema.TensorType.FLOAT16: 2,
    schema.TensorType.INT32: 4,
    schema.TensorType.UINT32: 4,
    schema.TensorType.INT64: 8,
    schema.TensorType.INT16: 2,
    schema.TensorType.INT8: 1,
    schema.TensorType.UINT8: 1,
    schema.TensorType.BOOL: 1,
}


@dataclass(frozen=True, kw_only=True)
class _Buffer:
    tensor: int
    size: int
    first: int
    last: int


def activation_bytes(file: TfliteFile) -> int:
    """Return the bytes that all activations take in shared memory, inputs and outputs among them.

    Each tensor lives from the operator that writes it to the last that reads it; larger ones are
    placed first, of equal ones the last, at the lowest free offset, 16-byte aligned: TFLM's
    GreedyMemoryPlanner (tensorflow/lite/micro/memory_planner/greedy_memory_planner.cc). The
    interpreter's own structures and the scratch memory of kernels come on top.
    """
    placed: list[tuple[int, _Buffer]] = []
    for buffer in sorted(_buffers(file), key=lambda item: (-item.size, -item.tensor)):
        offset = 0
        for start, other in sorted(placed, key=lambda item: item[0]):
            apart = other.last < buffer.first or buffer.last < other.first
            if not apart and offset + buffer.size > start:
                offset = max(offset, start + other.size)
        placed.append((offset, buffer))
    return max((offset + buffer.size for offset, buffer in placed), default=0)


def _buffers(file: TfliteFile) -> list[_Buffer]:
    end = len(file.graph.operators)
    first = {int(tensor): -1 for tensor in file.graph.inputs}
    last = dict(first)
    for place, operator in enumerate(file.graph.operators):
        for tensor in map(int, operator.outputs):
            first.setdefault(tensor, place)
            last[tensor] = max(place, last.get(tensor, place))
        for tensor in map(int, operator.inputs):
            if tensor in last:
                last[tensor] = max(place, last[tensor])
    last.update({int(tensor): end for tensor in file.graph.outputs if int(tensor) in last})
    return [
        _Buffer(tensor=tensor, size=_aligned_bytes(file, tensor), first=begin, last=last[tensor])
        for tensor, begin in first.items()
    ]


def _aligned_bytes(file: TfliteFile, tensor: int) -> int:
    size = math.prod(file.shape(tensor)) * _BYTES.get(file.graph.tensors[tensor].type, 4)
    return -(-size // _ALIGNMENT) * _ALIGNMENT
