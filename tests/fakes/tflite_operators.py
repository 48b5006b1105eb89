"""TFLite files of one or a few operators, with the options that converters give them.

Shapes of computed tensors are those that LiteRT finds when it prepares the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flatbuffers  # type: ignore[import-untyped]  # ships no types
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from tightfit_service.adapters.formats.tflite_file import TfliteFile

Source = Sequence[int] | np.ndarray | int
_TYPES = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.float16): schema.TensorType.FLOAT16,
    np.dtype(np.int8): schema.TensorType.INT8,
    np.dtype(np.int32): schema.TensorType.INT32,
    np.dtype(np.int64): schema.TensorType.INT64,
    np.dtype(np.bool_): schema.TensorType.BOOL,
}


class Net:
    """Collects operators; tensors are numbers."""

    def __init__(self) -> None:
        self.model = schema.ModelT()
        self.model.version, self.model.operatorCodes = 3, []
        self.model.buffers = [schema.BufferT()]
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.graph.inputs, self.graph.outputs = [], []
        self.model.subgraphs = [self.graph]
        self.rng = np.random.default_rng(0)

    def tensor(
        self, shape: Sequence[int], dtype: Any = np.float32, *, variable: bool = False
    ) -> int:
        tensor = schema.TensorT()
        tensor.name = f"layer/{len(self.graph.tensors)}".encode()
        tensor.shape = np.asarray(shape, dtype=np.int32)
        tensor.type, tensor.buffer = _TYPES[np.dtype(dtype)], 0
        tensor.isVariable = variable
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def input(self, *shape: int) -> int:
        self.graph.inputs.append(self.tensor(shape))
        return int(self.graph.inputs[-1])

    def constant(self, value: Any, dtype: Any = None) -> int:
        array = np.asarray(value, dtype=dtype)
        number = self.tensor(array.shape, array.dtype)
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(array.tobytes(), dtype=np.uint8)
        self.model.buffers.append(buffer)
        self.graph.tensors[number].buffer = len(self.model.buffers) - 1
        return number

    def weights(self, *shape: int) -> int:
        return self.constant(self.rng.normal(0, 0.5, shape), np.float32)

    def ints(self, *values: Any) -> int:
        return self.constant(values, np.int32)

    def quantize(self, tensor: int, scale: Any, zero_point: Any = 0, axis: int = 0) -> int:
        """State that a tensor's integers stand for (integer - zero point) * scale."""
        quantization = schema.QuantizationParametersT()
        quantization.scale = np.atleast_1d(np.asarray(scale, dtype=np.float32))
        quantization.zeroPoint = np.atleast_1d(np.asarray(zero_point, dtype=np.int64))
        quantization.quantizedDimension = axis
        self.graph.tensors[tensor].quantization = quantization
        return tensor

    def add(
        self,
        kind: str,
        inputs: Sequence[int],
        options: str = "",
        *,
        outputs: Sequence[Any] = (np.float32,),
        custom: str = "",
        version: int = 1,
        shape: Sequence[int] = (1,),
        **settings: Any,
    ) -> int:
        """Add an operator and return its first output; the others follow by number."""
        code = schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, kind)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.customCode = custom.encode() if custom else None
        code.version = version
        self.model.operatorCodes.append(code)
        operator = schema.OperatorT()
        operator.opcodeIndex = len(self.model.operatorCodes) - 1
        operator.inputs = list(inputs)
        operator.outputs = [self.tensor(shape, dtype) for dtype in outputs]
        if options:
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, options)
            operator.builtinOptions = getattr(schema, f"{options}T")()
            for name, value in settings.items():
                assert hasattr(operator.builtinOptions, name), name
                setattr(operator.builtinOptions, name, value)
        self.graph.operators.append(operator)
        return int(operator.outputs[0])

    def build(self, *outputs: int, infer: bool = True) -> bytes:
        self.graph.outputs = list(outputs)
        data = self._packed()
        if infer:
            interpreter = Interpreter(
                model_content=data,
                experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            )
            interpreter.allocate_tensors()
            for detail in interpreter.get_tensor_details():
                if detail["index"] < len(self.graph.tensors):
                    shape = np.asarray(detail["shape"], dtype=np.int32)
                    self.graph.tensors[detail["index"]].shape = shape
            data = self._packed()
        return data

    def _packed(self) -> bytes:
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), file_identifier=b"TFL3")
        return TfliteFile(bytes(builder.Output())).to_bytes()


