"""Networks from tables of their layers."""

from __future__ import annotations

import pytest

from tightfit_service.domain.errors import InvalidModelError
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
        (HEADING + "x" * 200_000, "layers"),
        ("x" * 200_000, "layers"),
    ],
)
def test_what_cannot_be_used_is_named(text: str, field: str) -> None:
    with pytest.raises(InvalidModelError) as caught:
        parse_one_network(text)
    assert caught.value.field == field
    assert caught.value.remedy
