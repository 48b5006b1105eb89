"""Scores of the emulators on tables that other people may bring."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from benchmarks import emulators
from benchmarks.emulators import compare
from benchmarks.known_networks import known_network
from benchmarks.layer_tables import with_head
from benchmarks.measured_rows import core_of
from benchmarks.other_devices import platform_of

from tightfit_service.domain.layer_table import parse_layer_tables

LAYERS = """model,layer,op,in_h,in_w,in_c,out_h,out_w,out_c,kernel_h,kernel_w,stride,macs,weights,biases
ic_resnet8,0,CONV_2D,32,32,3,32,32,16,3,3,1,442368,432,16
ic_resnet8,1,FULLY_CONNECTED,1,1,64,1,1,10,1,1,1,640,640,10
"""
ROWS = """board,soc,processor,clock_mhz,runtime,task,precision,latency_ms,energy_uj,supply_v
NUCLEO-L4R5ZI,STM32L4R5ZI,Cortex-M4F,120,X-CUBE-AI,ic,int8,10,500,1.8
Never seen (rev B),,Arm Cortex-M85 with Helium,480,,ic,int8,2,,
No clock,,Cortex-M4,,TFLM,ic,int8,3,,
Not scored,,RISC-V,100,TFLM,ic,int8,3,,
"""
DEVICES = """device,processor,accelerator,clock_mhz,runtime,model,precision,macs,latency_ms,threads,group
Raspberry Pi 5,Cortex-A76,,2400,ncnn,resnet18,fp32,1826918400,60,1,ncnn
RK3588,,Rockchip NPU,,RKNN,yolov8n,int8,,20,,rknn
Thing,Abacus,,,,resnet18,int8,1000,5,,odd
Thing,Cortex-A53,,1000,,unheard of,int8,,5,,odd
Thing,Cortex-A53,,1000,,resnet18,int8,,nan,,odd
"""


@pytest.fixture
def tables(tmp_path: Path) -> list[Path]:
    paths = []
    for name, text in (("rows", ROWS), ("devices", DEVICES), ("layers", LAYERS)):
        paths.append(tmp_path / f"{name}.csv")
        paths[-1].write_text(text)
    return paths


def test_boards_are_built_from_their_columns_and_the_rest_is_counted(tables: list[Path]) -> None:
    comparisons, skipped = compare(tables[0], tables[1], tables[2:])
    found = {(c.quantity, c.board, c.platform) for c in comparisons}
    assert found == {
        ("latency_ms", "NUCLEO-L4R5ZI", "Cortex-M"),
        ("energy_mj", "NUCLEO-L4R5ZI", "Cortex-M"),
        ("latency_ms", "Never seen (rev B)", "Cortex-M"),
        ("latency_ms", "Raspberry Pi 5", "Raspberry Pi"),
        ("latency_ms", "RK3588", "Rockchip"),
    }
    assert sum(skipped.values()) == 3
    assert "odd: no latency" in skipped


def test_the_script_prints_scores_as_json(
    tables: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["emulators.py", "--rows", str(tables[0]), "--json"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--layers", str(tables[2])])
    emulators.main()
    scores = json.loads(capsys.readouterr().out)["scores"]
    (entry,) = (s for s in scores if s["quantity"] == "latency_ms" and s["by"] == "all")
    assert entry["n"] == 2
    assert {"median_ape", "p90_ape", "within_10", "within_25", "bias", "coverage"} <= set(entry)
    monkeypatch.setattr(sys, "argv", [*arguments, "--layers", "nowhere.csv"])
    with pytest.raises(SystemExit) as refused:
        emulators.main()
    assert refused.value.code == 2
    assert "nowhere.csv" in capsys.readouterr().err


def test_a_head_of_other_width_is_told_by_the_parameters() -> None:
    table = parse_layer_tables(LAYERS)["ic_resnet8"]
    wider = with_head(table, params=432 + 16 + 65 * 1000)
    assert wider.profile.operators[-1].out_channels == 1000
    assert wider.profile.operators[-1].weight_count == 64_000
    assert with_head(table, params=432 + 16 + 650) is table


def test_named_networks_have_the_products_of_the_row_or_of_the_papers() -> None:
    assert known_network("nothing", "", 0, 0) is None
    published = known_network("resnet18", "224x224x3", 0, 0)
    larger = known_network("resnet18", "448x448", 0, 0)
    assert published is not None
    assert larger is not None
    assert published.macs == pytest.approx(1.814e9, rel=0.01)
    assert larger.macs == pytest.approx(4 * published.macs, rel=0.01)
    own = known_network("resnet18", "224x224x3", 2e9, 0)
    assert own is not None
    assert own.macs == pytest.approx(2e9, rel=0.01)


@pytest.mark.parametrize(
    ("processor", "core"),
    [("Cortex-M4F", "cortex-m4"), ("Arm Cortex-M55 (1x)", "cortex-m55"), ("Cortex-A53", "")],
)
def test_cores_are_read_from_printed_names(processor: str, core: str) -> None:
    assert core_of(processor) == core


def test_platforms_are_told_by_device_and_accelerator() -> None:
    assert platform_of("Raspberry Pi 4 with Coral USB Edge TPU") == "Coral"
    assert platform_of("Samsung Galaxy S24 Hexagon NPU") == "Snapdragon"
    assert platform_of("Abacus") == "other"
