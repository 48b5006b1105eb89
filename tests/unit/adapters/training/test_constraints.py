"""Training under constraints: zeros stay zero, equal weights stay equal, both exactly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import numpy_helper

from fakes.networks import mlp, padded_shortcut, plain_cnn
from fakes.recoveries import accuracy, recover, samples_of
from tightfit_service.adapters.training.constraints import WeightConstraints
from tightfit_service.adapters.training.module import build_module
from tightfit_service.application.ports import RecoverySettings

Weights = Mapping[str, npt.NDArray[np.float32]]


def _weights(graph: bytes) -> Weights:
    """The weights of a graph: float initializers with two axes or more."""
    model = onnx.load_model_from_string(graph)
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return {k: v for k, v in arrays.items() if v.ndim > 1 and v.dtype == np.float32}


def _with_weights(model: onnx.ModelProto, changed: Weights) -> bytes:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in changed:
            tensor.CopyFrom(numpy_helper.from_array(changed[tensor.name], tensor.name))
    return copy.SerializeToString()


def _sparse(model: onnx.ModelProto) -> bytes:
    """The model with the smaller half of each layer's weights at zero, one filter with all of them."""
    weights = {k: v.copy() for k, v in _weights(model.SerializeToString()).items()}
    for weight in weights.values():
        weight[np.abs(weight) < np.median(np.abs(weight))] = 0.0
    next(iter(weights.values()))[0] = 0.0
    return _with_weights(model, weights)


def _clustered(model: onnx.ModelProto, count: int = 8) -> bytes:
    """The model with each layer's weights rounded to a few values."""
    rounded = {}
    for name, weight in _weights(model.SerializeToString()).items():
        levels = np.linspace(weight.min(), weight.max(), count, dtype=np.float32)
        rounded[name] = levels[np.abs(weight[..., None] - levels).argmin(axis=-1)]
    return _with_weights(model, rounded)


def _partition(weight: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Number equal values in the order of their first appearance."""
    _, first, inverse = np.unique(weight.reshape(-1), return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


@pytest.mark.parametrize(
    ("make", "loud"), [(plain_cnn, 1.0), (padded_shortcut, 1.0), (mlp, 1.0), (mlp, 6.0)]
)
def test_zeros_stay_zero(make: type, loud: float, tmp_path: Path) -> None:
    model = make(1)
    sparse = _sparse(model)
    selection = samples_of(model, 256, 2, loud=loud)
    result = recover(
        sparse,
        model,
        tmp_path,
        RecoverySettings(epochs=4, batch_size=64, keep_zeros=True),
        train=samples_of(model, 512, 1, loud=loud),
        selection=selection,
    )
    before, after = _weights(sparse), _weights(result.graph)
    for name, weight in before.items():
        assert (weight == 0).sum() > 0
        assert (after[name][weight == 0] == 0).all()
        assert (after[name][weight != 0] != weight[weight != 0]).any()
    assert accuracy(result.graph, selection) > accuracy(sparse, selection)


def test_zeros_come_back_where_nobody_asks_for_them(tmp_path: Path) -> None:
    model = plain_cnn(1)
    sparse = _sparse(model)
    result = recover(sparse, model, tmp_path, RecoverySettings(epochs=1, batch_size=64))
    after = _weights(result.graph)
    assert any((after[name][weight == 0] != 0).any() for name, weight in _weights(sparse).items())


@pytest.mark.parametrize(
    ("make", "loud"), [(plain_cnn, 1.0), (plain_cnn, 6.0), (mlp, 1.0), (mlp, 6.0)]
)
def test_equal_weights_stay_equal(make: type, loud: float, tmp_path: Path) -> None:
    model = make(1)
    clustered = _clustered(model)
    selection = samples_of(model, 256, 2, loud=loud)
    result = recover(
        clustered,
        model,
        tmp_path,
        RecoverySettings(epochs=8, batch_size=64, share_values=True),
        train=samples_of(model, 512, 1, loud=loud),
        selection=selection,
    )
    before, after = _weights(clustered), _weights(result.graph)
    for name, weight in before.items():
        assert len(np.unique(after[name])) == len(np.unique(weight)) <= 8
        np.testing.assert_array_equal(_partition(after[name]), _partition(weight))
    assert accuracy(result.graph, selection) > accuracy(clustered, selection)


def test_both_constraints_hold_together(tmp_path: Path) -> None:
    model = plain_cnn(1)
    clustered = _clustered(onnx.load_model_from_string(_sparse(model)))
    shifted = {
        k: np.where(np.abs(v) == np.abs(v).min(), np.float32(0), v)
        for k, v in _weights(clustered).items()
    }
    graph = _with_weights(model, shifted)
    settings = RecoverySettings(epochs=2, batch_size=64, keep_zeros=True, share_values=True)
    after = _weights(recover(graph, model, tmp_path, settings).graph)
    for name, weight in shifted.items():
        assert (after[name][weight == 0] == 0).all()
        assert len(np.unique(after[name])) <= len(np.unique(weight))


def test_the_gradient_of_a_cluster_is_the_mean_over_its_members() -> None:
    model = mlp(1)
    graph = _clustered(model, count=4)
    module = build_module(graph)
    constraints = WeightConstraints(graph, module, keep_zeros=False, share_values=True)
    weight = module.value_of("fc1.w")
    assert weight is not None
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    raw = weight.grad.clone()
    constraints.project_gradients()
    for value in np.unique(weight.detach().numpy()).tolist():
        members = weight.detach() == value
        torch.testing.assert_close(
            weight.grad[members], raw[members].mean().expand(int(members.sum()))
        )


def test_biases_are_free(tmp_path: Path) -> None:
    model = mlp(1)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name == "fc1.b":
            zeros = np.zeros_like(numpy_helper.to_array(tensor))
            tensor.CopyFrom(numpy_helper.from_array(zeros, tensor.name))
    settings = RecoverySettings(epochs=4, batch_size=64, keep_zeros=True)
    result = recover(copy.SerializeToString(), model, tmp_path, settings)
    bias = next(
        numpy_helper.to_array(t)
        for t in onnx.load_model_from_string(result.graph).graph.initializer
        if t.name == "fc1.b"
    )
    assert (bias != 0).all()
