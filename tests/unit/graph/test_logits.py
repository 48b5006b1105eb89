"""Logits are found in front of the final normalisation, else the output is theirs."""

from __future__ import annotations

from fakes.networks import NETWORKS, Builder
from tightfit_service.graph.logits import find_logits


def test_before_a_final_softmax() -> None:
    assert find_logits(NETWORKS["plain_cnn"](0)) == "fc2_out"


def test_output_itself_where_nothing_normalises() -> None:
    assert find_logits(NETWORKS["residual"](0)) == "fc_out"


def test_shape_changes_behind_the_softmax_are_looked_through() -> None:
    b = Builder()
    x = b.gemm("fc", b.input("input", (4,)), 4, 3)
    x = b.node("soft", "Softmax", [x], axis=-1)
    x = b.node("shape", "Reshape", [x, b.ints("shape.v", [0, 3, 1])])
    assert find_logits(b.model({x: (3, 1)})) == "fc_out"


def test_named_output_is_followed() -> None:
    model = NETWORKS["several_outputs"](0)
    assert find_logits(model, output="feature.relu_out") == "feature.relu_out"


def test_softmax_in_the_middle_is_no_final_one() -> None:
    b = Builder()
    x = b.gemm("fc", b.input("input", (4,)), 4, 3)
    x = b.node("soft", "Softmax", [x], axis=-1)
    x = b.gemm("fc2", x, 3, 2)
    assert find_logits(b.model({x: (2,)})) == "fc2_out"
