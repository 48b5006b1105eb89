"""Operators at other widths and precisions."""

from __future__ import annotations

from dataclasses import replace

from fakes.scripted_work import network
from tightfit_service.domain.network import Operator, OperatorKind, Width, WidthTerm


def test_a_convolution_is_resized_on_both_sides() -> None:
    conv = network(16, 32).operators[1]
    assert conv.resized(8, 8) == network(8, 8).operators[1]
    assert conv.resized(16, 32) is conv


def test_a_depthwise_convolution_is_linear_in_its_width() -> None:
    depthwise = Operator(
        node="d",
        kind=OperatorKind.DEPTHWISE_CONV,
        op_type="Conv",
        inputs=("x",),
        outputs=("y",),
        macs=9 * 64 * 32,
        in_channels=32,
        out_channels=32,
        groups=32,
        weight_count=9 * 32,
        bias_count=32,
    )
    half = depthwise.resized(16, 16)
    assert (half.macs, half.weight_count, half.bias_count, half.groups) == (
        9 * 64 * 16,
        144,
        16,
        16,
    )


def test_products_beside_one_another_are_resized_by_their_channels() -> None:
    scores = Operator(
        node="s",
        kind=OperatorKind.MATMUL,
        op_type="MatMul",
        inputs=("q", "k"),
        outputs=("y",),
        macs=4 * 17 * 12 * 17,
        in_channels=4,
        out_channels=4,
        matrices=(4, 17, 17),
    )
    mixed = replace(scores, out_channels=12, matrices=(4, 17, 12))
    assert scores.resized(4, 3).matrices == (3, 17, 17)
    assert mixed.resized(4, 10).matrices == (4, 17, 10)
    assert replace(scores, out_channels=5).resized(4, 3).matrices == (4, 17, 17)


def test_an_operator_without_weights_follows_its_output() -> None:
    add = Operator(
        node="a",
        kind=OperatorKind.ELEMENTWISE,
        op_type="Add",
        inputs=("x", "z"),
        outputs=("y",),
        macs=640,
        in_channels=10,
        out_channels=10,
    )
    assert add.resized(5, 5).macs == 320


def test_a_width_is_a_sum_over_groups() -> None:
    width = Width(
        fixed=3,
        terms=(WidthTerm(group_id="a", multiplier=2), WidthTerm(group_id="b", multiplier=1)),
    )
    assert width.channels({"a": 4, "b": 5}) == 16


def test_precision_is_set_for_all_nodes_but_the_exceptions() -> None:
    mixed = network().at_precision(weight_bits=8, activation_bits=8, by_node={"c": (32, 32)})
    assert [op.weight_bits for op in mixed.operators] == [8, 8, 32]
    assert mixed.macs == network().macs
    assert mixed.weight_count == network().weight_count
