"""Rules of support in the notes before a search."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fakes.linear_emulator import LinearEmulator
from fakes.profiles import residual_profile
from fakes.records import make_target
from fakes.scripted_work import facts
from fakes.telemetry import RecordingTelemetry
from tightfit_service.application.costs.costing import CostModel
from tightfit_service.application.costs.support import support_notes
from tightfit_service.application.course.preflight import preflight_notes
from tightfit_service.domain.hardware import (
    Accelerator,
    AcceleratorKind,
    Fallback,
    HardwareSpec,
    NumberFormat,
)
from tightfit_service.domain.network import OperatorKind, PruningSpace

PROFILE = residual_profile()
EVERYTHING = tuple(OperatorKind)


def accelerated(
    *missing: OperatorKind, fallback: Fallback = Fallback.CPU, tops: float = 4.0
) -> HardwareSpec:
    return replace(
        make_target(),
        accelerator=Accelerator(
            kind=AcceleratorKind.NPU,
            name="An NPU",
            tops={NumberFormat.INT8: tops},
            operators=tuple(kind for kind in EVERYTHING if kind not in missing),
            fallback=fallback,
        ),
        number_formats=(NumberFormat.INT8,),
    )


def test_nothing_is_said_of_cores_alone_or_where_all_is_supported() -> None:
    assert support_notes(PROFILE, make_target(), NumberFormat.INT8) == ()
    assert support_notes(PROFILE, accelerated(), NumberFormat.INT8) == ()


def test_operators_that_fall_back_are_named_with_their_share() -> None:
    kind = OperatorKind.ELEMENTWISE
    nodes = [op.node for op in PROFILE.operators if op.kind is kind]
    assert nodes

    (note,) = support_notes(PROFILE, accelerated(kind), NumberFormat.INT8)

    assert note.code == "RUNS_ON_CORES"
    assert note.node == nodes[0]
    assert f"{len(nodes)} of {len(PROFILE.operators)} operators, 0%" in note.message
    assert all(node in note.message for node in nodes)


def test_where_one_partition_is_all_that_follows_is_left_too() -> None:
    target = accelerated(OperatorKind.ELEMENTWISE, fallback=Fallback.CPU_FROM_FIRST)
    kinds = [op.kind for op in PROFILE.operators]
    after = len(kinds) - kinds.index(OperatorKind.ELEMENTWISE)

    (note,) = support_notes(PROFILE, target, NumberFormat.INT8)

    assert f"{after} of {len(kinds)} operators" in note.message
    assert "what follows stays there" in note.message


def test_a_format_without_units_leaves_everything_to_the_cores() -> None:
    (note,) = support_notes(PROFILE, accelerated(), NumberFormat.FLOAT32)
    assert f"{len(PROFILE.operators)} of {len(PROFILE.operators)} operators, 100%" in note.message


@pytest.mark.parametrize("missing", [(), (OperatorKind.ELEMENTWISE,)])
def test_the_notes_before_a_search_are_of_the_format_that_is_exported(
    missing: tuple[OperatorKind, ...],
) -> None:
    costs = CostModel(
        emulator=LinearEmulator(), target=accelerated(*missing), telemetry=RecordingTelemetry()
    )
    model = replace(facts(), profile=PROFILE, space=PruningSpace(groups=()))
    estimates = costs.in_formats(PROFILE)
    notes = preflight_notes(model, costs=costs, estimates=estimates)
    found = [note for note in notes if note.code == "RUNS_ON_CORES"]
    assert len(found) == len(missing)
    assert all("100%" not in note.message for note in found)
