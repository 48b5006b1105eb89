"""Builds small ONNX graphs layer by layer, with random weights that keep activations near 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 9
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
"""Products per hidden unit of a recurrent layer, as ONNX lays out its weights."""
PATCH = 2
"""Pixels along the side of the patches that become tokens (S. Mehta, M. Rastegari, ICLR 2022)."""
GELU_CUBE, GELU_SCALE = 0.044715, 0.7978845608
"""Of the approximation of GELU by tanh: the cube's factor, and the root of 2 / pi (D. Hendrycks, K. Gimpel,
"Gaussian Error Linear Units", arXiv:1606.08415)."""


class GraphBuilder:
    """Collects layers behind one input of shape (batch, *shape).

    Methods that add a layer return the name of its output, whose shape without the batch is then in
    `shapes`. Spatial layers pad so that a stride of 1 keeps the size.
    """

    def __init__(self, shape: Sequence[int], *, seed: int, opset: int = OPSET) -> None:
        self._opset = opset
        self._rng = np.random.default_rng(seed)
        self._nodes: list[NodeProto] = []
        self._constants: dict[str, npt.NDArray[Any]] = {}
        self._input = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *shape])
        self.shapes: dict[str, tuple[int, ...]] = {"input": tuple(shape)}
        self.top = "input"
        """Output of the layer that was added last."""
        self.outputs: list[str] = []
        """Of the network; without any it is the top."""
        self.macs = 0
        """Multiply-accumulates of all layers with weights and of attention so far."""

    def conv(
        self,
        source: str,
        channels: int,
        *,
        kernel: int | tuple[int, int] = 3,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
        is_causal: bool = False,
        is_padded: bool = True,
    ) -> str:
        """Add a convolution with a bias over the spatial axes of the source, one or two.

        A causal one reads nothing that comes after its output; one without padding only what there is.
        """
        width, *size = self.shapes[source]
        wanted = (kernel,) * len(size) if isinstance(kernel, int) else kernel
        kernels = [min(own, extent) for own, extent in zip(wanted, size, strict=True)]
        covered = [(extent - 1) * dilation for extent in kernels]
        if not is_padded:
            size = [extent - lost for extent, lost in zip(size, covered, strict=True)]
            covered = [0 for _ in covered]
        before = covered if is_causal else [extent // 2 for extent in covered]
        after = [extent - left for extent, left in zip(covered, before, strict=True)]
        shape = (channels, width // groups, *kernels)
        out_size = tuple((extent - 1) // stride + 1 for extent in size)
        self.macs += int(np.prod(shape)) * int(np.prod(out_size))
        return self.node(
            "Conv",
            [source, self.weight(shape, fan_in=int(np.prod(shape[1:]))), self.bias(channels)],
            (channels, *out_size),
            kernel_shape=kernels,
            strides=[stride] * len(size),
            dilations=[dilation] * len(size),
            pads=[*before, *after],
            group=groups,
        )

    def transposed_conv(self, source: str, channels: int, *, kernel: int = 2) -> str:
        """Add a transposed convolution that doubles the spatial size; its kernel is 2 or 4."""
        width, *size = self.shapes[source]
        shape = (width, channels, *(kernel for _ in size))
        out_size = tuple(2 * extent for extent in size)
        self.macs += int(np.prod(shape)) * int(np.prod(size))
        return self.node(
            "ConvTranspose",
            [source, self.weight(shape, fan_in=width * kernel), self.bias(channels)],
            (channels, *out_size),
            kernel_shape=[kernel] * len(size),
            strides=[2] * len(size),
            pads=[(kernel - 2) // 2] * 2 * len(size),
        )

    def recurrent(self, source: str, kind: str, hidden: int, *, both_ways: bool = False) -> str:
        """Add an `LSTM`, `GRU` or `RNN` over the first axis of (steps, features).

        Returns the states of all steps, (steps, hidden), or twice as wide for both directions.
        """
        steps, width = self.shapes[source]
        ways, gates = 2 if both_ways else 1, GATES[kind]
        self.macs += steps * ways * gates * hidden * (width + hidden)
        turned = self.node("Transpose", [source], (steps, width), perm=[1, 0, 2])
        states = self.node(
            kind,
            [
                turned,
                self.weight((ways, gates * hidden, width), fan_in=2 * width),
                self.weight((ways, gates * hidden, hidden), fan_in=2 * hidden),
                self.constant(np.zeros((ways, 2 * gates * hidden), dtype=np.float32)),
            ],
            (steps, ways, hidden),
            hidden_size=hidden,
            direction="bidirectional" if both_ways else "forward",
            **({"linear_before_reset": 1} if kind == "GRU" else {}),
        )
        back = self.node("Transpose", [states], (steps, ways, hidden), perm=[2, 0, 1, 3])
        return self.reshape(back, (steps, ways * hidden))

    def depthwise(self, source: str, *, kernel: int = 3, stride: int = 1) -> str:
        """Add a convolution of one filter per channel."""
        width = self.shapes[source][0]
        return self.conv(source, width, kernel=kernel, stride=stride, groups=width)

    def dense(self, source: str, channels: int) -> str:
        """Add a dense layer on a source of one axis."""
        (width,) = self.shapes[source]
        weight = self.weight((channels, width), fan_in=width)
        self.macs += channels * width
        return self.node("Gemm", [source, weight, self.bias(channels)], (channels,), transB=1)

    def activation(self, source: str, op_type: str) -> str:
        """Add an activation: an ONNX operator, or one of `SPELLED`, as exporters spell them."""
        shape = self.shapes[source]
        if op_type in SPELLED:
            return SPELLED[op_type](self, source)
        if op_type == "PRelu":
            slope = self.weight((shape[0], *(1 for _ in shape[1:])), fan_in=32)
            return self.node("PRelu", [source, slope], shape)
        return self.node(op_type, [source], shape)

    def pool(
        self,
        source: str,
        *,
        kernel: int = 2,
        stride: int = 2,
        is_max: bool = True,
        padding: int = 0,
    ) -> str:
        """Add a pooling layer, without padding unless it is given on each side."""
        width, *size = self.shapes[source]
        kernels = [min(kernel, extent) for extent in size]
        covered = [e + 2 * padding - k for e, k in zip(size, kernels, strict=True)]
        out = tuple(extent // stride + 1 for extent in covered)
        op_type = "MaxPool" if is_max else "AveragePool"
        strides = [stride] * len(size)
        around = {"pads": [padding] * 2 * len(size)} if padding else {}
        return self.node(
            op_type, [source], (width, *out), kernel_shape=kernels, strides=strides, **around
        )

    def global_pool(self, source: str) -> str:
        """Add a mean over the spatial axes and drop them."""
        width, *size = self.shapes[source]
        pooled = self.node("GlobalAveragePool", [source], (width, *(1 for _ in size)))
        return self.node("Flatten", [pooled], (width,))

    def flatten(self, source: str) -> str:
        """Add a change of an image to one axis."""
        return self.node("Flatten", [source], (int(np.prod(self.shapes[source])),))

    def add(self, first: str, second: str) -> str:
        """Add an elementwise sum."""
        return self.node("Add", [first, second], self.shapes[first])

    def multiply(self, first: str, second: str) -> str:
        """Add an elementwise product; the second source may have single pixels."""
        return self.node("Mul", [first, second], self.shapes[first])

    def concat(self, sources: Sequence[str]) -> str:
        """Add a concatenation of channels."""
        width = sum(self.shapes[source][0] for source in sources)
        return self.node("Concat", list(sources), (width, *self.shapes[sources[0]][1:]), axis=1)

    def squeeze_excite(self, source: str, channels: int) -> str:
        """Add a gate per channel (squeeze-and-excitation; J. Hu et al., CVPR 2018)."""
        width, *size = self.shapes[source]
        pooled = self.node("GlobalAveragePool", [source], (width, *(1 for _ in size)))
        inner = self.activation(self.conv(pooled, channels, kernel=1), "Relu")
        gate = self.activation(self.conv(inner, width, kernel=1), "HardSigmoid")
        return self.multiply(source, gate)

    def upsample(self, source: str) -> str:
        """Add a doubling of the spatial size by nearest neighbours."""
        width, *size = self.shapes[source]
        factors = self.constant(np.array([1, 1, *(2 for _ in size)], dtype=np.float32))
        return self.node(
            "Resize",
            [source, "", factors],
            (width, *(2 * extent for extent in size)),
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )

    def batch_norm(self, source: str) -> str:
        """Add a normalization by statistics that are constants."""
        shape = self.shapes[source]
        scale, mean, variance = (
            self.constant(self._rng.uniform(low, high, shape[0]).astype(np.float32))
            for low, high in ((0.5, 1.5), (-0.5, 0.5), (0.5, 1.5))
        )
        operands = [source, scale, self.bias(shape[0]), mean, variance]
        return self.node("BatchNormalization", operands, shape)

    def layer_norm(self, source: str) -> str:
        """Add a normalization over the last axis of tokens."""
        width = self.shapes[source][-1]
        ones = self.constant(np.ones(width, dtype=np.float32))
        return self.node(
            "LayerNormalization", [source, ones, self.bias(width)], self.shapes[source], axis=-1
        )

    def tokens_dense(self, source: str, channels: int) -> str:
        """Add a dense layer over the last axis of tokens, which lie along the others."""
        *counts, width = self.shapes[source]
        shape = (*counts, channels)
        self.macs += int(np.prod(shape)) * width
        weight = self.weight((width, channels), fan_in=width)
        product = self.node("MatMul", [source, weight], shape)
        return self.node("Add", [product, self.bias(channels)], shape)

    def attention(self, source: str, *, heads: int) -> str:
        """Add self-attention over tokens, with dense layers before and behind."""
        count, width = self.shapes[source]
        part = width // heads
        self.macs += 2 * count * count * width
        parts = []
        for order in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
            split = self.reshape(self.tokens_dense(source, width), (count, heads, part))
            shape = tuple((count, heads, part)[axis - 1] for axis in order[1:])
            parts.append(self.node("Transpose", [split], shape, perm=order))
        scores = self.node("MatMul", parts[:2], (heads, count, count))
        scaled = self.node("Mul", [scores, self.scalar(part**-0.5)], (heads, count, count))
        shares = self.node("Softmax", [scaled], (heads, count, count), axis=-1)
        mixed = self.node("MatMul", [shares, parts[2]], (heads, count, part))
        turned = self.node("Transpose", [mixed], (count, heads, part), perm=[0, 2, 1, 3])
        return self.tokens_dense(self.reshape(turned, (count, width)), width)

    def token_mixing(self, source: str, *, is_einsum: bool = False) -> str:
        """Add attention without dense layers: tokens mixed by their own products."""
        count, width = self.shapes[source]
        scaled = self.node("Mul", [source, self.scalar(width**-0.5)], (count, width))
        if is_einsum:
            scores = self.node("Einsum", [scaled, source], (count, count), equation="bqd,bkd->bqk")
        else:
            turned = self.node("Transpose", [source], (width, count), perm=[0, 2, 1])
            scores = self.node("MatMul", [scaled, turned], (count, count))
        shares = self.softmax(scores)
        if is_einsum:
            return self.node("Einsum", [shares, source], (count, width), equation="bqk,bkd->bqd")
        return self.node("MatMul", [shares, source], (count, width))

    def softmax(self, source: str) -> str:
        """Add a softmax over the last axis."""
        return self.node("Softmax", [source], self.shapes[source], axis=-1)

    def channels_last(self, source: str) -> str:
        """Turn an image so that its channels come last."""
        width, height, columns = self.shapes[source]
        return self.node("Transpose", [source], (height, columns, width), perm=[0, 2, 3, 1])

    def channels_first(self, source: str) -> str:
        """Turn an image whose channels come last back."""
        height, columns, width = self.shapes[source]
        return self.node("Transpose", [source], (width, height, columns), perm=[0, 3, 1, 2])

    def to_tokens(self, source: str) -> str:
        """Turn an image of shape (width, height, columns) into tokens."""
        width, *size = self.shapes[source]
        count = int(np.prod(size))
        flat = self.reshape(source, (width, count))
        return self.node("Transpose", [flat], (count, width), perm=[0, 2, 1])

    def to_patches(self, source: str) -> str:
        """Turn an image of shape (width, height, columns) into tokens, one per patch of `PATCH` by `PATCH` pixels.

        Which pixel of its patch it is becomes part of the batch, as in exports of MobileViT.
        """
        width, height, columns = self.shapes[source]
        across = columns // PATCH
        count, pixels = height // PATCH * across, PATCH**2
        sizes = self.integers(-1, PATCH, across, PATCH)
        split = self.node("Reshape", [source, sizes], (PATCH, across, PATCH))
        turned = self.node("Transpose", [split], (across, PATCH, PATCH), perm=[0, 2, 1, 3])
        patches = self.reshape(turned, (width, count, pixels))
        tokens = self.node("Transpose", [patches], (pixels, count, width), perm=[0, 3, 2, 1])
        return self.reshape(tokens, (count, width))

    def from_patches(self, source: str, shape: tuple[int, ...]) -> str:
        """Turn the tokens of `to_patches` back into an image."""
        width, _, columns = shape
        across, pixels = columns // PATCH, PATCH**2
        count = self.shapes[source][0]
        tokens = self.reshape(source, (pixels, count, width))
        patches = self.node("Transpose", [tokens], (width, count, pixels), perm=[0, 3, 2, 1])
        sizes = self.integers(-1, across, PATCH, PATCH)
        split = self.node("Reshape", [patches, sizes], (across, PATCH, PATCH))
        turned = self.node("Transpose", [split], (PATCH, across, PATCH), perm=[0, 2, 1, 3])
        return self.reshape(turned, shape)

    def mean_token(self, source: str) -> str:
        """Add a mean over tokens."""
        return self.node("ReduceMean", [source], self.shapes[source][1:], axes=[1], keepdims=0)

    def build(self) -> bytes:
        """Return the serialized model."""
        graph = helper.make_graph(
            self._nodes,
            "designed",
            [self._input],
            [self._value(name, self.shapes[name]) for name in self.outputs or [self.top]],
            [numpy_helper.from_array(v, name) for name, v in self._constants.items()],
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self._opset)], ir_version=IR_VERSION
        )
        onnx.checker.check_model(model)
        data: bytes = model.SerializeToString()
        return data

    @staticmethod
    def _value(name: str, shape: Sequence[int]) -> ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])

    def reshape(self, source: str, shape: tuple[int, ...]) -> str:
        """Add a change of shape."""
        return self.node("Reshape", [source, self.integers(-1, *shape)], shape)

    def node(
        self, op_type: str, sources: Sequence[str], shape: Sequence[int], **attributes: Any
    ) -> str:
        """Add any node; `shape` is that of its output without the batch."""
        return self.nodes(op_type, sources, [shape], **attributes)[0]

    def nodes(
        self,
        op_type: str,
        sources: Sequence[str],
        shapes: Sequence[Sequence[int]],
        **attributes: Any,
    ) -> list[str]:
        """Add a node of several outputs; the first is the top."""
        name = f"{op_type.lower()}_{len(self._nodes)}"
        outputs = [f"{name}_out", *(f"{name}_out_{place}" for place in range(1, len(shapes)))]
        self._nodes.append(
            helper.make_node(op_type, list(sources), outputs, name=name, **attributes)
        )
        for output, shape in zip(outputs, shapes, strict=True):
            self.shapes[output] = tuple(shape)
        self.top = outputs[0]
        return outputs

    def constant(self, value: npt.NDArray[Any]) -> str:
        """Add a constant and return its name."""
        name = f"constant_{len(self._constants)}"
        self._constants[name] = value
        return name

    def scalar(self, value: float) -> str:
        """Add a constant of one number."""
        return self.constant(np.array(value, dtype=np.float32))

    def integer(self, value: int) -> str:
        """Add a constant of one integer without axes."""
        return self.constant(np.array(value, dtype=np.int64))

    def integers(self, *values: int) -> str:
        """Add a constant vector of integers: sizes, axes, positions."""
        return self.constant(np.array(values, dtype=np.int64))

    def weight(self, shape: Sequence[int], *, fan_in: int) -> str:
        """Add random weights that keep the deviation of activations behind ReLU (K. He et al., ICCV 2015)."""
        deviation = (2.0 / fan_in) ** 0.5
        return self.constant(self._rng.normal(0.0, deviation, shape).astype(np.float32))

    def bias(self, size: int) -> str:
        """Add a random vector of small numbers."""
        return self.constant(self._rng.uniform(-0.1, 0.1, size).astype(np.float32))


def _with_number(builder: GraphBuilder, op_type: str, source: str, number: float) -> str:
    return builder.node(op_type, [source, builder.scalar(number)], builder.shapes[source])


def _relu6(builder: GraphBuilder, source: str) -> str:
    bounds = [builder.scalar(0.0), builder.scalar(6.0)]
    return builder.node("Clip", [source, *bounds], builder.shapes[source])


def _silu(builder: GraphBuilder, source: str) -> str:
    return builder.multiply(source, builder.activation(source, "Sigmoid"))


def _mish(builder: GraphBuilder, source: str) -> str:
    smooth = builder.activation(builder.activation(source, "Softplus"), "Tanh")
    return builder.multiply(source, smooth)


def _hard_swish(builder: GraphBuilder, source: str) -> str:
    gate = _relu6(builder, _with_number(builder, "Add", source, 3.0))
    return _with_number(builder, "Div", builder.multiply(source, gate), 6.0)


def _gated_hard_sigmoid(builder: GraphBuilder, source: str) -> str:
    gate = builder.node("HardSigmoid", [source], builder.shapes[source], alpha=1 / 6)
    return builder.multiply(source, gate)


def _gelu(builder: GraphBuilder, source: str) -> str:
    inner = builder.activation(_with_number(builder, "Div", source, 2.0**0.5), "Erf")
    product = builder.multiply(source, _with_number(builder, "Add", inner, 1.0))
    return _with_number(builder, "Mul", product, 0.5)


def _tanh_gelu(builder: GraphBuilder, source: str) -> str:
    cube = _with_number(builder, "Pow", source, 3.0)
    inner = builder.add(source, _with_number(builder, "Mul", cube, GELU_CUBE))
    curve = builder.activation(_with_number(builder, "Mul", inner, GELU_SCALE), "Tanh")
    product = builder.multiply(source, _with_number(builder, "Add", curve, 1.0))
    return _with_number(builder, "Mul", product, 0.5)


SPELLED: Mapping[str, Callable[[GraphBuilder, str], str]] = {
    "Relu6": _relu6,
    "Silu": _silu,
    "Mish": _mish,
    "SpelledHardSwish": _hard_swish,
    "GatedHardSigmoid": _gated_hard_sigmoid,
    "SpelledGelu": _gelu,
    "SpelledTanhGelu": _tanh_gelu,
}
"""Activations in several operators, as exporters for older operator sets write them."""
