"""What ONNX Runtime computes on blocks of channels or with these last, lays out anew for that, or in float32."""

from __future__ import annotations

from typing import Any

import pytest

from tightfit_service.adapters.calibration.graph_builder import GraphBuilder
from tightfit_service.adapters.emulators.onnxruntime_graph import (
    absorbed,
    block_of,
    is_blocked,
    is_island,
    reads_blocks,
    reorders,
    symmetric_tile,
    turned,
)
from tightfit_service.bootstrap import catalogue
from tightfit_service.domain.hardware import HardwareSpec
from tightfit_service.domain.network import NetworkProfile, Operator
from tightfit_service.graph.profile import OnnxGraphInspector

BLOCK = 16


def profile(builder: GraphBuilder, *, bits: int = 32) -> NetworkProfile:
    network = OnnxGraphInspector().profile(builder.build())
    return network.at_precision(weight_bits=bits, activation_bits=bits)


def target(**changes: Any) -> HardwareSpec:
    facts = {
        "name": "made-up",
        "core": "x86-64",
        "core_count": 1,
        "runtime": {"name": "ONNX Runtime"},
        "isa_features": ["avx2", "avx512"],
    }
    return catalogue().complete(facts | changes)


@pytest.mark.parametrize(
    ("facts", "block"),
    [
        ({}, 16),
        ({"isa_features": ["avx2"]}, 8),
        ({"core": "cortex-a76", "isa_features": []}, 0),
        ({"runtime": {"name": "LiteRT"}}, 0),
    ],
    ids=["avx512", "avx2", "arm", "litert"],
)
def test_blocks_are_as_wide_as_vectors(facts: dict[str, Any], block: int) -> None:
    assert block_of(target(**facts)) == block


def convolution(ins: int, outs: int, *, groups: int = 1, bits: int = 32) -> Operator:
    builder = GraphBuilder((ins, 8, 8), seed=0)
    builder.conv(builder.top, outs, kernel=3, groups=groups)
    return profile(builder, bits=bits).operators[0]


@pytest.mark.parametrize(
    ("ins", "outs", "groups", "blocked", "reads"),
    [
        (3, 20, 1, True, False),
        (20, 7, 1, True, True),
        (18, 32, 1, False, False),
        (12, 12, 12, True, True),
        (10, 10, 10, False, False),
        (64, 64, 4, True, True),
        (32, 32, 4, False, False),
    ],
    ids=[
        "few channels",
        "fours",
        "no fours",
        "depthwise",
        "odd depthwise",
        "groups",
        "thin groups",
    ],
)
def test_channels_decide(ins: int, outs: int, groups: int, blocked: bool, reads: bool) -> None:
    operator = convolution(ins, outs, groups=groups)
    assert (is_blocked(operator, BLOCK), reads_blocks(operator, BLOCK)) == (blocked, reads)
    assert not is_blocked(operator, 0)


def found(builder: GraphBuilder) -> list[tuple[str, int]]:
    return [(item.name, item.elements) for item in reorders(profile(builder), target())]


def test_data_are_laid_out_anew_between_blocks_and_the_rest() -> None:
    builder = GraphBuilder((16, 8, 8), seed=0)
    builder.conv(builder.top, 32)
    builder.activation(builder.top, "Softmax")
    builder.conv(builder.top, 18)
    builder.conv(builder.top, 18)
    assert found(builder) == [
        ("ReorderInput", 16 * 64),
        ("ReorderOutput", 32 * 64),
        ("ReorderInput", 32 * 64),
        ("ReorderOutput", 18 * 64),
    ]


def test_sums_of_blocks_pass_them_on() -> None:
    builder = GraphBuilder((3, 8, 8), seed=0)
    source = builder.conv(builder.top, 16)
    builder.add(builder.conv(source, 16), source)
    builder.conv(builder.top, 16)
    assert found(builder) == [("ReorderOutput", 16 * 64)]


def test_a_sum_of_blocks_and_other_data_takes_them_laid_out_anew() -> None:
    builder = GraphBuilder((16, 8, 8), seed=0)
    source = builder.top
    builder.add(builder.conv(source, 16), source)
    assert found(builder) == [("ReorderInput", 16 * 64), ("ReorderOutput", 16 * 64)]


