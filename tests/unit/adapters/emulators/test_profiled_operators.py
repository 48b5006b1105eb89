"""What profilers say is told by the network's own operators, or not taken at all."""

from __future__ import annotations

import pytest

from tightfit_service.adapters.calibration.graph_builder import GraphBuilder
from tightfit_service.adapters.emulators.profiled_operators import profiled_products
from tightfit_service.domain.measurement import OperatorTime
from tightfit_service.domain.network import NetworkProfile
from tightfit_service.graph.profile import OnnxGraphInspector

XNNPACK = (
    "Convert (NC, F32, QS8)",
    "Convolution (NHWC, QC8) IGEMM",
    "Add (ND)",
    "Depthwise Convolution (NHWC, QC8) UniPass",
    "Deconvolution (NHWC, QS8) IGEMM",
    "Fully Connected (NC, QS8, QC8W) GEMM",
)
ONNXRUNTIME = ("QuantizeLinear", "QLinearConv", "QLinearAdd", "Conv", "ConvTranspose", "MatMul")
PRODUCTS = (1, 3, 4, 5)


def network() -> NetworkProfile:
    """Return a convolution, a sum, a depthwise and a transposed convolution, and a dense layer."""
    builder = GraphBuilder((4, 8, 8), seed=0)
    source = builder.top
    builder.add(builder.conv(source, 4), source)
    builder.depthwise(builder.top)
    builder.transposed_conv(builder.top, 6, kernel=2)
    builder.dense(builder.flatten(builder.top), 3)
    return OnnxGraphInspector().profile(builder.build())


def times(kinds: tuple[str, ...]) -> list[OperatorTime]:
    return [
        OperatorTime(kind=kind, latency_ms=float(place))
        for place, kind in enumerate(kinds, start=1)
    ]


@pytest.mark.parametrize("kinds", [XNNPACK, ONNXRUNTIME], ids=["xnnpack", "onnxruntime"])
def test_products_are_told_in_the_order_of_the_run(kinds: tuple[str, ...]) -> None:
    found = profiled_products(network(), times(kinds))
    assert [operator.op_type for operator, _ in found] == ["Conv", "Conv", "ConvTranspose", "Gemm"]
    assert [latency_ms for _, latency_ms in found] == [place + 1.0 for place in PRODUCTS]


def test_a_runtime_that_ran_another_number_of_products_tells_nothing() -> None:
    assert profiled_products(network(), times(XNNPACK[:-1])) == []
    assert profiled_products(network(), times((*XNNPACK, XNNPACK[-1]))) == []
    assert profiled_products(network(), []) == []


def test_a_runtime_that_ran_other_products_tells_nothing() -> None:
    others = (*XNNPACK[:3], *XNNPACK[4:], XNNPACK[4])
    assert profiled_products(network(), times(others)) == []


def test_only_what_branches_cannot_move_is_told_where_outputs_are_not() -> None:
    builder = GraphBuilder((4, 8, 8), seed=0)
    first = builder.conv(builder.top, 8)
    inner = builder.conv(builder.conv(first, 8), 16)
    builder.add(inner, builder.conv(first, 16, kernel=1))
    twins = [builder.conv(builder.top, 6) for _ in range(2)]
    builder.dense(builder.global_pool(builder.concat(twins)), 3)
    profile = OnnxGraphInspector().profile(builder.build())
    kinds = ("Convolution (NHWC, F32) IGEMM",) * 6 + ("Fully Connected (NC, F32) GEMM",)
    found = profiled_products(profile, times(kinds))
    # the second and third run before, between or behind the fourth; the fifth and sixth are alike
    assert [latency_ms for _, latency_ms in found] == [1.0, 5.0, 6.0, 7.0]
    assert [operator.out_channels for operator, _ in found] == [8, 6, 6, 3]


def test_operators_that_ran_in_another_order_are_told_by_their_outputs() -> None:
    builder = GraphBuilder((4, 8, 8), seed=0)
    source = builder.top
    narrow = builder.conv(source, 2)
    wide = builder.conv(source, 16, kernel=1)
    builder.concat([narrow, wide])
    profile = OnnxGraphInspector().profile(builder.build())
    run = [
        OperatorTime(kind="Conv", latency_ms=7.0, output_elements=16 * 64),
        OperatorTime(kind="Conv", latency_ms=2.0, output_elements=2 * 64),
    ]
    found = {
        operator.out_channels: latency_ms
        for operator, latency_ms in profiled_products(profile, run)
    }
    assert found == {16: 7.0, 2: 2.0}


def test_a_shortcut_is_told_from_the_convolution_beside_it_by_its_work() -> None:
    builder = GraphBuilder((4, 8, 8), seed=0)
    source = builder.top
    main = builder.conv(source, 8, kernel=3)
    builder.add(main, builder.conv(source, 8, kernel=1))
    profile = OnnxGraphInspector().profile(builder.build())
    run = [
        OperatorTime(kind="Conv", latency_ms=1.0, output_elements=8 * 64),
        OperatorTime(kind="Conv", latency_ms=6.0, output_elements=8 * 64),
    ]
    found = {operator.kernel: ms for operator, ms in profiled_products(profile, run)}
    assert found == {(3, 3): 6.0, (1, 1): 1.0}


def test_products_of_one_size_behind_one_another_are_told_in_order() -> None:
    """A depthwise layer has fewer products than the pointwise one behind it, and may take longer."""
    builder = GraphBuilder((4, 8, 8), seed=0)
    builder.conv(builder.depthwise(builder.conv(builder.top, 8, kernel=1)), 8, kernel=1)
    profile = OnnxGraphInspector().profile(builder.build())
    run = [
        OperatorTime(kind="Conv", latency_ms=own, output_elements=8 * 64) for own in (1.0, 6.0, 2.0)
    ]
    assert [ms for _, ms in profiled_products(profile, run)] == [1.0, 6.0, 2.0]


def test_products_of_one_size_beside_one_another_are_told_if_they_are_of_one_kind() -> None:
    builder = GraphBuilder((8, 8, 8), seed=0)
    source = builder.top
    builder.add(builder.depthwise(source), builder.conv(source, 8, kernel=1))
    profile = OnnxGraphInspector().profile(builder.build())
    run = [OperatorTime(kind="Conv", latency_ms=own, output_elements=8 * 64) for own in (6.0, 2.0)]
    assert profiled_products(profile, run) == []


@pytest.mark.parametrize(("channels", "is_known"), [(16, True), (8, True), (20, False)])
def test_outputs_that_are_filled_up_to_blocks_are_recognised(channels: int, is_known: bool) -> None:
    builder = GraphBuilder((4, 8, 8), seed=0)
    builder.conv(builder.top, 6)
    profile = OnnxGraphInspector().profile(builder.build())
    run = [OperatorTime(kind="Conv", latency_ms=1.0, output_elements=channels * 64)]
    assert [ms for _, ms in profiled_products(profile, run)] == ([1.0] if is_known else [])
