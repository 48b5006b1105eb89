"""Multiply-accumulates against sums done by hand."""

from __future__ import annotations

from typing import Any

import pytest
from onnx import ModelProto, NodeProto, helper

from fakes.networks import Builder
from tightfit_service.domain.network import NetworkProfile, Operator, OperatorKind
from tightfit_service.graph.products import macs_of, transform_macs
from tightfit_service.graph.profile import OnnxGraphInspector

Shapes = dict[str, tuple[int, ...]]


def profile(model: ModelProto) -> NetworkProfile:
    return OnnxGraphInspector().profile(model.SerializeToString())


def node(op_type: str, *shapes: tuple[int, ...], result: tuple[int, ...], **attributes: Any) -> int:
    """Return the products of a node whose inputs have these shapes; () is an input left out."""
    names = [f"i{index}" if shape else "" for index, shape in enumerate(shapes)]
    made: NodeProto = helper.make_node(op_type, names, ["o"], **attributes)
    known: Shapes = {name: shape for name, shape in zip(names, shapes, strict=True) if name}
    return macs_of(made, {**known, "o": result})


@pytest.mark.parametrize(
    ("equation", "shapes", "result", "macs"),
    [
        # scores: 2 heads, 5 queries by 6 keys, sums over 4; then values weighted by them
        ("bqhd,bkhd->bhqk", [(1, 5, 2, 4), (1, 6, 2, 4)], (1, 2, 5, 6), 2 * 5 * 6 * 4),
        ("bhqk,bkhd->bqhd", [(1, 2, 5, 6), (1, 6, 2, 4)], (1, 5, 2, 4), 5 * 2 * 4 * 6),
        # a dense layer over 3 tokens, with the axes before spelled out and not
        ("bti,io->bto", [(1, 3, 7), (7, 9)], (1, 3, 9), 3 * 7 * 9),
        ("...i,io->...o", [(1, 3, 7), (7, 9)], (1, 3, 9), 3 * 7 * 9),
        # no result named: letters that occur once
        ("ij,jk", [(3, 4), (4, 5)], (3, 5), 3 * 4 * 5),
        # three operands: (i, j) with (j, k) first, then (i, k) with (k, l)
        ("ij,jk,kl->il", [(3, 4), (4, 5), (5, 6)], (3, 6), 3 * 4 * 5 + 3 * 5 * 6),
        # a dot product, and a diagonal summed with weights
        ("i,i->", [(8,), (8,)], (), 8),
        ("ii,i->", [(8, 8), (8,)], (), 8),
        # nothing is multiplied and summed
        ("bij->bji", [(1, 3, 4)], (1, 4, 3), 0),
        ("bij->bi", [(1, 3, 4)], (1, 3), 0),
        ("bi,bi->bi", [(1, 3), (1, 3)], (1, 3), 0),
        ("bi,bj->bij", [(1, 3), (1, 4)], (1, 3, 4), 0),
    ],
)
def test_einsum(
    equation: str, shapes: list[tuple[int, ...]], result: tuple[int, ...], macs: int
) -> None:
    assert node("Einsum", *shapes, result=result, equation=equation) == macs


def test_operators_of_quantized_files_count_as_their_float_ones() -> None:
    image, scale, weights = (1, 3, 8, 8), (1,), (6, 3, 3, 3)
    made = (1, 6, 6, 6)
    expected = 6 * 6 * 6 * 27
    assert node("Conv", image, weights, result=made) == expected
    assert node("ConvInteger", image, weights, result=made) == expected
    assert node("QLinearConv", image, scale, scale, weights, scale, scale, result=made) == expected
    rows, matrix = (1, 5, 7), (7, 4)
    for op_type, inputs in (
        ("MatMulInteger", (rows, matrix)),
        ("QLinearMatMul", (rows, scale, scale, matrix, scale, scale)),
    ):
        assert node(op_type, *inputs, result=(1, 5, 4)) == 5 * 7 * 4


