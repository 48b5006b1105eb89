"""Tests of finding GELUs that exporters spell out."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper
from onnx.reference import ReferenceEvaluator

from fakes.networks import Builder
from tightfit_service.graph.gelu import spelled_gelus, with_gelus
from tightfit_service.graph.quantized_tensors import quantized_tensors


def _network(*, half_first: bool, shift: float = 1.0, watched: bool = False) -> ModelProto:
    builder = Builder()
    source = builder.input("x", (5,))
    root = builder.constant("root", math.sqrt(2), dtype=np.float32)
    one = builder.constant("one", shift, dtype=np.float32)
    half = builder.constant("half", 0.5, dtype=np.float32)
    scaled = builder.node("scaled", "Div", [source, root])
    plus = builder.node("plus", "Add", [builder.node("erf", "Erf", [scaled]), one])
    if half_first:
        builder.node("y", "Mul", [builder.node("halved", "Mul", [source, half]), plus])
    else:
        builder.node("y", "Mul", [builder.node("product", "Mul", [source, plus]), half])
    return builder.model({"y_out": (5,), **({"plus_out": (5,)} if watched else {})})


@pytest.mark.parametrize("half_first", [True, False])
def test_spelled_gelus_become_one_node(half_first: bool) -> None:
    model = _network(half_first=half_first)
    found = with_gelus(model)
    assert [(node.op_type, node.name) for node in found.graph.node] == [("Gelu", "y")]
    assert set(quantized_tensors(model)) == {"x", "y_out"}
    found.opset_import[0].CopyFrom(helper.make_opsetid("", 20))
    onnx.checker.check_model(found)
    inputs = {"x": np.linspace(-3, 3, 10, dtype=np.float32).reshape(2, 5)}
    expected, given = (
        np.asarray(next(iter(ReferenceEvaluator(m).run(None, inputs)))) for m in (model, found)
    )
    assert given == pytest.approx(expected, abs=1e-6)


def test_what_only_looks_like_one_is_left() -> None:
    for model in (_network(half_first=True, shift=2.0), _network(half_first=False, watched=True)):
        assert spelled_gelus(model) == []
        assert with_gelus(model) is model
