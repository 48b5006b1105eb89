"""Calibrations are kept per project, target and runtime; the last one stands."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fakes.databases import open_migrated
from tightfit_service.adapters.storage.sql_calibrations import SqlCalibrationStore
from tightfit_service.application.ports import CalibrationStore
from tightfit_service.domain.calibration import Calibration, FitQuality, Observation
from tightfit_service.domain.hardware import NumberFormat
from tightfit_service.domain.measurement import OperatorTime
from tightfit_service.domain.network import NetworkProfile, Operator, OperatorKind

OPERATOR = Operator(
    node="conv",
    kind=OperatorKind.CONV,
    op_type="Conv",
    inputs=("x",),
    outputs=("y",),
    macs=10,
    out_size=(4, 4),
)
CALIBRATION = Calibration(
    project="p",
    target_name="board",
    runner="bench-1",
    runtime_name="LiteRT",
    runtime_version="litert 2.3",
    create_time=datetime(2026, 1, 2, tzinfo=UTC),
    observations=(
        Observation(
            label="conv",
            number_format=NumberFormat.INT8,
            profile=NetworkProfile(
                operators=(OPERATOR,),
                tensors={"x": (1, 1, 4, 4), "y": (1, 1, 4, 4)},
                inputs=("x",),
                outputs=("y",),
            ),
            latency_ms=1.5,
            operators=(OperatorTime(kind="Conv", latency_ms=1.25, output_elements=16),),
        ),
    ),
    quality=(
        FitQuality(
            number_format=NumberFormat.INT8,
            count=1,
            median_error=0.01,
            p90_error=0.02,
            within_10_percent=1.0,
            median_error_before=0.6,
            coverage=0.9,
        ),
    ),
)


@pytest.fixture
def store(tmp_path: Path) -> CalibrationStore:
    return SqlCalibrationStore(engine=open_migrated(tmp_path / "state.db"))


def test_a_calibration_comes_back_whole(store: CalibrationStore) -> None:
    assert store.find_calibration("p", "board", "LiteRT") is None
    store.save_calibration(CALIBRATION)
    assert store.find_calibration("p", "board", "LiteRT") == CALIBRATION
    assert store.calibration_time("p", "board", "LiteRT") == CALIBRATION.create_time


def test_others_do_not_see_it(store: CalibrationStore) -> None:
    store.save_calibration(CALIBRATION)
    for key in (("q", "board", "LiteRT"), ("p", "bord", "LiteRT"), ("p", "board", "TFLM")):
        assert store.find_calibration(*key) is None
        assert store.calibration_time(*key) is None


def test_a_later_one_takes_its_place_and_both_runtimes_go_with_the_target(
    store: CalibrationStore,
) -> None:
    later = replace(CALIBRATION, runner="bench-2")
    for calibration in (CALIBRATION, later, replace(CALIBRATION, runtime_name="TFLM")):
        store.save_calibration(calibration)
    found = store.find_calibration("p", "board", "LiteRT")
    assert found is not None
    assert found.runner == "bench-2"
    store.delete_calibration("p", "board")
    for runtime in ("LiteRT", "TFLM"):
        assert store.find_calibration("p", "board", runtime) is None
