"""What every `TargetStore` does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fakes.databases import open_migrated
from fakes.target_store import InMemoryTargetStore
from tightfit_service.adapters.storage.sql_targets import SqlTargetStore
from tightfit_service.application.ports import Page, TargetRecord, TargetStore
from tightfit_service.domain.errors import AlreadyExistsError, NotFoundError
from tightfit_service.domain.hardware import (
    Accelerator,
    AcceleratorKind,
    Fallback,
    HardwareSpec,
    Memory,
    NumberFormat,
    Power,
    Runtime,
)
from tightfit_service.domain.network import OperatorKind


@pytest.fixture(params=["memory", "sqlite"])
def targets(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TargetStore]:
    """Every implementation of the port, empty."""
    if request.param == "memory":
        yield InMemoryTargetStore()
        return
    engine = open_migrated(tmp_path / "state.db")
    yield SqlTargetStore(engine=engine)
    engine.dispose()


def record(name: str = "our-board", project: str = "p", **changes: Any) -> TargetRecord:
    spec = HardwareSpec(
        name=name,
        display_name="Our board",
        core="cortex-m55",
        clock_mhz=400.0,
        memory=Memory(ram_bytes=1 << 21, flash_bytes=1 << 22, ram_bandwidth_mb_s=1600.0),
        runtime=Runtime(name="TFLM+Ethos-U", version="1"),
        accelerator=Accelerator(
            kind=AcceleratorKind.ETHOS_U55,
            name="Ethos-U55-128",
            clock_mhz=400.0,
            macs_per_cycle={NumberFormat.INT8: 128.0, NumberFormat.INT16X8: 64.0},
            operators=(OperatorKind.CONV, OperatorKind.DENSE),
            fallback=Fallback.CPU_FROM_FIRST,
        ),
        isa_features=("mve",),
        number_formats=(NumberFormat.INT8,),
        power=Power(active_mw=20.0, sleep_mw=0.01),
        assumed_fields=("memory.cache_bytes",),
    )
    return TargetRecord(
        project=project, spec=replace(spec, **changes), create_time=datetime(2030, 1, 2, tzinfo=UTC)
    )


def test_a_target_comes_back_as_it_was_stored(targets: TargetStore) -> None:
    assert targets.add_target(record()) == record()
    assert targets.get_target("p", "our-board") == record()


def test_the_same_description_again_is_the_first_one(targets: TargetStore) -> None:
    first = targets.add_target(record())
    later = replace(record(), create_time=datetime(2031, 1, 1, tzinfo=UTC))
    assert targets.add_target(later) == first


def test_a_name_cannot_be_taken_by_another_description(targets: TargetStore) -> None:
    targets.add_target(record())
    with pytest.raises(AlreadyExistsError):
        targets.add_target(record(clock_mhz=200.0))


def test_projects_are_apart(targets: TargetStore) -> None:
    targets.add_target(record())
    with pytest.raises(NotFoundError):
        targets.get_target("other", "our-board")
    with pytest.raises(NotFoundError):
        targets.delete_target("other", "our-board")
    assert not targets.list_targets("other", Page(size=9))
    targets.add_target(record(project="other", clock_mhz=200.0))


def test_targets_are_listed_by_name_page_by_page(targets: TargetStore) -> None:
    for name in ("c", "a", "d", "b"):
        targets.add_target(record(name))
    first = targets.list_targets("p", Page(size=3))
    rest = targets.list_targets("p", Page(size=3, after=first[-1].spec.name))
    assert [item.spec.name for item in (*first, *rest)] == ["a", "b", "c", "d"]


def test_a_deleted_target_is_gone(targets: TargetStore) -> None:
    targets.add_target(record())
    targets.delete_target("p", "our-board")
    with pytest.raises(NotFoundError):
        targets.get_target("p", "our-board")
    with pytest.raises(NotFoundError):
        targets.delete_target("p", "our-board")
