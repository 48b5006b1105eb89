"""Where the large constants of a model file lie, byte by byte, and what they are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from ai_edge_litert import schema_py_generated as schema
from onnx import GraphProto, TensorProto

from tightfit_service.domain.hardware import ModelFormat
from tightfit_service.graph.model_file import load_model, subgraphs

_LEAST_BYTES = 256
"""Below this, describing a constant costs more than coding it brings."""
_SUBBYTE = frozenset({TensorProto.INT4, TensorProto.UINT4, TensorProto.INT2, TensorProto.UINT2})
_TFLITE_TYPES: dict[int, Any] = {
    schema.TensorType.FLOAT32: np.float32,
    schema.TensorType.FLOAT16: np.float16,
    schema.TensorType.INT8: np.int8,
    schema.TensorType.UINT8: np.uint8,
    schema.TensorType.INT16: np.int16,
    schema.TensorType.INT32: np.int32,
    schema.TensorType.INT64: np.int64,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredConstant:
    """A constant inside a model file.

    Attributes:
        name: Of the tensor.
        start: Position of its first byte.
        values: Its elements in the order of the file, shape (n,); numbers of less than a byte
            come as the bytes that hold them.
        row_lengths: Lengths of rows after which a similar position comes again.
    """

    name: str
    start: int
    values: npt.NDArray[Any]
    row_lengths: tuple[int, ...]

    @property
    def end(self) -> int:
        """Return the position behind its last byte."""
        return self.start + int(self.values.nbytes)


def find_constants(data: bytes, model_format: ModelFormat) -> list[StoredConstant]:
    """Return the constants of at least 256 bytes in the order of the file; none overlap.

    Only ONNX and TFLite files are looked into.

    Raises:
        InvalidModelError: The file is said to be ONNX and is not.
    """
    if model_format is ModelFormat.ONNX:
        stored = _onnx_constants(data)
    elif model_format is ModelFormat.TFLITE:
        stored = _tflite_constants(data)
    else:
        return []
    found: list[StoredConstant] = []
    after: dict[bytes, int] = {}
    cursor = 0
    for name, content, dtype, shape in stored:
        # Writers keep the order of the constants or reverse it; equal ones lie one behind another.
        start = data.find(content, max(cursor, after.get(content, 0)))
        if start < 0:
            start = data.find(content, after.get(content, 0))
        if start < 0:
            continue
        cursor = after[content] = start + len(content)
        found.append(
            StoredConstant(
                name=name,
                start=start,
                values=np.frombuffer(content, dtype=dtype),
                row_lengths=_row_lengths(shape, len(content) // dtype.itemsize),
            )
        )
    found.sort(key=lambda item: item.start)
    apart: list[StoredConstant] = []
    for item in found:
        if not apart or item.start >= apart[-1].end:
            apart.append(item)
    return apart


_Stored = tuple[str, bytes, "np.dtype[Any]", tuple[int, ...]]


def _onnx_constants(data: bytes) -> Iterator[_Stored]:
    for tensor in _tensors(load_model(data).graph):
        content = tensor.raw_data
        if not content and tensor.data_type == TensorProto.FLOAT:
            content = np.asarray(tensor.float_data, dtype="<f4").tobytes()
        if len(content) < _LEAST_BYTES or tensor.data_type == TensorProto.STRING:
            continue
        if tensor.data_type in _SUBBYTE:
            dtype = np.dtype(np.uint8)
        else:
            dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
        if dtype.itemsize <= 8 and len(content) % dtype.itemsize == 0:
            yield tensor.name, content, dtype, tuple(tensor.dims)


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
        for inner in subgraphs(node):
            yield from _tensors(inner)
    yield from graph.initializer


def _tflite_constants(data: bytes) -> Iterator[_Stored]:
    model = schema.ModelT.InitFromPackedBuf(bytearray(data), 0)
    seen: set[int] = set()
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            buffer = model.buffers[tensor.buffer]
            if tensor.buffer in seen:
                continue
            seen.add(tensor.buffer)
            if buffer.offset > 1 and buffer.size:
                content = data[buffer.offset : buffer.offset + buffer.size]
            else:
                content = b"" if buffer.data is None else bytes(bytearray(buffer.data))
            dtype = np.dtype(_TFLITE_TYPES.get(tensor.type, np.uint8))
            shape = () if tensor.shape is None else tuple(int(size) for size in tensor.shape)
            if len(content) >= _LEAST_BYTES and len(content) % dtype.itemsize == 0:
                yield (tensor.name or b"").decode(errors="replace"), content, dtype, shape


def _row_lengths(shape: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Return the candidates: all behind the first axis, and the last axis."""
    lengths = {math.prod(shape[1:]), shape[-1]} if shape else set()
    # Shorter or fewer rows than that have no neighbours to learn from.
    return tuple(
        sorted(size for size in lengths if size >= 2 and count % size == 0 and count >= 4 * size)
    )
