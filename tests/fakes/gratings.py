"""A small task that takes seconds to learn: stripes of six directions in noise."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
from onnx import numpy_helper

from fakes.networks import Builder
from tightfit_service.adapters.training import number_format
from tightfit_service.adapters.training.torch_trainer import TorchTrainer
from tightfit_service.application.ports import (
    RecoverySettings,
    Teachers,
    TrainingData,
)
from tightfit_service.application.samples import Samples

CLASSES = 6
_CHANNELS = 12


def gratings(count: int, seed: int) -> Samples:
    """Images of shape (1, 8, 8), labelled by the direction of their stripes."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, count)
    y, x = np.mgrid[:8, :8]
    angle = (np.pi * labels / CLASSES)[:, None, None]
    phase = random.uniform(0, 2 * np.pi, count)[:, None, None]
    images = np.sin(1.2 * (np.cos(angle) * x + np.sin(angle) * y) + phase)
    images += random.normal(0, 0.9, images.shape)
    return Samples(stored=images[:, None].astype(np.float32), labels=labels.astype(np.int64))


@functools.cache
def trained_depthwise() -> bytes:
    """A network of depthwise and pointwise convolutions that knows the task; takes some seconds.

    It is the same on every machine: whether bfloat16 is faster would be decided by the clock.
    """
    b = Builder(1)
    x = b.conv("stem", b.input("input", (1, 8, 8)), 1, _CHANNELS)
    for number in range(2):
        x = b.conv(f"dw{number}", x, _CHANNELS, _CHANNELS, groups=_CHANNELS)
        x = b.conv(f"pw{number}", x, _CHANNELS, _CHANNELS, kernel=1)
    graph = b.model({b.head(x, _CHANNELS, CLASSES): (CLASSES,)}).SerializeToString()
    in_float = mock.patch.object(number_format, "has_fast_bf16", return_value=False)
    with in_float, tempfile.TemporaryDirectory() as folder:
        return (
            TorchTrainer(threads=1)
            .recover(
                graph,
                teachers=Teachers(original=graph),
                data=TrainingData(train=gratings(768, 1), selection=gratings(256, 2)),
                settings=RecoverySettings(
                    epochs=12, batch_size=32, learning_rate=0.1, distillation_weight=0.0
                ),
                cache_dir=Path(folder),
                on_progress=lambda _share, _message: None,
            )
            .graph
        )


def badly_scaled(graph: bytes, spread: float) -> bytes:
    """The same function with channels up to `10 ** (2 * spread)` apart in size, hard to round."""
    model = onnx.load_model_from_string(graph)
    random = np.random.default_rng(0)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    def multiply(name: str, factor: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> None:
        product = numpy_helper.to_array(tensors[name]) * factor
        tensors[name].CopyFrom(numpy_helper.from_array(product.astype(np.float32), name))

    for layer, reader in (("stem", "dw0"), ("dw0", "pw0"), ("pw0", "dw1"), ("dw1", "pw1")):
        factor = 10 ** random.uniform(-spread, spread, _CHANNELS)
        multiply(f"{layer}.w", factor[:, None, None, None])
        multiply(f"{layer}.b", factor)
        axis = 0 if reader.startswith("dw") else 1
        multiply(f"{reader}.w", np.expand_dims(1 / factor, (1, 2, 3) if axis == 0 else (0, 2, 3)))
    return model.SerializeToString()