def conv(
    net: Net,
    source: int,
    channels: int,
    *,
    size: int = 3,
    fed: int = 3,
    kind: str = "CONV_2D",
    multiplier: int = 1,
    **settings: Any,
) -> int:
    """A convolution with SAME padding and a ReLU, unless told otherwise."""
    options: dict[str, Any] = {
        "padding": schema.Padding.SAME,
        "strideH": 1,
        "strideW": 1,
        "dilationHFactor": 1,
        "dilationWFactor": 1,
        "fusedActivationFunction": schema.ActivationFunctionType.RELU,
        **settings,
    }
    if kind == "CONV_2D":
        weights, name = net.weights(channels, size, size, fed), "Conv2DOptions"
    else:
        weights, name = net.weights(1, size, size, channels), "DepthwiseConv2DOptions"
        options["depthMultiplier"] = multiplier
    return net.add(kind, [source, weights, net.weights(channels)], name, **options)


def dense(net: Net, source: int, fed: int, out: int, **settings: Any) -> int:
    inputs = [source, net.weights(out, fed), net.weights(out)]
    return net.add("FULLY_CONNECTED", inputs, "FullyConnectedOptions", **settings)


def _unary(
    kind: str, options: str = "", shift: float = 0.0, **settings: Any
) -> Callable[[], bytes]:
    def make() -> bytes:
        net = Net()
        source = net.input(1, 4, 5, 3)
        moved = net.add("ADD", [source, net.constant(np.float32(shift))], "AddOptions")
        return net.build(net.add(kind, [moved], options, **settings))

    return make


def _binary(
    kind: str, options: str = "", shift: float = 0.5, **settings: Any
) -> Callable[[], bytes]:
    def make() -> bytes:
        net = Net()
        left = net.input(1, 4, 5, 3)
        right = net.constant(net.rng.uniform(shift, shift + 1, (4, 5, 3)), np.float32)
        return net.build(net.add(kind, [left, right], options, **settings))

    return make


def _compared(kind: str, options: str) -> Callable[[], bytes]:
    def make() -> bytes:
        net = Net()
        left, right = net.input(1, 4, 5, 3), net.input(1, 4, 5, 3)
        found = net.add(kind, [left, right], options, outputs=[np.bool_])
        return net.build(net.add("SELECT_V2", [found, left, right], "SelectV2Options"))

    return make


def _with(
    kind: str, fed: Sequence[int], extra: Sequence[Any], options: str = "", **settings: Any
) -> Callable[[], bytes]:
    """An operator on one input with integer constants behind it."""

    def make() -> bytes:
        net = Net()
        inputs = [net.input(*fed), *(net.constant(item, np.int32) for item in extra)]
        return net.build(net.add(kind, inputs, options, **settings))

    return make


def _conv(**settings: Any) -> Callable[[], bytes]:
    def make() -> bytes:
        net = Net()
        fed = settings.get("fed", 3)
        return net.build(conv(net, net.input(1, 9, 10, fed if fed > 2 else 4), 8, **settings))

    return make


