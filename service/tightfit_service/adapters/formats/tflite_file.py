"""TFLite files as objects: reading, writing with aligned constants, and looking up edges."""

from __future__ import annotations

import itertools
from typing import Any

import flatbuffers  # type: ignore[import-untyped]  # ships no types
import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

_FILE_IDENTIFIER = b"TFL3"
_CONSTANT_ALIGNMENT = 16
"""`force_align: 16` of the schema; Cortex-M kernels read biases as 32-bit words in place."""

_INT4 = schema.TensorType.INT4

_NUMPY_TYPES: dict[int, type[np.generic]] = {
    schema.TensorType.FLOAT32: np.float32,
    schema.TensorType.FLOAT16: np.float16,
    schema.TensorType.INT8: np.int8,
    schema.TensorType.INT16: np.int16,
    schema.TensorType.INT32: np.int32,
    schema.TensorType.INT64: np.int64,
    schema.TensorType.BOOL: np.bool_,
}

_SCHEMA_TYPES = {np.dtype(value): key for key, value in _NUMPY_TYPES.items()}

OPERATOR_NAMES: dict[int, str] = {
    value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)
}
_OPERATOR_CODES = {name: value for value, name in OPERATOR_NAMES.items()}
_LAST_SHORT_CODE = schema.BuiltinOperator.PLACEHOLDER_FOR_GREATER_OP_CODES
"""What the old one-byte field of a code holds for operators beyond it."""


