"""Constants added between a convolution and its BatchNormalization move into the convolution."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from fakes.networks import Builder
from tightfit_service.graph.batch_norm import foldable_batch_norms
from tightfit_service.graph.bias_folding import fold_biases_before_norms


def _network(shape: tuple[int, ...], *, bias: bool, is_read_twice: bool = False) -> onnx.ModelProto:
    b = Builder()
    b.input("input", (3, 8, 8))
    x = b.conv("conv", "input", 3, 6, bias=bias, relu=False)
    values = np.random.default_rng(1).normal(size=shape)
    x = b.node("add", "Add", [x, b.constant("added", values, dtype=np.float32)])
    y = b.batch_norm("norm", x, 6)
    if is_read_twice:
        y = b.node("sum", "Add", [x, y])
    return b.model({b.head(y, 6): (5,)})


def _run(model: onnx.ModelProto) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    return np.asarray(session.run(None, {"input": values})[0])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6, 1, 1), (1, 6, 1, 1), (1,)])
def test_a_constant_per_channel_becomes_the_bias(shape: tuple[int, ...], bias: bool) -> None:
    model = _network(shape, bias=bias)
    expected = _run(model)
    assert not foldable_batch_norms(model)
    fold_biases_before_norms(model)
    onnx.checker.check_model(model, full_check=True)
    assert foldable_batch_norms(model) == {"norm": "conv"}
    assert "add" not in {node.name for node in model.graph.node}
    np.testing.assert_allclose(_run(model), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(8,), (1, 1, 8, 8), (6, 1, 8)])
def test_what_varies_over_places_stays(shape: tuple[int, ...]) -> None:
    model = _network(shape, bias=True)
    before = model.SerializeToString()
    fold_biases_before_norms(model)
    assert model.SerializeToString() == before


def test_what_others_read_stays() -> None:
    model = _network((6, 1, 1), bias=True, is_read_twice=True)
    before = model.SerializeToString()
    fold_biases_before_norms(model)
    assert model.SerializeToString() == before
