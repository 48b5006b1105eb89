"""Einsums as products of matrices: what they compute stays, and what is none stays as it is."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fakes.networks import Builder
from tightfit_service.adapters.formats.onnx_execution import run_feeds
from tightfit_service.graph.einsum_products import write_einsums_as_products
from tightfit_service.graph.model_file import copy_model

SHAPES = {"h": 3, "q": 4, "k": 5, "d": 6, "o": 7}


@pytest.mark.parametrize(
    ("equation", "operators"),
    [
        ("bhqd,bhkd->bhqk", {"Transpose": 1, "MatMul": 1}),
        ("bhqk,bhkd->bhqd", {"MatMul": 1}),
        ("bhqk,bhkd->bqhd", {"MatMul": 1, "Transpose": 1}),
        ("bqhd,bkhd->bhqk", {"Transpose": 2, "MatMul": 1}),
        # with the operands swapped nothing is turned
        ("bhkd,bhqk->bhqd", {"MatMul": 1}),
        ("bqd,bkd->bqk", {"Transpose": 1, "MatMul": 1}),
        ("bhqd,bhqd->bhqd", {"Einsum": 1}),
        ("bhqd,bhqd->bhq", {"Einsum": 1}),
        ("bqd,bhd->b", {"Einsum": 1}),
        ("bhqd,bkd->bhqk", {"Einsum": 1}),
        ("bhqd,bhkd->bhq", {"Einsum": 1}),
        ("...qd,...kd->...qk", {"Einsum": 1}),
    ],
)
def test_an_einsum_of_two_activations(equation: str, operators: dict[str, int]) -> None:
    check(equation, operators, weight=False)


@pytest.mark.parametrize(
    ("equation", "operators"),
    [
        ("bqd,do->bqo", {"MatMul": 1}),
        ("bqd,od->bqo", {"MatMul": 1}),
        ("bhqd,od->bhqo", {"MatMul": 1}),
        ("bqd,do->boq", {"MatMul": 1, "Transpose": 1}),
        ("bqd,dho->bqho", {"Einsum": 1}),
    ],
)
def test_an_einsum_with_a_weight(equation: str, operators: dict[str, int]) -> None:
    check(equation, operators, weight=True)


def check(equation: str, operators: dict[str, int], *, weight: bool) -> None:
    b = Builder()
    left, _, right = equation.replace("...", "b").partition("->")
    terms = left.split(",")
    shapes = [tuple(SHAPES[letter] for letter in term if letter != "b") for term in terms]
    feeds = {"one": shapes[0]} if weight else {"one": shapes[0], "other": shapes[1]}
    sources = [b.input(name, shape) for name, shape in feeds.items()]
    if weight:
        sources.append(b.weight("other", shapes[1], fan_in=6))
    made = b.node("made", "Einsum", sources, equation=equation)
    model = b.model({made: tuple(SHAPES[letter] for letter in right[1:])})
    found = copy_model(model)
    write_einsums_as_products(found)
    assert Counter(node.op_type for node in found.graph.node) == operators
    assert "made" in {node.name for node in found.graph.node}
    rng = np.random.default_rng(0)
    values = {name: rng.normal(size=(2, *shape)) for name, shape in feeds.items()}
    before, after = (
        run_feeds(
            item.SerializeToString(),
            {name: value.astype(np.float32) for name, value in values.items()},
        )[0]
        for item in (model, found)
    )
    assert after == pytest.approx(before, abs=1e-5)


def test_names_that_are_taken_are_left_alone() -> None:
    b = Builder()
    x = b.input("x", (4, 6))
    other = b.node("made/right", "Relu", [x])
    first = b.node("made", "Einsum", [x, other], equation="bqd,bkd->bqk")
    model = b.model({first: (4, 4)})
    write_einsums_as_products(model)
    names = [node.name for node in model.graph.node]
    assert sorted(names) == ["made", "made/right", "made/right_2"]
