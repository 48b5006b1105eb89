"""Networks of every family, as exporters write them: computed as onnxruntime does, and trainable."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from architectures import ARCHITECTURES, FAST
from tightfit_service.adapters.formats.onnx_import import OnnxImporter
from tightfit_service.adapters.training.module import build_module
from tightfit_service.adapters.training.targets import find_targets
from tightfit_service.graph.structure import graph_inputs, tensor_shapes

BATCH = 3
CASES = [
    pytest.param(name, marks=() if name in FAST else pytest.mark.long) for name in ARCHITECTURES
]


@pytest.mark.parametrize("name", CASES)
def test_a_network_computes_as_before_and_every_weight_can_be_trained(name: str) -> None:
    graph = OnnxImporter().import_model(ARCHITECTURES[name].export()).graph
    model = onnx.load_model_from_string(graph)
    shapes = tensor_shapes(model, batch=BATCH)
    rng = np.random.default_rng(0)
    feeds = {n: rng.normal(0.3, 1.0, shapes[n]).astype(np.float32) for n in graph_inputs(model)}
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    expected = session.run(None, feeds)
    module = build_module(graph)
    names = [target.name for target in find_targets(graph)]
    inputs = [torch.from_numpy(value) for value in feeds.values()]
    found = module.run_to([*module.output_names, *names], *inputs)
    assert not module.frozen_nodes
    for want, got in zip(expected, found, strict=False):
        scale = float(np.abs(want).max())
        np.testing.assert_allclose(got.detach().numpy(), want, rtol=0, atol=1e-4 * scale)
    torch.manual_seed(0)
    total = torch.stack([(torch.randn(t.shape) * t).sum() for t in found[len(expected) :]]).sum()
    torch.autograd.backward(total)
    weights = dict(module.named_parameters())
    norms = (node for node in model.graph.node if node.op_type == "BatchNormalization")
    statistics = {name for node in norms for name in node.input[3:]}
    floats = [
        t
        for t in model.graph.initializer
        if t.data_type == onnx.TensorProto.FLOAT and t.name not in statistics
    ]
    count = sum(int(np.prod(t.dims)) for t in floats)
    assert sum(value.numel() for value in weights.values()) > 0.97 * count
    assert [name for name, value in weights.items() if value.grad is None] == []
