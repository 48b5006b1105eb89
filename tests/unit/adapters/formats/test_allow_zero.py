"""Reshapes with `allowzero`, which torch's newer exporter sets on all of them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tightfit_service.adapters.formats.onnx_import import OnnxImporter
from tightfit_service.graph.normal_form import drop_allow_zero


def flattening(target: tuple[int, ...], batch: int | str) -> onnx.ModelProto:
    """Return a graph that flattens (batch, 3, 2) to `target` with `allowzero`."""
    node = helper.make_node("Reshape", ["x", "shape"], ["y"], name="flatten", allowzero=1)
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 6])],
        [numpy_helper.from_array(np.array(target, dtype=np.int64), "shape")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.mark.parametrize(("target", "batch"), [((1, 6), 1), ((-1, 6), "n")])
def test_the_batch_of_such_a_graph_can_be_made_free(
    target: tuple[int, ...], batch: int | str
) -> None:
    data = flattening(target, batch).SerializeToString()
    model = OnnxImporter().import_model(data)
    assert [item.shape for item in model.outputs] == [(-1, 6)]
    inputs = [np.random.default_rng(0).normal(size=(3, 3, 2)).astype(np.float32)]
    assert OnnxImporter().check_parity(data, model.graph, inputs) == 0.0


def test_it_stays_where_a_target_makes_an_empty_tensor() -> None:
    empty, plain = flattening((0, 6), "n"), flattening((-1, 6), "n")
    for model in (empty, plain):
        drop_allow_zero(model)
    assert len(empty.graph.node[0].attribute) == 1
    assert len(plain.graph.node[0].attribute) == 0
