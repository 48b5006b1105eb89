"""Hard swishes and hard sigmoids in several nodes become one, where nothing else reads what is between."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from fakes.networks import Builder
from tightfit_service.adapters.formats.onnx_execution import run_feeds
from tightfit_service.adapters.formats.onnx_import import OnnxImporter
from tightfit_service.graph.hard_swishes import write_hard_swishes
from tightfit_service.graph.model_file import copy_model, load_model

FORMS = ("behind", "divided", "on the gate", "on the source", "hard sigmoid")


def network(
    form: str, *, shift: float = 3.0, least: float = 0.0, watched: str = "", opset: int = 17
) -> ModelProto:
    """One hard swish with its factor 1 / 6 somewhere; `watched` is a node that is an output, too."""
    b = Builder()
    x = b.input("x", (4, 3))
    sixth, six = (b.constant(name, v, dtype=np.float32) for name, v in (("a", 1 / 6), ("b", 6)))
    if form == "hard sigmoid":
        gate = b.node("gate", "HardSigmoid", [x], alpha=1 / 6, beta=shift / 6)
        b.node("y", "Mul", [gate, x])
    else:
        three, zero = (
            b.constant(name, v, dtype=np.float32) for name, v in (("c", shift), ("d", least))
        )
        gate = b.node("clip", "Clip", [b.node("plus", "Add", [three, x]), zero, six])
        if form == "behind":
            b.node("y", "Mul", [b.node("product", "Mul", [gate, x]), sixth])
        elif form == "divided":
            b.node("y", "Div", [b.node("product", "Mul", [x, gate]), six])
        elif form == "on the gate":
            b.node("y", "Mul", [x, b.node("share", "Div", [gate, six])])
        else:
            b.node("y", "Mul", [b.node("share", "Mul", [x, sixth]), gate])
    return b.model(
        {"y_out": (4, 3), **({f"{watched}_out": (4, 3)} if watched else {})}, opset=opset
    )


def written(model: ModelProto) -> list[tuple[str, str]]:
    """Write them, check that outputs stay, and return what there is."""
    found = copy_model(model)
    write_hard_swishes(found)
    feeds = {"x": np.linspace(-7, 7, 24, dtype=np.float32).reshape(2, 4, 3)}
    before, after = (run_feeds(item.SerializeToString(), feeds)[0] for item in (model, found))
    assert after == pytest.approx(before, abs=1e-6)
    return [(node.op_type, node.name) for node in found.graph.node]


@pytest.mark.parametrize("form", FORMS)
def test_hard_swishes_become_one_node_named_as_their_last(form: str) -> None:
    assert written(network(form)) == [("HardSwish", "y")]


def test_a_gate_that_multiplies_something_else_becomes_a_hard_sigmoid() -> None:
    b = Builder()
    x = b.input("x", (4, 3))
    three, zero, six = (
        b.constant(name, v, dtype=np.float32) for name, v in (("c", 3), ("d", 0), ("b", 6))
    )
    gate = b.node("clip", "Clip", [b.node("plus", "Add", [x, three]), zero, six])
    share = b.node("share", "Div", [gate, six])
    b.node("y", "Mul", [b.node("other", "Tanh", [x]), share])
    names = written(b.model({"y_out": (4, 3)}))
    assert sorted(names) == [("HardSigmoid", "share"), ("Mul", "y"), ("Tanh", "other")]


@pytest.mark.parametrize("form", FORMS)
def test_what_only_looks_like_one_stays(form: str) -> None:
    first = "gate" if form == "hard sigmoid" else "clip"
    for model in (network(form, shift=2.0), network(form, watched=first), network(form, opset=13)):
        assert "HardSwish" not in dict(written(model))


def test_other_bounds_are_no_hard_swish() -> None:
    assert ("Clip", "clip") in written(network("behind", least=-1.0))


def test_nodes_that_read_nothing_are_passed_by() -> None:
    b = Builder()
    value = numpy_helper.from_array(np.ones(3, np.float32))
    b.node("y", "Add", [b.input("x", (4, 3)), b.node("one", "Constant", [], value=value)])
    assert written(b.model({"y_out": (4, 3)})) == [("Constant", "one"), ("Add", "y")]


def test_imported_networks_have_their_hard_swishes_as_one() -> None:
    imported = OnnxImporter().import_model(network("divided").SerializeToString())
    assert [node.op_type for node in load_model(imported.graph).graph.node] == ["HardSwish"]