def _depthwise(channels: int, **settings: Any) -> Callable[[], bytes]:
    def make() -> bytes:
        net = Net()
        source = net.input(1, 9, 8, 4)
        kind = "DEPTHWISE_CONV_2D"
        return net.build(
            conv(net, source, channels, kind=kind, multiplier=channels // 4, **settings)
        )

    return make


def _pool(kind: str, padding: int, **settings: Any) -> Callable[[], bytes]:
    def make() -> bytes:
        net = Net()
        window: dict[str, Any] = {"filterHeight": 3, "filterWidth": 2, "strideH": 2, "strideW": 2}
        source = net.input(1, 8, 7, 3)
        pooled = net.add(kind, [source], "Pool2DOptions", padding=padding, **window, **settings)
        return net.build(pooled)

    return make


def _transpose_conv(
    padding: int, out: Sequence[int], stride: int, size: int
) -> Callable[[], bytes]:
    def make() -> bytes:
        net = Net()
        source = net.input(1, 5, 4, 3)
        inputs = [net.ints(1, *out, 6), net.weights(6, size, size, 3), source]
        settings: dict[str, Any] = {"padding": padding, "strideH": stride, "strideW": stride}
        return net.build(net.add("TRANSPOSE_CONV", inputs, "TransposeConvOptions", **settings))

    return make


def _resize(kind: str, out: Sequence[int], **settings: Any) -> Callable[[], bytes]:
    options = {
        "RESIZE_BILINEAR": "ResizeBilinearOptions",
        "RESIZE_NEAREST_NEIGHBOR": "ResizeNearestNeighborOptions",
    }[kind]
    return _with(kind, (1, 6, 5, 3), [list(out)], options, **settings)


def dilated_in_blocks(*, bias_apart: bool = False, padding: int = schema.Padding.VALID) -> bytes:
    """A dilated convolution as TensorFlow 1 spelled it."""
    net = Net()
    source = net.input(1, 8, 8, 3)
    spread = net.add(
        "SPACE_TO_BATCH_ND", [source, net.ints(2, 2), net.constant([[2, 2], [2, 2]], np.int32)]
    )
    result = conv(net, spread, 4, padding=padding)
    if bias_apart:
        result = net.add("ADD", [result, net.weights(4)], "AddOptions")
    crops = [[0, 0], [0, 0]] if padding == schema.Padding.VALID else [[2, 2], [2, 2]]
    joined = net.add("BATCH_TO_SPACE_ND", [result, net.ints(2, 2), net.constant(crops, np.int32)])
    return net.build(net.add("RELU6", [joined]))


def _several_parts(kind: str) -> Callable[[], bytes]:
    def make() -> bytes:
        net = Net()
        source = net.input(1, 4, 5, 6)
        parts = [np.float32] * 3
        if kind == "SPLIT":
            first = net.add(kind, [net.ints(3), source], "SplitOptions", outputs=parts, numSplits=3)
            first = net.graph.operators[-1].outputs[0]
        else:
            sizes = [source, net.ints(1, 2, 3), net.ints(3)]
            first = net.add(kind, sizes, "SplitVOptions", outputs=parts, numSplits=3)
        return net.build(first, first + 1, first + 2)

    return make


def _unpack() -> bytes:
    net = Net()
    source = net.input(1, 3, 4)
    first = net.add("UNPACK", [source], "UnpackOptions", outputs=[np.float32] * 3, num=3, axis=1)
    joined = net.add("PACK", [first, first + 2], "PackOptions", valuesCount=2, axis=2)
    return net.build(joined, first + 1)


def _top_k() -> bytes:
    net = Net()
    outputs = [np.float32, np.int32]
    first = net.add(
        "TOPK_V2", [net.input(1, 9), net.constant(3, np.int32)], "TopKV2Options", outputs=outputs
    )
    return net.build(first, first + 1)


def _joined(axis: int) -> Callable[[], bytes]:
    def make() -> bytes:
        net = Net()
        source = net.input(1, 6, 6, 3)
        left, right = conv(net, source, 4), conv(net, source, 4, size=1)
        joined = net.add("CONCATENATION", [left, right], "ConcatenationOptions", axis=axis)
        fed = 8 if axis in {3, -1} else 4
        return net.build(conv(net, joined, 5, fed=fed))

    return make


def _arg_max(kind: str) -> Callable[[], bytes]:
    def make() -> bytes:
        net = Net()
        source = conv(net, net.input(1, 5, 4, 3), 6)
        options = kind.title().replace("_", "") + "Options"
        axis = net.constant(3, np.int32)
        return net.build(net.add(kind, [source, axis], options, outputs=[np.int32], outputType=2))

    return make


def _gather() -> bytes:
    net = Net()
    inputs = [net.input(1, 4, 6), net.ints(3, 0, 5, 5)]
    return net.build(net.add("GATHER", inputs, "GatherOptions", axis=2))


def _prelu() -> bytes:
    net = Net()
    source = net.add("SUB", [net.input(1, 4, 4, 3), net.constant(np.float32(0.5))], "SubOptions")
    return net.build(
        net.add("PRELU", [conv(net, source, 6, fusedActivationFunction=0), net.weights(1, 1, 6)])
    )


def _matmul(*, adj_x: bool = False, adj_y: bool = False) -> Callable[[], bytes]:
    def make() -> bytes:
        net = Net()
        left = net.input(1, 2, 4, 3) if adj_x else net.input(1, 2, 3, 4)
        right = net.input(1, 2, 5, 4) if adj_y else net.input(1, 2, 4, 5)
        settings: dict[str, Any] = {"adjX": adj_x, "adjY": adj_y}
        return net.build(net.add("BATCH_MATMUL", [left, right], "BatchMatMulOptions", **settings))

    return make


def lstm(*, time_major: bool = False) -> bytes:
    """An LSTM of 5 cells over 6 steps of 4 features."""
    net = Net()
    source = net.input(1, 6, 4)
    fed = net.add("TRANSPOSE", [source, net.ints(1, 0, 2)], "TransposeOptions")
    states = [net.tensor([1, 5], variable=True) for _ in range(2)]
    inputs = [
        fed if time_major else source,
        *(net.weights(5, 4) for _ in range(4)),
        *(net.weights(5, 5) for _ in range(4)),
        *(-1, -1, -1),
        *(net.weights(5) for _ in range(4)),
        *(-1, -1),
        *states,
        *(-1, -1, -1, -1),
    ]
    if not time_major:
        net.graph.operators.pop()
    result = net.add(
        "UNIDIRECTIONAL_SEQUENCE_LSTM",
        inputs,
        "UnidirectionalSequenceLSTMOptions",
        timeMajor=time_major,
        fusedActivationFunction=schema.ActivationFunctionType.TANH,
    )
    if time_major:
        result = net.add("TRANSPOSE", [result, net.ints(1, 0, 2)], "TransposeOptions")
    return net.build(result)


def _rnn() -> bytes:
    net = Net()
    source = net.input(1, 6, 4)
    inputs = [source, net.weights(5, 4), net.weights(5, 5), net.weights(5)]
    state = net.tensor([1, 5], variable=True)
    settings = {"timeMajor": False, "fusedActivationFunction": schema.ActivationFunctionType.RELU}
    kind = "UNIDIRECTIONAL_SEQUENCE_RNN"
    return net.build(net.add(kind, [*inputs, state], "SequenceRNNOptions", **settings))


def half_float_weights() -> bytes:
    """A file whose weights are float16, widened by DEQUANTIZE."""
    net = Net()
    source = net.input(1, 6, 6, 3)
    stored = net.constant(net.rng.normal(0, 0.5, (4, 3, 3, 3)), np.float16)
    weights = net.add("DEQUANTIZE", [stored], "DequantizeOptions")
    settings = {"padding": schema.Padding.SAME, "strideH": 1, "strideW": 1}
    return net.build(
        net.add(
            "CONV_2D",
            [source, weights, net.weights(4)],
            "Conv2DOptions",
            dilationHFactor=1,
            dilationWFactor=1,
            **settings,
        )
    )


def squeeze_excite() -> bytes:
    """A depthwise block with a gate of two dense layers, as MobileNetV3 has."""
    net = Net()
    image = conv(net, net.input(1, 8, 8, 3), 8)
    means = net.add("MEAN", [image, net.ints(1, 2)], "ReducerOptions", keepDims=False)
    gate = dense(net, dense(net, means, 8, 4, fusedActivationFunction=1), 4, 8)
    gate = net.add("LOGISTIC", [gate])
    gate = net.add("RESHAPE", [gate, net.ints(1, 1, 1, 8)])
    gated = net.add("MUL", [image, gate], "MulOptions")
    padded = net.add("PAD", [gated, net.constant([[0, 0], [0, 1], [0, 1], [0, 0]], np.int32)])
    depthwise = conv(
        net, padded, 8, kind="DEPTHWISE_CONV_2D", padding=schema.Padding.VALID, strideH=2, strideW=2
    )
    act = net.add("HARD_SWISH", [depthwise])
    pooled = net.add("MEAN", [act, net.ints(1, 2)], "ReducerOptions", keepDims=True)
    flat = net.add("SQUEEZE", [pooled], "SqueezeOptions", squeezeDims=[1, 2])
    return net.build(net.add("SOFTMAX", [dense(net, flat, 8, 5)], "SoftmaxOptions", beta=1.0))


def computed_shape() -> bytes:
    """A flattening whose sizes the graph computes, as Keras exports it."""
    net = Net()
    image = conv(net, net.input(1, 4, 4, 3), 6)
    sizes = net.add("SHAPE", [image], "ShapeOptions", outputs=[np.int32], outType=2)
    begins = [sizes, net.ints(0), net.ints(1), net.ints(1)]
    batch = net.add(
        "STRIDED_SLICE", begins, "StridedSliceOptions", outputs=[np.int32], shrinkAxisMask=1
    )
    last = net.constant(96, np.int32)
    target = net.add(
        "PACK", [batch, last], "PackOptions", outputs=[np.int32], valuesCount=2, axis=0
    )
    flat = net.add("RESHAPE", [image, target], "ReshapeOptions", newShape=[])
    data = dense(net, flat, 96, 5)
    net.build(data)
    # LiteRT leaves sizes that are computed open until it runs.
    for number, shape in ((flat, (1, 96)), (data, (1, 5))):
        net.graph.tensors[number].shape = np.asarray(shape, dtype=np.int32)
    return net.build(data, infer=False)


def detector() -> bytes:
    """A small detector: two heads on an image, and a custom operator that decodes their boxes."""
    net = Net()
    image = conv(net, net.input(1, 8, 8, 3), 8, strideH=2, strideW=2)
    boxes = net.add("RESHAPE", [conv(net, image, 8, fed=8, size=1), net.ints(1, 32, 4)])
    scores = net.add("RESHAPE", [conv(net, image, 6, fed=8, size=1), net.ints(1, 32, 3)])
    scores = net.add("LOGISTIC", [scores])
    net.build(boxes, scores)
    anchors = net.weights(32, 4)
    decoded = net.add(
        "CUSTOM",
        [boxes, scores, anchors],
        outputs=[np.float32] * 4,
        custom="TFLite_Detection_PostProcess",
    )
    return net.build(*range(decoded, decoded + 4), infer=False)


def custom_in_the_middle() -> bytes:
    """A custom operator with a convolution behind it."""
    net = Net()
    image = conv(net, net.input(1, 8, 8, 3), 8)
    net.build(image)
    odd = net.add("CUSTOM", [image], custom="MyLayer")
    net.graph.tensors[odd].shape = net.graph.tensors[image].shape
    last = conv(net, odd, 8, fed=8)
    net.graph.tensors[last].shape = net.graph.tensors[image].shape
    return net.build(last, infer=False)


def attention() -> bytes:
    """One head of attention over 6 tokens of 8 features, with the rows put together for dense layers."""
    net = Net()
    tokens = net.input(1, 6, 8)
    rows = net.add("RESHAPE", [tokens, net.ints(6, 8)])
    parts = [net.add("RESHAPE", [dense(net, rows, 8, 8), net.ints(1, 6, 2, 4)]) for _ in range(3)]
    heads = [net.add("TRANSPOSE", [part, net.ints(0, 2, 1, 3)]) for part in parts]
    scores = net.add("BATCH_MATMUL", heads[:2], "BatchMatMulOptions", adjY=True)
    weights = net.add("SOFTMAX", [scores], "SoftmaxOptions", beta=0.5)
    mixed = net.add("BATCH_MATMUL", [weights, heads[2]], "BatchMatMulOptions")
    back = net.add("TRANSPOSE", [mixed, net.ints(0, 2, 1, 3)])
    flat = net.add("RESHAPE", [back, net.ints(1, 6, 8)])
    out = dense(net, flat, 8, 8, keepNumDims=True)
    total = net.add("ADD", [out, tokens], "AddOptions")
    mean = net.add("MEAN", [total, net.ints(2)], "ReducerOptions", keepDims=True)
    spread = net.add("SQUARED_DIFFERENCE", [total, mean])
    variance = net.add("MEAN", [spread, net.ints(2)], "ReducerOptions", keepDims=True)
    shifted = net.add("ADD", [variance, net.constant(np.float32(1e-5))], "AddOptions")
    scale = net.add("RSQRT", [shifted])
    centred = net.add("SUB", [total, mean], "SubOptions")
    return net.build(net.add("MUL", [centred, scale], "MulOptions"))


SAME, VALID = schema.Padding.SAME, schema.Padding.VALID
OPERATORS: Mapping[str, Callable[[], bytes]] = {
    "conv same": _conv(),
    "conv same stride 2": _conv(strideH=2, strideW=2),
    "conv same stride 3 by 2": _conv(strideH=3, strideW=2),
    "conv even kernel": _conv(size=2, fusedActivationFunction=3),
    "conv valid": _conv(padding=VALID, fusedActivationFunction=2),
    "conv dilated": _conv(dilationHFactor=2, dilationWFactor=3),
    "conv grouped": _conv(fed=2),
    "depthwise": _depthwise(4),
    "depthwise multiplier": _depthwise(8, strideH=2, strideW=2),
    "depthwise dilated": _depthwise(4, dilationHFactor=2, dilationWFactor=2),
    "dilated in blocks": dilated_in_blocks,
    "dilated in blocks, bias apart": lambda: dilated_in_blocks(bias_apart=True),
    "dilated in blocks, cropped": lambda: dilated_in_blocks(padding=SAME),
    "transpose conv same": _transpose_conv(SAME, (10, 8), 2, 3),
    "transpose conv same odd": _transpose_conv(SAME, (9, 7), 2, 3),
    "transpose conv valid": _transpose_conv(VALID, (11, 9), 2, 3),
    "transpose conv valid larger": _transpose_conv(VALID, (12, 10), 2, 3),
    "transpose conv stride above kernel": _transpose_conv(SAME, (15, 12), 3, 2),
    "average pool same": _pool("AVERAGE_POOL_2D", SAME),
    "average pool valid": _pool("AVERAGE_POOL_2D", VALID, fusedActivationFunction=1),
    "max pool same": _pool("MAX_POOL_2D", SAME),
    "max pool valid": _pool("MAX_POOL_2D", VALID),
    "l2 pool": _pool("L2_POOL_2D", VALID),
    "bilinear": _resize("RESIZE_BILINEAR", (12, 15)),
    "bilinear down": _resize("RESIZE_BILINEAR", (4, 3)),
    "bilinear corners": _resize("RESIZE_BILINEAR", (11, 9), alignCorners=True),
    "bilinear half pixel": _resize("RESIZE_BILINEAR", (13, 7), halfPixelCenters=True),
    "nearest": _resize("RESIZE_NEAREST_NEIGHBOR", (12, 13)),
    "nearest down": _resize("RESIZE_NEAREST_NEIGHBOR", (4, 3)),
    "nearest corners": _resize("RESIZE_NEAREST_NEIGHBOR", (11, 8), alignCorners=True),
    "nearest half pixel": _resize("RESIZE_NEAREST_NEIGHBOR", (12, 7), halfPixelCenters=True),
    "space to depth": _with("SPACE_TO_DEPTH", (1, 4, 6, 3), [], "SpaceToDepthOptions", blockSize=2),
    "depth to space": _with("DEPTH_TO_SPACE", (1, 2, 3, 8), [], "DepthToSpaceOptions", blockSize=2),
    "dense": lambda: (n := Net()).build(dense(n, n.input(1, 6), 6, 5, fusedActivationFunction=1)),
    "dense on image": lambda: (n := Net()).build(dense(n, conv(n, n.input(1, 4, 4, 3), 6), 96, 5)),
    "dense keeps axes": lambda: (n := Net()).build(
        dense(n, n.input(1, 4, 4, 6), 6, 5, keepNumDims=True, fusedActivationFunction=1)
    ),
    "matmul": _matmul(),
    "matmul turned left": _matmul(adj_x=True),
    "matmul turned right": _matmul(adj_y=True),
    "lstm": lstm,
    "lstm time major": lambda: lstm(time_major=True),
    "rnn": _rnn,
    "add": _binary("ADD", "AddOptions", fusedActivationFunction=3),
    "sub": _binary("SUB", "SubOptions", fusedActivationFunction=1),
    "mul": _binary("MUL", "MulOptions"),
    "div": _binary("DIV", "DivOptions"),
    "pow": _binary("POW", "PowOptions"),
    "maximum": _binary("MAXIMUM", "MaximumMinimumOptions"),
    "minimum": _binary("MINIMUM", "MaximumMinimumOptions"),
    "squared difference": _binary("SQUARED_DIFFERENCE", "SquaredDifferenceOptions"),
    "floor div": _binary("FLOOR_DIV", "FloorDivOptions", shift=0.1),
    "floor mod": _binary("FLOOR_MOD", "FloorModOptions", shift=0.1),
    **{
        f"{kind.lower()} and select": _compared(kind, options)
        for kind, options in {
            "GREATER": "GreaterOptions",
            "GREATER_EQUAL": "GreaterEqualOptions",
            "LESS": "LessOptions",
            "LESS_EQUAL": "LessEqualOptions",
            "EQUAL": "EqualOptions",
            "NOT_EQUAL": "NotEqualOptions",
        }.items()
    },
    **{
        kind.lower(): _unary(kind, shift=-0.5)
        for kind in (
            "RELU",
            "RELU6",
            "RELU_N1_TO_1",
            "RELU_0_TO_1",
            "TANH",
            "LOGISTIC",
            "ELU",
            "HARD_SWISH",
            "FLOOR",
            "CEIL",
            "ROUND",
            "ABS",
            "NEG",
            "EXP",
            "SIN",
            "COS",
            "SQUARE",
            "ZEROS_LIKE",
            "SIGN",
        )
    },
    **{kind.lower(): _unary(kind, shift=0.5) for kind in ("LOG", "SQRT", "RSQRT")},
    "gelu": _unary("GELU", "GeluOptions", -0.5),
    "gelu tanh": _unary("GELU", "GeluOptions", -0.5, approximate=True),
    "leaky relu": _unary("LEAKY_RELU", "LeakyReluOptions", -0.5, alpha=0.2),
    "prelu": _prelu,
    "softmax": _unary("SOFTMAX", "SoftmaxOptions", beta=2.0),
    "log softmax": _unary("LOG_SOFTMAX", "LogSoftmaxOptions"),
    "l2 normalization": _unary("L2_NORMALIZATION", "L2NormOptions"),
    "local response": _unary(
        "LOCAL_RESPONSE_NORMALIZATION",
        "LocalResponseNormalizationOptions",
        radius=1,
        alpha=0.3,
        beta=0.75,
        bias=1.5,
    ),
    "pad": _with("PAD", (1, 3, 4, 2), [[[0, 0], [1, 2], [0, 1], [2, 0]]], "PadOptions"),
    "mirror reflect": _with(
        "MIRROR_PAD", (1, 4, 4, 2), [[[0, 0], [1, 2], [3, 1], [0, 0]]], "MirrorPadOptions", mode=0
    ),
    "mirror symmetric": _with(
        "MIRROR_PAD", (1, 4, 4, 2), [[[0, 0], [4, 2], [3, 1], [0, 1]]], "MirrorPadOptions", mode=1
    ),
    "reshape": _with("RESHAPE", (1, 3, 4, 2), [[1, 8, 3]], "ReshapeOptions", newShape=[1, 8, 3]),
    "transpose": _with("TRANSPOSE", (1, 3, 4, 2), [[0, 3, 1, 2]], "TransposeOptions"),
    "squeeze": _with("SQUEEZE", (1, 1, 4, 1), [], "SqueezeOptions", squeezeDims=[1, -1]),
    "expand dims": _with("EXPAND_DIMS", (1, 3, 4), [2], "ExpandDimsOptions"),
    "slice": _with(
        "SLICE", (1, 5, 4, 3), [[0, 1, 0, 2], [1, 3, -1, 1]], "SliceOptions", shape=(1, 3, 4, 1)
    ),
    "strided slice": _with(
        "STRIDED_SLICE",
        (1, 7, 6, 3),
        [[0, 1, 5, 0], [1, 6, 0, 3], [1, 2, -2, 1]],
        "StridedSliceOptions",
        beginMask=1,
        endMask=9,
    ),
    "strided slice shrunk": _with(
        "STRIDED_SLICE",
        (1, 7, 6, 3),
        [[0, -2, 0, 1], [1, 0, 6, 2], [1, 1, 1, 1]],
        "StridedSliceOptions",
        beginMask=5,
        endMask=5,
        shrinkAxisMask=10,
    ),
    "strided slice ellipsis": _with(
        "STRIDED_SLICE",
        (1, 7, 6, 3),
        [[0, 1], [0, 3], [1, 1]],
        "StridedSliceOptions",
        ellipsisMask=1,
    ),
    "strided slice new axis": _with(
        "STRIDED_SLICE",
        (1, 7, 6),
        [[0, 0, 2], [1, 1, 5], [1, 1, 1]],
        "StridedSliceOptions",
        beginMask=1,
        endMask=1,
        newAxisMask=2,
    ),
    "split": _several_parts("SPLIT"),
    "split sizes": _several_parts("SPLIT_V"),
    "unpack and pack": _unpack,
    "concat channels": _joined(-1),
    "concat rows": _joined(1),
    "gather": _gather,
    "tile": _with("TILE", (1, 3, 2), [[1, 2, 3]], "TileOptions"),
    "broadcast": _with("BROADCAST_TO", (1, 1, 3), [[1, 4, 3]], "BroadcastToOptions", version=2),
    "reverse": _with("REVERSE_V2", (1, 4, 3), [[1]], "ReverseV2Options"),
    "cumsum": _with("CUMSUM", (1, 4, 3), [1], "CumsumOptions", exclusive=True, reverse=True),
    "top k": _top_k,
    "arg max": _arg_max("ARG_MAX"),
    "arg min": _arg_max("ARG_MIN"),
    "mean": _with("MEAN", (1, 4, 5, 3), [[1, 2]], "ReducerOptions"),
    "mean kept": _with("MEAN", (1, 4, 5, 3), [[2, -1]], "ReducerOptions", keepDims=True),
    "sum": _with("SUM", (1, 4, 5, 3), [[3]], "ReducerOptions"),
    "max": _with("REDUCE_MAX", (1, 4, 5, 3), [[1]], "ReducerOptions", keepDims=True),
    "min": _with("REDUCE_MIN", (1, 4, 5, 3), [[1, 2]], "ReducerOptions"),
    "product": _with("REDUCE_PROD", (1, 4, 5, 3), [[3]], "ReducerOptions"),
    "half float weights": half_float_weights,
    "squeeze excite": squeeze_excite,
    "computed shape": computed_shape,
    "attention": attention,
}
"""Files by what they prove."""


def quantized_block(*, relu_implied: bool = False) -> bytes:
    """An int8 convolution with one scale per channel, pooled, and a dense layer."""
    net = Net()
    source = net.quantize(net.tensor([1, 6, 6, 3], np.int8), 1 / 255, -128)
    net.graph.inputs.append(source)
    codes = net.rng.integers(-127, 128, (4, 3, 3, 3))
    scales = np.array([0.004, 0.005, 0.006, 0.007], dtype=np.float32)
    weights = net.quantize(net.constant(codes, np.int8), scales, [0] * 4)
    bias = net.quantize(
        net.constant(net.rng.integers(-900, 900, 4), np.int32), scales / 255, [0] * 4
    )
    window = {"strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1}
    options = {"padding": schema.Padding.SAME, **window}
    image = net.add(
        "CONV_2D", [source, weights, bias], "Conv2DOptions", outputs=[np.int8], **options
    )
    net.quantize(image, 0.02, -128 if relu_implied else -10)
    pooled = net.add(
        "MEAN", [image, net.ints(1, 2)], "ReducerOptions", outputs=[np.int8], keepDims=False
    )
    net.quantize(pooled, 0.02, -128 if relu_implied else -10)
    matrix = net.quantize(net.constant(net.rng.integers(-127, 128, (5, 4)), np.int8), 0.005)
    offset = net.quantize(net.constant(np.zeros(5), np.int32), 0.0001)
    inputs = [pooled, matrix, offset]
    out = net.add("FULLY_CONNECTED", inputs, "FullyConnectedOptions", outputs=[np.int8])
    return net.build(net.quantize(out, 0.02, 3))
