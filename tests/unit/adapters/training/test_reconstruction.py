"""Fitting pruned layers to the original: what can be made up for exactly is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import ModelProto

from fakes.networks import Builder
from tightfit_service.adapters.training.module import build_module
from tightfit_service.adapters.training.reconstruction import reconstruct
from tightfit_service.passes.structured_pruning import StructuredPruningPass


def _twins(kind: str) -> ModelProto:
    """A hidden layer whose second half repeats its first half, so half of it is enough."""
    b = Builder(7)
    half = b.rng.normal(size=(3, 2, 3, 3) if kind == "Conv" else (3, 6)).astype(np.float32)
    weight = b.constant("hidden.w", np.concatenate([half, half]))
    bias = b.constant("hidden.b", [0.1, -0.2, 0.3] * 2, dtype=np.float32)
    if kind == "Conv":
        x = b.node("hidden", "Conv", [b.input("input", (2, 7, 7)), weight, bias], strides=[2, 2])
        x = b.node("relu", "Relu", [x])
        last = b.weight("last.w", (4, 6, 3, 3), fan_in=54)
        x = b.node("last", "Conv", [x, last, b.vector("last.b", 4)], auto_pad="SAME_UPPER")
        return b.model({x: (4, 3, 3)})
    x = b.node("hidden", "Gemm", [b.input("input", (6,)), weight, bias], transB=1)
    x = b.node("relu", "Relu", [x])
    last = b.weight("last.w", (6, 4), fan_in=6)
    return b.model({b.node("last", "Gemm", [x, last, b.vector("last.b", 4)]): (4,)})


@pytest.mark.parametrize("kind", ["Conv", "Gemm"])
def test_a_twin_takes_over_what_its_removed_twin_did(kind: str) -> None:
    model = _twins(kind)
    graph = model.SerializeToString()
    passes = StructuredPruningPass()
    (group,) = passes.space(graph).groups
    pruned = build_module(passes.apply(graph, {group.group_id: [0, 1, 2]}))
    original = build_module(graph)
    shape = (256, 2, 7, 7) if kind == "Conv" else (1024, 6)
    inputs = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    fitted = reconstruct(
        pruned,
        original,
        kept={"hidden": np.arange(3), "last": np.arange(4)},
        inputs=inputs,
        input_scale=1.0,
        until="last_out",
    )
    assert fitted == 2
    with torch.inference_mode():
        want, got = original(torch.from_numpy(inputs)), pruned(torch.from_numpy(inputs))
        assert isinstance(want, torch.Tensor)
        assert isinstance(got, torch.Tensor)
        remaining = (want - got).square().mean() / want.var()
    assert float(remaining) < 1e-3


def test_layers_that_were_not_recognised_stay() -> None:
    graph = _twins("Conv").SerializeToString()
    module, original = build_module(graph), build_module(graph)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    inputs = np.zeros((4, 2, 7, 7), dtype=np.float32)
    count = reconstruct(module, original, kept={}, inputs=inputs, input_scale=1.0, until="last_out")
    assert count == 0
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
