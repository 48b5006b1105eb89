"""Exponential linear units keep their negative values in 8 bits, and compute the same in float."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fakes.networks import Builder
from tightfit_service.adapters.formats.onnx_import import OnnxImporter
from tightfit_service.adapters.formats.tflite_export import TfliteExporter
from tightfit_service.adapters.formats.tflite_file import TfliteFile
from tightfit_service.application.ports import QuantizationSettings
from tightfit_service.application.samples import Samples
from tightfit_service.domain.hardware import NumberFormat

_GAIN = 8.0
"""Makes some values large, whose exponentials an 8-bit scale cannot hold beside those under 1."""


def _network(kind: str, **attributes: Any) -> bytes:
    b = Builder(0)
    x = b.conv("first", b.input("input", (3, 8, 8)), 3, 6, relu=False)
    x = b.node("gain", "Mul", [x, b.constant("factor", _GAIN, dtype=np.float32)])
    x = b.node("unit", kind, [x], **attributes)
    x = b.conv("second", x, 6, 5, relu=False)
    return OnnxImporter().import_model(b.model({x: (5, 8, 8)}).SerializeToString()).graph


@pytest.mark.parametrize(
    ("kind", "attributes", "operators"),
    [
        ("Elu", {}, {"ELU"}),
        # each is converted twice, which takes seconds
        pytest.param(
            "Elu", {"alpha": 0.7}, {"MINIMUM", "EXP", "SELECT_V2"}, marks=pytest.mark.long
        ),
        pytest.param("Celu", {"alpha": 1.5}, {"ELU", "MUL"}, marks=pytest.mark.long),
        pytest.param("Selu", {}, {"MINIMUM", "EXP", "SELECT_V2"}, marks=pytest.mark.long),
    ],
)
def test_unit(kind: str, attributes: dict[str, float], operators: set[str]) -> None:
    graph = _network(kind, **attributes)
    stored = np.random.default_rng(0).normal(size=(24, 3, 8, 8)).astype(np.float32)
    noise, names = {}, set()
    for number_format in (NumberFormat.FLOAT32, NumberFormat.INT8):
        exported = TfliteExporter().export(
            graph,
            calibration=Samples(stored=stored, labels=None),
            settings=QuantizationSettings(number_format=number_format, method="minmax"),
            metadata={},
        )
        noise[number_format] = exported.parity["noise_ratio"]
        file = TfliteFile(exported.data)
        names |= {file.operator_name(item) for item in file.graph.operators}
    assert operators <= names
    assert "SELECT" not in names
    assert noise[NumberFormat.FLOAT32] < 1e-9
    assert noise[NumberFormat.INT8] < 0.01


def test_a_soft_maximum_that_begins_with_minus_infinity_is_stored_in_8_bits() -> None:
    """Over a long last axis the converter writes the maximum with -inf as its first value."""
    b = Builder(0)
    x = b.conv("conv", b.input("input", (3, 12, 12)), 3, 16, relu=False)
    x = b.node("rows", "Reshape", [x, b.ints("shape", [-1, 16, 144])])
    x = b.node("soft", "LogSoftmax", [x], axis=-1)
    stored = np.random.default_rng(0).normal(size=(8, 3, 12, 12)).astype(np.float32)
    exported = TfliteExporter().export(
        b.model({x: (16, 144)}).SerializeToString(),
        calibration=Samples(stored=stored, labels=None),
        settings=QuantizationSettings(),
        metadata={},
    )
    assert exported.parity["noise_ratio"] < 0.01
