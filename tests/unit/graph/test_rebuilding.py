"""Closing a graph after surgery: names, dead code, shapes, and graphs that onnx refuses."""

from __future__ import annotations

import pytest
from onnx import helper

from fakes.networks import NETWORKS
from tightfit_service.domain.errors import WorkFailedError
from tightfit_service.graph.model_file import copy_model
from tightfit_service.graph.rebuilding import FreshNames, rebuilt


def test_names_are_those_asked_for_where_they_are_free() -> None:
    names = FreshNames(NETWORKS["residual"](0))
    assert names.take("new") == "new"
    assert names.take("new") == "new_2"
    taken = ["stem", "stem_out", "stem.w", "input"]
    assert [names.take(name) for name in taken] == [f"{name}_2" for name in taken]


def test_dead_code_goes_and_shapes_are_inferred() -> None:
    model = NETWORKS["residual"](0)
    changed = copy_model(model)
    join = next(node for node in changed.graph.node if node.name == "a.add")
    join.input[0] = join.input[1]
    result = rebuilt(changed, technique="surgery")
    names = {node.name for node in result.graph.node}
    assert "a.conv1" not in names
    assert "a.conv1.w" not in {tensor.name for tensor in result.graph.initializer}
    shapes = {value.name: value.type.tensor_type.shape.dim for value in result.graph.value_info}
    assert [dim.dim_value for dim in shapes["a.add_out"]][1:] == [8, 8, 8]


def test_a_graph_that_onnx_refuses_names_the_technique() -> None:
    model = copy_model(NETWORKS["residual"](0))
    model.graph.node.insert(1, helper.make_node("Relu", ["stem_out"], ["gap_out"], name="again"))
    with pytest.raises(WorkFailedError, match="surgery produced a graph that onnx refuses") as told:
        rebuilt(model, technique="surgery")
    assert "surgery" in told.value.remedy
