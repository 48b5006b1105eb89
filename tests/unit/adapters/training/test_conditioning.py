"""Inserting BatchNorms and folding them back changes nothing but rounding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto

from fakes.logits import find_logits
from fakes.networks import NETWORKS, Builder, mlp, plain_cnn, random_inputs
from tightfit_service.adapters.training.conditioning import input_layers, insert_batch_norms
from tightfit_service.adapters.training.module import build_module
from tightfit_service.adapters.training.preparation import (
    channel_statistics,
    match_rows,
    prepare,
    resemble,
)
from tightfit_service.passes.structured_pruning import StructuredPruningPass

ONE_INPUT = {name: make for name, make in NETWORKS.items() if len(make(0).graph.input) == 1}


def _run(graph: bytes, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def _loud_cnn() -> ModelProto:
    """A network for inputs from 0 to 255 without BatchNorm, some convolutions without bias."""
    b = Builder(4)
    x = b.input("input", (3, 8, 8))
    x = b.node("first", "Conv", [x, b.weight("w1", (6, 3, 3, 3), fan_in=27 * 255**2)], pads=[1] * 4)
    x = b.node("relu1", "Relu", [x])
    x = b.node("second", "Conv", [x, b.weight("w2", (5, 6, 3, 3), fan_in=54)], pads=[1] * 4)
    bias = b.constant("bias2", b.rng.normal(size=(1, 5, 1, 1)), dtype=np.float32)
    x = b.node("relu2", "Relu", [b.node("plus", "Add", [x, bias])])
    return b.model({b.head(x, 5): (5,)})


@pytest.mark.parametrize("make", [*ONE_INPUT.values(), _loud_cnn])
def test_a_prepared_graph_folds_back_to_the_same_function(make: Callable[..., ModelProto]) -> None:
    model = make()
    graph = model.SerializeToString()
    feeds = random_inputs(model, batch=8)
    inputs = next(iter(feeds.values()))
    if make is _loud_cnn:
        inputs = np.abs(inputs) * np.float32(100)
        feeds = {"input": inputs}
    student = prepare(graph, logits=find_logits(model), inputs=inputs)
    names = [output.name for output in model.graph.output]
    with torch.inference_mode():
        trained = student.module.run_to(names, torch.from_numpy(inputs / student.input_scale))
    folded = student.finish()
    onnx.checker.check_model(onnx.load_model_from_string(folded))
    for want, one, two in zip(_run(graph, feeds), trained, _run(folded, feeds), strict=True):
        scale = np.abs(want).max()
        np.testing.assert_allclose(one.numpy() / scale, want / scale, atol=2e-4)
        np.testing.assert_allclose(two / scale, want / scale, atol=2e-4)
    before = [(n.name, n.op_type, list(n.output)) for n in model.graph.node]
    after = onnx.load_model_from_string(folded).graph.node
    assert [(n.name, n.op_type, list(n.output)) for n in after] == before


def test_norms_go_behind_hidden_layers_only() -> None:
    model = _loud_cnn()
    _, norms = insert_batch_norms(model.SerializeToString(), logits=find_logits(model))
    assert {norm.producer for norm in norms} == {"first", "second"}
    assert {norm.producer: norm.is_bias_after for norm in norms} == {
        "first": False,
        "second": True,
    }


def test_a_network_with_batch_norms_gets_no_more() -> None:
    model = NETWORKS["residual"](0)
    _, norms = insert_batch_norms(model.SerializeToString(), logits=find_logits(model))
    normalised = {n.input[0] for n in model.graph.node if n.op_type == "BatchNormalization"}
    assert not normalised & {norm.tensor for norm in norms}


def test_input_layers_are_found_where_they_alone_meet_the_input() -> None:
    assert input_layers(_loud_cnn().SerializeToString()) == ("w1",)
    b = Builder(0)
    x = b.input("input", (3, 4, 4))
    mean = b.vector("mean", 1)
    x = b.conv("conv", b.node("minus", "Sub", [x, mean]), 3, 4)
    assert input_layers(b.model({b.head(x, 4): (5,)}).SerializeToString()) == ()


def test_large_inputs_are_scaled() -> None:
    model = _loud_cnn()
    inputs = np.abs(random_inputs(model, batch=4)["input"]) * np.float32(100)
    student = prepare(model.SerializeToString(), logits=find_logits(model), inputs=inputs)
    assert student.input_scale == pytest.approx(float(np.sqrt(np.square(inputs).mean())), rel=1e-4)

    small = mlp(0)
    usual = random_inputs(small)["input"]
    student = prepare(small.SerializeToString(), logits=find_logits(small), inputs=usual)
    assert student.input_scale == 1.0


def test_removed_channels_are_recognised_by_their_weights() -> None:
    weight = np.random.default_rng(0).normal(size=(6, 4, 3, 3)).astype(np.float32)
    kept = match_rows(weight[[0, 2, 5]][:, [1, 3]], weight, 0)
    assert kept is not None
    assert kept.tolist() == [0, 2, 5]
    assert match_rows(weight[:3] + 1, weight, 0) is None


def test_statistics_of_the_original_are_restored() -> None:
    model = plain_cnn(0)
    graph = model.SerializeToString()
    passes = StructuredPruningPass()
    space = passes.space(graph)
    keep = {g.group_id: list(range(0, g.unit_count, 2)) for g in space.groups}
    pruned = passes.apply(graph, keep)
    inputs = random_inputs(model, batch=64)["input"]
    student = prepare(pruned, logits=find_logits(model), inputs=inputs)
    assert student.norms
    assert resemble(student, original=graph, inputs=inputs, logits=find_logits(model))
    norm = student.norms[0]
    mean, _ = channel_statistics(build_module(graph), [norm.tensor], inputs)[norm.tensor]
    shift = student.module.value_of(norm.parameters[1])
    assert shift is not None
    np.testing.assert_allclose(shift.detach(), mean[::2], rtol=1e-4, atol=1e-5)
