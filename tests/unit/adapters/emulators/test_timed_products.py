"""What of a profile is believed."""

from __future__ import annotations

import pytest

from tightfit_service.adapters.calibration.graph_builder import GraphBuilder
from tightfit_service.adapters.emulators.kernel_tiles import Tile
from tightfit_service.adapters.emulators.operator_work import TILED, WorkOf
from tightfit_service.adapters.emulators.roofline import RooflineEmulator
from tightfit_service.adapters.emulators.timed_products import TimedProduct, timed_products
from tightfit_service.bootstrap import catalogue
from tightfit_service.domain.calibration import Observation
from tightfit_service.domain.hardware import NumberFormat
from tightfit_service.domain.measurement import OperatorTime
from tightfit_service.graph.profile import OnnxGraphInspector

WORK_OF = WorkOf(
    base=RooflineEmulator(),
    target=catalogue().complete({"name": "made-up", "core": "cortex-a72", "core_count": 1}),
    least_ms=1e-3,
    mac_ms=1e-7,
    tiles={32: dict.fromkeys(TILED, Tile())},
)


def profiled_dense(network_ms: float, *operators_ms: float) -> list[TimedProduct]:
    """Return what is taken of a profile of dense layers one behind the other."""
    return timed_products([dense(network_ms, *operators_ms)], WORK_OF)


def dense(network_ms: float, *operators_ms: float) -> Observation:
    builder = GraphBuilder((64,), seed=0)
    for width in range(len(operators_ms)):
        builder.dense(builder.top, 64 + width)
    return Observation(
        label="dense",
        number_format=NumberFormat.FLOAT32,
        profile=OnnxGraphInspector().profile(builder.build()),
        latency_ms=network_ms,
        operators=tuple(OperatorTime(kind="Gemm", latency_ms=own) for own in operators_ms),
    )


def test_what_profiling_takes_is_taken_off_evenly() -> None:
    found = profiled_dense(1.0, 0.3, 0.5, 0.25)
    assert {part.place for part in found} == {0}
    off = 0.05 / 3
    assert [part.latency_ms for part in found] == pytest.approx([0.3 - off, 0.5 - off, 0.25 - off])


def test_nothing_is_taken_off_where_a_network_does_more_than_its_operators() -> None:
    assert [part.latency_ms for part in profiled_dense(1.0, 0.25, 0.5)] == [0.25, 0.5]


def test_what_takes_less_than_its_own_profiling_is_not_believed() -> None:
    (only,) = profiled_dense(1.0, 0.9, 0.3, 0.4)
    assert only.latency_ms == pytest.approx(0.7)
    (single,) = profiled_dense(1.0, 1.0)
    assert only.deviation > 10 * single.deviation


def test_an_operator_of_a_tick_is_not_told() -> None:
    assert [part.latency_ms for part in profiled_dense(1.0, 0.0015, 0.9)] == [0.9]


def test_a_profile_from_another_state_of_the_device_is_not_believed() -> None:
    usual = [dense(1.0, 0.3, 0.5, 0.23)] * 3
    slow = dense(1.0, 0.5, 0.8, 0.4)
    assert {part.place for part in timed_products([*usual, slow], WORK_OF)} == {0, 1, 2}
