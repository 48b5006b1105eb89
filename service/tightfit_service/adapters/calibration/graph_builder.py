"""Builds small ONNX graphs layer by layer, with random weights that keep activations near 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 9


class GraphBuilder:
    """Collects layers behind one input of shape (batch, *shape).

    Methods that add a layer return the name of its output, whose shape without the batch is then in
    `shapes`. Spatial layers pad so that a stride of 1 keeps the size.
    """

    def __init__(self, shape: Sequence[int], *, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._nodes: list[NodeProto] = []
        self._constants: dict[str, npt.NDArray[Any]] = {}
        self._input = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *shape])
        self.shapes: dict[str, tuple[int, ...]] = {"input": tuple(shape)}
        self.top = "input"
        """Output of the layer that was added last."""
        self.macs = 0
        """Multiply-accumulates of all products so far, those of attention left out."""

    def conv(
        self, source: str, channels: int, *, kernel: int = 3, stride: int = 1, groups: int = 1
    ) -> str:
        """Add a convolution with a bias over the spatial axes of the source, one or two."""
        width, *size = self.shapes[source]
        kernels = [min(kernel, extent) for extent in size]
        before = [(extent - 1) // 2 for extent in kernels]
        after = [extent - 1 - left for extent, left in zip(kernels, before, strict=True)]
        shape = (channels, width // groups, *kernels)
        out_size = tuple((extent - 1) // stride + 1 for extent in size)
        self.macs += int(np.prod(shape)) * int(np.prod(out_size))
        return self._add(
            "Conv",
            [source, self._weight(shape, fan_in=int(np.prod(shape[1:]))), self._bias(channels)],
            (channels, *out_size),
            kernel_shape=kernels,
            strides=[stride] * len(size),
            pads=[*before, *after],
            group=groups,
        )

    def depthwise(self, source: str, *, kernel: int = 3, stride: int = 1) -> str:
        """Add a convolution of one filter per channel."""
        width = self.shapes[source][0]
        return self.conv(source, width, kernel=kernel, stride=stride, groups=width)

    def dense(self, source: str, channels: int) -> str:
        """Add a dense layer on a source of one axis."""
        (width,) = self.shapes[source]
        weight = self._weight((channels, width), fan_in=width)
        self.macs += channels * width
        return self._add("Gemm", [source, weight, self._bias(channels)], (channels,), transB=1)

    def activation(self, source: str, op_type: str) -> str:
        """Add an activation: `Relu`, `Relu6`, `HardSwish`, `Sigmoid`, `Tanh` or `Silu`."""
        shape = self.shapes[source]
        if op_type == "Relu6":
            return self._add("Clip", [source, self._scalar(0.0), self._scalar(6.0)], shape)
        if op_type == "Silu":
            return self.multiply(source, self._add("Sigmoid", [source], shape))
        return self._add(op_type, [source], shape)

    def pool(self, source: str, *, kernel: int = 2, stride: int = 2, is_max: bool = True) -> str:
        """Add a pooling layer without padding."""
        width, *size = self.shapes[source]
        kernels = [min(kernel, extent) for extent in size]
        out = tuple((e - k) // stride + 1 for e, k in zip(size, kernels, strict=True))
        op_type = "MaxPool" if is_max else "AveragePool"
        strides = [stride] * len(size)
        return self._add(op_type, [source], (width, *out), kernel_shape=kernels, strides=strides)

    def global_pool(self, source: str) -> str:
        """Add a mean over the spatial axes and drop them."""
        width, *size = self.shapes[source]
        pooled = self._add("GlobalAveragePool", [source], (width, *(1 for _ in size)))
        return self._add("Flatten", [pooled], (width,))

    def add(self, first: str, second: str) -> str:
        """Add an elementwise sum."""
        return self._add("Add", [first, second], self.shapes[first])

    def multiply(self, first: str, second: str) -> str:
        """Add an elementwise product; the second source may have single pixels."""
        return self._add("Mul", [first, second], self.shapes[first])

    def concat(self, sources: Sequence[str]) -> str:
        """Add a concatenation of channels."""
        width = sum(self.shapes[source][0] for source in sources)
        return self._add("Concat", list(sources), (width, *self.shapes[sources[0]][1:]), axis=1)

    def squeeze_excite(self, source: str, channels: int) -> str:
        """Add a gate per channel (squeeze-and-excitation; J. Hu et al., CVPR 2018)."""
        width, *size = self.shapes[source]
        pooled = self._add("GlobalAveragePool", [source], (width, *(1 for _ in size)))
        inner = self.activation(self.conv(pooled, channels, kernel=1), "Relu")
        gate = self.activation(self.conv(inner, width, kernel=1), "HardSigmoid")
        return self.multiply(source, gate)

    def upsample(self, source: str) -> str:
        """Add a doubling of the spatial size by nearest neighbours."""
        width, *size = self.shapes[source]
        factors = self._constant(np.array([1, 1, *(2 for _ in size)], dtype=np.float32))
        return self._add(
            "Resize",
            [source, "", factors],
            (width, *(2 * extent for extent in size)),
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )

    def layer_norm(self, source: str) -> str:
        """Add a normalization over the last axis of tokens."""
        width = self.shapes[source][-1]
        ones = self._constant(np.ones(width, dtype=np.float32))
        return self._add(
            "LayerNormalization", [source, ones, self._bias(width)], self.shapes[source], axis=-1
        )

    def tokens_dense(self, source: str, channels: int) -> str:
        """Add a dense layer over the last axis of tokens of shape (tokens, width)."""
        count, width = self.shapes[source]
        self.macs += count * width * channels
        product = self._add(
            "MatMul", [source, self._weight((width, channels), fan_in=width)], (count, channels)
        )
        return self._add("Add", [product, self._bias(channels)], (count, channels))

    def attention(self, source: str, *, heads: int) -> str:
        """Add self-attention over tokens, with dense layers before and behind."""
        count, width = self.shapes[source]
        part = width // heads
        parts = []
        for order in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
            split = self._reshape(self.tokens_dense(source, width), (count, heads, part))
            shape = tuple((count, heads, part)[axis - 1] for axis in order[1:])
            parts.append(self._add("Transpose", [split], shape, perm=order))
        scores = self._add("MatMul", parts[:2], (heads, count, count))
        scaled = self._add("Mul", [scores, self._scalar(part**-0.5)], (heads, count, count))
        shares = self._add("Softmax", [scaled], (heads, count, count), axis=-1)
        mixed = self._add("MatMul", [shares, parts[2]], (heads, count, part))
        turned = self._add("Transpose", [mixed], (count, heads, part), perm=[0, 2, 1, 3])
        return self.tokens_dense(self._reshape(turned, (count, width)), width)

    def softmax(self, source: str) -> str:
        """Add a softmax over the last axis."""
        return self._add("Softmax", [source], self.shapes[source], axis=-1)

    def to_tokens(self, source: str) -> str:
        """Turn an image of shape (width, height, columns) into tokens."""
        width, *size = self.shapes[source]
        count = int(np.prod(size))
        flat = self._reshape(source, (width, count))
        return self._add("Transpose", [flat], (count, width), perm=[0, 2, 1])

    def mean_token(self, source: str) -> str:
        """Add a mean over tokens."""
        return self._add("ReduceMean", [source], self.shapes[source][1:], axes=[1], keepdims=0)

    def build(self) -> bytes:
        """Return the serialized model whose output is the layer that was added last."""
        shape = self.shapes[self.top]
        graph = helper.make_graph(
            self._nodes,
            "designed",
            [self._input],
            [self._value(self.top, shape)],
            [numpy_helper.from_array(v, name) for name, v in self._constants.items()],
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
        )
        onnx.checker.check_model(model)
        data: bytes = model.SerializeToString()
        return data

    @staticmethod
    def _value(name: str, shape: Sequence[int]) -> ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])

    def _reshape(self, source: str, shape: tuple[int, ...]) -> str:
        wanted = self._constant(np.array([-1, *shape], dtype=np.int64))
        return self._add("Reshape", [source, wanted], shape)

    def _add(
        self, op_type: str, sources: Sequence[str], shape: Sequence[int], **attributes: Any
    ) -> str:
        name = f"{op_type.lower()}_{len(self._nodes)}"
        self._nodes.append(
            helper.make_node(op_type, list(sources), [f"{name}_out"], name=name, **attributes)
        )
        self.top = f"{name}_out"
        self.shapes[self.top] = tuple(shape)
        return self.top

    def _constant(self, value: npt.NDArray[Any]) -> str:
        name = f"constant_{len(self._constants)}"
        self._constants[name] = value
        return name

    def _scalar(self, value: float) -> str:
        return self._constant(np.array(value, dtype=np.float32))

    def _weight(self, shape: Sequence[int], *, fan_in: int) -> str:
        deviation = (2.0 / fan_in) ** 0.5
        return self._constant(self._rng.normal(0.0, deviation, shape).astype(np.float32))

    def _bias(self, size: int) -> str:
        return self._constant(self._rng.uniform(-0.1, 0.1, size).astype(np.float32))
