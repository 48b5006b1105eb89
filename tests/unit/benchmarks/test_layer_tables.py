"""Layer tables become connected networks, and printed device names become keys."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
HEADER = (
    "model,layer,op,in_h,in_w,in_c,out_h,out_w,out_c,kernel_h,kernel_w,stride,padding,macs,weights,"
    "biases,activation_in_bytes_int8,activation_out_bytes_int8,const_bytes,dtype\n"
)
BLOCK = """\
net,0,CONV_2D,8,8,3,8,8,4,3,3,1,SAME,6912,108,4,192,256,124,INT8
net,1,CONV_2D,8,8,4,8,8,4,3,3,1,SAME,9216,144,4,256,256,160,INT8
net,2,CONV_2D,8,8,4,8,8,4,3,3,1,SAME,9216,144,4,256,256,160,INT8
net,3,ADD,8,8,4,8,8,4,1,1,1,,0,0,0,512,256,0,INT8
net,4,MEAN,8,8,4,1,1,4,1,1,1,,0,0,0,256,4,8,INT8
net,5,SHAPE,1,1,4,1,1,2,1,1,1,,0,0,0,4,2,0,INT8
net,6,CONV_2D,1,1,4,1,1,4,1,1,1,SAME,16,16,4,4,4,32,INT8
net,7,MUL,8,8,4,8,8,4,1,1,1,,0,0,0,260,256,0,INT8
net,8,CONV_2D,8,8,4,8,8,2,1,1,1,SAME,512,8,2,256,128,16,INT8
net,9,CONCATENATION,8,8,4,8,8,2,1,1,1,,0,0,0,128,128,0,INT8
"""


@pytest.fixture(autouse=True)
def _benchmarks_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def test_shortcuts_gates_and_shape_arithmetic_are_recognised(tmp_path: Path) -> None:
    from benchmarks.layer_tables import read_layer_tables

    path = tmp_path / "layers.csv"
    path.write_text(HEADER + BLOCK)
    table = read_layer_tables([path])["net"]
    inputs = {op.node: op.inputs for op in table.profile.operators}
    # The block's input is added, not the tensor inside the block that has the same shape.
    assert inputs["add_3"] == ("conv_2d_2", "conv_2d_0")
    assert inputs["mul_7"] == ("add_3", "conv_2d_6")
    assert inputs["conv_2d_6"] == ("mean_4",)
    assert inputs["concatenation_9"] == ("conv_2d_8",)
    assert "shape_5" not in inputs
    assert table.const_bytes == 500
    assert table.profile.macs == 25_872


@pytest.mark.parametrize(
    ("soc", "key"),
    [
        ("STM32L4R5ZIT6U", "stm32l4r5"),
        ("STM32U575ZIT6Q", "stm32u5"),
        ("B-U585I-IOT02A", "stm32u5"),
        ("STM32H747I-DISCO", "stm32h747"),
        ("NUCLEO-L4R5ZI", "stm32l4r5"),
        ("nRF5340", "nrf5340"),
    ],
)
def test_one_silicon_has_one_key_whatever_the_board(soc: str, key: str) -> None:
    from benchmarks.measured_rows import device_of

    assert device_of(soc) == key


def test_rows_of_sizes_of_one_architecture_are_one_family() -> None:
    from benchmarks.measured_rows import family_of

    assert family_of("vww_mobilenetv1_025") == family_of("mobilenet_v1_0.5_224_fft")
    assert family_of("st_ssd_mobilenet_v1_025_192") != family_of("mobilenet_v1_0.5_224")
    assert family_of("ic_resnet8") == family_of("resnet_v1_32_32_tfs")
