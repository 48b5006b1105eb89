"""Units of work: every kind has one name and one place, is run by a worker, and is on the map."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tightfit_service import bootstrap
from tightfit_service.application import work
from tightfit_service.application.units.kinds import UnitKind
from tightfit_service.settings import Settings

ROOT = Path(__file__).parents[2]


def kinds_in(module: str) -> Mapping[str, UnitKind[Any, Any]]:
    found = vars(importlib.import_module(f"tightfit_service.application.work.{module}"))
    return {name: value for name, value in found.items() if isinstance(value, UnitKind)}


FILES = [
    path.stem
    for path in sorted(Path(work.__file__).parent.glob("[a-z]*.py"))
    if kinds_in(path.stem)
]
KINDS = [kind.name for module in FILES for kind in kinds_in(module).values()]


def test_each_name_stands_for_one_kind() -> None:
    assert len(KINDS) >= 10
    assert sorted(set(KINDS)) == sorted(KINDS)


def test_every_kind_is_run_by_a_worker(tmp_path: Path) -> None:
    assert sorted(bootstrap.handler_table(Settings(data_dir=tmp_path))) == sorted(KINDS)


@pytest.mark.parametrize("module", FILES)
def test_every_file_of_units_is_on_the_map_with_its_kinds(module: str) -> None:
    page = (ROOT / "docs" / "architecture.md").read_text().splitlines()
    (row,) = [line for line in page if line.startswith(f"| `{module}.py` |")]
    for constant, kind in kinds_in(module).items():
        assert f"`{kind.name}`" in row, constant
