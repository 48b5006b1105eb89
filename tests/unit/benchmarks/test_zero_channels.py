"""Networks without the channels that compilers drop."""

from __future__ import annotations

import pytest
from benchmarks.zero_channels import drops_zero_channels, without_zero_channels

from tightfit_service.domain.layer_table import parse_layer_tables

LAYERS = """model,op,in_h,in_w,in_c,out_h,out_w,out_c,kernel_h,kernel_w,stride,macs,weights,biases
net,CONV_2D,8,8,3,4,4,8,3,3,2,3456,216,8
net,DEPTHWISE_CONV_2D,4,4,8,4,4,8,3,3,1,1152,72,8
net,CONV_2D,4,4,8,4,4,16,1,1,1,2048,128,16
net,AVERAGE_POOL_2D,4,4,16,1,1,16,4,4,4,0,0,0
net,FULLY_CONNECTED,1,1,16,1,1,2,1,1,1,32,32,2
net,SOFTMAX,1,1,2,1,1,2,1,1,1,0,0,0
"""


def test_what_follows_a_narrower_layer_is_narrower_too() -> None:
    network = without_zero_channels(parse_layer_tables(LAYERS)["net"], live=(8, 4)).profile
    assert [op.out_channels for op in network.operators] == [8, 8, 4, 4, 2, 2]
    assert [op.macs for op in network.operators] == [3456, 1152, 512, 0, 8, 0]
    assert network.operators[4].weight_count == 8
    assert network.tensors[network.operators[2].outputs[0]] == (1, 4, 4, 4)


@pytest.mark.parametrize(
    ("path", "drops"),
    [
        (("x-cube-ai", "x-cube-ai/8.0"), False),
        (("x-cube-ai", "x-cube-ai/8.1"), True),
        (("x-cube-ai", "x-cube-ai/10.2"), True),
        (("x-cube-ai",), False),
        (("plumerai", "plumerai/unstated"), False),
        (("plumerai", "plumerai/2023.05"), True),
        (("tflm", "tflm/cmsis-nn"), False),
    ],
)
def test_which_releases_drop_channels(path: tuple[str, ...], drops: bool) -> None:
    assert drops_zero_channels(path) is drops
