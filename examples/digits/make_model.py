"""Trains a small residual CNN on scikit-learn's handwritten digits and writes model and dataset.

    python examples/digits/make_model.py [--output DIR] [--seed N]

writes digits.onnx (logits, free batch, BatchNorm as trained), digits.npz (uint8 images 0..16 of shape
(n, 1, 8, 8), int64 labels) and dataset.yaml. Needs torch, onnx and scikit-learn. On one thread the
result is the same each time.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional

EPOCHS = 30
BATCH_SIZE = 64
TEST_COUNT = 500
PIXEL_SCALE = 1 / 16
"""Pixels of this dataset count ink in 4x4 blocks: 0 to 16."""

DATASET_YAML = """\
# Handwritten digits of scikit-learn (UCI "Optical recognition of handwritten digits"), 8x8 grey.
task: classification
arrays: digits.npz
splits:
  train:      {input: train_x, label: train_y}
  evaluation: {input: test_x, label: test_y}
  calibration: {from: train, count: 256}
layout: NCHW
preprocess: {scale: 0.0625, mean: [0], std: [1]}   # pixels are 0..16
metric: top1
"""

Arrays = dict[str, npt.NDArray[Any]]


class ConvNorm(nn.Module):
    """A 3x3 convolution without bias, and BatchNorm."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the normalised convolution of (n, inputs, h, w)."""
        return self.norm(self.conv(x))  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped


class DigitsNet(nn.Module):
    """Stem of 16 channels, 32 channels with one residual block, 64 channels at half size, a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(1, 16)
        self.widen = ConvNorm(16, 32)
        self.block_a = ConvNorm(32, 32)
        self.block_b = ConvNorm(32, 32)
        self.down = ConvNorm(32, 64, stride=2)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of images of shape (n, 1, 8, 8) in [0, 1]."""
        x = functional.relu(self.stem(x))
        x = functional.relu(self.widen(x))
        y = functional.relu(self.block_a(x))
        x = functional.relu(x + self.block_b(y))
        x = functional.relu(self.down(x))
        return self.head(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]  # as above


def load_arrays(seed: int) -> Arrays:
    """Return the training and test arrays, split evenly over the digits."""
    digits = load_digits()
    images = digits.images.astype(np.uint8)[:, None]
    train_x, test_x, train_y, test_y = train_test_split(
        images,
        digits.target.astype(np.int64),
        test_size=TEST_COUNT,
        random_state=seed,
        stratify=digits.target,
    )
    return {"train_x": train_x, "train_y": train_y, "test_x": test_x, "test_y": test_y}


def train(arrays: Arrays, *, seed: int) -> DigitsNet:
    """Return a trained network in evaluation mode; images are shifted by up to a pixel in training."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    net = DigitsNet()
    images = torch.from_numpy(arrays["train_x"]).float() * PIXEL_SCALE
    labels = torch.from_numpy(arrays["train_y"])
    optimizer = torch.optim.SGD(
        net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    steps = -(-len(images) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.1, epochs=EPOCHS, steps_per_epoch=steps
    )
    for _ in range(EPOCHS):
        padded = functional.pad(images, (1, 1, 1, 1))
        for batch in torch.split(torch.randperm(len(images)), BATCH_SIZE):
            top, left = (int(offset) for offset in torch.randint(0, 3, (2,)))
            shifted = padded[batch, :, top : top + 8, left : left + 8]
            loss = functional.cross_entropy(net(shifted), labels[batch])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    return net.eval()


def accuracy(net: DigitsNet, arrays: Arrays) -> float:
    """Return the share of test images that the network names right."""
    images = torch.from_numpy(arrays["test_x"]).float() * PIXEL_SCALE
    with torch.no_grad():
        answers = net(images).argmax(dim=1).numpy()
    return float((answers == arrays["test_y"]).mean())


class OnnxWriter:
    """Collects the nodes and initializers of the exported graph."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def node(self, op_type: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """Add a node called `name` and return the name of its output."""
        self.nodes.append(helper.make_node(op_type, inputs, [f"{name}_out"], name, **attributes))
        return f"{name}_out"

    def constant(self, name: str, value: torch.Tensor) -> str:
        """Add an initializer and return its name."""
        self.initializers.append(numpy_helper.from_array(value.detach().numpy(), name))
        return name

    def conv_norm(self, layer: ConvNorm, x: str, name: str) -> str:
        """Add a convolution and its BatchNorm, without activation."""
        stride = int(layer.conv.stride[0])
        weight = self.constant(f"{name}.weight", layer.conv.weight)
        x = self.node(
            "Conv",
            [x, weight],
            name,
            kernel_shape=[3, 3],
            pads=[1, 1, 1, 1],
            strides=[stride, stride],
        )
        norm = layer.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = self.constant(f"{name}.scale", norm.weight)
        shift = self.constant(f"{name}.shift", norm.bias)
        mean = self.constant(f"{name}.mean", norm.running_mean)
        variance = self.constant(f"{name}.variance", norm.running_var)
        return self.node(
            "BatchNormalization",
            [x, scale, shift, mean, variance],
            f"{name}_norm",
            epsilon=norm.eps,
        )


def to_onnx(net: DigitsNet) -> onnx.ModelProto:
    """Return the network as an ONNX model of opset 17 that onnx's full check accepts."""
    writer = OnnxWriter()
    x = writer.node("Relu", [writer.conv_norm(net.stem, "image", "stem")], "stem_relu")
    x = writer.node("Relu", [writer.conv_norm(net.widen, x, "widen")], "widen_relu")
    y = writer.node("Relu", [writer.conv_norm(net.block_a, x, "block_a")], "block_a_relu")
    y = writer.conv_norm(net.block_b, y, "block_b")
    x = writer.node("Relu", [writer.node("Add", [x, y], "block_add")], "block_relu")
    x = writer.node("Relu", [writer.conv_norm(net.down, x, "down")], "down_relu")
    x = writer.node("GlobalAveragePool", [x], "pool")
    x = writer.node("Flatten", [x], "flatten", axis=1)
    weight = writer.constant("head.weight", net.head.weight)
    bias = writer.constant("head.bias", net.head.bias)
    writer.node("Gemm", [x, weight, bias], "head", transB=1)
    writer.nodes[-1].output[0] = "logits"
    graph = helper.make_graph(
        writer.nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        writer.initializers,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="tightfit-example"
    )
    model.ir_version = 8
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> None:
    """Train, export, and print what was made."""
    parser = argparse.ArgumentParser(description="Make the digits example.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    arrays = load_arrays(options.seed)
    net = train(arrays, seed=options.seed)
    options.output.mkdir(parents=True, exist_ok=True)
    onnx.save_model(to_onnx(net), options.output / "digits.onnx")
    np.savez_compressed(options.output / "digits.npz", allow_pickle=False, **arrays)
    (options.output / "dataset.yaml").write_text(DATASET_YAML)
    parameters = sum(parameter.numel() for parameter in net.parameters())
    print(f"{parameters} parameters, accuracy {accuracy(net, arrays):.4f} on {TEST_COUNT} digits")


if __name__ == "__main__":
    main()
