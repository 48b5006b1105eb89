"""The catalogue of targets: its files, look-up with near names, and completion of partial descriptions."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tightfit_service.adapters.targets.catalogue import YamlTargetCatalogue
from tightfit_service.adapters.targets.description import NESTED
from tightfit_service.domain.errors import InvalidTargetError, NotFoundError
from tightfit_service.domain.hardware import (
    AcceleratorKind,
    HardwareSpec,
    ModelFormat,
    NumberFormat,
    Placement,
)
from tightfit_service.domain.network import OperatorKind

CATALOGUE = YamlTargetCatalogue()
MICROCONTROLLERS = ("cortex-m", "xtensa", "riscv32")


def test_all_targets_load_sorted_with_sources() -> None:
    targets = CATALOGUE.list()
    names = [t.name for t in targets]
    assert names == sorted(names)
    assert all(t.sources for t in targets)
    assert len({t.display_name for t in targets}) == len(targets)


@pytest.mark.parametrize(
    "name", ["cortex-m4", "cortex-m7", "cortex-m33", "cortex-m0plus", "cortex-m55", "x86-64"]
)
def test_every_common_class_has_a_target_of_a_short_name(name: str) -> None:
    assert CATALOGUE.get(name).name == name


def test_the_catalogue_spans_the_field() -> None:
    targets = CATALOGUE.list()
    # what follows a comma in a display name is another runtime or accelerator of the same board
    assert len({t.display_name.partition(",")[0] for t in targets}) >= 90
    assert {t.core for t in targets} >= {
        *("cortex-m0+", "cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55", "cortex-m85"),
        *(
            "xtensa-lx6",
            "xtensa-lx7",
            "riscv32",
            "cortex-a53",
            "cortex-a72",
            "cortex-a76",
            "x86-64",
        ),
    }
    assert {t.accelerator.kind for t in targets if t.accelerator} == set(AcceleratorKind)


def test_figures_of_catalogued_targets_are_given_not_assumed() -> None:
    for target in CATALOGUE.list():
        decisive = {"runtime", "memory.ram_bytes"}
        if target.core.startswith(MICROCONTROLLERS):
            # boards that run Linux start from a card or module of any size
            decisive.add("memory.flash_bytes")
        if target.accelerator is None:
            decisive.add("clock_mhz")
        else:
            decisive |= {f"accelerator.{rate}" for rate in ("macs_per_cycle", "tops", "clock_mhz")}
        assert not decisive & set(target.assumed_fields), target.name


def test_every_class_of_core_and_accelerator_completes_a_description() -> None:
    for core in CATALOGUE.cores:
        assert CATALOGUE.complete({"core": core}).core == core
    for kind in AcceleratorKind:
        spec = CATALOGUE.complete(
            {"core": "cortex-a53", "accelerator": {"kind": kind.value, "tops": {"int8": 2}}}
        )
        assert spec.number_formats == (NumberFormat.INT8,)
        assert spec.accelerator is not None
        assert spec.accelerator.macs_per_second(NumberFormat.INT8) == 1e12


def test_an_accelerator_inherits_the_rates_and_rules_of_its_kind() -> None:
    spec = CATALOGUE.complete({"core": "cortex-m55", "accelerator": {"kind": "ethos-u55"}})
    assert spec.accelerator is not None
    assert {"accelerator.clock_mhz", "accelerator.macs_per_cycle", "runtime"} <= set(
        spec.assumed_fields
    )
    assert spec.accelerator.number_formats == (NumberFormat.INT8, NumberFormat.INT16X8)
    assert spec.placement(OperatorKind.CONV, NumberFormat.INT8) is Placement.ACCELERATOR
    assert spec.placement(OperatorKind.CONV, NumberFormat.FLOAT32) is Placement.CPU
    assert spec.placement(OperatorKind.RECURRENT, NumberFormat.INT8) is Placement.CPU


def test_rates_that_are_given_replace_those_of_the_kind_and_their_clock() -> None:
    spec = CATALOGUE.complete(
        {"core": "cortex-m55", "accelerator": {"kind": "ethos-u55", "tops": {"int8": 0.1}}}
    )
    assert spec.accelerator is not None
    assert spec.accelerator.clock_mhz is None
    assert not spec.accelerator.macs_per_cycle
    assert "accelerator.clock_mhz" not in spec.assumed_fields


@pytest.mark.parametrize(
    ("asked", "offered"),
    [
        ("nucleo-h7a3", "nucleo-h7a3zi-q"),
        ("NUCLEO_L4R5ZI", "nucleo-l4r5zi"),
        ("raspberrypi4", "raspberry-pi-4"),
        ("cortex-m3", "cortex-m33"),
    ],
)
def test_an_unknown_name_is_answered_with_near_ones(asked: str, offered: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        CATALOGUE.get(asked)
    assert offered in caught.value.remedy
    assert asked in caught.value.message


def test_a_name_like_no_other_still_gets_a_remedy() -> None:
    with pytest.raises(NotFoundError) as caught:
        CATALOGUE.get("zzzz")
    assert caught.value.remedy


def test_a_core_alone_is_completed_from_its_class() -> None:
    spec = CATALOGUE.complete({"core": "Cortex-M4F"})
    assert spec.core == "cortex-m4"
    assert spec.clock_mhz == 120
    assert {"clock_mhz", "runtime", "memory.ram_bytes"} <= set(spec.assumed_fields)
    assert NumberFormat.INT8 in spec.number_formats
    assert spec.output_format is ModelFormat.TFLITE


def test_given_figures_are_kept_and_not_listed_as_assumed() -> None:
    spec = CATALOGUE.complete(
        {
            "name": "my-board",
            "display_name": "My board",
            "core": "cortex-m7",
            "clock_mhz": 400,
            "memory": {"ram_bytes": 524_288},
            "runtime": {"name": "X-CUBE-AI"},
            "power": {"active_mw": 250.5},
            "isa_features": ["dsp"],
        }
    )
    assert (spec.name, spec.display_name) == ("my-board", "My board")
    assert spec.memory.ram_bytes == 524_288
    assert spec.memory.flash_bytes == 2_097_152
    assert spec.runtime.name == "X-CUBE-AI"
    assert spec.power.active_mw == 250.5
    assert spec.isa_features == ("dsp",)
    assert "memory.flash_bytes" in spec.assumed_fields
    assert not {"clock_mhz", "runtime", "memory.ram_bytes", "isa_features"} & set(
        spec.assumed_fields
    )


@pytest.mark.parametrize(
    ("change", "field", "hint"),
    [
        ({"clok_mhz": 3}, "target.clok_mhz", "clock_mhz"),
        ({"memory": {"ram_kb": 3}}, "target.memory.ram_kb", "ram_bytes"),
        ({"memory": 3}, "target.memory", "ram_bytes"),
        ({"clock_mhz": -1}, "target.clock_mhz", "data sheet"),
        ({"clock_mhz": 0}, "target.clock_mhz", "data sheet"),
        ({"clock_mhz": float("nan")}, "target.clock_mhz", "data sheet"),
        ({"clock_mhz": "fast"}, "target.clock_mhz", "data sheet"),
        ({"clock_mhz": True}, "target.clock_mhz", "data sheet"),
        ({"clock_mhz": 480e6}, "target.clock_mhz", "MHz"),
        ({"memory": {"ram_bytes": 0}}, "target.memory.ram_bytes", "data sheet"),
        ({"memory": {"cache_bytes": -5}}, "target.memory.cache_bytes", "data sheet"),
        ({"power": {"active_mw": -5}}, "target.power.active_mw", "data sheet"),
        ({"core": "cortex-m9"}, "target.core", "cortex-m"),
        ({"core": ""}, "target.core", "cortex-m4"),
        ({"number_formats": ["int7"]}, "target.number_formats", "int8"),
        ({"number_formats": "int8"}, "target.number_formats", "list"),
        ({"output_format": "exe"}, "target.output_format", "tflite"),
        ({"name": "My Board"}, "target.name", "my-board"),
        ({"memory": {"ram_bytes": 2**41}}, "target.memory.ram_bytes", "at most"),
        ({"memory": {"ram_bytes": 0.5e6 + 0.5}}, "target.memory.ram_bytes", "whole"),
        ({"memory": {"ram_bytes": float("inf")}}, "target.memory.ram_bytes", "at most"),
        ({"display_name": "x" * 501}, "target.display_name", "short"),
        ({"display_name": "a \x1b[31m name"}, "target.display_name", "text"),
        ({"sources": ["x\0"]}, "target.sources", "text"),
        ({"sources": ["x"] * 101}, "target.sources", "at most 100"),
        ({"accelerator": "npu"}, "target.accelerator", "kind"),
        ({"accelerator": {"tops": {"int8": 4}}}, "target.accelerator.kind", "npu"),
        ({"accelerator": {"kind": "tpu"}}, "target.accelerator.kind", "edge-tpu"),
        ({"accelerator": {"kind": "npu"}}, "target.accelerator.tops", "int8"),
        (
            {"accelerator": {"kind": "npu", "tops": {"int8": -4}}},
            "target.accelerator.tops",
            "above 0",
        ),
        ({"accelerator": {"kind": "npu", "tops": {"int7": 4}}}, "target.accelerator.tops", "int8"),
        ({"accelerator": {"kind": "npu", "tops": 4}}, "target.accelerator.tops", "int8"),
        (
            {"accelerator": {"kind": "npu", "macs_per_cycle": {"int8": 4}}},
            "target.accelerator.clock_mhz",
            "clock_mhz",
        ),
        (
            {"accelerator": {"kind": "gpu", "tops": {"int8": 4}, "operators": ["convolution"]}},
            "target.accelerator.operators",
            "conv",
        ),
    ],
)
def test_bad_descriptions_name_the_field_and_the_remedy(
    change: dict[str, Any], field: str, hint: str
) -> None:
    with pytest.raises(InvalidTargetError) as caught:
        CATALOGUE.complete({"core": "cortex-m4", **change})
    assert caught.value.field == field
    assert hint in caught.value.remedy


_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from(["int8", "npu", "cortex-m4", "cpu", "conv", "onnx"])
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["int8", "kind", "tops", "name"]), inner, max_size=3)
    ),
    max_leaves=6,
)
_MAPPING = st.dictionaries(
    st.sampled_from([f.name for kind in NESTED.values() for f in fields(kind)])
    | st.text(max_size=5),
    _VALUES,
    max_size=4,
)


@given(st.dictionaries(st.sampled_from([f.name for f in fields(HardwareSpec)]), _VALUES | _MAPPING))
def test_whatever_a_file_holds_is_a_target_or_refused_with_field_and_remedy(
    description: dict[str, Any],
) -> None:
    refusals = []
    try:
        CATALOGUE.complete({"core": "cortex-m4", **description})
    except InvalidTargetError as error:
        refusals.append(error)
    assert all(error.field.startswith("target.") and error.remedy for error in refusals)


def test_a_description_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(InvalidTargetError):
        CATALOGUE.complete(["core"])  # type: ignore[arg-type]  # what a user may send


def test_a_file_must_be_named_after_its_target(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("name: other\ncore: cortex-m4\n")
    with pytest.raises(InvalidTargetError) as caught:
        YamlTargetCatalogue(folder=tmp_path).list()
    assert caught.value.field == "target.name"


def test_none_counts_as_not_given() -> None:
    spec = CATALOGUE.complete(
        {"core": "cortex-m4", "clock_mhz": None, "power": {"active_mw": None}}
    )
    assert spec.clock_mhz == 120
    assert spec.power.active_mw is None
