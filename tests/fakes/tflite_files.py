"""Small TFLite files made operator by operator, without a converter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flatbuffers  # type: ignore[import-untyped]  # ships no types
import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from tightfit_service.adapters.formats.tflite_file import TfliteFile

_TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "int8": schema.TensorType.INT8,
    "int32": schema.TensorType.INT32,
}


class TfliteBuilder:
    """Collects tensors and operators; methods return tensor numbers."""

    def __init__(self) -> None:
        self.model = schema.ModelT()
        self.model.version = 3
        self.model.buffers = [schema.BufferT()]
        self.model.operatorCodes = []
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.model.subgraphs = [self.graph]

    def tensor(
        self,
        shape: Sequence[int],
        *,
        dtype: str = "float32",
        scale: float | None = None,
        zero_point: int = 0,
    ) -> int:
        tensor = schema.TensorT()
        tensor.name = f"tensor_{len(self.graph.tensors)}".encode()
        tensor.shape = np.asarray(shape, dtype=np.int32)
        tensor.type = _TYPES[dtype]
        tensor.buffer = 0
        if scale is not None:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = [scale]
            tensor.quantization.zeroPoint = [zero_point]
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def constant(self, value: npt.ArrayLike, *, dtype: str = "float32", **keywords: Any) -> int:
        array = np.asarray(value, dtype=dtype)
        number = self.tensor(array.shape, dtype=dtype, **keywords)
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(array.tobytes(), dtype=np.uint8)
        self.model.buffers.append(buffer)
        self.graph.tensors[number].buffer = len(self.model.buffers) - 1
        return number

    def operator(self, name: str, inputs: Sequence[int], output: int, options: Any = None) -> int:
        code = schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, name)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.version = 1
        self.model.operatorCodes.append(code)
        operator = schema.OperatorT()
        operator.opcodeIndex = len(self.model.operatorCodes) - 1
        operator.inputs, operator.outputs = list(inputs), [output]
        if options is not None:
            kind = type(options).__name__.removesuffix("T")
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
            operator.builtinOptions = options
        self.graph.operators.append(operator)
        return output

    def transpose(self, source: int, order: Sequence[int]) -> int:
        shape = self.graph.tensors[source].shape
        return self.operator(
            "TRANSPOSE",
            [source, self.constant(order, dtype="int32")],
            self.tensor([int(shape[axis]) for axis in order]),
            schema.TransposeOptionsT(),
        )

    def pad(self, source: int, pads: Sequence[tuple[int, int]]) -> int:
        shape = self.graph.tensors[source].shape
        padded = [int(size) + sum(both) for size, both in zip(shape, pads, strict=True)]
        return self.operator(
            "PAD",
            [source, self.constant(pads, dtype="int32")],
            self.tensor(padded),
            schema.PadOptionsT(),
        )

    def conv(self, source: int, weights: npt.ArrayLike, *, stride: int = 1) -> int:
        """A convolution without padding; weights are (out, height, width, in)."""
        kernel = np.asarray(weights, dtype=np.float32)
        shape = self.graph.tensors[source].shape
        size = [(int(shape[i]) - kernel.shape[i]) // stride + 1 for i in (1, 2)]
        options = schema.Conv2DOptionsT()
        options.padding = schema.Padding.VALID
        options.strideH = options.strideW = stride
        options.dilationHFactor = options.dilationWFactor = 1
        inputs = [source, self.constant(kernel), self.constant(np.zeros(kernel.shape[0]))]
        return self.operator("CONV_2D", inputs, self.tensor([1, *size, kernel.shape[0]]), options)

    def slice(
        self, source: int, begin: Sequence[int], end: Sequence[int], stride: Sequence[int]
    ) -> int:
        size = [-(-(e - b) // s) for b, e, s in zip(begin, end, stride, strict=True)]
        constants = [self.constant(item, dtype="int32") for item in (begin, end, stride)]
        return self.operator(
            "STRIDED_SLICE",
            [source, *constants],
            self.tensor(size),
            schema.StridedSliceOptionsT(),
        )

    def dense(self, source: int, weights: npt.ArrayLike) -> int:
        matrix = np.asarray(weights, dtype=np.float32)
        inputs = [source, self.constant(matrix), self.constant(np.zeros(len(matrix)))]
        return self.operator(
            "FULLY_CONNECTED",
            inputs,
            self.tensor([1, len(matrix)]),
            schema.FullyConnectedOptionsT(),
        )

    def reshape(self, source: int, shape: Sequence[int]) -> int:
        options = schema.ReshapeOptionsT()
        options.newShape = list(shape)
        return self.operator(
            "RESHAPE",
            [source, self.constant(shape, dtype="int32")],
            self.tensor(shape),
            options,
        )

    def mean(self, source: int, axes: Sequence[int]) -> int:
        shape = self.graph.tensors[source].shape
        left = [int(size) for axis, size in enumerate(shape) if axis not in axes]
        options = schema.ReducerOptionsT()
        options.keepDims = False
        return self.operator(
            "MEAN", [source, self.constant(axes, dtype="int32")], self.tensor(left), options
        )

    def build(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        self.graph.inputs, self.graph.outputs = list(inputs), list(outputs)
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), file_identifier=b"TFL3")
        # A round trip aligns the constants, as runtimes want them.
        return TfliteFile(bytes(builder.Output())).to_bytes()


def quantized_identity(*, scale: float, zero_point: int, size: int) -> bytes:
    """Return an int8 file that hands its input through a reshape."""
    builder = TfliteBuilder()
    ends = [
        builder.tensor([1, size], dtype="int8", scale=scale, zero_point=zero_point)
        for _ in range(2)
    ]
    options = schema.ReshapeOptionsT()
    options.newShape = [1, size]
    builder.operator(
        "RESHAPE", [ends[0], builder.constant([1, size], dtype="int32")], ends[1], options
    )
    return builder.build(ends[:1], ends[1:])


def image_sum(shape: Sequence[int], weights: npt.ArrayLike) -> bytes:
    """Return a float file over NHWC images: channel means over the image times the weights."""
    builder = TfliteBuilder()
    source = builder.tensor([1, *shape])
    return builder.build([source], [builder.dense(builder.mean(source, [1, 2]), weights)])
