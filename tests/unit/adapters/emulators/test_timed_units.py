"""What profiles say of operators that are no products."""

from __future__ import annotations

import pytest

from tightfit_service.adapters.calibration.graph_builder import GraphBuilder
from tightfit_service.adapters.emulators.format_fit import ProfiledWork
from tightfit_service.adapters.emulators.kernel_tiles import Tile
from tightfit_service.adapters.emulators.operator_work import TILED, WorkOf
from tightfit_service.adapters.emulators.roofline import RooflineEmulator
from tightfit_service.adapters.emulators.timed_units import timed_units
from tightfit_service.bootstrap import catalogue
from tightfit_service.domain.calibration import Observation
from tightfit_service.domain.hardware import NumberFormat
from tightfit_service.domain.measurement import OperatorTime
from tightfit_service.graph.profile import OnnxGraphInspector

LATENCY_MS = 1.0
PIXELS = 64


def work_of(runtime: str) -> WorkOf:
    facts = {"name": "made-up", "core": "x86-64", "core_count": 1, "runtime": {"name": runtime}}
    return WorkOf(
        base=RooflineEmulator(),
        target=catalogue().complete(facts),
        least_ms=1e-3,
        mac_ms=1e-7,
        tiles={bits: dict.fromkeys(TILED, Tile()) for bits in (8, 32)},
    )


def observed(
    builder: GraphBuilder, *operators: tuple[str, float] | tuple[str, float, int], bits: int = 32
) -> Observation:
    profile = OnnxGraphInspector().profile(builder.build())
    return Observation(
        label="made-up",
        number_format=NumberFormat.INT8 if bits == 8 else NumberFormat.FLOAT32,
        profile=profile.at_precision(weight_bits=bits, activation_bits=bits),
        latency_ms=LATENCY_MS,
        operators=tuple(
            OperatorTime(kind=kind, latency_ms=own_ms, output_elements=sum(elements))
            for kind, own_ms, *elements in operators
        ),
    )


def told(item: Observation, *, runtime: str = "LiteRT") -> list[ProfiledWork]:
    return timed_units([item], work_of(runtime))


def activations() -> GraphBuilder:
    builder = GraphBuilder((4, 8, 8), seed=0)
    for kind in ("Sigmoid", "Tanh", "Sigmoid"):
        builder.activation(builder.top, kind)
    return builder


def kinds(found: ProfiledWork) -> list[str]:
    return [str(work.kind[0]) for work in found.works]


def test_all_operators_of_a_kind_are_told_together() -> None:
    item = observed(activations(), ("Sigmoid (NC)", 0.3), ("TanH (NC)", 0.4), ("Sigmoid (NC)", 0.2))
    sigmoids, tanh = told(item)
    assert sigmoids.latency_ms == pytest.approx(0.5)
    assert kinds(sigmoids) == ["Sigmoid", "begin", "Sigmoid", "begin"]
    assert tanh.latency_ms == pytest.approx(0.4)
    assert kinds(tanh) == ["Tanh", "begin"]
    assert sigmoids.deviation == pytest.approx(2e-3 / 0.5)


def test_a_kind_that_a_runtime_ran_more_often_is_not_told() -> None:
    item = observed(
        activations(),
        ("Sigmoid (NC)", 0.3),
        ("TanH (NC)", 0.4),
        ("TanH (NC)", 0.1),
        ("Sigmoid (NC)", 0.2),
    )
    (sigmoids,) = told(item)
    assert kinds(sigmoids)[0] == "Sigmoid"


def test_what_is_small_or_told_in_few_ticks_is_left_out() -> None:
    item = observed(
        activations(), ("Sigmoid (NC)", 0.49), ("TanH (NC)", 0.004), ("Sigmoid (NC)", 0.49)
    )
    (sigmoids,) = told(item)
    assert sigmoids.latency_ms == pytest.approx(0.98)


@pytest.mark.parametrize(("elements", "count"), [(4 * PIXELS, 1), (5 * PIXELS, 0)])
def test_sizes_of_outputs_agree_where_they_are_told(elements: int, count: int) -> None:
    builder = GraphBuilder((4, 8, 8), seed=0)
    builder.activation(builder.top, "Tanh")
    item = observed(builder, ("Tanh", 0.9, elements))
    assert len(told(item, runtime="ONNX Runtime")) == count


def test_of_int8_networks_only_operators_in_int8_are_told() -> None:
    builder = GraphBuilder((4, 8, 8), seed=0)
    shape = builder.shapes["input"]
    lifted = builder.node("Add", ["input", builder.scalar(3.0)], shape)
    builder.add(builder.activation(lifted, "Erf"), "input")
    size = 4 * PIXELS
    item = observed(
        builder, ("Add", 0.2, size), ("Erf", 0.3, size), ("QLinearAdd", 0.4, size), bits=8
    )
    (found,) = told(item, runtime="ONNX Runtime")
    assert found.latency_ms == pytest.approx(0.4)
    assert found.works[0].kind == ("Add", 8, 8)
