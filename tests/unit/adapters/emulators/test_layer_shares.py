"""Rows of a compiler told by the layers of a network, whatever it fused, split and renamed."""

from __future__ import annotations

import pytest

from tightfit_service.adapters.emulators.layer_shares import Row, share_rows
from tightfit_service.adapters.emulators.operator_names import kind_of_name
from tightfit_service.domain.cost import OperatorCost
from tightfit_service.domain.network import OperatorKind


def layer(node: str, op_type: str, *, macs: int = 0, latency_ms: float = 1.0) -> OperatorCost:
    return OperatorCost(
        node=node,
        op_type=op_type,
        macs=macs,
        latency_ms=latency_ms,
        energy_mj=latency_ms,
        weight_bytes=7,
    )


def row(op_type: str, latency_ms: float, *, macs: int = 0, staging: float = 0.0) -> Row:
    return Row(
        op_type=op_type,
        kind=kind_of_name(op_type),
        macs=macs,
        latency_ms=latency_ms,
        energy_mj=2 * latency_ms,
        staging_bytes=staging,
    )


NETWORK = (
    layer("first", "Conv", macs=100),
    layer("second", "Conv", macs=200),
    layer("sum", "Add", latency_ms=3.0),
    layer("limit", "Clip", latency_ms=1.0),
    layer("mean", "GlobalAveragePool"),
    layer("flat", "Flatten", latency_ms=0.0),
    layer("dense", "Gemm", macs=50),
    layer("prob", "Softmax"),
)


def shares(*rows: Row) -> dict[str, float]:
    return {item.node: item.latency_ms for item in share_rows(rows, NETWORK, prefix="own").layers}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("DEPTHWISE_CONV_2D", OperatorKind.DEPTHWISE_CONV),
        ("TransposeConv2D", OperatorKind.TRANSPOSED_CONV),
        ("ConvTranspose", OperatorKind.TRANSPOSED_CONV),
        ("FullyConnected", OperatorKind.DENSE),
        ("BATCH_MATMUL", OperatorKind.MATMUL),
        ("LogSoftmax", OperatorKind.SOFTMAX),
        ("MaxPool", OperatorKind.POOL),
        ("ReduceMean", OperatorKind.GLOBAL_POOL),
        ("MAXIMUM", OperatorKind.ELEMENTWISE),
        ("EXPAND_DIMS", OperatorKind.RESHAPE),
        ("Exp", OperatorKind.ACTIVATION),
        ("LOGISTIC", OperatorKind.ACTIVATION),
        ("LeakyRelu", OperatorKind.ACTIVATION),
        ("UNPACK", OperatorKind.SLICE),
        ("PACK", OperatorKind.CONCAT),
        ("DEQUANTIZE", OperatorKind.OTHER),
        ("Unheard", OperatorKind.OTHER),
    ],
)
def test_names_of_several_vocabularies_tell_the_kind(name: str, kind: OperatorKind) -> None:
    assert kind_of_name(name) is kind


def test_products_are_told_by_their_multiplications_in_any_order() -> None:
    found = shares(
        row("Conv2D", 2.0, macs=200),
        row("Conv2D", 0.5),  # its activation
        row("FullyConnected", 3.0, macs=50),
        row("DepthwiseConv2D", 1.0, macs=100),
    )
    assert (found["first"], found["second"], found["dense"]) == (1.0, 2.5, 3.0)
    assert found["sum"] == 0.0, "nothing was said of it: it costs nothing there"


def test_products_split_by_the_compiler_are_shared_by_those_left() -> None:
    found = shares(
        row("Conv2D", 2.0, macs=100), *(row("FullyConnected", 1.0, macs=25) for _ in range(2))
    )
    assert found["first"] == 2.0
    assert (found["second"], found["dense"]) == pytest.approx((1.0, 1.0))


def test_other_operators_share_the_time_of_their_kind_as_the_emulator_has_it() -> None:
    found = shares(
        row("Add", 4.0),
        row("Minimum", 4.0),
        row("AvgPool", 5.0, macs=9),
        *(row("Softmax", 0.5) for _ in range(4)),
    )
    assert (found["sum"], found["limit"]) == (6.0, 2.0)
    assert (found["mean"], found["prob"]) == (5.0, 2.0)


def test_what_the_network_does_not_have_stands_by_itself() -> None:
    found = share_rows(
        [row("Transpose", 1.0), row("Transpose", 2.0), row("Conv2D", 1.0, macs=100)],
        NETWORK,
        prefix="own",
    )
    alone = found.layers[-1]
    assert (alone.node, alone.latency_ms, alone.energy_mj) == ("own:Transpose", 3.0, 6.0)
    assert len(found.layers) == len(NETWORK) + 1


def test_nothing_is_lost_and_what_a_layer_stores_stays() -> None:
    rows = [
        row("Conv2D", 1.5, macs=100),
        row("Conv2D", 2.5, macs=999),
        row("Relu", 0.25),
        row("Resize", 0.75),
        row("Reshape", 0.125),
    ]
    found = share_rows(rows, NETWORK, prefix="own")
    assert sum(item.latency_ms for item in found.layers) == pytest.approx(5.125)
    assert sum(item.energy_mj for item in found.layers) == pytest.approx(10.25)
    assert {item.weight_bytes for item in found.layers[: len(NETWORK)]} == {7}


def test_the_peak_is_where_most_memory_is_in_use() -> None:
    rows = [row("Conv2D", 1.0, macs=200, staging=10.0), row("Add", 1.0, staging=20.0)]
    assert share_rows(rows, NETWORK, prefix="own").peak_node == "sum"
    rows.append(row("Transpose", 1.0, staging=30.0))
    assert share_rows(rows, NETWORK, prefix="own").peak_node == "own:Transpose"
    assert share_rows([], NETWORK, prefix="own").peak_node == ""
