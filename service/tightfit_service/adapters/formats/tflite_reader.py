"""TFLite files as immutable objects, read without trusting a single offset, count or size in them.

The generated object API unpacks a whole file, whatever its tables claim to hold. This reader walks
them through checked accessors instead: all counts are bounded before anything is built, nothing
outside the file is read, and nothing that the file does not need to compute is looked at.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from tightfit_service.adapters.formats.tflite_file import OPERATOR_NAMES
from tightfit_service.graph.model_file import DEFAULT_LIMITS, ModelLimits, invalid, shown

FILE_IDENTIFIER = b"TFL3"
SCHEMA_VERSION = 3
_EDGES_PER_OPERATOR = 4096
_DAMAGED = (
    struct.error,
    IndexError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
    RecursionError,
)
"""What the flatbuffers library and numpy raise on tables that point nowhere."""

Type = schema.TensorType
_NUMPY_TYPES: dict[int, Any] = {
    Type.FLOAT32: np.float32,
    Type.FLOAT16: np.float16,
    Type.FLOAT64: np.float64,
    Type.INT8: np.int8,
    Type.UINT8: np.uint8,
    Type.INT16: np.int16,
    Type.UINT16: np.uint16,
    Type.INT32: np.int32,
    Type.UINT32: np.uint32,
    Type.INT64: np.int64,
    Type.BOOL: np.bool_,
}
_FLOATS = frozenset({Type.FLOAT32, Type.FLOAT16, Type.FLOAT64})
_LEVELS = {
    Type.INT4: (-8, 7),
    Type.INT8: (-128, 127),
    Type.UINT8: (0, 255),
    Type.INT16: (-32768, 32767),
}
_TYPE_NAMES: dict[int, str] = {
    value: name for name, value in vars(Type).items() if isinstance(value, int)
}


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """Scales and zero points of a tensor: one each, or one per slice along `axis`."""

    scales: npt.NDArray[np.float32]
    zero_points: npt.NDArray[np.int64]
    axis: int


@dataclass(frozen=True, kw_only=True, eq=False)
class TfliteTensor:
    """A tensor of the file; `data` holds the raw bytes of constants."""

    name: str
    shape: tuple[int, ...]
    type: int
    data: bytes | None
    quantization: Quantization | None
    is_variable: bool

    @property
    def is_integer_code(self) -> bool:
        """Whether its integers stand for real numbers (quantized to at most 16 bits)."""
        return self.quantization is not None and self.type in _LEVELS

    @property
    def is_real(self) -> bool:
        """Whether it holds real numbers, as floats or as scaled integers."""
        return self.type in _FLOATS or self.quantization is not None

    @property
    def levels(self) -> tuple[int, int]:
        """Least and greatest integer of a quantized tensor."""
        return _LEVELS[self.type]

    def stored(self) -> npt.NDArray[Any] | None:
        """Return the value of a constant as stored, or None for what is computed."""
        if self.data is None:
            return None
        if self.type == Type.INT4:
            pairs = np.frombuffer(self.data, dtype=np.int8)
            both = np.stack([(pairs << 4).astype(np.int8) >> 4, pairs >> 4], axis=-1)
            values: npt.NDArray[Any] = np.asarray(both.reshape(-1)[: math.prod(self.shape)])
            return np.reshape(values, self.shape)
        flat: npt.NDArray[Any] = np.frombuffer(self.data, dtype=_NUMPY_TYPES[self.type])
        return flat.reshape(self.shape)

    def real(self, codes: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return values as stored or run as real numbers: dequantized, and half floats widened."""
        if self.type in _FLOATS:
            return codes.astype(np.float32)
        if self.quantization is None:
            return codes
        scales: Any = self.quantization.scales
        zeros: Any = self.quantization.zero_points
        if len(scales) == 1:
            scales, zeros = scales[0], zeros[0]
        else:
            shape = [1] * codes.ndim
            shape[self.quantization.axis] = -1
            scales, zeros = scales.reshape(shape), zeros.reshape(shape)
        return np.asarray(
            (codes.astype(np.int64) - zeros).astype(np.float64) * scales, dtype=np.float32
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class TfliteOperator:
    """An operator: its kind (`CONV_2D`, or the name of a custom one), edges (-1: left out), options."""

    index: int
    kind: str
    code: int
    is_custom: bool
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options_type: int
    options: Any


@dataclass(frozen=True, kw_only=True, eq=False)
class TfliteGraph:
    """The one subgraph of a file; operators stand in the order in which they run."""

    tensors: tuple[TfliteTensor, ...]
    operators: tuple[TfliteOperator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def is_quantized(self) -> bool:
        """Whether it computes on, or has weights in, integers of 16 bits or less."""
        for operator in self.operators:
            edges = [*operator.inputs, *operator.outputs]
            if operator.kind in {"QUANTIZE", "DEQUANTIZE"}:
                edges = [item for item in edges if self.tensors[item].data is not None]
            if any(item >= 0 and self.tensors[item].is_integer_code for item in edges):
                return True
        return False

    @property
    def rounds(self) -> bool:
        """Whether an operator rounds what it computes, or its inputs, to integers."""
        return self.is_quantized or any(
            self.tensors[item].is_integer_code
            for operator in self.operators
            for item in operator.outputs
        )


def _type_name(number: int) -> str:
    return _TYPE_NAMES.get(number, str(number)).lower()


def is_tflite(data: bytes) -> bool:
    """Return whether bytes start as a TFLite file does."""
    return data[4:8] == FILE_IDENTIFIER


def read_tflite(data: bytes, *, limits: ModelLimits = DEFAULT_LIMITS) -> TfliteGraph:
    """Read a file and check its structure.

    Raises:
        InvalidModelError: Not TFLite, damaged, of another schema version, larger than a limit, with
            several subgraphs, or with tensors that ONNX has no counterpart for.
    """
    if not is_tflite(data):
        raise invalid(
            "the file is not a TFLite model: its identifier is not TFL3",
            remedy="send the .tflite file that the converter wrote",
        )
    if len(data) > limits.file_bytes:
        raise invalid(
            f"the model file has {len(data)} bytes, more than the {limits.file_bytes} allowed",
            remedy="send a smaller model",
        )
    with _damage_refused("its tables"):
        model = schema.Model.GetRootAs(data, 0)
        version, count = model.Version(), model.SubgraphsLength()
    if version != SCHEMA_VERSION:
        raise invalid(
            f"the file has schema version {version}; {SCHEMA_VERSION} is the one in use",
            remedy="convert the model with a current version of TensorFlow or litert-torch",
        )
    if count != 1:
        raise invalid(
            f"the file has {count} subgraphs: control flow, or several signatures"
            if count
            else "the file has no subgraph",
            remedy="convert one function without conditions and loops",
        )
    return _Reader(data, model, limits).graph()


@contextmanager
def _damage_refused(where: str) -> Iterator[None]:
    try:
        yield
    except _DAMAGED as error:
        raise invalid(
            f"the TFLite file is damaged or truncated: {where} cannot be read",
            remedy="convert or upload the model again and compare the size of the upload",
        ) from error


class _Reader:
    def __init__(self, data: bytes, model: Any, limits: ModelLimits) -> None:
        self._data, self._model, self._limits = data, model, limits

    def graph(self) -> TfliteGraph:
        limits = self._limits
        with _damage_refused("the subgraph"):
            source = self._model.Subgraphs(0)
            counts = {
                "operators": (source.OperatorsLength(), limits.node_count),
                "tensors": (source.TensorsLength(), limits.tensor_count),
                "buffers": (self._model.BuffersLength(), limits.tensor_count),
                "operator kinds": (self._model.OperatorCodesLength(), limits.node_count),
                "inputs": (source.InputsLength(), _EDGES_PER_OPERATOR),
                "outputs": (source.OutputsLength(), _EDGES_PER_OPERATOR),
            }
        for what, (count, limit) in counts.items():
            if count > limit:
                raise invalid(
                    f"the file has {count} {what}, more than {limit}", remedy="send a smaller model"
                )
        with _damage_refused("the list of its inputs and outputs"):
            ends = [_numbers(source.InputsAsNumpy()), _numbers(source.OutputsAsNumpy())]
        for what, side in zip(("inputs", "outputs"), ends, strict=True):
            if not side:
                raise invalid(
                    f"the model has no {what}", remedy=f"convert the model with its {what}"
                )
        tensor_count = counts["tensors"][0]
        tensors = tuple(self._tensor(source, index) for index in range(tensor_count))
        operators = tuple(
            self._operator(source, index, tensor_count) for index in range(counts["operators"][0])
        )
        for side in ends:
            _check_edges("the subgraph", side, tensor_count, optional=False)
        return TfliteGraph(
            tensors=tensors, operators=operators, inputs=tuple(ends[0]), outputs=tuple(ends[1])
        )

    def _tensor(self, source: Any, index: int) -> TfliteTensor:
        with _damage_refused(f"tensor {index}"):
            entry = source.Tensors(index)
            name = (entry.Name() or b"")[: self._limits.name_characters].decode(
                "utf-8", errors="replace"
            )
            label = f"tensor {shown(name or str(index))}"
            shape = _numbers(entry.ShapeAsNumpy(), at_most=self._limits.rank, label=label)
            kind, buffer = entry.Type(), entry.Buffer()
            is_sparse, is_variable = entry.Sparsity() is not None, bool(entry.IsVariable())
            quantization = self._quantization(entry.Quantization(), shape, label)
        if is_sparse:
            raise invalid(f"{label} is stored sparse", remedy="convert the model without sparsity")
        if kind not in _NUMPY_TYPES and kind != Type.INT4:
            raise invalid(
                f"{label} is of type {_type_name(kind)}",
                remedy="convert the model with float32 or integer tensors only",
            )
        elements = math.prod(shape)
        if any(size < 0 for size in shape) or elements > self._limits.tensor_elements:
            raise invalid(
                f"{label} has shape {tuple(shape)}: sizes must be fixed and have at most "
                f"{self._limits.tensor_elements} elements",
                remedy="convert the model with fixed sizes",
            )
        return TfliteTensor(
            name=name,
            shape=tuple(shape),
            type=kind,
            data=self._constant(buffer, kind, elements, label),
            quantization=quantization,
            is_variable=is_variable,
        )

    def _constant(self, buffer: int, kind: int, elements: int, label: str) -> bytes | None:
        with _damage_refused(f"the buffer of {label}"):
            if buffer >= self._model.BuffersLength():
                raise IndexError(buffer)
            entry = self._model.Buffers(buffer)
            if entry.Offset() > 1 and entry.Size():
                # Writers may put large constants behind the FlatBuffer.
                data = self._data[entry.Offset() : entry.Offset() + entry.Size()]
                if len(data) != entry.Size():
                    raise IndexError(entry.Offset())
            elif entry.DataLength():
                data = entry.DataAsNumpy().tobytes()
            else:
                return None
        item = 0.5 if kind == Type.INT4 else np.dtype(_NUMPY_TYPES[kind]).itemsize
        if len(data) != math.ceil(elements * item):
            raise invalid(
                f"{label} announces {elements} elements but stores {len(data)} bytes",
                remedy="the file is damaged: convert or upload it again",
            )
        return data

    def _quantization(self, entry: Any, shape: list[int], label: str) -> Quantization | None:
        if entry is None or not entry.ScaleLength():
            return None
        if entry.DetailsType():
            raise invalid(
                f"{label} is quantized in a custom way",
                remedy="convert the model with one scale per tensor or channel",
            )
        scales = np.asarray(entry.ScaleAsNumpy(), dtype=np.float32)
        zeros = (
            np.asarray(entry.ZeroPointAsNumpy(), dtype=np.int64)
            if entry.ZeroPointLength()
            else np.zeros(1, dtype=np.int64)
        )
        if len(scales) == 1 and scales[0] == 0 and len(zeros) == 1:
            return None
        axis = int(entry.QuantizedDimension())
        along = shape[axis] if 0 <= axis < len(shape) else 1
        if len(scales) > 1 and (len(scales) != along or len(zeros) not in {1, along}):
            raise invalid(
                f"{label} has {len(scales)} scales and {len(zeros)} zero points for {along} channels",
                remedy="the file is damaged: convert or upload it again",
            )
        if len(scales) == 1 and len(zeros) != 1:
            raise IndexError(len(zeros))
        if not (np.isfinite(scales).all() and (scales > 0).all() and (abs(zeros) < 1 << 32).all()):
            raise invalid(
                f"{label} has impossible scales or zero points",
                remedy="quantize the model again",
            )
        zeros = np.broadcast_to(zeros, scales.shape)
        return Quantization(scales=scales, zero_points=zeros, axis=axis)

    def _operator(self, source: Any, index: int, tensor_count: int) -> TfliteOperator:
        label = f"operator {index}"
        with _damage_refused(label):
            entry = source.Operators(index)
            if entry.OpcodeIndex() >= self._model.OperatorCodesLength():
                raise IndexError(entry.OpcodeIndex())
            code = self._model.OperatorCodes(entry.OpcodeIndex())
            number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
            is_custom = number == schema.BuiltinOperator.CUSTOM
            custom = (code.CustomCode() or b"")[:200].decode("utf-8", errors="replace")
            kind = custom if is_custom else OPERATOR_NAMES[number]
            inputs = _numbers(entry.InputsAsNumpy(), at_most=_EDGES_PER_OPERATOR, label=label)
            outputs = _numbers(entry.OutputsAsNumpy(), at_most=_EDGES_PER_OPERATOR, label=label)
            options_type = entry.BuiltinOptionsType()
            options = schema.BuiltinOptionsCreator(options_type, entry.BuiltinOptions())
            version = code.Version()
        label = f"operator {index} ({kind})"
        _check_edges(label, inputs, tensor_count, optional=True)
        _check_edges(label, outputs, tensor_count, optional=False)
        return TfliteOperator(
            index=index,
            kind=kind,
            code=number,
            is_custom=is_custom,
            version=version,
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            options_type=options_type,
            options=options,
        )


def _numbers(vector: Any, *, at_most: int = _EDGES_PER_OPERATOR, label: str = "") -> list[int]:
    """Return a vector as ints; the generated code gives 0 for one that is missing."""
    if isinstance(vector, int):
        return []
    if len(vector) > at_most:
        raise invalid(
            f"{label} has {len(vector)} axes or edges, more than {at_most}",
            remedy="the file is damaged: convert or upload it again",
        )
    return [int(item) for item in vector]


def _check_edges(label: str, edges: list[int], tensor_count: int, *, optional: bool) -> None:
    least = -1 if optional else 0
    for edge in edges:
        if not least <= edge < tensor_count:
            raise invalid(
                f"{label} names tensor {edge}, which the file does not have",
                remedy="the file is damaged: convert or upload it again",
            )
