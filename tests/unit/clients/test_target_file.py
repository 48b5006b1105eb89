"""Descriptions of devices in YAML: what is read, what is refused, and on which line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import tightfit
from tightfit.target_file import line_of, placed, read_target_file, target_mapping
from tightfit.v1 import hardware_pb2

BOARD = """\
# our own board
name: our-board
core: cortex-m55
clock_mhz: 400
memory:
  ram_bytes: 2097152
  external_ram_bytes: 8388608
accelerator:
  kind: ethos-u55
  clock_mhz: 400
  macs_per_cycle: {int8: 128, int16x8: 64}
  memory_bytes: 0
  operators: [conv, dense]
number_formats: [int8]
"""


@pytest.fixture
def board(tmp_path: Path) -> Path:
    path = tmp_path / "board.yaml"
    path.write_text(BOARD)
    return path


def test_a_description_with_an_accelerator_is_read(board: Path) -> None:
    spec = read_target_file(board)
    assert spec.accelerator.kind == "ethos-u55"
    assert dict(spec.accelerator.macs_per_cycle) == {"int8": 128, "int16x8": 64}
    assert list(spec.accelerator.operators) == ["conv", "dense"]
    assert spec.memory.external_ram_bytes == 8_388_608
    assert list(spec.number_formats) == [hardware_pb2.NUMBER_FORMAT_INT8]


def test_what_is_written_is_read_as_the_same(board: Path, tmp_path: Path) -> None:
    spec = read_target_file(board)
    mapping = target_mapping(spec)
    assert mapping["accelerator"]["memory_bytes"] == 0
    copy = tmp_path / "copy.yaml"
    copy.write_text(yaml.safe_dump(mapping))
    assert read_target_file(copy) == spec


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("core", 3),
        ("memory.ram_bytes", 6),
        ("accelerator.macs_per_cycle.int16x8", 11),
        ("memory.flash_bytes", 5),
        ("power.active_mw", None),
        ("", None),
    ],
)
def test_the_line_of_a_key_or_of_what_it_belongs_into(
    board: Path, key: str, line: int | None
) -> None:
    assert line_of(board, key) == line


@pytest.mark.parametrize(
    ("old", "new", "field", "remedy"),
    [
        ("ram_bytes: 2097152", "ram_kb: 2048", "board.yaml:6: memory.ram_kb", "ram_bytes"),
        ("clock_mhz: 400\nm", "clock_mhz: fast\nm", "board.yaml:4: clock_mhz", "targets show"),
        ("ram_bytes: 2097152", "ram_bytes: 1.5", "board.yaml:6: memory.ram_bytes", "targets show"),
        ("[conv, dense]", "[3]", "board.yaml:13: accelerator.operators", "targets show"),
        ("kind: eth", "knd: eth", "board.yaml:9: accelerator.knd", "'kind'"),
        ("{int8: 128, int16x8: 64}", "128", "board.yaml:11: accelerator.macs_per_cycle", "int8"),
        ("core: cortex-m55\n", "", "board.yaml: core", "core: cortex-m7"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_line(
    board: Path, old: str, new: str, field: str, remedy: str
) -> None:
    board.write_text(BOARD.replace(old, new))
    with pytest.raises(tightfit.InvalidInputError) as caught:
        read_target_file(board)
    assert caught.value.field == field
    assert remedy in caught.value.remedy


def test_errors_of_the_service_get_their_place_in_the_file(board: Path) -> None:
    error = tightfit.InvalidInputError(
        "0 is no clock", field="target.accelerator.clock_mhz", remedy="more", reason="X"
    )
    found = placed(error, board)
    assert isinstance(found, tightfit.InvalidInputError)
    assert found.field == "board.yaml:10: accelerator.clock_mhz"
    assert (found.message, found.remedy, found.reason) == ("0 is no clock", "more", "X")
    other = tightfit.InvalidInputError("no", field="parent")
    assert placed(other, board) is other
