"""Networks from tables of their layers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tightfit_service.domain.errors import InvalidModelError
from tightfit_service.domain.layer_cells import Row, completed
from tightfit_service.domain.layer_table import parse_layer_tables, parse_one_network
from tightfit_service.domain.network import OperatorKind

HEADING = (
    "model,layer,op,in_h,in_w,in_c,out_h,out_w,out_c,kernel_h,kernel_w,stride,macs,weights,biases\n"
)
RESIDUAL = HEADING + (
    "net,0,CONV_2D,8,8,3,8,8,4,3,3,1,6912,108,4\n"
    "net,1,CONV_2D,8,8,4,8,8,4,3,3,1,9216,144,4\n"
    "net,2,ADD,8,8,4,8,8,4,1,1,1,0,0,0\n"
    "net,3,AVERAGE_POOL_2D,8,8,4,1,1,4,8,8,8,0,0,0\n"
    "net,4,FULLY_CONNECTED,1,1,4,1,1,10,1,1,1,40,40,10\n"
    "net,5,CUSTOM_THING,1,1,10,1,1,10,1,1,1,0,0,0\n"
)


def test_layers_are_connected_by_their_shapes() -> None:
    network = parse_one_network(RESIDUAL)
    kinds = [op.kind for op in network.operators]
    assert kinds == [
        OperatorKind.CONV,
        OperatorKind.CONV,
        OperatorKind.ELEMENTWISE,
        OperatorKind.POOL,
        OperatorKind.DENSE,
        OperatorKind.OTHER,
    ]
    assert network.operators[2].inputs == ("conv_2d_1", "conv_2d_0")
    assert network.outputs == ("custom_thing_5",)
    assert network.macs == 6912 + 9216 + 40


def test_networks_of_a_table_are_told_apart_by_name() -> None:
    two = RESIDUAL + "other,0,RELU,8,8,4,8,8,4,1,1,1,0,0,0\n"
    assert list(parse_layer_tables(two)) == ["net", "other"]
    with pytest.raises(InvalidModelError) as caught:
        parse_one_network(two)
    assert caught.value.field == "layers.model"


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("", "layers.op"),
        (HEADING, "layers"),
        (HEADING.replace("macs", "mac") + "net,0,RELU,8,8,4,8,8,4,1,1,1,0,0,0\n", "layers.macs"),
        (RESIDUAL.replace("6912", "many"), "layers.macs"),
        (RESIDUAL.replace("6912", "-1"), "layers.macs"),
        (RESIDUAL.replace("6912", "nan"), "layers.macs"),
        (RESIDUAL.replace("6912", "1e300"), "layers.macs"),
        (
            HEADING.strip() + ",const_bytes\nn,0,RELU,8,8,4,8,8,4,1,1,1,0,0,0,x\n",
            "layers.const_bytes",
        ),
        (HEADING + "x" * 200_000, "layers"),
        ("x" * 200_000, "layers"),
    ],
)
def test_what_cannot_be_used_is_named(text: str, field: str) -> None:
    with pytest.raises(InvalidModelError) as caught:
        parse_one_network(text)
    assert caught.value.field == field
    assert caught.value.remedy


@pytest.mark.parametrize(
    "gone",
    [
        ["kernel_h", "kernel_w"],
        ["kernel_w"],
        ["stride"],
        ["macs"],
        ["weights"],
        ["biases"],
        ["weights", "biases", "stride"],
        ["macs", "weights", "biases", "stride"],
        ["kernel_h", "kernel_w", "stride", "macs", "biases"],
        ["kernel_h", "kernel_w", "stride", "weights", "biases"],
    ],
    ids="-".join,
)
def test_cells_that_follow_from_others_are_what_they_were(gone: Sequence[str]) -> None:
    """On every operator with weights of a residual network and of a separable one."""
    rows = [
        "CONV_2D,32,32,3,16,16,8,3,3,2,55296,216,8",
        "DEPTHWISE_CONV_2D,49,10,64,25,5,64,3,3,2,72000,576,64",
        "CONV_2D,16,16,8,16,16,32,1,1,1,65536,256,32",
        "TRANSPOSE_CONV,8,8,16,16,16,4,2,2,2,16384,256,4",
        "FULLY_CONNECTED,2,2,16,1,1,10,1,1,1,640,640,10",
        "ADD,8,8,4,8,8,4,1,1,1,0,0,0",
    ]
    columns = HEADING.strip().split(",")[2:]
    for text in rows:
        whole = dict(zip(columns, text.split(","), strict=True))
        given = Row({name: "" if name in gone else value for name, value in whole.items()})
        done = completed(given, 7, weightless=frozenset({"ADD"}))
        assert {name: done[name] for name in columns} == whole


def test_a_layer_with_groups_is_read_from_its_weights() -> None:
    row = Row(
        zip(
            HEADING.strip().split(","),
            ["n", "0", "CONV_2D", "8", "8", "16", "8", "8", "16", "3", "3", "1", "", "576", ""],
            strict=True,
        )
    )
    assert completed(row, 2, weightless=frozenset())["macs"] == str(576 * 64)


def test_a_window_that_is_not_told_covers_its_input() -> None:
    pooled = parse_one_network(
        "op,in_h,in_w,in_c,out_h,out_w,out_c,macs\nAVERAGE_POOL_2D,25,5,64,1,1,64,\n"
    ).operators[0]
    assert (pooled.kernel, pooled.macs) == ((25, 5), 0)


def test_the_bytes_of_constants_follow_from_weights_and_biases() -> None:
    (table,) = parse_layer_tables(RESIDUAL).values()
    assert table.const_bytes == 108 + 144 + 40 + 4 * (4 + 4 + 10)


@pytest.mark.parametrize(
    ("line", "column"),
    [
        ("net,0,,8,8,3,8,8,4,3,3,1,6912,108,4", "op"),
        ("net,0,CONV_2D,8,,3,8,8,4,3,3,1,6912,108,4", "in_w"),
        ("net,0,CONV_2D,8,8,3,8,8,,3,3,1,6912,108,4", "out_c"),
        ("net,0,CONV_2D,8,8,0,8,8,4,3,3,1,6912,108,4", "in_c"),
        ("net,0,CONV_2D,8,8,3,8,8,4,,,1,,,4", "macs"),
        ("net,0,CONV_2D,8,8,3,8,8,4,,,1,0,,4", "weights"),
        # 40 places of a kernel are no square
        ("net,0,CONV_2D,49,10,1,25,5,64,,,2,320000,,64", "kernel_h"),
        ("net,0,BATCH_MATMUL,8,8,3,8,8,4,1,1,1,,0,0", "macs"),
        ("net,0,CUSTOM_THING,8,8,3,8,8,4,1,1,1,0,,0", "weights"),
        ("net,0,CONV_2D,8,8,3,8,8,4,1125899906842624,3,1,,,4", "macs"),
        ("net,0,CONV_2D", "in_h"),
    ],
)
def test_cells_that_do_not_follow_are_refused_by_line_and_column(line: str, column: str) -> None:
    with pytest.raises(InvalidModelError, match="line 3 of the layer table") as caught:
        parse_one_network(HEADING + "net,0,ADD,8,8,3,8,8,3,1,1,1,0,0,0\n" + line + "\n")
    assert caught.value.field == f"layers.{column}"
    assert caught.value.remedy
