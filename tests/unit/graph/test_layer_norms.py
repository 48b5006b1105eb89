"""Layer normalizations in several nodes become one, where nothing else reads what is between."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper

from fakes.networks import Builder
from tightfit_service.adapters.formats.onnx_execution import run_feeds
from tightfit_service.adapters.formats.onnx_import import OnnxImporter
from tightfit_service.graph.layer_norms import write_layer_norms
from tightfit_service.graph.model_file import copy_model, load_model

SIZES = (5, 6)
STEPS = ("mean", "difference", "square", "variance", "total", "root", "division", "scaled")


def network(
    *,
    axis: int = -1,
    square: str = "Pow",
    parts: tuple[str, ...] = ("scale", "shift"),
    scale_shape: tuple[int, ...] = (6,),
    watched: str = "",
    opset: int = 17,
) -> ModelProto:
    """One spelled-out normalization; `watched` is a node that is an output, too."""
    b = Builder(seed=3)
    x = b.input("x", SIZES)
    settings: dict[str, Any] = {"axes": [axis]} if opset < 18 else {}
    axes = [b.ints("axes", [axis])] if opset >= 18 else []
    mean = b.node("mean", "ReduceMean", [x, *axes], keepdims=1, **settings)
    difference = b.node("difference", "Sub", [x, mean])
    two = b.constant("two", 2.0, dtype=np.float32)
    operands = [difference, two if square == "Pow" else difference]
    squared = b.node("square", square, operands)
    variance = b.node("variance", "ReduceMean", [squared, *axes], keepdims=1, **settings)
    summands = [variance, b.constant("e", 1e-3, dtype=np.float32)]
    # ONNX Runtime's own fusion of the form with Pow takes a first operand for the variance
    total = b.node("total", "Add", summands if square == "Pow" else summands[::-1])
    y = b.node("division", "Div", [difference, b.node("root", "Sqrt", [total])])
    if "scale" in parts:
        b.vector("gamma", 6, low=0.5, high=2.0)
        b.constants["gamma"] = np.broadcast_to(b.constants["gamma"], scale_shape).copy()
        y = b.node("scaled", "Mul", ["gamma", y])
    if "shift" in parts:
        y = b.node("shifted", "Add", [y, b.vector("beta", 6)])
    outputs: dict[str, tuple[int, ...]] = {y: SIZES}
    if watched:
        narrow = watched in ("mean", "variance", "total", "root")
        outputs[f"{watched}_out"] = (5, 1) if narrow else SIZES
    return b.model(outputs, opset=opset)


def written(model: ModelProto) -> list[tuple[str, str]]:
    """Write them, check that outputs stay, and return what there is."""
    found = copy_model(model)
    write_layer_norms(found)
    feeds = {"x": np.random.default_rng(0).normal(1.0, 3.0, (2, *SIZES)).astype(np.float32)}
    before, after = (run_feeds(item.SerializeToString(), feeds)[0] for item in (model, found))
    assert after == pytest.approx(before, abs=1e-5)
    return [(node.op_type, node.name) for node in found.graph.node]


@pytest.mark.parametrize("opset", [17, 20])
@pytest.mark.parametrize("square", ["Pow", "Mul"])
def test_a_spelled_layer_normalization_becomes_one_node_named_as_its_last(
    square: str, opset: int
) -> None:
    assert written(network(square=square, opset=opset)) == [("LayerNormalization", "shifted")]


@pytest.mark.parametrize(
    ("parts", "name"), [((), "division"), (("scale",), "scaled"), (("shift",), "shifted")]
)
def test_scale_and_shift_may_be_absent(parts: tuple[str, ...], name: str) -> None:
    assert written(network(parts=parts)) == [("LayerNormalization", name)]


def test_its_constants_are_those_of_the_nodes() -> None:
    model = network()
    expected = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    write_layer_norms(model)
    (node,) = model.graph.node
    found = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    assert set(found) == set(node.input[1:])
    assert found[node.input[1]] == pytest.approx(expected["gamma"])
    assert found[node.input[2]] == pytest.approx(expected["beta"])
    settings = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    assert settings == {"axis": -1, "epsilon": pytest.approx(1e-3)}


def test_a_scale_that_is_not_per_channel_stays_behind_the_normalization() -> None:
    kinds = [op_type for op_type, _ in written(network(scale_shape=(5, 6)))]
    assert kinds == ["LayerNormalization", "Mul", "Add"]


@pytest.mark.parametrize("watched", STEPS)
def test_what_something_else_reads_stays(watched: str) -> None:
    names = {name: op_type for op_type, name in written(network(watched=watched))}
    assert watched in names
    # behind the division, only the product that is read stays on its own
    assert ("LayerNormalization" in names.values()) == (watched in ("division", "scaled"))


@pytest.mark.parametrize("model", [network(axis=1, scale_shape=(5, 6)), network(opset=16)])
def test_other_axes_and_older_operator_sets_stay(model: ModelProto) -> None:
    assert "LayerNormalization" not in dict(written(model))


def test_a_square_of_what_is_normalized_is_no_constant() -> None:
    """`n * n`, a product of a tensor with itself, has no factor per channel."""
    model = network(parts=())
    (output,) = model.graph.output
    model.graph.node.append(helper.make_node("Mul", [output.name] * 2, ["squared"], name="squared"))
    output.name = "squared"
    assert [op_type for op_type, _ in written(model)] == ["LayerNormalization", "Mul"]


def test_the_importer_writes_them_for_models_of_older_operator_sets() -> None:
    model = network(opset=13)
    graph = load_model(OnnxImporter().import_model(model.SerializeToString()).graph).graph
    assert [node.op_type for node in graph.node] == ["LayerNormalization"]
