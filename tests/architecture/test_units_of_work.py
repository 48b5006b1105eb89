"""Units of work: every kind has one name and one place, is run by a worker, and is on the map."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tightfit_service import application, bootstrap
from tightfit_service.application.unit_kinds import UnitKind
from tightfit_service.settings import Settings

ROOT = Path(__file__).parents[2]
FILES = sorted(path.stem for path in Path(application.__file__).parent.glob("*_work.py"))
HELPERS = {"recipe_work"}
"""What several kinds have in common."""


def kinds_in(module: str) -> Mapping[str, UnitKind[Any, Any]]:
    found = vars(importlib.import_module(f"tightfit_service.application.{module}"))
    return {name: value for name, value in found.items() if isinstance(value, UnitKind)}


KINDS = [kind.name for module in FILES for kind in kinds_in(module).values()]


def test_each_name_stands_for_one_kind() -> None:
    assert len(KINDS) >= 10
    assert sorted(set(KINDS)) == sorted(KINDS)


def test_every_kind_is_run_by_a_worker(tmp_path: Path) -> None:
    assert sorted(bootstrap.handler_table(Settings(data_dir=tmp_path))) == sorted(KINDS)


@pytest.mark.parametrize("module", FILES)
def test_every_file_of_units_is_on_the_map_with_its_kinds(module: str) -> None:
    page = (ROOT / "docs" / "architecture.md").read_text().splitlines()
    if module in HELPERS:
        assert not kinds_in(module)
        return
    (row,) = [line for line in page if line.startswith(f"| `{module}.py` |")]
    for constant, kind in kinds_in(module).items():
        assert f"`{kind.name}`" in row, constant
