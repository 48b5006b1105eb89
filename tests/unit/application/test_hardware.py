"""Targets of projects beside those of the catalogue."""

from __future__ import annotations

from typing import Any

import pytest

from fakes.clock import FakeClock
from fakes.scripted_work import ScriptedExecutor
from fakes.stores import InMemoryStore
from fakes.target_store import InMemoryTargetStore
from fakes.telemetry import RecordingTelemetry
from tightfit_service import bootstrap
from tightfit_service.application.hardware import HardwareLibrary
from tightfit_service.application.ports import Page
from tightfit_service.domain.errors import (
    AlreadyExistsError,
    InvalidTargetError,
    NotFoundError,
    UnsupportedError,
)

OURS = {"name": "our-board", "core": "cortex-m7", "clock_mhz": 216}


@pytest.fixture
def library() -> HardwareLibrary:
    store = InMemoryStore()
    return HardwareLibrary(
        catalogue=bootstrap.catalogue(),
        targets=InMemoryTargetStore(),
        emulators=bootstrap.emulators(),
        records=store,
        results=store,
        executor=ScriptedExecutor(),
        clock=FakeClock(),
        telemetry=RecordingTelemetry(),
    )


async def test_a_described_target_is_completed_and_found_in_its_project(
    library: HardwareLibrary,
) -> None:
    created = await library.create_target("p", OURS)

    assert created.spec.clock_mhz == 216
    assert "memory.ram_bytes" in created.spec.assumed_fields
    assert (created.project, created.emulator) == ("p", "mcu")
    assert created.create_time is not None
    assert await library.get_target("p", "our-board") == created
    assert await library.resolve("p", "our-board") == created.spec


async def test_other_projects_do_not_see_it(library: HardwareLibrary) -> None:
    await library.create_target("p", OURS)
    for project in ("q", ""):
        with pytest.raises(NotFoundError):
            await library.get_target(project, "our-board")
        listed = await library.list_targets(project, Page(size=500))
        assert "our-board" not in {target.spec.name for target in listed}
    with pytest.raises(NotFoundError):
        await library.delete_target("q", "our-board")


async def test_lists_mix_the_project_and_the_catalogue_page_by_page(
    library: HardwareLibrary,
) -> None:
    await library.create_target("p", OURS)
    names: list[str] = []
    while page := await library.list_targets("p", Page(size=37, after=names[-1] if names else "")):
        names += [target.spec.name for target in page]
    catalogued = [spec.name for spec in bootstrap.catalogue().list()]
    assert names == sorted([*catalogued, "our-board"])


async def test_validating_stores_nothing(library: HardwareLibrary) -> None:
    checked = await library.create_target("p", OURS, validate_only=True)
    assert checked.spec.name == "our-board"
    with pytest.raises(NotFoundError):
        await library.get_target("p", "our-board")


@pytest.mark.parametrize(
    ("change", "error", "field"),
    [
        ({"name": "nucleo-h743zi2"}, AlreadyExistsError, "target.name"),
        ({"name": ""}, InvalidTargetError, "target.name"),
        ({"clock_mhz": 0}, InvalidTargetError, "target.clock_mhz"),
        ({"core": "z80"}, InvalidTargetError, "target.core"),
    ],
)
async def test_what_cannot_be_a_target_is_refused(
    library: HardwareLibrary, change: dict[str, Any], error: type[Exception], field: str
) -> None:
    with pytest.raises(error) as caught:
        await library.create_target("p", {**OURS, **change}, validate_only=True)
    assert getattr(caught.value, "field", None) == field


async def test_a_deleted_target_is_gone(library: HardwareLibrary) -> None:
    await library.create_target("p", OURS)
    await library.delete_target("p", "our-board")
    with pytest.raises(NotFoundError):
        await library.resolve("p", "our-board")


async def test_every_target_has_an_emulator_or_is_said_to_have_none(
    library: HardwareLibrary,
) -> None:
    for target in await library.list_targets("", Page(size=500)):
        if target.emulator:
            assert library.cost_model(target.spec).emulator.name == target.emulator
        else:
            with pytest.raises(UnsupportedError) as caught:
                library.cost_model(target.spec)
            accelerator = target.spec.accelerator
            assert (accelerator.name if accelerator else target.spec.core) in caught.value.message
