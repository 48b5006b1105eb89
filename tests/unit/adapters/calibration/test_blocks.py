"""Blocks of networks: what each is to do to an image, whatever stands before it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from tightfit_service.adapters.calibration.blocks import (
    GATED,
    JOINED,
    MIXED,
    NORMED,
    Block,
    Form,
    patch_block,
    token_block,
)
from tightfit_service.adapters.calibration.dense_outputs import detector
from tightfit_service.adapters.calibration.families import of_mixed_blocks
from tightfit_service.adapters.calibration.graph_builder import GraphBuilder
from tightfit_service.adapters.calibration.points import Point

BLOCKS = [*JOINED, *GATED, *NORMED, *MIXED, patch_block, token_block]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(("width", "stride"), [(8, 1), (16, 1), (16, 2)])
def test_a_block_makes_an_image_of_the_form_that_is_wanted(
    block: Block, width: int, stride: int
) -> None:
    builder = GraphBuilder((8, 12, 12), seed=1)
    made = block(builder, builder.top, Form(width=width, stride=stride))
    assert builder.top == made
    assert builder.shapes[made] == (width, 12 // stride, 12 // stride)
    (told,) = run(builder)
    assert told.shape == (1, *builder.shapes[made])
    assert np.ptp(told) > 0


@pytest.mark.parametrize("gate", range(len(GATED)))
def test_gates_weight_what_they_stand_behind(gate: int) -> None:
    builder = GraphBuilder((8, 12, 12), seed=1)
    GATED[gate](builder, builder.top, Form(width=8))
    types = [node.op_type for node in onnx.load_model_from_string(builder.build()).graph.node]
    assert "Mul" in types
    assert {"Sigmoid", "HardSigmoid"} & set(types)


def test_each_block_follows_each_other_in_mixed_networks() -> None:
    met: set[tuple[int, int]] = set()
    blocks = [recorded(number) for number in range(5)]

    def follows(number: int) -> list[int]:
        del PLACED[:]
        of_mixed_blocks(blocks)(Point((0.1,) * 6, number), 0)
        return list(PLACED)

    for number in range(5 * 4):
        placed = follows(number)
        met.update(pairwise(placed))
    assert met >= {(a, b) for a in range(5) for b in range(5) if a != b}


PLACED: list[int] = []


def recorded(number: int) -> Block:
    """Return a block that tells where it was placed."""

    def block(builder: GraphBuilder, source: str, form: Form) -> str:
        PLACED.append(number)
        return builder.conv(source, form.width, stride=form.stride)

    return block


@pytest.mark.parametrize("number", range(6))
def test_a_detector_tells_boxes_and_scores_of_each_scale_or_of_all(number: int) -> None:
    point = Point((0.3, 0.2, 0.2, 0.9, 0.5, 0.5), number)
    builder = detector(point, 1)
    told = run(builder)
    if number % 2:
        # three scales, each with two heads that are images
        assert [item.ndim for item in told] == [4] * 6
        return
    boxes, scores = told
    assert boxes.shape[:2] == scores.shape[:2]
    assert boxes.shape[2] == 4
    assert (scores >= 0).all()
    assert (scores <= 1).all()


def test_causal_convolutions_read_nothing_that_comes_later() -> None:
    builder = GraphBuilder((2, 16), seed=1)
    builder.conv(builder.top, 3, kernel=3, dilation=2, is_causal=True)
    rng = np.random.default_rng(0)
    first = rng.normal(size=(1, 2, 16)).astype(np.float32)
    second = first.copy()
    second[..., 9:] += 1.0
    (before,), (after,) = run(builder, first), run(builder, second)
    np.testing.assert_array_equal(before[..., :9], after[..., :9])
    assert np.abs(before[..., 9:] - after[..., 9:]).max() > 0.1


def run(builder: GraphBuilder, image: np.ndarray | None = None) -> list[np.ndarray]:
    """Return what a network makes of an image, a random one if none is given."""
    if image is None:
        shape = (1, *builder.shapes["input"])
        image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    model = onnx.load_model_from_string(builder.build())
    found = ReferenceEvaluator(model).run(None, {"input": image})
    assert isinstance(found, list)
    return found
