"""BatchNormalization folds into the product in front of it without changing the function."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto
from onnx.reference import ReferenceEvaluator

from fakes.networks import NETWORKS, Builder, random_inputs
from fakes.odd_networks import ODD_NETWORKS
from tightfit_service.graph.batch_norm import fold_batch_norms, foldable_batch_norms


def assert_same_function(model: ModelProto, folded: ModelProto) -> None:
    feeds = random_inputs(model)
    for before, after in zip(
        ReferenceEvaluator(model).run(None, feeds),
        ReferenceEvaluator(folded).run(None, feeds),
        strict=True,
    ):
        np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["plain_cnn", "residual", "depthwise"])
def test_folded_network_computes_the_same(name: str) -> None:
    model = NETWORKS[name](0)
    before = model.SerializeToString()
    folded = fold_batch_norms(model)
    assert model.SerializeToString() == before
    assert not any(node.op_type == "BatchNormalization" for node in folded.graph.node)
    assert_same_function(model, folded)


def test_transposed_convolution_in_groups() -> None:
    model = ODD_NETWORKS["grouped_transposed"](0)
    assert set(foldable_batch_norms(model)) == {"g.bn", "d.bn"}
    # the reference evaluator has no grouped ConvTranspose: onnxruntime judges
    import onnxruntime

    feeds = random_inputs(model)
    before, after = (
        onnxruntime.InferenceSession(m.SerializeToString()).run(None, feeds)[0]
        for m in (model, fold_batch_norms(model))
    )
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)


def test_dense_layer_with_beta() -> None:
    b = Builder()
    x = b.input("input", (4,))
    x = b.node("fc", "Gemm", [x, b.weight("w", (4, 6), fan_in=4), b.vector("b", 6)], beta=0.5)
    x = b.batch_norm("bn", x, 6)
    model = b.model({b.gemm("fc2", x, 6, 2): (2,)})
    folded = fold_batch_norms(model)
    assert [node.name for node in folded.graph.node] == ["fc", "fc2"]
    assert_same_function(model, folded)


def test_norm_stays_where_folding_would_change_something() -> None:
    b = Builder()
    x = b.conv("conv", b.input("input", (3, 4, 4)), 3, 4, relu=False)
    y = b.batch_norm("read_twice", x, 4)
    x = b.node("join", "Add", [x, y])
    x = b.batch_norm("after_add", x, 4)
    model = b.model({b.head(x, 4): (5,)})
    assert foldable_batch_norms(model) == {}
    assert [n.name for n in fold_batch_norms(model).graph.node] == [
        n.name for n in model.graph.node
    ]


def test_shared_weights_are_copied_before_they_change() -> None:
    b = Builder()
    weight = b.weight("w", (3, 3, 1, 1), fan_in=3)
    x = b.node("one", "Conv", [b.input("input", (3, 4, 4)), weight], kernel_shape=[1, 1])
    x = b.batch_norm("one.bn", x, 3)
    x = b.node("two", "Conv", [x, weight], kernel_shape=[1, 1])
    model = b.model({b.head(x, 3): (5,)})
    folded = fold_batch_norms(model)
    assert "one.weight" in {tensor.name for tensor in folded.graph.initializer}
    assert_same_function(model, folded)
