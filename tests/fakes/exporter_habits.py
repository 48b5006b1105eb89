"""ONNX files as exporters of several generations wrote them: old opsets, constants as inputs, no names."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from fakes.networks import Builder


def with_batch(model: ModelProto, size: int | str) -> ModelProto:
    """Return a copy whose inputs and outputs declare the given batch."""
    copy = ModelProto()
    copy.CopyFrom(model)
    for value in (*copy.graph.input, *copy.graph.output):
        dim = value.type.tensor_type.shape.dim[0]
        dim.Clear()
        if isinstance(size, int):
            dim.dim_value = size
        else:
            dim.dim_param = size
    return copy


def with_constants_as_inputs(model: ModelProto) -> ModelProto:
    """Return a copy that lists its initializers among its inputs, as files before IR version 4 do."""
    copy = ModelProto()
    copy.CopyFrom(model)
    copy.ir_version = 3
    for tensor in copy.graph.initializer:
        copy.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    return copy


def opset_8(seed: int = 0) -> ModelProto:
    """Opset 8, batch 1, constants as inputs: Slice, Pad, Squeeze, Clip and Dropout by attributes."""
    b = Builder(seed)
    x = b.conv("conv1", b.input("input", (3, 8, 8)), 3, 6, norm=True)
    cut = b.node("cut", "Slice", [x], axes=[2, 3], starts=[1, 1], ends=[7, 7])
    x = b.node("pad", "Pad", [cut], mode="constant", pads=[0, 1, 1, 1, 0, 1, 1, 1], value=0.0)
    x = b.node("six", "Clip", [x], min=0.0, max=6.0)
    b.node("split", "Split", [x], outputs=2, axis=1, split=[4, 4])
    x = b.node("sum", "Sum", ["split_out0", "split_out1"])
    x = b.node("up", "Upsample", [x, b.constant("up.s", [1, 1, 2, 2], dtype=np.float32)])
    x = b.node("drop", "Dropout", [x], ratio=0.5)
    x = b.node("pool", "GlobalAveragePool", [x])
    x = b.node("squeeze", "Squeeze", [x], axes=[2, 3])
    x = b.gemm("fc", x, 4, 5)
    x = b.node("prob", "Softmax", [x])
    # Upsample took its scales as an attribute until opset 9.
    upsample = next(node for node in b.nodes if node.op_type == "Upsample")
    del upsample.input[1:]
    upsample.attribute.append(helper.make_attribute("scales", [1.0, 1.0, 2.0, 2.0]))
    del b.constants["up.s"]
    return with_constants_as_inputs(with_batch(_unchecked(b, {x: (5,)}, opset=8), 1))


def opset_11(seed: int = 0) -> ModelProto:
    """Opset 11: Unsqueeze, ReduceSum and Split by attributes, Softmax over flattened axes."""
    b = Builder(seed)
    x = b.conv("conv1", b.input("input", (3, 6, 6)), 3, 6, norm=True)
    b.node("split", "Split", [x], outputs=2, axis=1)
    x = b.node("product", "Mul", ["split_out0", "split_out1"])
    x = b.node("total", "ReduceSum", [x], axes=[2], keepdims=0)
    x = b.node("soft", "Softmax", [x], axis=1)
    x = b.node("lift", "Unsqueeze", [x], axes=[3])
    x = b.conv("conv2", x, 3, 4, kernel=1)
    return with_batch(_unchecked(b, {b.head(x, 4): (5,)}, opset=11), 1)


def traced_flatten(seed: int = 0) -> ModelProto:
    """A flatten whose target is computed from the shape of the tensor, as tracing exporters write it."""
    b = Builder(seed)
    x = b.conv("conv1", b.input("input", (3, 4, 4)), 3, 6)
    shape = b.node("shape", "Shape", [x])
    batch = b.node("batch", "Gather", [shape, b.constant("zero", 0, dtype=np.int64)], axis=0)
    batch = b.node("lift", "Unsqueeze", [batch, b.ints("lift.axes", [0])])
    target = b.node("target", "Concat", [batch, b.ints("rest", [-1])], axis=0)
    x = b.node("flat", "Reshape", [x, target])
    x = b.gemm("fc1", x, 96, 8)
    size = b.node("size", "Shape", [x])
    size = b.node("size.cut", "Slice", [size, b.ints("c.s", [1]), b.ints("c.e", [2])])
    unit = b.node("unit", "Cast", [size], to=TensorProto.FLOAT)
    x = b.node("scaled", "Div", [x, unit])
    return b.model({b.gemm("fc2", x, 8, 5): (5,)})


def untidy(seed: int = 0) -> ModelProto:
    """Constant nodes, identities, dropout, dead branches, nodes without names or with one name."""
    b = Builder(seed)
    x = b.conv("conv", b.input("input", (3, 4, 4)), 3, 6)
    x = b.node("same", "Identity", [x])
    x = b.node("drop", "Dropout", [x])
    b.node("dead", "Exp", [x])
    y = b.node("conv2", "Identity", [b.weight("w2", (4, 6, 1, 1), fan_in=6)])
    x = b.node("twin", "Conv", [x, y], kernel_shape=[1, 1])
    scale = numpy_helper.from_array(np.full((4, 1, 1), 0.5, dtype=np.float32))
    k = b.node("k", "Constant", [], value=scale)
    k = b.node("k.neg", "Neg", [k])
    x = b.node("twin.mul", "Mul", [x, k])
    x = b.head(x, 4)
    x = b.node("out", "Identity", [x])
    model = b.model({x: (5,)})
    for node in model.graph.node:
        if node.op_type in {"Constant", "Neg", "Relu"}:
            node.name = ""
        if node.name == "twin.mul":
            node.name = "twin"
    return model


def _unchecked(b: Builder, outputs: dict[str, tuple[int, ...]], *, opset: int) -> ModelProto:
    """Close a graph of an old opset (whose checker wants an old IR version)."""
    graph = helper.make_graph(
        b.nodes,
        "old",
        b.inputs,
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
            for name, shape in outputs.items()
        ],
        [numpy_helper.from_array(value, name) for name, value in b.constants.items()],
    )
    return helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=4
    )


HABITS: dict[str, Callable[[int], ModelProto]] = {
    network.__name__: network for network in (opset_8, opset_11, traced_flatten, untidy)
}
