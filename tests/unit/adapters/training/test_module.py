"""Whole networks: what the module computes, holds, trains and writes back."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, numpy_helper

from fakes.networks import NETWORKS, Builder, random_inputs, residual
from fakes.odd_networks import ODD_NETWORKS
from tightfit_service.adapters.training.module import GraphModule, build_module, write_back
from tightfit_service.domain.errors import UnsupportedError

ALL = {**NETWORKS, **ODD_NETWORKS}


def _run(model: ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, feeds))


def _call(module: GraphModule, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    found = module(*(torch.from_numpy(feeds[name]) for name in module.input_names))
    results = found if isinstance(found, tuple) else (found,)
    return [value.detach().numpy() for value in results]


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_a_network_computes_what_onnxruntime_computes(make: Callable[[int], ModelProto]) -> None:
    model = make(0)
    feeds = random_inputs(model)
    module = build_module(model.SerializeToString())
    for want, got in zip(_run(model, feeds), _call(module, feeds), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


def test_a_module_can_be_exported_by_torch() -> None:
    model = NETWORKS["channel_shuffle"](1)
    feeds = random_inputs(model, batch=1)
    module = build_module(model.SerializeToString())
    inputs = tuple(torch.from_numpy(v) for v in feeds.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        program = torch.export.export(module, inputs)
    got = program.module()(*inputs).detach().numpy()
    np.testing.assert_allclose(got, _run(model, feeds)[0], rtol=1e-3, atol=1e-4)


def test_what_training_changed_is_written_back() -> None:
    model = residual(0)
    feeds = random_inputs(model)
    module = build_module(model.SerializeToString()).train()
    before = _run(model, feeds)[0]
    optimiser = torch.optim.SGD(module.parameters(), lr=0.05)
    loss = module(*(torch.from_numpy(v) for v in feeds.values())).square().mean()
    loss.backward()
    optimiser.step()
    graph = write_back(model.SerializeToString(), module)
    written = onnx.load_model_from_string(graph)
    after = _run(written, feeds)[0]
    assert np.abs(after - before).max() > 1e-4
    np.testing.assert_allclose(after, _call(module.eval(), feeds)[0], rtol=1e-3, atol=1e-4)
    assert [n.name for n in written.graph.node] == [n.name for n in model.graph.node]


def test_an_untrained_module_writes_back_the_same_values() -> None:
    model = residual(0)
    graph = write_back(model.SerializeToString(), build_module(model.SerializeToString()))
    written = {
        t.name: numpy_helper.to_array(t)
        for t in onnx.load_model_from_string(graph).graph.initializer
    }
    for tensor in model.graph.initializer:
        np.testing.assert_array_equal(written[tensor.name], numpy_helper.to_array(tensor))


def _two_norms_with_the_same_statistics() -> ModelProto:
    b = Builder(0)
    x = b.input("input", (4, 3, 3))
    scale, shift = b.vector("scale", 4), b.vector("shift", 4)
    mean, variance = b.vector("mean", 4), b.constant("variance", np.ones(4), dtype=np.float32)
    for name in ("one", "two"):
        x = b.node(name, "BatchNormalization", [x, scale, shift, mean, variance])
    return b.model({x: (4, 3, 3)})


def test_batch_norms_that_share_statistics_get_their_own() -> None:
    model = _two_norms_with_the_same_statistics()
    feeds = random_inputs(model, batch=8)
    module = build_module(model.SerializeToString())
    np.testing.assert_allclose(_call(module, feeds)[0], _run(model, feeds)[0], rtol=1e-4, atol=1e-5)
    module.train()
    _call(module, feeds)
    module.eval()
    first, second = module.statistics()
    assert not torch.equal(first[0], second[0])
    written = onnx.load_model_from_string(write_back(model.SerializeToString(), module))
    onnx.checker.check_model(written)
    np.testing.assert_allclose(
        _run(written, feeds)[0], _call(module, feeds)[0], rtol=1e-4, atol=1e-5
    )


def test_a_number_in_a_formula_is_not_trained() -> None:
    b = Builder(0)
    x = b.input("input", (4,))
    three = b.constant("three", [3.0], dtype=np.float32)
    bias = b.vector("bias", 4)
    x = b.node("shifted", "Add", [b.node("formula", "Add", [x, three]), bias])
    module = build_module(b.model({x: (4,)}).SerializeToString())
    trained = {id(p) for p in module.parameters()}
    assert id(module.value_of("bias")) in trained
    assert id(module.value_of("three")) not in trained


@pytest.mark.parametrize(
    ("domain", "op_type", "words"),
    [("", "Unheard", r"\(Unheard\)"), ("com.example", "Conv", r"\(com\.example\.Conv\)")],
)
def test_an_operator_that_nothing_runs_is_named(domain: str, op_type: str, words: str) -> None:
    model = residual(0)
    model.graph.node[0].op_type, model.graph.node[0].domain = op_type, domain
    module = build_module(model.SerializeToString())
    feeds = random_inputs(model)
    with pytest.raises(UnsupportedError, match=rf"'{model.graph.node[0].name}' {words}"):
        _call(module, feeds)


def test_an_operator_of_the_runtime_runs_as_it_is() -> None:
    model = residual(0)
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    relu = next(n for n in model.graph.node if n.op_type == "Relu")
    relu.op_type, relu.domain = "Gelu", "com.microsoft"
    module = build_module(model.SerializeToString())
    feeds = random_inputs(model)
    np.testing.assert_allclose(_call(module, feeds)[0], _run(model, feeds)[0], rtol=1e-4, atol=1e-5)
    assert module.frozen_nodes == {relu.name: "com.microsoft.Gelu"}


def _constants_of_formulas() -> ModelProto:
    """Preprocessing, a bias, a scale, a detector's grid, a class token and filled-up channels."""
    b = Builder(0)
    x = b.input("input", (4, 6))
    x = b.node(
        "centre", "Sub", [x, b.constant("mean", [[0.3], [0.1], [0.2], [0.4]], dtype=np.float32)]
    )
    x = b.node(
        "spread",
        "Mul",
        [b.nodes[0].output[0], b.constant("std", [[0.31], [0.11], [0.2], [0.4]], dtype=np.float32)],
    )
    x = b.node("relu", "Relu", [x])
    x = b.node("shift", "Add", [x, b.vector("bias", 6)])
    x = b.node("stretch", "Mul", [x, b.vector("gamma", 6, low=0.4, high=0.9)])
    x = b.node("place", "Add", [x, b.constant("grid", np.arange(6) + 0.5, dtype=np.float32)])
    x = b.node(
        "stride", "Mul", [x, b.constant("strides", [8, 8, 16, 16, 32, 32], dtype=np.float32)]
    )
    token = b.constant("token", b.rng.normal(size=(1, 1, 6)), dtype=np.float32)
    shape = b.node("shape", "Shape", ["input"])
    batch = b.node("batch", "Gather", [shape, b.ints("zero", [0])])
    goal = b.node("goal", "Concat", [batch, b.ints("rest", [1, 6])], axis=0)
    tokens = b.node("tokens", "Expand", [token, goal])
    x = b.node("join", "Concat", [tokens, x], axis=1)
    return b.model({x: (5, 6)})


def test_what_looks_learned_is_trained_and_what_belongs_to_a_formula_is_not() -> None:
    model = _constants_of_formulas()
    module = build_module(model.SerializeToString())
    trained = {
        one.name
        for one in model.graph.initializer
        if isinstance(module.value_of(one.name), torch.nn.Parameter)
    }
    assert trained == {"bias", "gamma", "token"}


def test_shapes_computed_in_the_graph_follow_the_batch() -> None:
    b = Builder(0)
    x = b.input("input", (2, 6))
    shape = b.node("shape", "Shape", [x])
    batch = b.node("batch", "Gather", [shape, b.ints("zero", [0])])
    goal = b.node("goal", "Concat", [batch, b.ints("rest", [12])], axis=0)
    model = b.model({b.node("flat", "Reshape", [x, goal]): (12,)})
    module = build_module(model.SerializeToString())
    for count in (1, 3):
        feeds = random_inputs(model, batch=count)
        np.testing.assert_array_equal(_call(module, feeds)[0], _run(model, feeds)[0])
