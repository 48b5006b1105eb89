"""Networks as converters from other frameworks leave them, written operator by operator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime

from architectures.exporting import Shape, signals
from fakes.exporter_habits import with_constants_as_inputs
from fakes.networks import Builder

_LOGIT_SPREAD = 2.0


def keras_mobilenet(seed: int, shapes: Sequence[Shape]) -> bytes:
    """MobileNetV1 as tf2onnx writes it without optimisation.

    Everything is channels last: transposes stand around each convolution and normalisation, biases
    and ReLU6 between them, padding is uneven, the pooling a mean over axes 1 and 2.
    """
    b = _Keras(seed)
    x = b.input("input", shapes[0])
    x = b.layer("stem", x, 3, 16, stride=2)
    for index, (before, after, stride) in enumerate(((16, 32, 1), (32, 48, 2), (48, 64, 1))):
        x = b.layer(f"depthwise{index}", x, before, before, stride=stride, groups=before)
        x = b.layer(f"pointwise{index}", x, before, after, kernel=1)
    x = b.node("mean", "ReduceMean", [x], axes=[1, 2], keepdims=0)
    x = b.dense("dense", x, 64, 10, shapes)
    return b.model(
        {b.node("softmax", "Softmax", [x], axis=-1): (10,)}, opset=13
    ).SerializeToString()


def caffe_alexnet(seed: int, shapes: Sequence[Shape]) -> bytes:
    """AlexNet as Caffe2 wrote it: opset 8, LRN, overlapping pools, weights listed among the inputs."""
    b = _Keras(seed)
    x = b.conv("conv1", b.input("input", shapes[0]), 3, 24, kernel=5)
    x = b.node("norm1", "LRN", [x], size=5, alpha=1e-4, beta=0.75, bias=2.0)
    x = b.node("pool1", "MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2])
    x = b.conv("conv2", x, 24, 32, groups=2)
    x = b.node("norm2", "LRN", [x], size=5, alpha=1e-4, beta=0.75, bias=2.0)
    x = b.node("pool2", "MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2])
    x = b.conv("conv3", x, 32, 32)
    x = b.node("pool3", "MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2])
    x = b.node("flat", "Flatten", [x], axis=1)
    x = b.node("relu6", "Relu", [b.gemm("fc6", x, 32 * 9, 48)])
    x = b.dense("fc8", x, 48, 10, shapes)
    model = b.model({b.node("prob", "Softmax", [x], axis=1): (10,)}, opset=8)
    return with_constants_as_inputs(model).SerializeToString()


class _Keras(Builder):
    """Adds what Keras calls a layer."""

    def layer(
        self,
        name: str,
        source: str,
        before: int,
        after: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
    ) -> str:
        """Convolution with padding SAME, BatchNorm, ReLU6; (N, H, W, C) in and out."""
        shape = (after, before // groups, kernel, kernel)
        weight = self.weight(f"{name}.w", shape, fan_in=int(np.prod(shape[1:])))
        low = 0 if stride > 1 else kernel // 2
        x = self.node(f"{name}.nchw", "Transpose", [source], perm=[0, 3, 1, 2])
        x = self.node(
            name,
            "Conv",
            [x, weight],
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[low, low, kernel // 2, kernel // 2],
            group=groups,
        )
        x = self.node(f"{name}.nhwc", "Transpose", [x], perm=[0, 2, 3, 1])
        x = self.node(f"{name}.bias", "Add", [x, self.vector(f"{name}.b", after)])
        x = self.node(f"{name}.in", "Transpose", [x], perm=[0, 3, 1, 2])
        x = self.batch_norm(f"{name}.norm", x, after)
        x = self.node(f"{name}.out", "Transpose", [x], perm=[0, 2, 3, 1])
        bounds = [
            self.constant(f"{name}.{end}", value, dtype=np.float32)
            for end, value in (("low", 0.0), ("high", 6.0))
        ]
        return self.node(f"{name}.relu6", "Clip", [x, *bounds])

    def dense(
        self, name: str, source: str, before: int, after: int, shapes: Sequence[Shape]
    ) -> str:
        """A product and a sum whose results have mean 0 and `_LOGIT_SPREAD` over the samples."""
        opset = 13 if any(n.op_type == "Clip" for n in self.nodes) else 8
        graph = self.model({source: (before,)}, opset=opset).SerializeToString()
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        seen = session.run(None, {"input": signals(np.random.default_rng(0), (64, *shapes[0]))})
        weight = self.rng.normal(size=(before, after))
        scores = np.asarray(seen[0]) @ weight
        factor = _LOGIT_SPREAD / scores.std(axis=0).mean()
        self.constant(f"{name}.w", weight * factor, dtype=np.float32)
        self.constant(f"{name}.b", -scores.mean(axis=0) * factor, dtype=np.float32)
        x = self.node(f"{name}.product", "MatMul", [source, f"{name}.w"])
        return self.node(name, "Add", [x, f"{name}.b"])
