"""Structure of graphs: order, dead code, shapes, and models that are bounded and stable as bytes."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import NodeProto, helper

from fakes.networks import NETWORKS, Builder
from tightfit_service.domain.errors import InvalidModelError
from tightfit_service.graph.axis_runs import matching_axes
from tightfit_service.graph.model_file import copy_model, load_model, save_model, shown
from tightfit_service.graph.structure import (
    attribute,
    first_line,
    initializers,
    names_read,
    remove_dead_code,
    set_attribute,
    set_initializer,
    tensor_shapes,
    topological_order,
)


def node(name: str, inputs: list[str], outputs: list[str]) -> NodeProto:
    return helper.make_node("Add", inputs, outputs, name=name)


class TestOrder:
    def test_ties_keep_the_given_order(self) -> None:
        nodes = [node("c", ["b", "x"], ["c"]), node("a", ["x"], ["a"]), node("b", ["a"], ["b"])]
        assert [n.name for n in topological_order(nodes, ["x"])] == ["a", "b", "c"]

    def test_values_captured_by_a_subgraph_count_as_read(self) -> None:
        body = helper.make_graph([node("inner", ["late", "x"], ["y"])], "body", [], [])
        branch = helper.make_node("If", ["x"], ["out"], then_branch=body, else_branch=body)
        assert set(names_read(branch)) == {"x", "late"}
        order = topological_order([branch, node("late", ["x"], ["late"])], ["x"])
        assert order[0].name == "late"

    @pytest.mark.parametrize(
        ("nodes", "message"),
        [
            ([node("a", ["b"], ["a"]), node("b", ["a"], ["b"])], "cycle"),
            ([node("a", ["x"], ["a"]), node("b", ["x"], ["a"])], "more than once"),
            ([node("a", ["x"], ["x"])], "more than once"),
            ([node("a", ["nowhere"], ["a"])], "nothing computes"),
        ],
    )
    def test_what_has_no_order_is_refused(self, nodes: list[NodeProto], message: str) -> None:
        with pytest.raises(InvalidModelError, match=message):
            topological_order(nodes, ["x"])


def test_shapes_at_a_batch() -> None:
    shapes = tensor_shapes(NETWORKS["plain_cnn"](0), batch=3)
    assert shapes["input"] == (3, 3, 8, 8)
    assert shapes["pool_out"] == (3, 12, 4, 4)
    assert shapes["fc1.w"] == (10, 192)


def test_shapes_that_inference_leaves_open_are_missing() -> None:
    model = NETWORKS["plain_cnn"](0)
    model.graph.input[0].type.tensor_type.shape.dim.add(dim_value=3)
    shapes = tensor_shapes(model)
    assert "conv1_out" not in shapes
    assert "conv1.w" in shapes


def test_dead_code_goes_and_live_code_stays() -> None:
    b = Builder()
    x = b.conv("conv", b.input("input", (3, 4, 4)), 3, 4)
    b.node("dead", "Mul", [x, b.vector("unused", 1)])
    model = b.model({b.head(x, 4): (5,)})
    remove_dead_code(model)
    assert "dead" not in {n.name for n in model.graph.node}
    assert "unused" not in initializers(model)
    assert "conv.w" in initializers(model)


def test_attributes_are_python_data() -> None:
    found = helper.make_node("Pad", ["x"], ["y"], mode="edge", pads=[0, 1], value=0.5)
    assert attribute(found, "mode") == "edge"
    assert attribute(found, "pads") == [0, 1]
    assert attribute(found, "axis", 7) == 7
    set_attribute(found, "pads", [2, 2])
    assert attribute(found, "pads") == [2, 2]
    assert len(found.attribute) == 3


def test_initializers_are_replaced_or_added_and_scalars_stay_scalars() -> None:
    model = NETWORKS["mlp"](0)
    set_initializer(model, "fc1.b", np.zeros(12, dtype=np.float32))
    set_initializer(model, "new", np.array(3, dtype=np.int64))
    values = initializers(model)
    assert not values["fc1.b"].any()
    assert values["new"].shape == ()


def test_equal_models_are_equal_bytes() -> None:
    model = NETWORKS["residual"](0)
    assert save_model(copy_model(model)) == save_model(load_model(save_model(model)))


def test_names_in_messages_are_short_and_printable() -> None:
    assert shown("a\nb") == '"a?b"'
    assert len(shown("n" * 10_000)) < 90


def test_library_errors_lose_their_internals() -> None:
    error = RuntimeError(
        "[ONNXRuntimeError] : 1 : FAIL : Node (conv) has input size 5 not in range\nmore"
    )
    assert first_line(error) == "Node (conv) has input size 5 not in range"


@pytest.mark.parametrize(
    ("source", "target", "runs"),
    [
        ((1, 8, 2, 2), (1, 32), [([0], [0]), ([1, 2, 3], [1])]),
        ((1, 6, 4, 4), (1, 2, 3, 4, 4), [([0], [0]), ([1], [1, 2]), ([2], [3]), ([3], [4])]),
        ((1, 8, 1, 1), (1, 8), [([0], [0]), ([1, 2, 3], [1])]),
        ((1, 8), (1, 8, 1), [([0], [0]), ([1], [1, 2])]),
        ((6, 4), (3, 8), [([0, 1], [0, 1])]),
        ((), (1,), [([], [0])]),
    ],
)
def test_reshape_is_divided_into_the_finest_runs(
    source: tuple[int, ...], target: tuple[int, ...], runs: list[tuple[list[int], list[int]]]
) -> None:
    assert matching_axes(source, target) == runs