class TfliteFile:
    """A TFLite file with one subgraph, opened for changes.

    Objects are those of the schema's object API, changed in place; nothing is shared with the bytes
    that it was read from.
    """

    def __init__(self, data: bytes) -> None:
        self.model = schema.ModelT.InitFromPackedBuf(bytearray(data), 0)
        self.graph = self.model.subgraphs[0]
        self.channels_last_outputs: set[int] = set()
        """Places of outputs whose axes are NHWC where the graph's are NCHW."""
        self._numbers = itertools.count()
        self._taken = {tensor.name for tensor in self.graph.tensors}
        for buffer in self.model.buffers:
            # Writers may put large constants behind the FlatBuffer; offset 1 stands for "none".
            if buffer.offset > 1 and buffer.size:
                end = buffer.offset + buffer.size
                buffer.data = np.frombuffer(data[buffer.offset : end], dtype=np.uint8)
            buffer.offset = buffer.size = 0

    def operator_name(self, operator: Any) -> str:
        """Return the name of an operator's kind, such as `CONV_2D`."""
        code = self.model.operatorCodes[operator.opcodeIndex]
        return OPERATOR_NAMES[max(code.builtinCode, code.deprecatedBuiltinCode)]

    def operators(self, *names: str) -> list[Any]:
        """Return the operators of the given kinds in schedule order."""
        return [item for item in self.graph.operators if self.operator_name(item) in names]

    def constant(self, tensor: int) -> npt.NDArray[Any] | None:
        """Return the value of a constant tensor, or None when it is computed."""
        if tensor < 0:
            return None
        entry = self.graph.tensors[tensor]
        data = self.model.buffers[entry.buffer].data
        if data is None or entry.type not in _NUMPY_TYPES:
            return None
        values = np.frombuffer(bytes(bytearray(data)), dtype=_NUMPY_TYPES[entry.type])
        return values.reshape(self.shape(tensor))

    def shape(self, tensor: int) -> tuple[int, ...]:
        """Return a tensor's shape."""
        shape = self.graph.tensors[tensor].shape
        return () if shape is None else tuple(int(size) for size in shape)

    def producer(self, tensor: int) -> Any | None:
        """Return the operator that computes a tensor, or None for inputs and constants."""
        for operator in self.graph.operators:
            if tensor in operator.outputs:
                return operator
        return None

    def consumers(self, tensor: int) -> list[Any]:
        """Return the operators that read a tensor."""
        return [item for item in self.graph.operators if tensor in item.inputs]

    def is_activated(self, operator: Any) -> bool:
        """Whether an operator, of a kind that may have one, has an activation fused into it."""
        none = schema.ActivationFunctionType.NONE
        return bool(operator.builtinOptions.fusedActivationFunction != none)

    def is_output(self, tensor: int) -> bool:
        """Whether the tensor is an output of the file."""
        return tensor in self.graph.outputs

    def add_constant(self, value: npt.NDArray[np.int32]) -> int:
        """Add an int32 constant and return its tensor."""
        return self.add_tensor(value, None)

    def add_tensor(
        self, value: npt.NDArray[Any], quantization: Any, *, is_int4: bool = False
    ) -> int:
        """Add a constant of any type and return its tensor.

        Args:
            value: Its values; those of 4 bits as int8, they are packed in pairs, the first one low.
            quantization: Parameters (`schema.QuantizationParametersT`) or None.
            is_int4: Whether the tensor has 4 bits.
        """
        contiguous = np.ascontiguousarray(value)
        buffer = schema.BufferT()
        stored = _packed(contiguous) if is_int4 else contiguous
        buffer.data = np.frombuffer(stored.tobytes(), dtype=np.uint8)
        self.model.buffers.append(buffer)
        tensor = schema.TensorT()
        tensor.name = self._fresh_name()
        tensor.shape = np.asarray(value.shape, dtype=np.int32)
        tensor.type = _INT4 if is_int4 else _SCHEMA_TYPES[contiguous.dtype]
        tensor.buffer = len(self.model.buffers) - 1
        tensor.quantization = quantization
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def make_operator(self, name: str, version: int, inputs: list[int], outputs: list[int]) -> Any:
        """Return a new operator without options; the caller puts it into the schedule."""
        operator = schema.OperatorT()
        operator.inputs, operator.outputs = inputs, outputs
        operator.opcodeIndex = self._code(_OPERATOR_CODES[name], version)
        return operator

    def set_version(self, operator: Any, version: int) -> None:
        """Give an operator at least a version of its kind; others of its kind keep theirs."""
        code = self.model.operatorCodes[operator.opcodeIndex]
        kind = max(code.builtinCode, code.deprecatedBuiltinCode)
        operator.opcodeIndex = self._code(kind, max(version, code.version))

    def _code(self, kind: int, version: int) -> int:
        for index, code in enumerate(self.model.operatorCodes):
            same = max(code.builtinCode, code.deprecatedBuiltinCode) == kind
            if same and code.version == version:
                return index
        added = schema.OperatorCodeT()
        added.builtinCode, added.deprecatedBuiltinCode = kind, min(kind, _LAST_SHORT_CODE)
        added.version = version
        self.model.operatorCodes.append(added)
        return len(self.model.operatorCodes) - 1

    def set_constant(self, tensor: int, value: npt.NDArray[Any]) -> None:
        """Give a constant tensor another value of its type and shape."""
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(value).tobytes(), dtype=np.uint8)
        self.model.buffers.append(buffer)
        self.graph.tensors[tensor].buffer = len(self.model.buffers) - 1

    def add_tensor_like(self, tensor: int, shape: tuple[int, ...]) -> int:
        """Add a computed tensor of another's type and return it."""
        added = schema.TensorT()
        added.name = self._fresh_name()
        added.shape = np.asarray(shape, dtype=np.int32)
        added.type = self.graph.tensors[tensor].type
        added.buffer = 0
        self.graph.tensors.append(added)
        return len(self.graph.tensors) - 1

    def _fresh_name(self) -> bytes:
        """Return a name of no other tensor; interpreters tell tensors apart by name."""
        name = next(
            name
            for name in (f"tightfit_{index}".encode() for index in self._numbers)
            if name not in self._taken
        )
        self._taken.add(name)
        return name

    def replace_uses(self, old: int, new: int) -> None:
        """Let every operator that reads `old` read `new`."""
        for operator in self.graph.operators:
            operator.inputs = [new if item == old else int(item) for item in operator.inputs]

    def remove_dead(self) -> None:
        """Remove operators that no output depends on, then tensors and buffers that nothing uses."""
        needed = {int(item) for item in self.graph.outputs}
        alive = []
        for operator in reversed(self.graph.operators):
            if any(int(item) in needed for item in operator.outputs):
                alive.append(operator)
                needed |= {int(item) for item in operator.inputs if item >= 0}
                needed |= {int(item) for item in operator.outputs}
        self.graph.operators = alive[::-1]
        needed |= {int(item) for item in self.graph.inputs}
        self._renumber_tensors(sorted(needed))
        self._renumber_buffers()

    def to_bytes(self) -> bytes:
        """Serialize; equal contents give equal bytes."""
        self._drop_unused_codes()
        builder = flatbuffers.Builder(1 << 16)
        packed = [_AlignedBuffer(item.data) for item in self.model.buffers]
        self.model.buffers, kept = packed, self.model.buffers
        try:
            builder.Finish(self.model.Pack(builder), file_identifier=_FILE_IDENTIFIER)
        finally:
            self.model.buffers = kept
        return bytes(builder.Output())

    def _renumber_tensors(self, kept: list[int]) -> None:
        number = {old: new for new, old in enumerate(kept)}
        number[-1] = -1
        graph = self.graph
        graph.tensors = [graph.tensors[old] for old in kept]
        graph.inputs = [number[int(item)] for item in graph.inputs]
        graph.outputs = [number[int(item)] for item in graph.outputs]
        for operator in graph.operators:
            operator.inputs = [number[int(item)] for item in operator.inputs]
            operator.outputs = [number[int(item)] for item in operator.outputs]
        for signature in self.model.signatureDefs or []:
            for entry in (*(signature.inputs or []), *(signature.outputs or [])):
                entry.tensorIndex = number[int(entry.tensorIndex)]

    def _renumber_buffers(self) -> None:
        """Keep each constant once; buffer 0 stays the empty one, as the schema wants."""
        kept: list[Any] = [schema.BufferT()]
        number: dict[bytes, int] = {b"": 0}
        for entry in (*self.graph.tensors, *(self.model.metadata or [])):
            data = self.model.buffers[entry.buffer].data
            key = b"" if data is None else bytes(bytearray(data))
            if key not in number:
                number[key] = len(kept)
                buffer = schema.BufferT()
                buffer.data = np.frombuffer(key, dtype=np.uint8)
                kept.append(buffer)
            entry.buffer = number[key]
        self.model.buffers = kept

    def _drop_unused_codes(self) -> None:
        used = sorted({int(item.opcodeIndex) for item in self.graph.operators})
        number = {old: new for new, old in enumerate(used)}
        self.model.operatorCodes = [self.model.operatorCodes[old] for old in used]
        for operator in self.graph.operators:
            operator.opcodeIndex = number[int(operator.opcodeIndex)]


def _packed(values: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Return pairs of 4-bit integers as bytes, the first in the low half; an odd last one alone."""
    flat = values.reshape(-1)
    even = np.concatenate([flat, np.zeros(flat.size % 2, dtype=np.int8)]).astype(np.uint8) & 0x0F
    return np.asarray(even[0::2] | (even[1::2] << 4), dtype=np.uint8)


class _AlignedBuffer:
    """A buffer that packs its data at the schema's alignment, which the generated code ignores."""

    def __init__(self, data: Any) -> None:
        self._data = None if data is None else bytes(bytearray(data))

    def Pack(self, builder: Any) -> int:  # noqa: N802 - name given by the generated code
        """Write the buffer and return its position."""
        start = None
        if self._data:
            builder.StartVector(1, len(self._data), _CONSTANT_ALIGNMENT)
            # As builder.CreateNumpyVector does, which has no parameter for the alignment.
            builder.head -= len(self._data)
            builder.Bytes[builder.head : builder.head + len(self._data)] = self._data
            builder.vectorNumElems = len(self._data)
            start = builder.EndVector()
        schema.BufferStart(builder)
        if start is not None:
            schema.BufferAddData(builder, start)
        position: int = schema.BufferEnd(builder)
        return position