def test_deformable_convolution_counts_its_filters() -> None:
    made = node("DeformConv", (1, 4, 6, 6), (8, 4, 3, 3), (1, 18, 4, 4), result=(1, 8, 4, 4))
    assert made == 4 * 4 * 8 * 36


def test_attention_with_heads_side_by_side_or_on_an_axis() -> None:
    # 2 heads of 4 for queries and keys, of 3 for values; 5 queries, 6 keys
    expected = 2 * 5 * 6 * (4 + 3)
    apart = node("Attention", (1, 2, 5, 4), (1, 2, 6, 4), (1, 2, 6, 3), result=(1, 2, 5, 3))
    assert apart == expected
    together = node(
        "Attention",
        *((1, 5, 8), (1, 6, 8), (1, 6, 6)),
        result=(1, 5, 6),
        q_num_heads=2,
        kv_num_heads=2,
    )
    assert together == expected
    # 10 keys and values of the past beside the 6
    past = (1, 2, 10, 4)
    longer = node(
        "Attention",
        *((1, 2, 5, 4), (1, 2, 6, 4), (1, 2, 6, 3), (), past),
        result=(1, 2, 5, 3),
    )
    assert longer == 2 * 5 * 16 * (4 + 3)


def test_fourier_transforms() -> None:
    assert transform_macs(1) == 0
    assert transform_macs(8) == 4 * (8 // 2) * 3
    # 6 points by three transforms of 16
    assert transform_macs(6) == 3 * 4 * (16 // 2) * 4
    assert node("DFT", (1, 8, 1), result=(1, 8, 2), axis=1) == transform_macs(8)
    assert node("DFT", (1, 3, 8, 1), (), (), result=(1, 3, 5, 2)) == 3 * transform_macs(8)
    # 10 frames of 16 samples, half of the spectrum kept
    assert node("STFT", (1, 160, 1), (), (16,), result=(1, 10, 9, 2)) == 10 * transform_macs(16)
    assert node("STFT", (1, 160, 1), (), result=(1, 10, 9, 2)) == 10 * transform_macs(16)


def test_what_has_no_products_or_no_known_shapes_counts_as_none() -> None:
    assert node("Add", (1, 3), (1, 3), result=(1, 3)) == 0
    unknown = helper.make_node("Conv", ["x", "w"], ["y"])
    assert macs_of(unknown, {"w": (1, 1, 3, 3)}) == 0


def operator(found: NetworkProfile, name: str) -> Operator:
    return next(op for op in found.operators if op.node == name)


def test_an_einsum_in_a_graph_is_the_product_that_it_is() -> None:
    b = Builder()
    x = b.input("input", (6, 8))
    wide = b.node("dense", "Einsum", [x, b.weight("w", (8, 4), fan_in=8)], equation="bti,io->bto")
    scores = b.node("scores", "Einsum", [wide, wide], equation="bqd,bkd->bqk")
    mixed = b.node("mixed", "Einsum", [scores, wide], equation="bqk,bkd->bqd")
    turned = b.node("turned", "Einsum", [mixed], equation="btd->bdt")
    summed = b.node("summed", "Einsum", [turned], equation="bdt->bd")
    gated = b.node("gated", "Einsum", [summed, summed], equation="bd,bd->bd")
    found = profile(b.model({gated: (4,)}))
    dense = operator(found, "dense")
    assert (dense.kind, dense.macs) == (OperatorKind.DENSE, 6 * 8 * 4)
    assert (dense.in_channels, dense.out_channels, dense.weight_count) == (8, 4, 32)
    assert [(op.node, op.kind, op.macs) for op in found.operators[1:]] == [
        ("scores", OperatorKind.MATMUL, 6 * 6 * 4),
        ("mixed", OperatorKind.MATMUL, 6 * 4 * 6),
        ("turned", OperatorKind.TRANSPOSE, 0),
        ("summed", OperatorKind.GLOBAL_POOL, 0),
        ("gated", OperatorKind.ELEMENTWISE, 0),
    ]
    assert found.macs == 192 + 144 + 144
    assert found.constant_count == 0
