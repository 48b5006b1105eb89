"""Measurements of a calibration are written without their networks, and read again with them."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from benchmarks.observations import designed_labels, designed_profile, places, read, written

from tightfit_service.application.costs.costing import BITS
from tightfit_service.domain.calibration import Calibration, Observation
from tightfit_service.domain.hardware import NumberFormat
from tightfit_service.domain.measurement import OperatorTime


def observation(place: int, number_format: NumberFormat) -> Observation:
    weight_bits, activation_bits = BITS[number_format]
    return Observation(
        label=designed_labels(place + 1)[place],
        number_format=number_format,
        profile=designed_profile(place).at_precision(
            weight_bits=weight_bits, activation_bits=activation_bits
        ),
        latency_ms=0.0123 * (place + 1),
        operators=(OperatorTime(kind="Softmax", latency_ms=0.004, output_elements=7),),
        file_digest=f"{place:064x}",
    )


def calibration() -> Calibration:
    """Three networks, the second of which has no measurement in int8."""
    float32, int8 = NumberFormat.FLOAT32, NumberFormat.INT8
    return Calibration(
        project="default",
        target_name="board",
        runner="bench",
        runtime_name="LiteRT",
        runtime_version="litert 2",
        create_time=datetime(2026, 1, 2, tzinfo=UTC),
        observations=(
            observation(0, float32),
            observation(0, int8),
            observation(1, float32),
            observation(2, float32),
            observation(2, int8),
        ),
        skipped=("plain network in int8: no file",),
    )


def test_measurements_come_back_as_they_were() -> None:
    plain = json.loads(json.dumps(written(calibration())))
    assert "profile" not in json.dumps(plain)
    assert read(plain) == calibration()


def test_measurements_of_another_set_are_refused() -> None:
    plain = {**written(calibration()), "design": 1}
    with pytest.raises(ValueError, match="version 1 of the designed set"):
        read(plain)


def test_places_are_found_where_networks_are_missing() -> None:
    labels = ["a", "b", "a", "c"]
    assert places(["a", "a", "c"], labels) == [0, 2, 3]
    with pytest.raises(ValueError, match="in its order"):
        places(["c", "a"], labels)
