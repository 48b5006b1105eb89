"""What tells ways through one operator apart: axes, operands, interpolation, and the lengths of lines."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto

from fakes.networks import Builder
from tightfit_service.domain.network import Operator
from tightfit_service.graph.profile import OnnxGraphInspector


def last(model: ModelProto) -> Operator:
    return OnnxGraphInspector().profile(model.SerializeToString()).operators[-1]


@pytest.mark.parametrize(
    ("axis", "form", "line"),
    [(-1, "over last", 5), (3, "over last", 5), (1, "over channels", 6), (2, "over others", 4)],
)
def test_a_softmax_takes_lines_along_its_axis(axis: int, form: str, line: int) -> None:
    b = Builder()
    y = b.node("y", "Softmax", [b.input("x", (6, 4, 5))], axis=axis)
    found = last(b.model({y: (6, 4, 5)}))
    assert (found.form, found.line) == (form, line)


@pytest.mark.parametrize(
    ("axes", "shape", "form", "line"),
    [
        ([2, 3], (6, 1, 1), "over pixels", 20),
        ([1], (1, 4, 5), "over channels", 6),
        ([1, 2], (1, 1, 5), "over several", 24),
        ([-1], (6, 4, 1), "over last", 5),
    ],
)
def test_a_reduction_adds_up_all_its_axes(
    axes: list[int], shape: tuple[int, ...], form: str, line: int
) -> None:
    b = Builder()
    y = b.node("y", "ReduceMean", [b.input("x", (6, 4, 5))], axes=axes, keepdims=1)
    found = last(b.model({y: shape}))
    assert (found.form, found.line) == (form, line)


@pytest.mark.parametrize(
    ("order", "form", "line"),
    [
        ([0, 2, 1, 3], "of rows", 5),
        ([0, 1, 3, 2], "of values", 1),
        ([0, 1, 2, 3], "in order", 120),
        # the axis of one element has no place of its own
        ([1, 0, 2, 3], "in order", 120),
    ],
)
def test_a_transpose_moves_rows_or_values_or_nothing(
    order: list[int], form: str, line: int
) -> None:
    b = Builder()
    sizes = (1, 6, 4, 5)
    turned = tuple(sizes[axis] for axis in order)
    y = b.node("t", "Transpose", [b.input("x", sizes[1:])], perm=order)
    if order[0] != 0:
        y = b.node("back", "Transpose", [y], perm=order)
        turned = sizes
    found = last(b.model({y: turned[1:]}))
    assert (found.form, found.line) == (form, line)


def test_shuffled_channels_are_told_from_windows_of_an_image() -> None:
    b = Builder()
    parts = b.node("parts", "Reshape", [b.input("x", (6, 4, 5)), b.ints("to", [1, 2, 3, 4, 5])])
    y = b.node("y", "Transpose", [parts], perm=[0, 2, 1, 3, 4])
    shuffled = last(b.model({y: (3, 2, 4, 5)}))
    b = Builder()
    tokens = b.node("tokens", "Transpose", [b.input("x", (6, 4, 5))], perm=[0, 2, 3, 1])
    parts = b.node("parts", "Reshape", [tokens, b.ints("to", [1, 2, 2, 5, 6])])
    y = b.node("y", "Transpose", [parts], perm=[0, 2, 1, 3, 4])
    windows = last(b.model({y: (2, 2, 5, 6)}))
    assert [(op.form, op.line) for op in (shuffled, windows)] == [
        ("of channels", 20),
        ("of images", 30),
    ]


@pytest.mark.parametrize(
    ("shape", "form"),
    [
        ((6, 4, 5), ""),
        ((), "with a number"),
        ((1, 1, 5), "with a row"),
        ((6, 1, 1), "with a column"),
    ],
)
def test_operands_of_two_sizes_meet(shape: tuple[int, ...], form: str) -> None:
    b = Builder()
    other = b.constant("c", np.full((1, *shape) if shape else (), 0.5, np.float32))
    y = b.node("y", "Mul", [b.input("x", (6, 4, 5)), other])
    assert last(b.model({y: (6, 4, 5)})).form == form


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_an_image_is_enlarged_one_way_or_another(mode: str) -> None:
    b = Builder()
    scales = b.constant("scales", np.array([1, 1, 2, 2], np.float32))
    y = b.node("y", "Resize", [b.input("x", (6, 4, 5)), "", scales], mode=mode)
    found = last(b.model({y: (6, 8, 10)}))
    assert (found.form, found.line) == (mode, 0)


def test_values_that_are_moved_have_an_axis_and_no_lines() -> None:
    b = Builder()
    x = b.input("x", (6, 4, 5))
    y = b.node("y", "Concat", [x, x], axis=1)
    found = last(b.model({y: (12, 4, 5)}))
    assert (found.form, found.line) == ("over channels", 0)


@pytest.mark.parametrize(
    ("shape", "form"),
    [((6, 4, 5), ""), ((6, 1, 1), "in order"), ((1, 4, 5), "in order"), ((6,), "in order")],
)
def test_a_change_of_shape_moves_nothing_of_which_there_is_one_channel_or_pixel(
    shape: tuple[int, ...], form: str
) -> None:
    b = Builder()
    size = int(np.prod(shape))
    y = b.node("y", "Reshape", [b.input("x", shape), b.constant("to", np.array([-1, size]))])
    assert last(b.model({y: (size,)})).form == form


def test_a_number_has_an_order() -> None:
    b = Builder()
    total = b.node("total", "ReduceSum", [b.input("x", (6,))], keepdims=0)
    y = b.node("y", "Reshape", [total, b.constant("to", np.array([1, 1]))])
    assert last(b.model({y: (1,)})).form == "in order"