def test_an_activation_behind_a_convolution_is_computed_with_it() -> None:
    builder = GraphBuilder((3, 8, 8), seed=0)
    builder.activation(builder.conv(builder.top, 16), "LeakyRelu")
    builder.activation(builder.top, "LeakyRelu")
    builder.conv(builder.top, 16)
    network = profile(builder)
    first, _ = (op.node for op in network.operators if op.op_type == "LeakyRelu")
    assert absorbed(network, target()) == {first}
    assert absorbed(network, target(runtime={"name": "LiteRT"})) == frozenset()
    # the second is no part of a convolution, and takes data as they come
    assert found(builder) == [
        ("ReorderOutput", 16 * 64),
        ("ReorderInput", 16 * 64),
        ("ReorderOutput", 16 * 64),
    ]


def test_a_hard_swish_is_computed_by_itself_on_blocks() -> None:
    builder = GraphBuilder((3, 8, 8), seed=0)
    builder.activation(builder.conv(builder.top, 16), "HardSwish")
    builder.conv(builder.top, 16)
    assert absorbed(profile(builder), target()) == frozenset()
    assert found(builder) == [("ReorderOutput", 16 * 64)]


def test_an_activation_of_what_others_read_too_is_not() -> None:
    builder = GraphBuilder((3, 8, 8), seed=0)
    source = builder.conv(builder.top, 16)
    builder.multiply(builder.activation(source, "Sigmoid"), source)
    assert absorbed(profile(builder), target()) == frozenset()


@pytest.mark.parametrize(
    ("ins", "outs", "groups", "wide", "narrow"),
    [
        (16, 32, 1, True, True),
        (16, 20, 1, True, False),
        (18, 32, 1, False, False),
        (16, 12, 1, False, False),
        (32, 32, 32, True, True),
        (24, 24, 24, False, False),
        (32, 32, 4, False, False),
    ],
    ids=[
        "round",
        "fours of output",
        "odd input",
        "few output",
        "depthwise",
        "odd depthwise",
        "groups",
    ],
)
def test_int8_convolutions_of_round_channels_have_a_kernel_of_their_own(
    ins: int, outs: int, groups: int, wide: bool, narrow: bool
) -> None:
    operator = convolution(ins, outs, groups=groups, bits=8)
    for features, expected, rows in ((["avx512"], wide, 6), (["avx2"], narrow, 4)):
        tile = symmetric_tile(operator, target(isa_features=features))
        assert (tile is not None) == expected
        assert tile is None or tile.rows == rows
    assert symmetric_tile(convolution(ins, outs, groups=groups), target()) is None
    assert symmetric_tile(operator, target(runtime={"name": "LiteRT"})) is None


def test_sums_with_constants_are_computed_in_float_between_conversions() -> None:
    builder = GraphBuilder((4, 8, 8), seed=0)
    shape = builder.shapes[builder.top]
    builder.add(builder.node("Add", ["input", builder.scalar(3.0)], shape), "input")
    with_constant, of_two = profile(builder, bits=8).operators
    assert is_island(with_constant, target())
    assert not is_island(of_two, target())
    assert not is_island(with_constant, target(runtime={"name": "LiteRT"}))
    assert not is_island(profile(builder).operators[0], target())


def moved(builder: GraphBuilder) -> list[tuple[str, int]]:
    layout = turned(profile(builder, bits=8), target())
    return [
        (item.name.removeprefix("Transpose to channels "), item.elements) for item in layout.moves
    ]


def test_int8_images_are_turned_where_convolutions_begin_and_end() -> None:
    builder = GraphBuilder((3, 8, 8), seed=0)
    source = builder.conv(builder.top, 16)
    builder.pool(builder.add(builder.conv(source, 16), source))
    builder.conv(builder.top, 8)
    assert moved(builder) == [("last", 3 * 64), ("first", 8 * 16)]
    network = profile(builder, bits=8)
    pool = next(op.node for op in network.operators if op.op_type == "MaxPool")
    assert pool in turned(network, target()).readers
    assert turned(network, target(runtime={"name": "LiteRT"})).moves == ()
    assert turned(profile(builder), target()).moves == ()


def test_what_needs_channels_first_has_them_turned_back() -> None:
    builder = GraphBuilder((16, 8, 8), seed=0)
    source = builder.top
    builder.concat([builder.conv(source, 16), source])
    builder.conv(builder.top, 8)
    builder.flatten(builder.top)
    assert moved(builder) == [
        ("last", 16 * 64),
        ("first", 16 * 64),
        ("last", 32 * 64),
        ("first", 8 * 64),
    ]


def test_a_transpose_of_what_is_turned_cancels() -> None:
    builder = GraphBuilder((3, 8, 8), seed=0)
    builder.channels_last(builder.conv(builder.top, 16))
    assert moved(builder) == [("last", 3 * 64)]
